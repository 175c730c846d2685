package mirror

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// wantStale fails the test unless a says of itself that it is stale.
func (a answer) wantStale(t *testing.T) {
	t.Helper()
	if a.status != http.StatusOK || a.header.Get("Warning") != `110 - "Response is Stale"` {
		t.Errorf("%d with Warning: %q, want a stale answer: %s", a.status, a.header.Get("Warning"), a.body)
	}
	if age, err := strconv.Atoi(a.header.Get("Age")); err != nil || age < 0 || age > 60 {
		t.Errorf("Age: %q", a.header.Get("Age"))
	}
}

// An origin that does not answer is replaced by what was seen last, and says so
// to the client, in the log and in the metrics.
func TestStaleTag(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		front func(http.ResponseWriter, *http.Request) bool // nil: the origin is down
	}{
		{"down", nil},
		{"429", answering(http.StatusTooManyRequests, anything)},
		{"503", answering(http.StatusServiceUnavailable, anything)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, options{tags: true})
			img := b.push(t, "team/app", "1", 1000)
			path := manifestPath("team/app", "1")
			if a := b.get(t, path); a.status != http.StatusOK || a.header.Get("Warning") != "" || a.header.Get("Age") != "" {
				t.Fatalf("while the origin is well: %d %v", a.status, a.header)
			}
			if b.setFront(test.front); test.front == nil {
				b.down()
			}
			a := b.get(t, path)
			a.wantStale(t)
			if proto.DigestOf(a.body) != img.Manifest.Digest {
				t.Errorf("a stale answer of %d other bytes", len(a.body))
			}
			head := b.ask(t, http.MethodHead, path)
			head.wantStale(t)
			if got := head.header.Get("Docker-Content-Digest"); got != img.Manifest.Digest.String() {
				t.Errorf("HEAD: digest %q", got)
			}
			// What was never seen is an error without those headers.
			none := b.get(t, manifestPath("team/app", "2"))
			none.want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
			if none.header.Get("Warning")+none.header.Get("Age") != "" {
				t.Errorf("an error says that it is stale: %v", none.header)
			}
			b.close()
			if n := testutil.ToFloat64(b.handler.metrics.requests.WithLabelValues(upstream, "manifest", sourceStale)); n != 2 {
				t.Errorf("%v stale answers counted, want 2", n)
			}
			if log := b.log.String(); strings.Count(log, `level=WARN msg="stale answer" kind=manifest upstream=registry.test repository=team/app reference=1`) != 2 {
				t.Errorf("the log does not say so:\n%s", log)
			}
		})
	}
}

// A refusal is never answered with what was there before it.
func TestNothingStaleAfterARefusal(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		b := newBed(t, options{tags: true})
		b.push(t, "team/app", "1", 1000)
		list := "/v2/team/app/tags/list?ns=" + upstream
		b.get(t, manifestPath("team/app", "1"))
		b.get(t, list)
		b.setFront(answering(status, anything))
		b.get(t, manifestPath("team/app", "1")).want(t, http.StatusForbidden, "DENIED")
		b.get(t, list).want(t, http.StatusForbidden, "DENIED")
	}
}

// The bytes of a stale manifest may have gone. Then there is nothing to serve,
// and the error is the origin's.
func TestStaleTagWithoutItsManifest(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{tags: true})
	img := b.push(t, "team/app", "1", 1000)
	b.get(t, manifestPath("team/app", "1"))
	if err := b.cache.Delete(img.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	b.down()
	a := b.get(t, manifestPath("team/app", "1"))
	a.want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	if a.header.Get("Warning") != "" {
		t.Errorf("an error says that it is stale: %v", a.header)
	}
}

