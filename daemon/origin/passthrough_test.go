package origin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const otherRepository = "library/other"

// A privateBed is a registry that gives its images to those with a token only,
// and a client that passes callers' tokens through.
type privateBed struct {
	reg    *registry.Registry
	base   string
	img    registry.Image
	client *origin.Client
}

func passthrough(urls ...string) origin.Upstream {
	return origin.Upstream{URLs: urls, Auth: origin.AuthPassthrough}
}

func newPrivateBed(t *testing.T, login registry.Auth, change ...func(*origin.Config)) *privateBed {
	t.Helper()
	r, base := startRegistry(t, registry.Options{
		Login:   login,
		Users:   map[string]string{"ann": "s3cret"},
		Private: []string{repository, otherRepository},
	})
	as := strings.Replace(base, "http://", "http://ann:s3cret@", 1)
	b := &privateBed{reg: r, base: base}
	for _, to := range []string{repository, otherRepository} {
		var err error
		if b.img, err = registry.PushImage(t.Context(), as, to, "1", []int64{4 * proto.MinChunk}, 1); err != nil {
			t.Fatal(err)
		}
	}
	r.Reset()
	b.client = newClient(t, passthrough(base), change...)
	return b
}

// bearer returns the Authorization of a caller with a token for a repository.
func (b *privateBed) bearer(life time.Duration, repository string) string {
	return "Bearer " + b.reg.Token("ann", life, repository)
}

// grant lets b's client fetch with an Authorization.
func (b *privateBed) grant(authorization string) {
	b.client.Grant(upstream, repository, authorization, time.Now().Add(time.Minute))
}

func (b *privateBed) fetch(t *testing.T, chunk int) error {
	t.Helper()
	layer := b.img.Layers[0]
	got, err := fetch(t, b.client, proto.Run{Blob: layer, First: chunk, Count: 1})
	if err == nil && len(got) != proto.MinChunk {
		t.Errorf("%d bytes", len(got))
	}
	if errors.Is(err, origin.ErrDenied) && len(got) != 0 {
		t.Errorf("%d bytes with the error %v", len(got), err)
	}
	return err
}

// questions are what is asked on behalf of a caller.
func (b *privateBed) questions(ctx context.Context) map[string]func() error {
	layer := b.img.Layers[0].Digest
	resolve := func(ref origin.Ref) func() error {
		return func() error { _, err := b.client.Resolve(ctx, ref); return err }
	}
	return map[string]func() error{
		"tag":    resolve(origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}),
		"digest": resolve(origin.Ref{Upstream: upstream, Repository: repository, Digest: b.img.Manifest.Digest, Manifest: true}),
		"blob":   resolve(origin.Ref{Upstream: upstream, Repository: repository, Digest: layer}),
		"tags": func() error {
			_, err := b.client.Tags(ctx, upstream, repository, "", nil)
			return err
		},
		"referrers": func() error {
			_, err := b.client.Referrers(ctx, upstream, repository, layer, "", nil)
			return err
		},
	}
}

