package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/proto"
)

// A proxied is a bed with a server whose requests are for upstream itself.
type proxied struct {
	*guarded
	untouched atomic.Int64 // requests that were left to the upstream
}

func newProxied(t *testing.T, how registry.Auth, o options) *proxied {
	t.Helper()
	p := &proxied{guarded: newGuarded(t, how, o)}
	target, err := url.Parse(p.regURL)
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(target)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	pass.Transport = transport
	s := httptest.NewServer(p.handler.Proxied(upstream, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.untouched.Add(1)
		pass.ServeHTTP(w, r)
	})))
	t.Cleanup(s.Close)
	p.addr = strings.TrimPrefix(s.URL, "http://")
	return p
}

// What of a registry is public comes from the cache, what is private from the
// registry with the client's own credentials, and not a byte of it is kept.
func TestProxiedAnonymous(t *testing.T) {
	t.Parallel()
	p := newProxied(t, registry.AuthToken, options{auth: origin.AuthAnonymous})
	public := p.push(t, "team/public", "1", 5000)
	for range 2 {
		if a := p.get(t, "/v2/team/public/manifests/1"); a.status != http.StatusOK || proto.DigestOf(a.body) != public.Manifest.Digest {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := p.get(t, "/v2/team/public/blobs/"+public.Layers[0].Digest.String()); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if n := p.untouched.Load(); n != 0 {
		t.Errorf("%d requests for a public image were left to the registry", n)
	}
	for range 4 {
		p.audited(t)
	}

	path := "/v2/" + private + "/manifests/1"
	if a := p.get(t, path); a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") == "" {
		t.Errorf("without a token: %d %v, want the registry's own challenge", a.status, a.header)
	}
	good := p.token(time.Minute, private)
	a := p.get(t, path, good, "Accept: "+p.img.MediaType)
	if a.status != http.StatusOK || proto.DigestOf(a.body) != p.img.Manifest.Digest {
		t.Errorf("with a token: %d %s", a.status, a.body)
	}
	if a.header.Get("X-Content-Type-Options") != "" && len(a.header.Values("X-Content-Type-Options")) > 1 {
		t.Errorf("headers of ours are in the registry's answer: %v", a.header)
	}
	if a := p.get(t, "/v2/"+private+"/blobs/"+p.img.Layers[0].Digest.String(), good); a.status != http.StatusOK || len(a.body) != 300_000 {
		t.Errorf("its layer: %d, %d bytes", a.status, len(a.body))
	}
	if n := p.untouched.Load(); n != 3 {
		t.Errorf("%d requests were left to the registry, want 3", n)
	}
	if _, ok := p.cache.Whole(p.img.Layers[0].Digest); ok {
		t.Error("the private layer was kept")
	}
	var got []string
	for range 2 {
		r := p.audited(t)
		got = append(got, fmt.Sprint(r.Door, " ", r.Verdict, " ", r.Status, " ", r.Source, " ", r.Bytes))
	}
	want := fmt.Sprintf("[proxy admitted 200 client %d proxy admitted 200 client 300000]", p.img.Manifest.Size)
	if fmt.Sprint(got) != want {
		t.Errorf("recorded %v, want %s", got, want)
	}
}

// Everything but manifests and blobs is the registry's.
func TestProxiedLeavesTheRest(t *testing.T) {
	t.Parallel()
	p := newProxied(t, registry.AuthToken, options{auth: origin.AuthAnonymous})
	for i, q := range []question{
		{http.MethodGet, "/v2/", ""},
		{http.MethodGet, "/v2/" + private + "/tags/list", ""},
		{http.MethodPost, "/v2/" + private + "/blobs/uploads/", ""},
		{http.MethodGet, "/v2/" + private + "/blobs/uploads/123", ""},
		{http.MethodPut, "/v2/" + private + "/manifests/1", ""},
		{http.MethodGet, "/token?service=x", ""},
	} {
		p.ask(t, q.method, q.path)
		if n := p.untouched.Load(); n != int64(i+1) {
			t.Errorf("%s %s: %d requests were left to the registry, want %d", q.method, q.path, n, i+1)
		}
	}
	before := p.untouched.Load()
	for _, path := range []string{
		"//v2/" + private + "/manifests/1", "/x/../v2/" + private + "/manifests/1", "/v2/" + private + "/manifests/1/", "/V2/" + private + "/blobs/x",
		"/v2/" + private + "/blobs/uploads/..", "/v2/" + private + "/manifests/" + strings.Repeat("a", 200),
	} {
		if a := p.get(t, path); a.status < http.StatusBadRequest {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if n := p.untouched.Load(); n != before {
		t.Errorf("%d requests that a registry might read as others were left to it", n-before)
	}
}

// With passthrough the proxy's clients are as the mirror's.
func TestProxiedPassthrough(t *testing.T) {
	t.Parallel()
	p := newProxied(t, registry.AuthToken, options{})
	path := "/v2/" + private + "/manifests/1"
	if a := p.get(t, path); a.status != http.StatusUnauthorized || p.leaks(a) != "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := p.get(t, path, p.token(time.Minute, private)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := p.get(t, path, p.token(time.Minute, other)); a.status != http.StatusUnauthorized || p.leaks(a) != "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := p.untouched.Load(); n != 0 {
		t.Errorf("%d requests were left to the registry", n)
	}
}

// A denial is one, and what rules look into is not passed by them with the
// client's own credentials.
func TestProxiedKeepsThePolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]rules.Config{
		"refused":   {Repositories: []string{upstream + "/team/public"}},
		"not known": {Rules: []rules.Rule{{Name: "sig", If: `!("release" in signedBy)`, Do: "deny"}}},
	} {
		set, err := rules.Compile(c)
		if err != nil {
			t.Fatal(err)
		}
		p := newProxied(t, registry.AuthToken, options{auth: origin.AuthAnonymous, gate: func(g *policy.Config) { g.Rules = set }})
		good := p.token(time.Minute, private)
		for what, q := range p.questions() {
			if what == "tags" || what == "referrers" {
				continue
			}
			a := p.ask(t, q.method, q.path, good, q.header)
			if leak := p.leaks(a); leak != "" || a.status != http.StatusForbidden {
				t.Errorf("%s, %s: %d with %s", name, what, a.status, leak)
			}
		}
		if n := p.untouched.Load(); n != 0 {
			t.Errorf("%s: %d requests were left to the registry", name, n)
		}
	}
}

// The rules are asked before anything of a manifest is told and before its blobs
// are started; a blob goes with its image.
func TestRulesThatLookIntoContent(t *testing.T) {
	t.Parallel()
	set, err := rules.Compile(rules.Config{Rules: []rules.Rule{{Name: "sig", If: `!("release" in signedBy)`, Do: "deny", Message: "ask for a release"}}})
	if err != nil {
		t.Fatal(err)
	}
	var signed, silent atomic.Bool
	records := make(chan audit.Record, 100)
	b := newBed(t, options{
		prefetch: true,
		config:   func(c *Config) { c.Audit = func(r audit.Record) { records <- r } },
		gate: func(c *policy.Config) {
			c.Rules = set
			c.SignedBy = func(context.Context, string, string, proto.Digest) ([]string, error) {
				if silent.Load() {
					return nil, fmt.Errorf("referrers: %w", origin.ErrUnavailable)
				}
				return map[bool][]string{true: {"release"}}[signed.Load()], nil
			}
		},
	})
	img := b.push(t, "team/app", "1", mib)
	digest := img.Manifest.Digest.String()
	denied := func(want int, code string) {
		t.Helper()
		for _, path := range []string{
			manifestPath("team/app", "1"), manifestPath("team/app", digest),
			blobPath("team/app", img.Layers[0].Digest), blobPath("team/app", img.Config.Digest),
		} {
			a := b.get(t, path)
			if !strings.Contains(path, "blobs") || want == http.StatusForbidden {
				a.want(t, want, code)
			}
			if h := b.ask(t, http.MethodHead, path); h.status < http.StatusBadRequest || h.header.Get("Docker-Content-Digest") != "" {
				t.Errorf("HEAD %s: %d %v", path, h.status, h.header)
			}
		}
		if n := b.reg.Count(); n.BlobBytes > img.Config.Size {
			t.Errorf("blobs of a denied image were started: %+v", n)
		}
	}
	denied(http.StatusForbidden, codeDenied)
	if r := <-records; r.Verdict != audit.Denied || r.Rule != "sig" || r.Reason != "ask for a release" || r.Status != http.StatusForbidden {
		t.Errorf("recorded %+v", r)
	}
	silent.Store(true)
	denied(http.StatusServiceUnavailable, codeUnavailable)
	silent.Store(false)
	signed.Store(true)
	if a := b.ask(t, http.MethodHead, manifestPath("team/app", "1")); a.status != http.StatusOK || a.header.Get("Docker-Content-Digest") != digest || a.header.Get("Content-Length") != fmt.Sprint(img.Manifest.Size) {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := b.get(t, blobPath("team/app", img.Layers[0].Digest)); a.status != http.StatusOK || len(a.body) != mib {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

// A challenge is only passed on if there is one.
func TestStatusOfChallenges(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{&origin.ChallengeError{Challenges: []string{"Bearer realm=x"}}, 401},
		{fmt.Errorf("x: %w", &origin.ChallengeError{Challenges: []string{"Bearer realm=x"}}), 401},
		{&origin.ChallengeError{}, 403},
		{origin.ErrDenied, 403},
		{errors.Join(&policy.Denial{}, &origin.ChallengeError{Challenges: []string{"Bearer realm=x"}}), 403},
	} {
		if got, _ := status(kindManifest, test.err); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}

// TestProxiedRecalled: an image that is recalled does not come by its tag either,
// where the client's own credentials bring it around the cache.
func TestProxiedRecalled(t *testing.T) {
	t.Parallel()
	var recalled atomic.Pointer[proto.Digest]
	p := newProxied(t, registry.AuthToken, options{auth: origin.AuthAnonymous, gate: func(c *policy.Config) {
		c.Blocked = func(d proto.Digest) (string, bool) {
			r := recalled.Load()
			return "it is broken", r != nil && *r == d
		}
	}})
	path, good := "/v2/"+private+"/manifests/1", p.token(time.Minute, private)
	accept := "Accept: " + p.img.MediaType
	if a := p.get(t, path, good, accept); a.status != http.StatusOK {
		t.Fatalf("before: %d %s", a.status, a.body)
	}
	recalled.Store(&p.img.Manifest.Digest)
	a := p.get(t, path, good, accept)
	if a.status != http.StatusForbidden || !strings.Contains(string(a.body), "blocklist") || !strings.Contains(string(a.body), "it is broken") {
		t.Errorf("recalled: %d %s", a.status, a.body)
	}
	if len(a.body) > 1000 || a.header.Get("Docker-Content-Digest") != "" {
		t.Errorf("more than the refusal came: %v %s", a.header, a.body)
	}
}
