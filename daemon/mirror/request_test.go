package mirror

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const hex64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func knowsSome(upstream string) bool {
	switch upstream {
	case "docker.io", "quay.io", "registry.test:5000", "localhost", "[::1]:5000":
		return true
	}
	return false
}

func TestParseRequest(t *testing.T) {
	sha256 := "sha256:" + hex64
	for _, test := range []struct {
		path, query string
		kind        kind
		ref         string // upstream repository tag-or-digest
		rest        string // of the query
	}{
		{"/v2/", "", kindPing, "", ""},
		{"/v2", "", kindPing, "", ""},
		{"/v2/", "ns=docker.io", kindPing, "", ""},
		{"/v2/alpine/manifests/3.20", "", kindManifest, "docker.io library/alpine 3.20", ""},
		{"/v2/alpine/manifests/" + sha256, "", kindManifest, "docker.io library/alpine " + sha256, ""},
		{"/v2/library/alpine/blobs/" + sha256, "", kindBlob, "docker.io library/alpine " + sha256, ""},
		{"/v2/team/app/manifests/v1", "ns=quay.io", kindManifest, "quay.io team/app v1", ""},
		{"/v2/app/manifests/v1", "ns=quay.io", kindManifest, "quay.io app v1", ""},
		{"/v2/alpine/manifests/v1", "ns=docker.io", kindManifest, "docker.io library/alpine v1", ""},
		{"/v2/alpine/manifests/v1", "ns=Index.Docker.io", kindManifest, "docker.io library/alpine v1", ""},
		{"/v2/app/manifests/v1", "ns=registry.test%3A5000", kindManifest, "registry.test:5000 app v1", ""},
		{"/v2/app/manifests/v1", "ns=%5B::1%5D:5000", kindManifest, "[::1]:5000 app v1", ""},
		{"/v2/quay.io/team/app/manifests/v1", "", kindManifest, "quay.io team/app v1", ""},
		{"/v2/QUAY.io/team/app/manifests/v1", "", kindManifest, "quay.io team/app v1", ""},
		{"/v2/registry.test:5000/app/manifests/v1", "", kindManifest, "registry.test:5000 app v1", ""},
		{"/v2/localhost/app/manifests/v1", "", kindManifest, "localhost app v1", ""},
		{"/v2/docker.io/alpine/manifests/v1", "", kindManifest, "docker.io library/alpine v1", ""},
		// Not configured, so it may be a name; nor is a single component a host.
		{"/v2/other.io/app/manifests/v1", "", kindManifest, "docker.io other.io/app v1", ""},
		{"/v2/quay.io/manifests/v1", "", kindManifest, "docker.io library/quay.io v1", ""},
		// ns wins over a prefix.
		{"/v2/quay.io/app/manifests/v1", "ns=docker.io", kindManifest, "docker.io quay.io/app v1", ""},
		// The API's own words as components of a name.
		{"/v2/manifests/manifests/manifests", "", kindManifest, "docker.io library/manifests manifests", ""},
		{"/v2/a/blobs/tags/list/manifests/v1", "", kindManifest, "docker.io a/blobs/tags/list v1", ""},
		{"/v2/a/manifests/tags/list", "", kindTags, "docker.io a/manifests ", ""},
		{"/v2/a/b/tags/list", "n=5&last=x&ns=quay.io", kindTags, "quay.io a/b ", "last=x&n=5"},
		{"/v2/a/b/referrers/" + sha256, "artifactType=x%2Fy", kindReferrers, "docker.io a/b " + sha256, "artifactType=x%2Fy"},
		{"/v2/a/b/blobs/sha512:" + hex64 + hex64, "", kindBlob, "docker.io a/b sha512:" + hex64 + hex64, ""},
	} {
		req, err := parseRequest(test.path, test.query, "docker.io", knowsSome)
		if err != nil {
			t.Errorf("%s?%s: %v", test.path, test.query, err)
			continue
		}
		ref := ""
		if req.kind != kindPing {
			ref = req.ref.Upstream + " " + req.ref.Repository + " " + req.reference()
		}
		if req.kind != test.kind || ref != test.ref || req.query != test.rest {
			t.Errorf("%s?%s = %s %q, query %q, want %s %q, query %q", test.path, test.query,
				req.kind, ref, req.query, test.kind, test.ref, test.rest)
		}
		if req.ref.Manifest != (test.kind == kindManifest || test.kind == kindTags || test.kind == kindReferrers) {
			t.Errorf("%s: Manifest = %v", test.path, req.ref.Manifest)
		}
	}
}

func TestParseRequestWithoutDefault(t *testing.T) {
	_, err := parseRequest("/v2/alpine/manifests/v1", "", "", knowsSome)
	if f := (*failure)(nil); !errors.As(err, &f) || f.status != http.StatusNotFound || f.code != codeNameUnknown {
		t.Errorf("no upstream and no default: %v", err)
	}
	req, err := parseRequest("/v2/quay.io/app/manifests/v1", "", "", knowsSome)
	if err != nil || req.ref.Upstream != "quay.io" {
		t.Errorf("prefix without a default = %+v, %v", req, err)
	}
}

