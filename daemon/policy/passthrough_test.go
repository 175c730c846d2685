package policy

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

// A guarded is a Gate in front of a registry with distribution's own login, as
// one passthrough upstream, and of the same registry's public part as another.
type guarded struct {
	*bed
	origin *origin.Client
	tags   *tags.Resolver
	cfg    Config
	login  *registry.Registry
	up     string // its URL
}

const (
	private = "team/private"
	other   = "team/other"
	public  = "team/public"
	// secret is the upstream with the login.
	secret = "private.test"
)

// newGuarded pushes an image of one layer to each of the repositories. change
// alters the Gate's configuration.
func newGuarded(t *testing.T, change ...func(*Config)) (*guarded, registry.Image) {
	t.Helper()
	g := &guarded{bed: newBed(t)}
	g.login = registry.New(registry.Options{
		Login: registry.AuthToken, Users: map[string]string{"ann": "s3cret", "root": "t0p"},
		Private: []string{private, other}, Access: map[string][]string{"ann": {private}},
	})
	t.Cleanup(g.login.Close)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		front := g.front
		g.mu.Unlock()
		if front == nil || !front(w, r) {
			g.login.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	g.up = server.URL
	as := strings.Replace(g.up, "http://", "http://root:t0p@", 1)
	var img registry.Image
	for i, repository := range []string{other, public, private} {
		var err error
		if img, err = registry.PushImage(t.Context(), as, repository, "1", []int64{1000 + int64(i)}, 1); err != nil {
			t.Fatal(err)
		}
	}
	g.login.Reset()
	var err error
	g.origin, err = origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{
			upstream: {URLs: []string{g.url}},
			secret:   {URLs: []string{g.up}, Auth: origin.AuthPassthrough},
		},
		Backoff: time.Millisecond, Tries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.origin.Close)
	g.tags = tags.New(tags.Config{Origin: g.origin, Index: g.index, TTL: time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- g.tags.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ran
	})
	g.cfg = Config{Origin: g.origin, Index: g.index, Tags: g.tags, Auth: g.origin.Auth, Upstreams: []string{upstream, secret}}
	for _, f := range change {
		f(&g.cfg)
	}
	g.gate = New(g.cfg)
	return g, img
}

func (g *guarded) as(token string) Caller {
	c := Caller{Door: DoorMirror, Addr: "192.0.2.1"}
	if token != "" {
		c.Authorization = "Bearer " + token
	}
	return c
}

func (g *guarded) good(life time.Duration, repositories ...string) Caller {
	return g.as(g.login.Token("ann", life, repositories...))
}

// refs are the ways to ask for what an image has.
func refs(repository string, img registry.Image) map[string]origin.Ref {
	r := origin.Ref{Upstream: secret, Repository: repository}
	byTag, byDigest, blob := r, r, r
	byTag.Tag, byTag.Manifest = "1", true
	byDigest.Digest, byDigest.Manifest = img.Manifest.Digest, true
	blob.Digest = img.Layers[0].Digest
	return map[string]origin.Ref{"tag": byTag, "digest": byDigest, "blob": blob}
}

