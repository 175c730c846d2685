package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
)

// ask sends a request for a manifest or a list of library/app and returns the
// answer and its body.
func ask(ctx context.Context, t *testing.T, method, u string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "*/*, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestManifestHeaders(t *testing.T) {
	r, base, _ := serve(t, registry.Options{}, 1000)
	u := base + "/v2/library/app/manifests/1"
	for _, tc := range []struct {
		name                         string
		faults                       registry.Faults
		status                       int
		retryAfter, limit, remaining string
	}{
		{"none", registry.Faults{}, 200, "", "", ""},
		{"limited", registry.Faults{RateLimit: "100;w=21600 76;w=21600"}, 200, "", "100;w=21600", "76;w=21600"},
		{"used up", registry.Faults{RateLimit: "100;w=21600 0;w=21600", ManifestStatus: 429, RetryAfter: "60"}, 429, "60", "100;w=21600", "0;w=21600"},
		{"own wait", registry.Faults{ManifestStatus: 503, RetryAfter: "60", ManifestRetryAfter: "5"}, 503, "5", "", ""},
	} {
		r.SetFaults(tc.faults)
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			resp, _, err := ask(t.Context(), t, method, u)
			if err != nil {
				t.Fatal(err)
			}
			h := resp.Header
			if resp.StatusCode != tc.status || h.Get("Retry-After") != tc.retryAfter ||
				h.Get("RateLimit-Limit") != tc.limit || h.Get("RateLimit-Remaining") != tc.remaining {
				t.Errorf("%s, %s: %s with %v", tc.name, method, resp.Status, h)
			}
		}
	}
}

// A manifest that is stalled comes when the faults change, and ends with the
// client.
func TestStallManifests(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	u := base + "/v2/library/app/manifests/1"
	r.SetFaults(registry.Faults{StallManifests: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() {
		_, _, err := ask(ctx, t, http.MethodHead, u)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	go func() {
		_, body, err := ask(t.Context(), t, http.MethodGet, u)
		if err == nil && body != string(img.Raw) {
			err = errors.New("another body")
		}
		done <- err
	}()
	for gets := 0; gets == 0; {
		_, gets = r.Lookups("library/app", "1")
	}
	select {
	case err := <-done:
		t.Fatalf("answered while stalled: %v", err)
	default:
	}
	r.SetFaults(registry.Faults{})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	d := img.Manifest.Digest
	tags, referrers := base+"/v2/library/app/tags/list", base+"/v2/library/app/referrers/"+d.String()
	step := func(what, u string, status int, want string) *http.Response {
		resp, body, err := ask(t.Context(), t, http.MethodGet, u)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status || !strings.Contains(body, want) {
			t.Errorf("%s: %s, %s; want %d, %s", what, resp.Status, body, status, want)
		}
		return resp
	}
	step("tags", tags, 200, `"tags":["1"]`)
	step("no referrers API", referrers, 404, "")
	r.SetReferrers("library/app", d, []byte("an index"))
	if resp := step("referrers", referrers+"?artifactType=a", 200, "an index"); resp.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("headers %v", resp.Header)
	}
	r.SetFaults(registry.Faults{ListStatus: 500})
	step("tags with an error", tags+"?n=1", 500, "")
	step("referrers with an error", referrers, 500, "")
	step("the manifest all the same", base+"/v2/library/app/manifests/1", 200, "")
	if n, m := r.TagLists("library/app"), r.ReferrerLists("library/app", d); n != 2 || m != 3 {
		t.Errorf("%d and %d lists, want 2 and 3", n, m)
	}
	if c := r.Count(); c.Lists != 5 || c.Other != 0 || c.ManifestGets != 1 {
		t.Errorf("counts %+v, want 5 lists", c)
	}
}

func TestLookups(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1000)
	d := img.Manifest.Digest.String()
	for _, step := range []struct{ method, reference string }{
		{http.MethodHead, "1"}, {http.MethodHead, "1"}, {http.MethodGet, "1"}, {http.MethodGet, d}, {http.MethodHead, "none"},
	} {
		if _, _, err := ask(t.Context(), t, step.method, base+"/v2/library/app/manifests/"+step.reference); err != nil {
			t.Fatal(err)
		}
	}
	for reference, want := range map[string][2]int{"1": {2, 1}, d: {0, 1}, "none": {1, 0}, "2": {0, 0}} {
		if heads, gets := r.Lookups("library/app", reference); heads != want[0] || gets != want[1] {
			t.Errorf("%s: %d HEADs and %d GETs, want %v", reference, heads, gets, want)
		}
	}
	r.Reset()
	if heads, gets := r.Lookups("library/app", "1"); heads+gets != 0 {
		t.Errorf("%d and %d after Reset", heads, gets)
	}
}

// A registry that is down answers nothing at all, and nothing goes on.
func TestDown(t *testing.T) {
	r, base, img := serve(t, registry.Options{}, 1<<20)
	layer := blobURL(base, img.Layers[0].Digest)
	r.SetFaults(registry.Faults{StallAfter: 1000})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, layer, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.SetFaults(registry.Faults{Down: true})
	if body, err := io.ReadAll(resp.Body); err == nil || len(body) != 1000 {
		t.Errorf("a body that was under way: %d bytes, %v", len(body), err)
	}
	urls := []string{base + "/v2/", base + "/token", layer, base + "/v2/library/app/manifests/1", base + "/v2/library/app/tags/list"}
	for _, u := range urls {
		if resp, _, err := ask(t.Context(), t, http.MethodGet, u); err == nil {
			t.Errorf("%s: %s", u, resp.Status)
		}
	}
	if n := r.Count().Dropped; n < len(urls) {
		t.Errorf("%d requests dropped, want %d", n, len(urls))
	}
	r.SetFaults(registry.Faults{})
	for _, u := range []string{base + "/v2/", layer} {
		if resp, _, err := ask(t.Context(), t, http.MethodGet, u); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s after it came back: %v", u, err)
		}
	}
}

func TestPushManifest(t *testing.T) {
	_, base, img := serve(t, registry.Options{}, 1000)
	const mediaType = "application/vnd.oci.image.index.v1+json"
	raw := `{"schemaVersion":2,"mediaType":"` + mediaType + `","manifests":[]}`
	if err := registry.PushManifest(t.Context(), base, "library/app", "list", mediaType, []byte(raw)); err != nil {
		t.Fatal(err)
	}
	if err := registry.PushManifest(t.Context(), base, "library/app", img.Manifest.Digest.String(), img.MediaType, img.Raw); err != nil {
		t.Fatal(err)
	}
	resp, body, err := ask(t.Context(), t, http.MethodGet, base+"/v2/library/app/manifests/list")
	if err != nil || body != raw || resp.Header.Get("Content-Type") != mediaType {
		t.Errorf("%s %s, %v", resp.Header.Get("Content-Type"), body, err)
	}
}