func TestParseHost(t *testing.T) {
	for s, want := range map[string]string{
		"docker.io": "docker.io", "Docker.IO": "docker.io", "index.docker.io": "docker.io",
		"index.docker.io:443": "index.docker.io:443", "localhost:5000": "localhost:5000", "a": "a",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "10.0.0.1:80": "10.0.0.1:80", "[fe80::1]": "[fe80::1]",
	} {
		if got, err := parseHost(s); err != nil || got != want {
			t.Errorf("parseHost(%q) = %q, %v, want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", ":", ":5000", "a:", "a:0", "a:65536", "a:+1", "a:1:2", "-a.io", "a-.io", "a..io", ".io",
		"a/b", "a b", "a@b", "a_b", "http://a", "[::1", "::1", "[::1]x", "[1.2.3.4]", "[fe80::1%25eth0]", "a\x00", "bücher.example",
		strings.Repeat("a", 256)} {
		if got, err := parseHost(s); err == nil {
			t.Errorf("parseHost(%q) = %q, want an error", s, got)
		}
	}
}

func TestOwnLink(t *testing.T) {
	for _, test := range []struct{ link, ns, want string }{
		{`</v2/a/tags/list?last=x&n=2>; rel="next"`, "", `</v2/q/a/tags/list?last=x&n=2>; rel="next"`},
		{`<https://registry.example/v2/a/tags/list?n=2&last=x>; rel="next"`, "quay.io", `</v2/q/a/tags/list?last=x&n=2&ns=quay.io>; rel="next"`},
		{`<?last=a%2Fb>;rel=next`, "", `</v2/q/a/tags/list?last=a%2Fb>;rel=next`},
		{`</x?ns=evil.example>; rel="next"`, "", `</v2/q/a/tags/list?>; rel="next"`},
		{`/v2/a/tags/list?last=x`, "", ``},
		{`<%zz>; rel="next"`, "", ``},
		{`</x?a=%zz>; rel="next"`, "", ``},
		{`</x?a=1>; rel="next", </y>; rel="prev"`, "", ``},
		{``, "", ``},
	} {
		if got := ownLink(test.link, "/v2/q/a/tags/list", test.ns); got != test.want {
			t.Errorf("ownLink(%s, %q) = %s, want %s", test.link, test.ns, got, test.want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("/v2/", "", "docker.io")
	f.Add("/v2/library/alpine/manifests/latest", "ns=docker.io", "docker.io")
	f.Add("/v2/registry.test:5000/a/b/blobs/sha256:"+hex64, "", "")
	f.Add("/v2/a/tags/list", "n=1&last=%zz", "docker.io")
	f.Add("/v2/a/referrers/sha512:00", "ns=%5B::1%5D:5000", "quay.io")
	f.Add("/v2//../manifests/:", "ns=a&ns=b", "x")
	f.Fuzz(func(t *testing.T, path, query, def string) {
		if _, err := parseHost(def); err != nil {
			def = "docker.io"
		}
		req, err := parseRequest(path, query, def, func(string) bool { return true })
		if err != nil {
			if f := (*failure)(nil); !errors.As(err, &f) || f.status < 400 || f.status > 405 || f.message == "" {
				t.Fatalf("error %v (%T) has no status", err, err)
			}
			return
		}
		if req.kind == kindPing {
			return
		}
		if _, err := origin.ParseRepository(strings.TrimPrefix(req.ref.Repository, "library/")); err != nil {
			t.Error(err)
		}
		if host, err := parseHost(req.ref.Upstream); req.ref.Upstream != def && (err != nil || host != req.ref.Upstream) {
			t.Errorf("upstream %q = %q, %v", req.ref.Upstream, host, err)
		}
		if values, err := url.ParseQuery(req.query); err != nil || values.Has("ns") {
			t.Errorf("query %q: %v", req.query, err)
		}
		switch {
		case req.kind == kindTags:
			if req.reference() != "" {
				t.Errorf("list of tags of %q", req.reference())
			}
		case req.ref.Tag != "":
			if _, err := origin.ParseTag(req.ref.Tag); err != nil || req.kind != kindManifest {
				t.Errorf("%s by tag: %v", req.kind, err)
			}
		default:
			if _, err := proto.ParseDigest(req.reference()); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzOwnLink(f *testing.F) {
	f.Add(`</v2/a/tags/list?last=x&n=2>; rel="next"`, "")
	f.Add(`<https://registry.example/?n=2>`, "quay.io")
	f.Add("<a\r\nb?c>", "x")
	f.Fuzz(func(t *testing.T, link, ns string) {
		got := ownLink(link, "/v2/a/tags/list", ns)
		if got != "" && !strings.HasPrefix(got, "</v2/a/tags/list?") {
			t.Errorf("ownLink(%q) leads elsewhere: %q", link, got)
		}
		target, _, _ := strings.Cut(strings.TrimPrefix(got, "<"), ">")
		if u, err := url.Parse(target); err != nil || u.Host != "" {
			t.Errorf("ownLink(%q) = %q: %v", link, got, err)
		}
	})
}
