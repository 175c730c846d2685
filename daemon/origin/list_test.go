package origin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const indexType = "application/vnd.oci.image.index.v1+json"

func TestTags(t *testing.T) {
	t.Parallel()
	r, base := startRegistry(t, registry.Options{})
	for _, tag := range []string{"1", "2", "3"} {
		if _, err := registry.PushImage(t.Context(), base, repository, tag, []int64{10}, 6); err != nil {
			t.Fatal(err)
		}
	}
	r.Reset()
	r.SetFaults(registry.Faults{Auth: registry.AuthToken})
	c := newClient(t, at(base))
	for _, tc := range []struct{ query, body, link string }{
		{"", `{"name":"library/app","tags":["1","2","3"]}`, ""},
		{"n=2", `{"name":"library/app","tags":["1","2"]}`, `</v2/library/app/tags/list?last=2&n=2>; rel="next"`},
		{"n=2&last=2", `{"name":"library/app","tags":["3"]}`, ""},
	} {
		l, err := c.Tags(t.Context(), upstream, repository, tc.query, http.Header{"Accept": {"*/*"}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(l.Body)) != tc.body || l.Header.Get("Link") != tc.link || !strings.HasPrefix(l.ContentType, "application/json") {
			t.Errorf("tags?%s: %s %s, %v", tc.query, l.ContentType, l.Body, l.Header)
		}
	}
	if n := r.TagLists(repository); n != 4 { // the first was challenged
		t.Errorf("%d requests for lists, want 4", n)
	}
	if _, err := c.Tags(t.Context(), upstream, "library/none", "", nil); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("tags of no repository: %v, want ErrNotFound", err)
	}
	if _, err := c.Tags(t.Context(), upstream, repository, "n=%zz", nil); err == nil {
		t.Error("a malformed query went through")
	}
	if _, err := c.Tags(t.Context(), upstream, "../_catalog", "", nil); err == nil {
		t.Error("a malformed repository went through")
	}
	if _, err := c.Tags(t.Context(), "elsewhere.test", repository, "", nil); !errors.Is(err, origin.ErrUnknownUpstream) {
		t.Errorf("tags of an unknown upstream: %v", err)
	}
}

// distribution knows no referrers API, so this is the way by the tag.
func TestReferrers(t *testing.T) {
	t.Parallel()
	r, base := startRegistry(t, registry.Options{})
	img, err := registry.PushImage(t.Context(), base, repository, "1", []int64{10}, 6)
	if err != nil {
		t.Fatal(err)
	}
	d := img.Manifest.Digest
	tag := strings.Replace(d.String(), ":", "-", 1)
	index := fmt.Sprintf("{\"schemaVersion\": 2,\n  \"mediaType\": %q, \"manifests\": [{\"mediaType\":%q,\"digest\":%q,\"size\":%d,\"artifactType\":\"a/b\"}]}\n",
		indexType, img.MediaType, d, img.Manifest.Size)
	c := newClient(t, at(base))
	ask := func(what, query, body, filters string) {
		t.Helper()
		l, err := c.Referrers(t.Context(), upstream, repository, d, query, nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if string(l.Body) != body || l.ContentType != indexType || l.Header.Get("OCI-Filters-Applied") != filters {
			t.Errorf("%s: %s %s, %v", what, l.ContentType, l.Body, l.Header)
		}
	}
	ask("nothing refers to it", "", `{"schemaVersion":2,"mediaType":"`+indexType+`","manifests":[]}`, "")

	if err := registry.PushManifest(t.Context(), base, repository, tag, indexType, []byte(index)); err != nil {
		t.Fatal(err)
	}
	r.Reset()
	ask("by the tag", "artifactType=a%2Fb", index, "")
	if _, gets := r.Lookups(repository, tag); gets != 1 || r.ReferrerLists(repository, d) != 1 {
		t.Errorf("%d and %d requests, want one each", r.ReferrerLists(repository, d), gets)
	}
	r.SetFaults(registry.Faults{Auth: registry.AuthToken})
	ask("by the tag, with a token", "", index, "")

	r.SetReferrers(repository, d, []byte(index))
	ask("by the API", "", index, "")
	ask("by the API, filtered", "artifactType=a%2Fb", index, "artifactType")
	r.Reset()
	ask("by the API alone", "", index, "")
	if _, gets := r.Lookups(repository, tag); gets != 0 {
		t.Errorf("the tag was asked for %d times all the same", gets)
	}

	for status, want := range map[int]error{
		403: origin.ErrDenied, 401: origin.ErrDenied, 429: origin.ErrUnavailable, 500: origin.ErrUnavailable, 503: origin.ErrUnavailable,
	} {
		r.SetFaults(registry.Faults{ListStatus: status})
		r.Reset()
		quick := newClient(t, at(base))
		if _, err := quick.Referrers(t.Context(), upstream, repository, d, "", nil); !errors.Is(err, want) {
			t.Errorf("referrers with %d: %v, want %v", status, err, want)
		}
		if _, err := quick.Tags(t.Context(), upstream, repository, "", nil); !errors.Is(err, want) {
			t.Errorf("tags with %d: %v, want %v", status, err, want)
		}
		if _, gets := r.Lookups(repository, tag); gets != 0 {
			t.Errorf("%d: fell back to the tag", status)
		}
	}
	r.SetReferrers(repository, d, nil)
	r.SetFaults(registry.Faults{ManifestStatus: 403})
	if _, err := c.Referrers(t.Context(), upstream, repository, d, "", nil); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("where the tag is denied: %v, want ErrDenied", err)
	}
	if _, err := c.Referrers(t.Context(), upstream, repository, proto.Digest{}, "", nil); err == nil {
		t.Error("referrers of nothing went through")
	}
}

