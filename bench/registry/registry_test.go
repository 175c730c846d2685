package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// serve starts a Registry and pushes an image of one layer of the given size.
func serve(t *testing.T, o registry.Options, size int64) (*registry.Registry, string, registry.Image) {
	t.Helper()
	r := registry.New(o)
	t.Cleanup(r.Close)
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	img, err := registry.PushImage(t.Context(), s.URL, "library/app", "1", []int64{size}, 1)
	if err != nil {
		t.Fatal(err)
	}
	r.Reset()
	return r, s.URL, img
}

// get sends a GET and returns the response with its body, and the error that
// ended the body.
func get(t *testing.T, u, byteRange string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "*/*, application/vnd.oci.image.manifest.v1+json")
	if byteRange != "" {
		req.Header.Set("Range", "bytes="+byteRange)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func blobURL(base string, d proto.Digest) string {
	return fmt.Sprintf("%s/v2/library/app/blobs/%s", base, d)
}

func TestPushedImageIsServed(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		r, base, img := serve(t, registry.Options{Dir: dir}, 300_000)
		resp, raw, err := get(t, base+"/v2/library/app/manifests/1", "")
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(raw, img.Raw) {
			t.Fatalf("manifest: %v %v, %d bytes", resp.Status, err, len(raw))
		}
		if got := resp.Header.Get("Docker-Content-Digest"); got != img.Manifest.Digest.String() {
			t.Errorf("digest of the manifest is %s, want %s", got, img.Manifest.Digest)
		}
		for _, b := range img.Blobs() {
			_, body, err := get(t, blobURL(base, b.Digest), "")
			if err != nil || proto.DigestOf(body) != b.Digest || int64(len(body)) != b.Size {
				t.Errorf("blob %s: %d bytes of %s, %v", b.Digest, len(body), proto.DigestOf(body), err)
			}
			if least, most := r.Copies(b.Digest); least != 1 || most != 1 {
				t.Errorf("copies of %s = %d to %d, want 1", b.Digest, least, most)
			}
		}
		c := r.Count()
		if c.BlobBytes+c.ManifestBytes != img.Size() || c.BlobGets != 2 || c.ManifestGets != 1 {
			t.Errorf("counts %+v of an image of %d bytes", c, img.Size())
		}
	}
}

func TestSameSeedSameImage(t *testing.T) {
	_, _, a := serve(t, registry.Options{}, 1000)
	_, _, b := serve(t, registry.Options{}, 1000)
	if a.Manifest != b.Manifest {
		t.Errorf("the same seed made %v and %v", a.Manifest, b.Manifest)
	}
}

func TestCopies(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	d := img.Layers[0].Digest
	for _, step := range []struct {
		byteRange   string
		least, most int
	}{
		{"0-99", 0, 1},
		{"100-499", 0, 1},
		{"500-999", 1, 1},
		{"400-599", 1, 2},
		{"999-999", 1, 2},
		{"0-999", 2, 3},
	} {
		if _, _, err := get(t, blobURL(base, d), step.byteRange); err != nil {
			t.Fatal(err)
		}
		if least, most := r.Copies(d); least != step.least || most != step.most {
			t.Errorf("after %s copies are %d to %d, want %d to %d", step.byteRange, least, most, step.least, step.most)
		}
	}
}

