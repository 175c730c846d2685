package proxy

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
)

// FuzzWhat: only a GET or HEAD below /v2/ is content, and of those each that has
// a manifest or blob in its path, whatever else is in it.
func FuzzWhat(f *testing.F) {
	for _, s := range []string{"GET /v2/a/manifests/v1", "HEAD /v2/a/b/blobs/sha256:x", "GET /v2/a/blobs/uploads/", "GET /v2/%2e%2e/manifests/x", "GET /v2/", "PUT /v2/a/manifests/x", "GET http://h/v2/a/manifests/x", "GET /v2/a/manifests/x?ns=y", "GET //v2/a/mani%66ests/x", "GET /a/../v2/a/blobs//x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(s + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil {
			return
		}
		read := r.Method == "GET" || r.Method == "HEAD"
		is := strings.Contains(r.URL.Path, "/manifests/") || strings.Contains(r.URL.Path, "/blobs/")
		switch got := what(r); {
		case got == content && (!read || !is):
			t.Errorf("%q is taken for content", s)
		case got != content && read && is && strings.HasPrefix(r.URL.Path, "/v2/") && !strings.Contains(r.URL.Path, ".."):
			t.Errorf("%q is not taken for content", s)
		}
	})
}

// FuzzRefusal: whatever a client has sent, the answer to its CONNECT is one
// answer.
func FuzzRefusal(f *testing.F) {
	f.Add("port 22")
	f.Add("a\r\nSet-Cookie: x\r\n\r\nbody")
	f.Add("ä\x00\xff")
	f.Fuzz(func(t *testing.T, text string) {
		var sent strings.Builder
		if err := refuse(http.StatusForbidden, "%s", text).response().Write(&sent); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(strings.NewReader(sent.String()))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden || len(resp.Header["Set-Cookie"]) > 0 {
			t.Errorf("%q", sent.String())
		}
	})
}