// Registries that exist in the field but that distribution is not like, and
// those that do not exist yet.
func TestListsAtOddRegistries(t *testing.T) {
	t.Parallel()
	d := proto.DigestOf([]byte("x"))
	tag := strings.Replace(d.String(), ":", "-", 1)
	const index = `{"schemaVersion":2,"manifests":[]}`
	const empty = `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[]}`
	answer := func(code int, contentType, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header()["Content-Type"] = nil
			if contentType != "" {
				w.Header().Set("Content-Type", contentType)
			}
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	cutShort := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", indexType)
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(index))
	}
	endless := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", indexType)
		for range 8 {
			if _, err := w.Write(bytes.Repeat([]byte(" "), origin.MaxList)); err != nil {
				return
			}
		}
		t.Error("64 MiB were read")
	}
	atLimit := `"` + strings.Repeat("x", origin.MaxList-2) + `"`
	for _, tc := range []struct {
		name     string
		api, tag func(http.ResponseWriter)
		body     string
		err      error
	}{
		{"API", answer(200, indexType, index), nil, index, nil},
		{"with a parameter", answer(200, indexType+"; charset=utf-8", index), nil, index, nil},
		{"404", answer(404, "", ""), answer(200, indexType, index), index, nil},
		{"405", answer(405, "", ""), answer(200, indexType, index), index, nil},
		{"400", answer(400, "", ""), answer(200, indexType, index), index, nil},
		{"406", answer(406, "", ""), answer(200, indexType, index), index, nil},
		{"501", answer(501, "", ""), answer(200, indexType, index), index, nil},
		{"a page", answer(200, "text/html", "<html>"), answer(200, indexType, index), index, nil},
		{"no type", answer(200, "", index), answer(404, "", ""), empty, nil},
		{"neither", answer(404, "", ""), answer(404, "", ""), empty, nil},
		{"the tag is an image", answer(404, "", ""), answer(200, "application/vnd.oci.image.manifest.v1+json", "{}"), empty, nil},
		{"not JSON", answer(200, indexType, "<html>"), nil, "", origin.ErrProtocol},
		{"two values", answer(200, indexType, "{}{}"), nil, "", origin.ErrProtocol},
		{"nothing", answer(200, indexType, ""), nil, "", origin.ErrProtocol},
		{"no content", answer(204, indexType, ""), nil, "", origin.ErrProtocol},
		{"cut short", cutShort, nil, "", origin.ErrUnavailable},
		{"as much as may be", answer(200, indexType, atLimit), nil, atLimit, nil},
		{"too much", answer(200, indexType, atLimit+" "), nil, "", origin.ErrTooLarge},
		{"far too much", endless, nil, "", origin.ErrTooLarge},
		{"too much at the tag", answer(404, "", ""), answer(200, indexType, atLimit+" "), "", origin.ErrTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if e := req.Header.Get("Accept-Encoding"); e != "identity" {
					t.Errorf("Accept-Encoding %q", e)
				}
				switch req.URL.Path {
				case "/v2/library/app/referrers/" + d.String():
					tc.api(w)
				case "/v2/library/app/manifests/" + tag:
					tc.tag(w)
				default:
					t.Errorf("asked for %s", req.URL)
				}
			}))
			t.Cleanup(s.Close)
			l, err := newClient(t, at(s.URL)).Referrers(t.Context(), upstream, repository, d, "", nil)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err == nil && string(l.Body) != tc.body {
				t.Errorf("%.200s, want %.200s", l.Body, tc.body)
			}
		})
	}
}