// pulled makes the gate know the image, as a pull by somebody who may does.
func (g *guarded) pulled(t *testing.T, img registry.Image, who Caller) {
	t.Helper()
	for _, ref := range []string{"tag", "digest"} {
		if _, err := g.gate.Admit(t.Context(), refs(private, img)[ref], who); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.gate.Learn(secret, private, img.Raw, img.MediaType); err != nil {
		t.Fatal(err)
	}
	g.login.Reset()
}

func TestPassthrough(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		who  func(g *guarded) Caller
		want error // nil: admitted
	}{
		"anonymous":         {func(g *guarded) Caller { return g.as("") }, origin.ErrDenied},
		"good":              {func(g *guarded) Caller { return g.good(time.Minute, private) }, nil},
		"token for another": {func(g *guarded) Caller { return g.good(time.Minute, other) }, origin.ErrDenied},
		"expired":           {func(g *guarded) Caller { return g.good(-time.Second, private) }, origin.ErrDenied},
		"revoked":           {func(g *guarded) Caller { c := g.good(time.Minute, private); g.login.RevokeTokens(); return c }, origin.ErrDenied},
		"nonsense":          {func(g *guarded) Caller { return g.as("x.y.z") }, origin.ErrDenied},
		"another scheme":    {func(g *guarded) Caller { return Caller{Authorization: "Basic YW5uOnMzY3JldA=="} }, origin.ErrDenied},
		"the same in other letters": {func(g *guarded) Caller {
			c := g.good(time.Minute, private)
			c.Authorization = strings.ToLower(c.Authorization)
			return c
		}, origin.ErrDenied},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known %v", name, known), func(t *testing.T) {
				t.Parallel()
				g, img := newGuarded(t)
				if known {
					g.pulled(t, img, g.good(time.Minute, private))
				}
				who := test.who(g)
				for _, kind := range []string{"blob", "tag", "digest", "blob"} {
					want := test.want
					if kind == "blob" && !known {
						want = origin.ErrNotFound // no manifest of it is known
						if g.gate.grants.has(grantOf(refs(private, img)[kind], who.Authorization), time.Now()) {
							want = nil // the origin is asked
						}
					}
					a, err := g.gate.Admit(t.Context(), refs(private, img)[kind], who)
					if want != nil {
						if !errors.Is(err, want) {
							t.Errorf("%s: %v, %v, want %v", kind, a, err, want)
						}
						if want == origin.ErrDenied && !errors.As(err, new(*origin.ChallengeError)) {
							t.Errorf("%s: %v, want the upstream's challenge", kind, err)
						}
						if a != (Admission{}) {
							t.Errorf("%s: denied, with %+v", kind, a)
						}
						continue
					}
					if err != nil || a.Blob != map[bool]proto.Blob{true: img.Manifest, false: img.Layers[0]}[kind != "blob"] {
						t.Errorf("%s: %v, %v", kind, a, err)
					}
				}
				if n := g.login.Count(); n.BlobBytes+n.ManifestBytes != 0 {
					t.Errorf("the checks fetched content: %+v", n)
				}
			})
		}
	}
}

// A yes is believed for a while, and then asked for again; a no never is
// remembered.
func TestGrantEnds(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t, func(c *Config) { c.GrantTTL = func(string) time.Duration { return 200 * time.Millisecond } })
	who := g.good(time.Minute, private)
	g.pulled(t, img, who)
	if _, err := g.gate.Admit(t.Context(), refs(private, img)["digest"], who); err != nil {
		t.Fatal(err)
	}
	g.login.RevokeTokens()
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := g.gate.Admit(t.Context(), refs(private, img)["blob"], who)
		if errors.Is(err, origin.ErrDenied) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("a revoked token still works: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	now := g.good(time.Minute, private)
	if _, err := g.gate.Admit(t.Context(), refs(private, img)["blob"], now); err != nil {
		t.Errorf("a new token after a refusal: %v", err)
	}
}

// The grant does not outlive the token, by the token's own word.
func TestTerms(t *testing.T) {
	g := &Gate{}
	now := time.Unix(1_700_000_000, 0)
	token := func(claims string) string {
		return "Bearer x." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".y"
	}
	for name, test := range map[string]struct {
		authorization string
		ttl           time.Duration
		until, lend   time.Duration
	}{
		"opaque":        {"Bearer abc", 0, time.Minute, lendOpaque},
		"none":          {"", 0, time.Minute, lendOpaque},
		"short":         {token(`{"exp":1700000030}`), 0, 30 * time.Second, 30 * time.Second},
		"long":          {token(`{"exp":1700000300}`), 0, time.Minute, 300 * time.Second},
		"very long":     {token(`{"exp":1800000300}`), 0, time.Minute, lendFor},
		"over":          {token(`{"exp":1600000000}`), 0, 1_600_000_000*time.Second - 1_700_000_000*time.Second, 15 * time.Second},
		"configured":    {"Bearer abc", 10 * time.Second, 10 * time.Second, lendOpaque},
		"too long":      {"Bearer abc", time.Hour, time.Minute, lendOpaque},
		"negative":      {"Bearer abc", -time.Hour, time.Minute, lendOpaque},
		"absurd exp":    {token(`{"exp":1e300}`), 0, time.Minute, lendOpaque},
		"exp no number": {token(`{"exp":"soon"}`), 0, time.Minute, lendOpaque},
	} {
		g.grantTTL = func(string) time.Duration { return test.ttl }
		until, lend := g.terms("u", test.authorization, now)
		if until.Sub(now) != test.until || lend.Sub(now) != test.lend {
			t.Errorf("%s: believed for %s, lent for %s, want %s and %s", name, until.Sub(now), lend.Sub(now), test.until, test.lend)
		}
	}
}

