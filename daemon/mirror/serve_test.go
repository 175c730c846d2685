package mirror

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

func TestRange(t *testing.T) {
	t.Parallel()
	const size = 600_000 // three chunks
	const noRange = "bytes */600000"
	tests := []struct {
		name     string
		headers  []string // of the request; <digest> is the blob's
		status   int
		from, to int    // of the content, exclusive
		content  string // Content-Range
	}{
		{"none", nil, 200, 0, size, ""},
		{"containerd with parallel fetch", []string{"Range: bytes=0-"}, 206, 0, size, "bytes 0-599999/600000"},
		{"one byte", []string{"Range: bytes=0-0"}, 206, 0, 1, "bytes 0-0/600000"},
		{"across chunks", []string{"Range: bytes=262000-525000"}, 206, 262000, 525001, "bytes 262000-525000/600000"},
		{"open end", []string{"Range: bytes=590000-"}, 206, 590000, size, "bytes 590000-599999/600000"},
		{"last byte", []string{"Range: bytes=599999-"}, 206, size - 1, size, "bytes 599999-599999/600000"},
		{"suffix", []string{"Range: bytes=-500"}, 206, size - 500, size, "bytes 599500-599999/600000"},
		{"suffix longer than all", []string{"Range: bytes=-99999999"}, 206, 0, size, "bytes 0-599999/600000"},
		{"end after the end", []string{"Range: bytes=5-99999999"}, 206, 5, size, "bytes 5-599999/600000"},
		{"start at the end", []string{"Range: bytes=600000-"}, 416, 0, 0, noRange},
		{"backwards", []string{"Range: bytes=5-2"}, 416, 0, 0, ""},
		{"malformed", []string{"Range: bytes=x"}, 416, 0, 0, ""},
		{"another unit", []string{"Range: lines=1-2"}, 416, 0, 0, ""},
		{"more than there is", []string{"Range: bytes=" + strings.Repeat("0-,", 50) + "0-"}, 200, 0, size, ""},
		{"If-Range of it", []string{"Range: bytes=7-9", `If-Range: "<digest>"`}, 206, 7, 10, "bytes 7-9/600000"},
		{"If-Range of another", []string{"Range: bytes=7-9", `If-Range: "sha256:x"`}, 200, 0, size, ""},
		{"If-None-Match of it", []string{`If-None-Match: "<digest>"`}, 304, 0, 0, ""},
		{"If-None-Match of another", []string{`If-None-Match: "x"`}, 200, 0, size, ""},
		{"If-Match of another", []string{`If-Match: "x"`}, 412, 0, 0, ""},
	}
	b := newBed(t, options{})
	sizes := make([]int64, len(tests))
	for i := range sizes {
		sizes[i] = size
	}
	layers := b.push(t, "team/app", "1", sizes...).Layers
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			content := b.content(t, "team/app", layers[i].Digest)
			headers := strings.Split(strings.ReplaceAll(strings.Join(test.headers, "\n"), "<digest>", layers[i].Digest.String()), "\n")
			for _, state := range []string{"cold", "whole"} {
				a := b.get(t, blobPath("team/app", layers[i].Digest), headers...)
				if a.status == http.StatusRequestedRangeNotSatisfiable && test.status == a.status {
					a.want(t, test.status, "RANGE_INVALID")
				} else if a.status != test.status || a.err != nil || !bytes.Equal(a.body, content[test.from:test.to]) {
					t.Errorf("%s: %d with %d bytes, %v, want %d with %d to %d", state, a.status, len(a.body), a.err, test.status, test.from, test.to)
				}
				if got := a.header.Get("Content-Range"); got != test.content {
					t.Errorf("%s: Content-Range %q, want %q", state, got, test.content)
				}
				whole(t, b, layers[i])
			}
		})
	}
}