func TestBodyFaults(t *testing.T) {
	const size = 200_000
	r, base, img := serve(t, registry.Options{}, size)
	u := blobURL(base, img.Layers[0].Digest)
	_, want, _ := get(t, u, "")
	for _, tc := range []struct {
		name      string
		faults    registry.Faults
		byteRange string
		status    int
		length    int64 // Content-Length
		got       int64 // bytes that arrive
		counted   int64
		err       error
	}{
		{"cut", registry.Faults{CutAfter: 70_001}, "", 200, size, 70_001, 70_001, io.ErrUnexpectedEOF},
		{"cut of a range", registry.Faults{CutAfter: 1}, "100-", 206, size - 100, 1, 1, io.ErrUnexpectedEOF},
		{"cut, chunked", registry.Faults{CutAfter: 5, Chunked: true}, "", 200, -1, 5, 5, io.ErrUnexpectedEOF},
		{"cut after the end", registry.Faults{CutAfter: size}, "", 200, size, size, size, nil},
		{"short", registry.Faults{ShortBody: true}, "", 200, size - 1, size - 1, size - 1, nil},
		{"short, chunked", registry.Faults{ShortBody: true, Chunked: true}, "", 200, -1, size - 1, size - 1, nil},
		{"long", registry.Faults{LongBody: true}, "0-9", 206, 11, 11, 10, nil},
		{"long, chunked", registry.Faults{LongBody: true, Chunked: true}, "", 200, -1, size + 1, size, nil},
		{"no range", registry.Faults{NoRange: true}, "5-9", 200, size, size, size, nil},
		{"status", registry.Faults{Status: 429}, "", 429, -2, -2, 0, nil},
		{"slow", registry.Faults{Rate: 1 << 30}, "", 200, size, size, size, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.SetFaults(tc.faults)
			r.Reset()
			resp, body, err := get(t, u, tc.byteRange)
			if resp.StatusCode != tc.status || !errors.Is(err, tc.err) {
				t.Fatalf("%s and %v, want %d and %v", resp.Status, err, tc.status, tc.err)
			}
			if tc.length == -2 {
				return
			}
			if resp.ContentLength != tc.length || int64(len(body)) != tc.got {
				t.Errorf("%d of %d bytes, want %d of %d", len(body), resp.ContentLength, tc.got, tc.length)
			}
			if n := min(len(body), size); tc.byteRange == "" && !bytes.Equal(body[:n], want[:n]) {
				t.Error("wrong bytes")
			}
			if n := r.Count().BlobBytes; n != tc.counted {
				t.Errorf("counted %d bytes, want %d", n, tc.counted)
			}
		})
	}
}

func TestWrongBytes(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 100_000)
	u := blobURL(base, img.Layers[0].Digest)
	r.SetFaults(registry.Faults{WrongBytes: 1})
	for i, want := range []bool{false, true} {
		if _, body, _ := get(t, u, ""); (proto.DigestOf(body) == img.Layers[0].Digest) != want {
			t.Errorf("answer %d is right: %v, want %v", i, !want, want)
		}
	}
}

func TestFailFirst(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	u := blobURL(base, img.Layers[0].Digest)
	r.SetFaults(registry.Faults{FailFirst: 2})
	for i, want := range []int{503, 503, 200, 200} {
		if resp, _, _ := get(t, u, ""); resp.StatusCode != want {
			t.Errorf("answer %d is %s, want %d", i, resp.Status, want)
		}
	}
}

// A stalled body goes on when the faults change, and ends with the client or
// the registry.
func TestStall(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 100_000)
	u := blobURL(base, img.Layers[0].Digest)
	open := func(ctx context.Context) io.ReadCloser {
		r.SetFaults(registry.Faults{StallAfter: 50_000})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		return resp.Body
	}
	body := open(t.Context())
	r.SetFaults(registry.Faults{})
	if rest, err := io.ReadAll(body); err != nil || len(rest) != 50_000 {
		t.Errorf("after the stall: %d bytes, %v", len(rest), err)
	}
	body.Close()

	ctx, cancel := context.WithCancel(t.Context())
	body = open(ctx)
	cancel()
	if _, err := io.ReadAll(body); !errors.Is(err, context.Canceled) {
		t.Errorf("read after cancel: %v", err)
	}
	body.Close()

	body = open(t.Context())
	r.Close()
	if _, err := io.ReadAll(body); err == nil {
		t.Error("the body did not end with the registry")
	}
	body.Close()
}