// Offline, what is here is served and all else is a 404 that says why; nothing
// reaches the origin.
func TestOffline(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{tags: true})
	img := b.push(t, "team/app", "1", 1000, 2000)
	list, more := "/v2/team/app/tags/list?ns="+upstream, "/v2/team/app/tags/list?n=1&ns="+upstream
	b.get(t, manifestPath("team/app", "1"))
	b.get(t, blobPath("team/app", img.Layers[0].Digest))
	b.get(t, list)
	b.reg.Reset()
	b.origin.SetOffline(true)
	b.get(t, manifestPath("team/app", "1")).wantStale(t)
	b.get(t, list).wantStale(t)
	if a := b.get(t, manifestPath("team/app", img.Manifest.Digest.String())); a.status != http.StatusOK || a.header.Get("Warning") != "" {
		t.Errorf("a manifest by digest, which can't be stale: %d %v", a.status, a.header)
	}
	if a := b.get(t, blobPath("team/app", img.Layers[0].Digest)); a.status != http.StatusOK || proto.DigestOf(a.body) != img.Layers[0].Digest {
		t.Errorf("a blob that is here: %d", a.status)
	}
	for _, test := range []struct{ path, code string }{
		{manifestPath("team/app", "2"), "MANIFEST_UNKNOWN"},
		{manifestPath("team/app", "sha256:"+hex64), "MANIFEST_UNKNOWN"},
		{manifestPath("team/other", "1"), "MANIFEST_UNKNOWN"},
		{blobPath("team/app", img.Layers[1].Digest), "BLOB_UNKNOWN"}, // linked and not here
		{"/v2/team/app/blobs/sha256:" + hex64 + "?ns=" + upstream, "BLOB_UNKNOWN"},
		{more, "NAME_UNKNOWN"},
		{"/v2/team/app/referrers/sha256:" + hex64 + "?ns=" + upstream, "NAME_UNKNOWN"},
	} {
		if message := b.get(t, test.path).want(t, http.StatusNotFound, test.code); !strings.Contains(message, "offline") {
			t.Errorf("%s: the message does not say that this node is offline: %s", test.path, message)
		}
	}
	if n := b.reg.Count(); n.ManifestHeads+n.ManifestGets+n.BlobHeads+n.BlobGets+n.Other != 0 {
		t.Errorf("the origin was asked: %+v", n)
	}
	b.origin.SetOffline(false)
	if a := b.get(t, blobPath("team/app", img.Layers[1].Digest)); a.status != http.StatusOK || proto.DigestOf(a.body) != img.Layers[1].Digest {
		t.Errorf("after offline, a blob: %d", a.status)
	}
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK || a.header.Get("Warning") != "" {
		t.Errorf("after offline, the tag: %d %v", a.status, a.header)
	}
}

// Lists are remembered page by page, and served with their links when the
// origin is down.
func TestStaleLists(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	for _, tag := range []string{"1", "2", "3"} {
		b.push(t, "team/app", tag, 1000)
	}
	const index = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[], "annotations":{}}`
	referrers := "/v2/team/app/referrers/sha256:" + hex64
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != referrers {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		_, _ = w.Write([]byte(index))
		return true
	})
	walk := func(stale bool) {
		t.Helper()
		var tags []string
		for path := "/v2/team/app/tags/list?n=2&ns=" + upstream; path != ""; {
			a := b.get(t, path)
			var list struct{ Tags []string }
			if err := json.Unmarshal(a.body, &list); err != nil || stale != (a.header.Get("Warning") != "") {
				t.Fatalf("%s: %d %v %s", path, a.status, a.header, a.body)
			}
			tags = append(tags, list.Tags...)
			path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
		}
		if strings.Join(tags, " ") != "1 2 3" {
			t.Errorf("tags %v", tags)
		}
		a := b.get(t, referrers+"?artifactType=x/y&ns="+upstream)
		if string(a.body) != index || a.header.Get("OCI-Filters-Applied") != "artifactType" ||
			a.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" || stale != (a.header.Get("Warning") != "") {
			t.Errorf("referrers: %d %v %s", a.status, a.header, a.body)
		}
		if stale {
			a.wantStale(t)
		}
	}
	walk(false)
	b.down()
	walk(true)
	// Another page was never seen, another repository neither.
	b.get(t, "/v2/team/app/tags/list?n=1&ns="+upstream).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	b.get(t, "/v2/team/other/tags/list?n=2&ns="+upstream).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
}

// A list that is too old is not served, unless the node is meant to be offline;
// one whose text has gone is not served either.
func TestListsGrowOld(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{config: func(c *Config) { c.MaxStale = time.Hour }})
	b.push(t, "team/app", "1", 1000)
	path := "/v2/team/app/tags/list?ns=" + upstream
	b.get(t, path)
	l, ok, err := b.cache.Index().List(upstream, "team/app", "tags/list")
	if err != nil || !ok {
		t.Fatalf("the list is not in the index: %v", err)
	}
	see := func(age time.Duration, l cache.List) {
		l.Seen = time.Now().Add(-age)
		if err := b.cache.Index().SetList(upstream, "team/app", "tags/list", l); err != nil {
			t.Fatal(err)
		}
	}
	b.down()
	see(59*time.Minute, l)
	if a := b.get(t, path); a.status != http.StatusOK || a.header.Get("Age") != "3540" {
		t.Errorf("within an hour: %d %v", a.status, a.header)
	}
	see(61*time.Minute, l)
	b.get(t, path).want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	b.origin.SetOffline(true)
	if a := b.get(t, path); a.status != http.StatusOK {
		t.Errorf("offline, of any age: %d", a.status)
	}
	if err := b.cache.Delete(l.Blob.Digest); err != nil {
		t.Fatal(err)
	}
	b.get(t, path).want(t, http.StatusNotFound, "NAME_UNKNOWN")
}