func TestSeveralRanges(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	layer := b.push(t, "team/app", "1", 2*mib).Layers[0]
	content := b.content(t, "team/app", layer.Digest)
	for _, state := range []string{"cold", "whole"} {
		a := b.get(t, blobPath("team/app", layer.Digest), "Range: bytes=1000000-1000009,5-7")
		mediaType, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if a.status != http.StatusPartialContent || mediaType != "multipart/byteranges" || err != nil || a.err != nil {
			t.Fatalf("%s: %d %s, %v, %v", state, a.status, mediaType, err, a.err)
		}
		parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
		for _, want := range [][]byte{content[1000000:1000010], content[5:8]} {
			part, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: part of %d bytes, %v", state, len(got), err)
			}
		}
		whole(t, b, layer)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", mib, 0)
	type want struct {
		path, mediaType string
		blob            proto.Blob
	}
	for _, test := range []want{
		{manifestPath("team/app", "1"), pushed.MediaType, pushed.Manifest},
		{manifestPath("team/app", pushed.Manifest.Digest.String()), pushed.MediaType, pushed.Manifest},
		{blobPath("team/app", pushed.Layers[0].Digest), octets, pushed.Layers[0]},
		{blobPath("team/app", pushed.Layers[1].Digest), octets, pushed.Layers[1]}, // empty
		{blobPath("team/app", pushed.Config.Digest), octets, pushed.Config},
	} {
		for _, method := range []string{http.MethodHead, http.MethodGet, http.MethodHead, http.MethodGet} {
			a := b.ask(t, method, test.path, "Accept-Encoding: zstd,gzip,deflate")
			if a.status != http.StatusOK {
				t.Fatalf("%s %s: %d %s", method, test.path, a.status, a.body)
			}
			for name, value := range map[string]string{
				"Content-Type":                    test.mediaType,
				"Content-Length":                  fmt.Sprint(test.blob.Size),
				"Docker-Content-Digest":           test.blob.Digest.String(),
				"Etag":                            `"` + test.blob.Digest.String() + `"`,
				"Docker-Distribution-Api-Version": "registry/2.0",
				"Accept-Ranges":                   "bytes",
				"X-Content-Type-Options":          "nosniff",
				"Content-Encoding":                "",
				"Last-Modified":                   "",
			} {
				if got := a.header.Get(name); got != value {
					t.Errorf("%s %s: %s: %q, want %q", method, test.path, name, got, value)
				}
			}
			if method == http.MethodGet && proto.DigestOf(a.body) != test.blob.Digest || method == http.MethodHead && len(a.body) > 0 {
				t.Errorf("%s %s: a body of %d bytes", method, test.path, len(a.body))
			}
		}
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", mib)
	path := blobPath("team/app", pushed.Layers[0].Digest)
	if a := b.ask(t, http.MethodHead, path, "Range: bytes=5-"); a.status != http.StatusOK || a.header.Get("Content-Length") != fmt.Sprint(mib) {
		t.Errorf("HEAD with Range: %d, length %s", a.status, a.header.Get("Content-Length"))
	}
	if a := b.ask(t, http.MethodHead, path, fmt.Sprintf("If-None-Match: %q", pushed.Layers[0].Digest)); a.status != http.StatusNotModified {
		t.Errorf("HEAD with If-None-Match: %d", a.status)
	}
	if a := b.ask(t, http.MethodHead, manifestPath("team/app", "none")); a.status != http.StatusNotFound || len(a.body) > 0 {
		t.Errorf("HEAD of an unknown tag: %d with %d bytes", a.status, len(a.body))
	}
	if n := b.reg.Count(); n.BlobGets != 0 || n.ManifestGets != 0 {
		t.Errorf("HEADs fetched content: %+v", n)
	}
}

func TestRangeOfAManifest(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", 1000)
	for _, reference := range []string{"1", pushed.Manifest.Digest.String()} {
		a := b.get(t, manifestPath("team/app", reference), "Range: bytes=0-")
		if a.status != http.StatusPartialContent || !bytes.Equal(a.body, pushed.Raw) || a.header.Get("Content-Type") != pushed.MediaType {
			t.Errorf("%s: %d %q", reference, a.status, a.header.Get("Content-Type"))
		}
		a = b.get(t, manifestPath("team/app", reference), "Range: bytes=10-19")
		if a.status != http.StatusPartialContent || !bytes.Equal(a.body, pushed.Raw[10:20]) {
			t.Errorf("%s: %d %q", reference, a.status, a.body)
		}
	}
}

// A whole blob goes through sendfile: net/http gets to see the file itself.
func TestFileReachesTheConnectionAsSuch(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inner := &fileWatcher{ResponseRecorder: httptest.NewRecorder()}
	w := &response{ResponseWriter: inner}
	if n, err := io.CopyN(w, file{f, 7}, 7); n != 7 || err != nil || w.bytes != 7 || inner.Body.String() != "content" {
		t.Errorf("copied %d bytes, counted %d: %v", n, w.bytes, err)
	}
	if !inner.saw {
		t.Error("what arrived at net/http is no longer a file, so the kernel can't send it")
	}
}

// A fileWatcher tells whether it was given a file by io.CopyN, as net sees it.
type fileWatcher struct {
	*httptest.ResponseRecorder
	saw bool
}

func (w *fileWatcher) ReadFrom(src io.Reader) (int64, error) {
	if limited, ok := src.(*io.LimitedReader); ok {
		_, w.saw = limited.R.(syscall.Conn)
	}
	return io.Copy(struct{ io.Writer }{w.ResponseRecorder}, src)
}

func TestAccessLog(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{rules: []policy.Rule{policy.AllowRepositories(upstream, []string{"team/*"})}})
	pushed := b.push(t, "team/app", "1", 1000)
	b.get(t, blobPath("team/app", pushed.Layers[0].Digest), "Range: bytes=0-9")
	b.get(t, blobPath("private/app", pushed.Layers[0].Digest))
	b.close()
	log := b.log.String()
	for _, want := range []string{
		fmt.Sprintf("level=DEBUG msg=request method=GET kind=blob upstream=registry.test repository=team/app reference=%s status=206 bytes=10 source=origin", pushed.Layers[0].Digest),
		`range="bytes=0-9"`,
		"repository=private/app", "status=403", "denied by policy",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
}