// With a caller's Authorization the upstream decides, and its challenge comes
// back. Nothing of ours is tried.
func TestPassthrough(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		authorization func(b *privateBed) string
		challenge     string // empty: access
	}{
		"nobody":           {func(*privateBed) string { return "" }, `scope="repository:library/app:pull"`},
		"good":             {func(b *privateBed) string { return b.bearer(time.Minute, repository) }, ""},
		"other repository": {func(b *privateBed) string { return b.bearer(time.Minute, otherRepository) }, `error="insufficient_scope"`},
		"expired":          {func(b *privateBed) string { return b.bearer(-time.Minute, repository) }, `error="invalid_token"`},
		"revoked": {func(b *privateBed) string {
			defer b.reg.RevokeTokens()
			return b.bearer(time.Minute, repository)
		}, `error="invalid_token"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newPrivateBed(t, registry.AuthToken)
			// Somebody else has access. That is no concern of this caller.
			authorization := tc.authorization(b)
			b.grant(b.bearer(time.Minute, repository))
			for what, ask := range b.questions(origin.WithAuthorization(t.Context(), authorization)) {
				b.reg.Reset()
				err := ask()
				c := b.reg.Count()
				if tc.challenge == "" {
					if err != nil || c.Challenges != 0 {
						t.Errorf("%s: %v, %d challenges", what, err, c.Challenges)
					}
					continue
				}
				challenged, ok := errors.AsType[*origin.ChallengeError](err)
				if !ok || !errors.Is(err, origin.ErrDenied) || len(challenged.Challenges) != 1 {
					t.Fatalf("%s: %v, want a ChallengeError with a challenge", what, err)
				}
				got := challenged.Challenges[0]
				if !strings.HasPrefix(got, `Bearer realm="`+b.base+`/token",service="shoal test registry"`) || !strings.Contains(got, tc.challenge) {
					t.Errorf("%s: challenge %q", what, got)
				}
				if c.Challenges != 1 || c.Tokens != 0 || c.ManifestBytes+c.BlobBytes != 0 {
					t.Errorf("%s: counts %+v, want one question and nothing else", what, c)
				}
			}
		})
	}
}

// Without a caller the newest Authorization that the upstream takes is used, and
// what it refuses is forgotten.
func TestGrants(t *testing.T) {
	t.Parallel()
	b := newPrivateBed(t, registry.AuthToken)
	denied := func(what string) {
		t.Helper()
		if err := b.fetch(t, 0); !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "a caller's token is needed") {
			t.Errorf("%s: %v, want ErrDenied", what, err)
		}
		if b.client.Granted(upstream, repository) {
			t.Errorf("%s: it counts as granted", what)
		}
	}
	denied("at first")
	if _, err := b.client.Resolve(t.Context(), origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("Resolve: %v, want ErrDenied", err)
	}
	if c := b.reg.Count(); c != (registry.Counts{}) {
		t.Errorf("the registry was asked without a token: %+v", c)
	}

	b.client.Grant(upstream, otherRepository, b.bearer(time.Minute, otherRepository), time.Now().Add(time.Minute))
	denied("with a grant of another repository")
	b.client.Grant(upstream, repository, b.bearer(time.Minute, repository), time.Now())
	denied("with a grant that is over")
	b.grant("Bearer " + strings.Repeat("x", 1<<20))
	denied("with a token that is too long")

	good := b.bearer(time.Minute, repository)
	b.grant(good)
	if err := b.fetch(t, 0); err != nil {
		t.Errorf("with a grant: %v", err)
	}
	for what, ask := range b.questions(t.Context()) {
		if err := ask(); err != nil {
			t.Errorf("%s with a grant: %v", what, err)
		}
	}
	// A caller who is refused elsewhere does not take part in a pull for all.
	refused := origin.WithAuthorization(t.Context(), "Bearer refused")
	if err := b.client.Source(blobOrigin).Fetch(refused, b.img.Layers[0].Run(), new(bytes.Buffer)); err != nil {
		t.Errorf("Fetch under another caller: %v", err)
	}

	// Two that are refused are newer.
	b.grant(b.bearer(-time.Second, repository))
	b.grant("")
	b.reg.Reset()
	for range 2 {
		if err := b.fetch(t, 1); err != nil {
			t.Errorf("with one good grant of three: %v", err)
		}
	}
	if c := b.reg.Count(); c.Challenges != 2 || c.BlobGets != 4 {
		t.Errorf("counts %+v, want each bad grant tried once", c)
	}
	b.reg.RevokeTokens()
	denied("after they were revoked")
	b.reg.Reset()
	denied("and again")
	if c := b.reg.Count(); c.BlobGets != 0 {
		t.Errorf("what was refused is sent again: %+v", c)
	}

	// Only passthrough upstreams use them.
	c := newClient(t, at(b.base))
	c.Grant(upstream, repository, good, time.Now().Add(time.Minute))
	if c.Granted(upstream, repository) {
		t.Error("an anonymous upstream took a grant")
	}
}

// Where a redirect led to is not read without a live grant.
func TestRedirectNeedsGrant(t *testing.T) {
	t.Parallel()
	b := newPrivateBed(t, registry.AuthToken)
	b.reg.SetFaults(registry.Faults{Redirect: true})
	b.grant(b.bearer(time.Minute, repository))
	first := b.bearer(time.Minute, repository)
	b.grant(first)
	if err := b.fetch(t, 0); err != nil {
		t.Fatal(err)
	}
	b.grant(b.bearer(time.Minute, repository)) // newer, and yet the redirect is used
	if err := b.fetch(t, 1); err != nil {
		t.Fatal(err)
	}
	b.grant(first) // again: it is the same
	if err := b.fetch(t, 2); err != nil {
		t.Fatal(err)
	}
	if c := b.reg.Count(); c.Redirects != 1 || c.Storage != 3 || c.Leaks != 0 {
		t.Fatalf("counts %+v: the redirect was not remembered", c)
	}

	// The upstream refuses a manifest, and so forgets the grants.
	b.reg.RevokeTokens()
	b.reg.Reset()
	if _, err := b.client.Resolve(t.Context(), origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}); !errors.Is(err, origin.ErrDenied) {
		t.Fatalf("%v, want ErrDenied", err)
	}
	if err := b.fetch(t, 3); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("after the grants: %v, want ErrDenied", err)
	}
	// Another token that the upstream refuses does not open it either.
	b.grant(b.bearer(-time.Second, repository))
	if err := b.fetch(t, 3); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("with another grant: %v, want ErrDenied", err)
	}
	if c := b.reg.Count(); c.Storage != 0 || c.BlobBytes != 0 {
		t.Errorf("counts %+v, want nothing from the object storage", c)
	}
}

// What the registry says of a token it says as 403 too.
func TestForbiddenGrantIsDropped(t *testing.T) {
	t.Parallel()
	b := newPrivateBed(t, registry.AuthToken)
	b.grant(b.bearer(time.Minute, repository))
	b.reg.SetFaults(registry.Faults{ManifestStatus: 403})
	if _, err := b.client.Resolve(t.Context(), origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("%v, want ErrDenied", err)
	}
	if b.client.Granted(upstream, repository) {
		t.Error("the grant was kept")
	}

	// Under a caller it is no challenge.
	ctx := origin.WithAuthorization(t.Context(), b.bearer(time.Minute, repository))
	_, err := b.client.Resolve(ctx, origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true})
	if _, challenged := errors.AsType[*origin.ChallengeError](err); challenged || !errors.Is(err, origin.ErrDenied) {
		t.Errorf("%v, want ErrDenied and no challenge", err)
	}
}

// Nobody is asked for a password unless the upstream's config has it.
func TestBasicIsRelayedIfConfigured(t *testing.T) {
	t.Parallel()
	b := newPrivateBed(t, registry.AuthBasic)
	with := passthrough(b.base)
	with.Basic = true
	for _, tc := range []struct {
		client *origin.Client
		want   []string
	}{
		{b.client, nil},
		{newClient(t, with), []string{`Basic realm="the test registry"`}},
	} {
		err := tc.client.Challenge(t.Context(), upstream, "")
		challenged, ok := errors.AsType[*origin.ChallengeError](err)
		if !ok || !slices.Equal(challenged.Challenges, tc.want) {
			t.Errorf("%v %q, want the challenges %q", err, challenged, tc.want)
		}
		if tc.want == nil && !strings.Contains(err.Error(), "set basic: true") {
			t.Errorf("%v does not say what to do", err)
		}
		ann := (&http.Request{Header: make(http.Header)})
		ann.SetBasicAuth("ann", "s3cret")
		if err := tc.client.Challenge(t.Context(), upstream, ann.Header.Get("Authorization")); err != nil {
			t.Errorf("with a password: %v", err)
		}
	}
}

func TestChallengeIsRemembered(t *testing.T) {
	t.Parallel()
	b := newPrivateBed(t, registry.AuthToken)
	for range 3 {
		challenged, ok := errors.AsType[*origin.ChallengeError](b.client.Challenge(t.Context(), upstream, ""))
		want := []string{`Bearer realm="` + b.base + `/token",service="shoal test registry"`}
		if !ok || !slices.Equal(challenged.Challenges, want) {
			t.Fatalf("%q, want %q", challenged.Challenges, want)
		}
	}
	if n := b.reg.Count().Pings; n != 1 {
		t.Errorf("%d questions, want one", n)
	}
	for _, tc := range []struct {
		authorization string
		ok            bool
	}{{b.bearer(time.Minute, repository), true}, {b.bearer(-time.Minute, repository), false}} {
		err := b.client.Challenge(t.Context(), upstream, tc.authorization)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, origin.ErrDenied) {
			t.Errorf("with a token, good: %t: %v", tc.ok, err)
		}
	}

	// A failure is not remembered, and not taken for a challenge.
	again := newClient(t, passthrough(b.base), func(cfg *origin.Config) { cfg.Tries = 1 })
	b.reg.SetFaults(registry.Faults{Down: true})
	err := again.Challenge(t.Context(), upstream, "")
	if _, challenged := errors.AsType[*origin.ChallengeError](err); challenged || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("while it is down: %v, want ErrUnavailable", err)
	}
	b.reg.SetFaults(registry.Faults{})
	if err := again.Challenge(t.Context(), upstream, ""); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("after that: %v, want ErrDenied", err)
	}
	// An upstream of another kind is not shown what a caller sent.
	b.reg.Reset()
	anonymous := newClient(t, at(b.base))
	if err := anonymous.Challenge(t.Context(), upstream, "Bearer x"); err != nil || b.reg.Count().Pings != 0 {
		t.Errorf("anonymous: %v, %d questions", err, b.reg.Count().Pings)
	}
	if err := anonymous.Challenge(t.Context(), "elsewhere.test", ""); !errors.Is(err, origin.ErrUnknownUpstream) {
		t.Errorf("%v, want ErrUnknownUpstream", err)
	}
}

// A caller's Authorization stays at the registry that it is for: it goes to no
// upstream of another kind, to no host of a redirect, to no token server.
func TestAuthorizationStaysHome(t *testing.T) {
	t.Parallel()
	var seen []string
	var away string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen = append(seen, req.Header.Get("Authorization"))
		if req.URL.Path == "/401" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+away+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(elsewhere.Close)
	away = elsewhere.URL
	for _, path := range []string{"/x", "/401"} {
		home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, away+path, http.StatusTemporaryRedirect)
		}))
		t.Cleanup(home.Close)
		c := newClient(t, passthrough(home.URL))
		ctx := origin.WithAuthorization(t.Context(), "Bearer secret")
		_, err := c.Resolve(ctx, origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true})
		if _, challenged := errors.AsType[*origin.ChallengeError](err); challenged {
			t.Errorf("the challenge of a host that was redirected to is relayed: %v", err)
		}
	}
	if len(seen) == 0 || slices.ContainsFunc(seen, func(s string) bool { return s != "" }) {
		t.Errorf("the host of the redirect saw %q", seen)
	}

	r, base := startRegistry(t, registry.Options{})
	push(t, base, 1, 1000)
	var got []string
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got = append(got, req.Header.Get("Authorization"))
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(plain.Close)
	_, err := newClient(t, at(plain.URL)).Tags(origin.WithAuthorization(t.Context(), "Bearer secret"), upstream, repository, "", nil)
	if !errors.Is(err, origin.ErrNotFound) || !slices.Equal(got, []string{""}) {
		t.Errorf("%v; an anonymous upstream saw %q", err, got)
	}
	if text := fmt.Sprintf("%v %+v %#v", origin.WithAuthorization(context.Background(), "Bearer secret"), err, err); strings.Contains(text, "Bearer secret") {
		t.Errorf("it can be read: %s", text)
	}
}

// Callers' tokens are in no error, log line or metric.
func TestCallersSecretsStaySecret(t *testing.T) {
	t.Parallel()
	var seen bytes.Buffer
	metrics := prometheus.NewRegistry()
	b := newPrivateBed(t, registry.AuthToken, func(cfg *origin.Config) {
		cfg.Log = slog.New(slog.NewTextHandler(&seen, &slog.HandlerOptions{Level: slog.LevelDebug}))
		cfg.Registry, cfg.Tries = metrics, 2
	})
	secrets := []string{b.bearer(time.Minute, repository), b.bearer(-time.Minute, repository), "Basic czNjcmV0OnMzY3JldA=="}
	fmt.Fprintln(&seen, b.fetch(t, 0))
	for _, f := range []registry.Faults{{}, {Status: 500, ManifestStatus: 502, ListStatus: 503}, {ManifestStatus: 403}, {WrongDigest: true}, {CutAfter: 100}, {Down: true}} {
		b.reg.SetFaults(f)
		for _, s := range secrets {
			for what, ask := range b.questions(origin.WithAuthorization(t.Context(), s)) {
				fmt.Fprintln(&seen, what, ask())
			}
			b.grant(s)
			fmt.Fprintln(&seen, b.fetch(t, 0), b.client.Challenge(t.Context(), upstream, s))
		}
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&seen, families)
	text := seen.String()
	for _, s := range secrets {
		_, value, _ := strings.Cut(s, " ")
		if strings.Contains(text, value) {
			t.Errorf("%.20s… is in\n%s", s, text)
		}
	}
	if !strings.Contains(text, "502 Bad Gateway") || !strings.Contains(text, "401 Unauthorized: a login") || !strings.Contains(text, "a caller's token is needed") {
		t.Error("the faults did not show")
	}
}