func TestRedirect(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	u := blobURL(base, img.Layers[0].Digest)
	r.SetFaults(registry.Faults{Redirect: true})
	resp, body, err := get(t, u, "10-19")
	if err != nil || resp.StatusCode != http.StatusPartialContent || len(body) != 10 {
		t.Fatalf("%s, %d bytes, %v", resp.Status, len(body), err)
	}
	target := resp.Request.URL.String()
	if strings.HasPrefix(target, base) {
		t.Fatalf("redirected to %s itself", target)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	req.SetBasicAuth("a", "b")
	leak, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	leak.Body.Close()
	if c := r.Count(); leak.StatusCode != http.StatusBadRequest || c.Leaks != 1 || c.Redirects != 1 || c.Storage != 2 {
		t.Errorf("with Authorization: %s, counts %+v", leak.Status, c)
	}
	r.ExpireRedirects()
	if resp, _, _ := get(t, target, ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("expired redirect: %s, want 403", resp.Status)
	}
}

func TestAuth(t *testing.T) {
	opts := registry.Options{
		Users:   map[string]string{"ann": "secret"},
		Private: []string{"library/app"},
	}
	r, base, img := serve(t, opts, 1000)
	u := blobURL(base, img.Layers[0].Digest)
	ask := func(u, user, bearer string) (*http.Response, string) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if user != "" {
			req.SetBasicAuth(user, "secret")
		}
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct{ Token string }
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		return resp, answer.Token
	}

	r.SetFaults(registry.Faults{Auth: registry.AuthBasic})
	for user, want := range map[string]int{"": 401, "bob": 401, "ann": 200} {
		if resp, _ := ask(u, user, ""); resp.StatusCode != want {
			t.Errorf("Basic as %q: %s, want %d", user, resp.Status, want)
		}
	}

	r.SetFaults(registry.Faults{Auth: registry.AuthToken})
	resp, _ := ask(u, "", "")
	const scope = "repository:library/app:pull"
	if got := resp.Header.Get("WWW-Authenticate"); !strings.Contains(got, scope) {
		t.Errorf("challenge %q lacks %s", got, scope)
	}
	tokens := base + "/token?" + url.Values{"service": {"shoal test registry"}, "scope": {scope}}.Encode()
	_, nobody := ask(tokens, "", "")
	_, ann := ask(tokens, "ann", "")
	for token, want := range map[string]int{"": 401, "made up": 401, nobody: 401, ann: 200} {
		if resp, _ := ask(u, "", token); resp.StatusCode != want {
			t.Errorf("with token %q: %s, want %d", token, resp.Status, want)
		}
	}
	if resp, _ := ask(tokens, "bob", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token for a stranger: %s, want 401", resp.Status)
	}
	r.RevokeTokens()
	if resp, _ := ask(u, "", ann); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("with a revoked token: %s, want 401", resp.Status)
	}

	withUser := strings.Replace(base, "http://", "http://ann:secret@", 1)
	if _, err := registry.PushImage(t.Context(), withUser, "library/app", "2", []int64{10}, 2); err != nil {
		t.Errorf("push with a login: %v", err)
	}
	if _, err := registry.PushImage(t.Context(), base, "library/app", "2", []int64{10}, 2); err == nil {
		t.Error("push without a login went through")
	}
}

func TestManifestFaults(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	u := base + "/v2/library/app/manifests/1"
	head := func() *http.Response {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodHead, u, nil)
		req.Header.Set("Accept", img.MediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	if resp := head(); resp.ContentLength != img.Manifest.Size {
		t.Errorf("Content-Length %d, want %d", resp.ContentLength, img.Manifest.Size)
	}
	r.SetFaults(registry.Faults{NoLength: true})
	if resp := head(); resp.ContentLength != -1 || resp.Header.Get("Docker-Content-Digest") != "" {
		t.Errorf("headers %v, want neither length nor digest", resp.Header)
	}
	r.SetFaults(registry.Faults{WrongDigest: true})
	if resp := head(); resp.Header.Get("Docker-Content-Digest") == img.Manifest.Digest.String() {
		t.Error("the digest is right")
	}
	r.SetFaults(registry.Faults{ManifestStatus: 502})
	if resp := head(); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("%s, want 502", resp.Status)
	}
}

// The rate is of all connections together.
func TestRate(t *testing.T) {
	const size = 1 << 20
	r, base, img := serve(t, registry.Options{}, size)
	r.SetFaults(registry.Faults{Rate: 8 << 20})
	start := time.Now()
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, _, err := get(t, blobURL(base, img.Layers[0].Digest), "")
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	// 2 MiB at 8 MiB/s take 250 ms less the burst, and never less than that.
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("2 MiB at 8 MiB/s took %s", took)
	}
}