// Of several URLs one that knows nothing is no reason to say that there is
// nothing.
func TestReferrersOfMirrors(t *testing.T) {
	t.Parallel()
	empty, emptyURL := startRegistry(t, registry.Options{})
	full, fullURL := startRegistry(t, registry.Options{})
	d := proto.DigestOf([]byte("x"))
	full.SetReferrers(repository, d, []byte("{}"))
	c := newClient(t, at(emptyURL, fullURL))
	if l, err := c.Referrers(t.Context(), upstream, repository, d, "", nil); err != nil || string(l.Body) != "{}" {
		t.Errorf("%+v, %v", l, err)
	}
	full.SetFaults(registry.Faults{Down: true})
	if l, err := c.Referrers(t.Context(), upstream, repository, d, "", nil); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("with the one that knows down: %+v, %v; want ErrUnavailable", l, err)
	}
	if empty.ReferrerLists(repository, d) == 0 {
		t.Error("the first URL was not asked")
	}
}

// Only what belongs to a list is handed on.
func TestListHeaders(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen <- req.Header
		h := w.Header()
		h.Set("Content-Type", indexType)
		h.Add("Link", `</a>; rel="next"`)
		h.Add("Link", `</b>; rel="first"`)
		h.Set("OCI-Filters-Applied", "artifactType")
		h.Set("Set-Cookie", "session=1")
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(s.Close)
	c := newClient(t, at(s.URL))
	header := http.Header{"Accept": {"a/b", "c/d"}, "Authorization": {"Basic secret"}, "Cookie": {"x=y"}}
	l, err := c.Referrers(t.Context(), upstream, repository, proto.DigestOf(nil), "", header)
	if err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Link": {`</a>; rel="next"`, `</b>; rel="first"`}, "Oci-Filters-Applied": {"artifactType"}}
	if !reflect.DeepEqual(l.Header, want) {
		t.Errorf("%v, want %v", l.Header, want)
	}
	sent := <-seen
	if !reflect.DeepEqual(sent["Accept"], header["Accept"]) || sent.Get("Authorization") != "" || sent.Get("Cookie") != "" {
		t.Errorf("sent %v", sent)
	}
	if _, err := c.Tags(t.Context(), upstream, repository, "", nil); err != nil {
		t.Fatal(err)
	}
	if got := (<-seen).Get("Accept"); got != "application/json" {
		t.Errorf("Accept %q without a wish", got)
	}
}

// A query string is taken apart and put together, so that nothing else gets
// into the request.
func FuzzListQuery(f *testing.F) {
	f.Add("n=2&last=a")
	f.Add("n=2&last=a b#c")
	f.Add("a\r\nHost: b")
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got = req.Method + " " + req.URL.Path
		if _, err := url.ParseQuery(req.URL.RawQuery); err != nil {
			got = err.Error()
		}
		_, _ = w.Write([]byte("{}"))
	}))
	f.Cleanup(s.Close)
	c, err := origin.New(origin.Config{Upstreams: map[string]origin.Upstream{upstream: at(s.URL)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.Close)
	f.Fuzz(func(t *testing.T, query string) {
		got = ""
		l, err := c.Tags(context.Background(), upstream, repository, query, nil)
		if err != nil {
			if got != "" {
				t.Errorf("%q: %v after the request %s", query, err, got)
			}
			return
		}
		if got != "GET /v2/library/app/tags/list" || !bytes.Equal(l.Body, []byte("{}")) {
			t.Errorf("%q asked for %s", query, got)
		}
	})
}
