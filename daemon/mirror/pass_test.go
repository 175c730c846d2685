package mirror

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
)

func TestTagsList(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{rules: []policy.Rule{policy.AllowRepositories(upstream, []string{"team/*"})}})
	for _, tag := range []string{"1", "2", "3"} {
		b.push(t, "team/app", tag, 1000)
	}
	// Page by page as clients do: the next request is what the last Link says.
	for _, first := range []string{"/v2/team/app/tags/list?n=2&ns=" + upstream, "/v2/" + upstream + "/team/app/tags/list?n=2"} {
		var tags []string
		for path := first; path != ""; {
			a := b.get(t, path)
			var list struct {
				Name, Error string
				Tags        []string
			}
			if err := json.Unmarshal(a.body, &list); err != nil || a.status != http.StatusOK || list.Name != "team/app" {
				t.Fatalf("%s: %d %s", path, a.status, a.body)
			}
			if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "application/json") {
				t.Errorf("%s: Content-Type %q", path, got)
			}
			tags = append(tags, list.Tags...)
			link := a.header.Get("Link")
			path, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
			if link != "" && !strings.HasSuffix(link, `; rel="next"`) {
				t.Errorf("Link: %s", link)
			}
		}
		if strings.Join(tags, " ") != "1 2 3" {
			t.Errorf("%s: tags %v", first, tags)
		}
	}
	b.get(t, "/v2/team/none/tags/list?ns="+upstream).want(t, http.StatusNotFound, "NAME_UNKNOWN")
	b.get(t, "/v2/private/app/tags/list?ns="+upstream).want(t, http.StatusForbidden, "DENIED")
	if a := b.ask(t, http.MethodHead, "/v2/team/app/tags/list?ns="+upstream); a.status != http.StatusOK || len(a.body) != 0 {
		t.Errorf("HEAD: %d with %d bytes", a.status, len(a.body))
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	const index = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	subject := "sha256:" + hex64
	path := "/v2/team/app/referrers/" + subject
	// distribution has no referrers API, and the fallback tag is not there.
	if a := b.get(t, path+"?ns="+upstream); a.status != http.StatusOK || string(a.body) != index {
		t.Errorf("without referrers: %d %s", a.status, a.body)
	}
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path || r.URL.RawQuery != "artifactType=x%2Fy" {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		w.Header().Set("Set-Cookie", "a=b")
		_, _ = w.Write([]byte(index))
		return true
	})
	a := b.get(t, path+"?artifactType=x/y&ns="+upstream)
	if a.status != http.StatusOK || string(a.body) != index {
		t.Errorf("%d %s", a.status, a.body)
	}
	for name, want := range map[string]string{
		"Content-Type":        "application/vnd.oci.image.index.v1+json",
		"OCI-Filters-Applied": "artifactType",
		"Set-Cookie":          "",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A list is complete or an error: one that was cut would look like a short one.
func TestListsAreWholeOrErrors(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	const path = "/v2/team/app/tags/list?ns=" + upstream
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte(`{"name":"team/app","tags":["1"`))
		return true
	})
	b.get(t, path).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = w.Write(make([]byte, origin.MaxList+1))
		return true
	})
	b.get(t, path).want(t, http.StatusBadGateway, "SIZE_INVALID")
	b.setFront(answering(http.StatusTooManyRequests, anything))
	b.get(t, path).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
}