// Many callers with one token at once are one question, and each token is one of
// its own.
func TestConcurrentChecksAreOne(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	g.pulled(t, img, g.good(time.Minute, private))
	good, bad := g.good(time.Minute, private), g.good(time.Minute, other)
	gate := make(chan struct{})
	g.setFront(func(_ http.ResponseWriter, r *http.Request) bool {
		<-gate
		return false
	})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := g.gate.Admit(t.Context(), refs(private, img)["blob"], good); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := g.gate.Admit(t.Context(), refs(private, img)["blob"], bad); !errors.Is(err, origin.ErrDenied) {
				t.Errorf("a token for another repository: %v", err)
			}
		})
	}
	// Until both have come; whoever is late finds the grant, or asks again.
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
		g.gate.mu.Lock()
		n := len(g.gate.lookups)
		g.gate.mu.Unlock()
		if n >= 2 {
			break
		}
	}
	close(gate)
	wg.Wait()
	heads, _ := g.login.Lookups(private, img.Manifest.Digest.String())
	if heads > 52 { // 1 for the good ones; the bad ones' refusal is never remembered
		t.Errorf("%d HEADs for 100 callers", heads)
	}
	g.login.Reset()
	if _, err := g.gate.Admit(t.Context(), refs(private, img)["blob"], good); err != nil {
		t.Error(err)
	}
	if n := g.login.Count(); n.ManifestHeads != 0 {
		t.Errorf("with a grant the origin was asked: %+v", n)
	}
}

// With the origin down a grant is enough for what is known, and without one
// nothing is.
func TestPassthroughWithoutTheOrigin(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	good := g.good(time.Minute, private)
	g.pulled(t, img, good)
	g.setFront(down)
	for kind, ref := range refs(private, img) {
		if _, err := g.gate.Admit(t.Context(), ref, good); err != nil {
			t.Errorf("%s with a grant: %v", kind, err)
		}
		for _, who := range []Caller{g.as(""), g.good(time.Minute, private)} {
			if a, err := g.gate.Admit(t.Context(), ref, who); !errors.Is(err, origin.ErrUnavailable) {
				t.Errorf("%s without a grant: %+v, %v, want ErrUnavailable", kind, a, err)
			}
		}
	}
}

// What a passthrough upstream shows to anybody needs no token.
func TestPassthroughOfAPublicRepository(t *testing.T) {
	t.Parallel()
	g, _ := newGuarded(t)
	ref := origin.Ref{Upstream: secret, Repository: public, Tag: "1", Manifest: true}
	if _, err := g.gate.Admit(t.Context(), ref, g.as("")); !errors.Is(err, origin.ErrDenied) {
		t.Fatalf("no token: %v, want the challenge", err)
	}
	anybody := g.as(g.login.Token("", time.Minute, public)) // which the token server gives to all
	if _, err := g.gate.Admit(t.Context(), ref, anybody); err != nil {
		t.Error(err)
	}
}

// A job has no token of its own, and may not use what callers have left.
func TestJobsAndPassthrough(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	g.pulled(t, img, g.good(time.Minute, private))
	for kind, ref := range refs(private, img) {
		_, err := g.gate.Admit(t.Context(), ref, Caller{Door: DoorJob})
		if !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "auth: node") {
			t.Errorf("%s: %v", kind, err)
		}
		if err := g.gate.MayBring(ref); err == nil {
			t.Errorf("%s may be brought", kind)
		}
		ref.Upstream = upstream
		if err := g.gate.MayBring(ref); err != nil {
			t.Error(err)
		}
	}
}

// A grant for one repository is none for another, whatever the other has.
func TestGrantIsPerRepository(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	who := g.good(time.Minute, private)
	g.pulled(t, img, who)
	ref := refs(private, img)["blob"]
	ref.Repository = other
	// Even if a manifest of the other one is known to name it.
	if _, err := g.gate.Import(secret, other, img.Raw, img.MediaType); err != nil {
		t.Fatal(err)
	}
	if a, err := g.gate.Admit(t.Context(), ref, who); err == nil {
		t.Errorf("%+v admitted to who may not read the repository", a)
	}
}

// The token does not show, however a Caller is printed.
func TestCallerKeepsItsSecret(t *testing.T) {
	c := Caller{Door: DoorMirror, Addr: "192.0.2.1", Authorization: "Bearer hunter2", User: "ann"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "caller", c, "pointer", &c, "in", []Caller{c})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "caller", c, "pointer", &c, "in", []Caller{c})
	text := fmt.Sprintf("%v %+v %#v %s %q %v", c, c, c, c, c, &c) + log.String() + fmt.Sprint(struct{ C Caller }{c})
	if strings.Contains(text, "hunter2") {
		t.Errorf("the secret shows: %s", text)
	}
	if !strings.Contains(text, "192.0.2.1") || !strings.Contains(text, "ann") {
		t.Errorf("nothing of the caller shows: %s", text)
	}
}

func TestUserOf(t *testing.T) {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for authorization, want := range map[string]string{
		"": "", "Bearer": "", "Bearer a.b": "", "Bearer a.b.c": "", "Bearer a.!.c": "", "Digest x": "",
		basic("ann:s3cret"): "ann", basic("ann:s3:cret"): "ann", basic("ann"): "ann", "basic YW5uOng=": "ann",
		basic("a\nb:c"): "", basic(strings.Repeat("a", 1000)): "", "Basic %%%": "",
		"Bearer x." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"bob"}`)) + ".y": "bob",
		"Bearer x." + base64.URLEncoding.EncodeToString([]byte(`{"sub":"bobby"}`)) + ".y":  "bobby",
		"Bearer x." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":7}`)) + ".y":     "",
	} {
		if got := UserOf(authorization); got != want {
			t.Errorf("UserOf(%q) = %q, want %q", authorization, got, want)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"", "Basic YW5uOng=", "Bearer a.e30.c", "Bearer x.eyJleHAiOjE3MDAwMDAwMDAsInN1YiI6ImEifQ.y", "Bearer ..", "x"} {
		f.Add(s)
	}
	g := &Gate{}
	f.Fuzz(func(t *testing.T, s string) {
		if user := UserOf(s); len(user) > maxUser || strings.ContainsAny(user, "\n\r\x00") {
			t.Errorf("user %q", user)
		}
		now := time.Unix(1_700_000_000, 0)
		until, lend := g.terms("u", s, now)
		if until.Sub(now) > maxGrantTTL || lend.Sub(now) > lendFor || !lend.After(now) {
			t.Errorf("believed until %s, lent until %s", until, lend)
		}
		if strings.Contains(fmt.Sprintf("%v%+v%#v", Caller{Authorization: s}, Caller{Authorization: s}, Caller{Authorization: s}), s) && len(s) > 20 {
			t.Error("a caller shows its Authorization")
		}
	})
}

// A memory is bounded, and forgets what is over first.
func TestMemoryIsBounded(t *testing.T) {
	var m memory
	now := time.Now()
	stays := hashOf("stays")
	for i := range 3 * maxRemembered {
		until := now.Add(time.Millisecond)
		if i%2 == 0 {
			until = now.Add(time.Minute)
		}
		m.add(hashOf(fmt.Sprint(i)), until, now.Add(time.Duration(i)*time.Microsecond))
	}
	m.add(stays, now.Add(time.Minute), now)
	if n := len(m.until); n > maxRemembered {
		t.Errorf("%d are remembered, of at most %d", n, maxRemembered)
	}
	if !m.has(stays, now) || m.has(stays, now.Add(time.Hour)) {
		t.Error("what was added last is not there, or for ever")
	}
}

// hashOf keeps its parts apart.
func TestHashOf(t *testing.T) {
	if hashOf("a", "bc") == hashOf("ab", "c") || hashOf("a", "") == hashOf("a") || hashOf("1:a") == hashOf("a") {
		t.Error("different names have one hash")
	}
}

// links returns which repositories d is linked to.
func links(t *testing.T, x *cache.Index, d proto.Digest) string {
	t.Helper()
	from, err := x.LinkedFrom(d)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, l := range from {
		s = append(s, l.Upstream+"/"+l.Repository)
	}
	return strings.Join(s, " ")
}
