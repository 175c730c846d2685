package mirror

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

const (
	private = "team/private"
	other   = "team/other"
)

// A guarded is a bed whose upstream shows nothing to who does not log in, as
// distribution does itself, and passes its callers' tokens through.
type guarded struct {
	*bed
	how registry.Auth
	img registry.Image // of private

	records chan audit.Record
}

func newGuarded(t *testing.T, how registry.Auth, o options) *guarded {
	t.Helper()
	g := &guarded{how: how, records: make(chan audit.Record, 1000)}
	o.registry = registry.Options{
		Login: how, Users: map[string]string{"ann": "s3cret", "bob": "b0b", "root": "t0p"},
		Private: []string{private, other}, Access: map[string][]string{"ann": {private}, "bob": {other}},
	}
	if o.auth == "" {
		o.auth = origin.AuthPassthrough
	}
	o.tags = true
	config := o.config
	o.config = func(c *Config) {
		c.Audit = func(r audit.Record) { g.records <- r }
		if config != nil {
			config(c)
		}
	}
	g.bed = newBed(t, o)
	g.user = "root:t0p"
	g.push(t, other, "1", 3000)
	g.img = g.push(t, private, "1", 300_000, 2000)
	return g
}

// audited returns the next record, which is written after the answer.
func (g *guarded) audited(t *testing.T) audit.Record {
	t.Helper()
	select {
	case r := <-g.records:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("no record")
		return audit.Record{}
	}
}

// token returns the header of a token for ann.
func (g *guarded) token(life time.Duration, repository string) string {
	return "Authorization: Bearer " + g.reg.Token("ann", life, repository)
}

// pull pulls the private image as a runtime with a good token does.
func (g *guarded) pull(t *testing.T, authorization string) {
	t.Helper()
	for _, path := range []string{manifestPath(private, "1"), manifestPath(private, g.img.Manifest.Digest.String())} {
		if a := g.get(t, path, authorization); a.status != http.StatusOK || proto.DigestOf(a.body) != g.img.Manifest.Digest {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, b := range g.img.Blobs() {
		if a := g.get(t, blobPath(private, b.Digest), authorization); a.status != http.StatusOK || proto.DigestOf(a.body) != b.Digest {
			t.Fatalf("blob %s: %d, %d bytes", b.Digest, a.status, len(a.body))
		}
		whole(t, g.bed, b)
	}
}

// A question is a way to ask for something private.
type question struct{ method, path, header string }

func (g *guarded) questions() map[string]question {
	layer, digest := g.img.Layers[0].Digest, g.img.Manifest.Digest.String()
	return map[string]question{
		"manifest by tag":    {http.MethodGet, manifestPath(private, "1"), ""},
		"manifest by digest": {http.MethodGet, manifestPath(private, digest), ""},
		"head by tag":        {http.MethodHead, manifestPath(private, "1"), ""},
		"head by digest":     {http.MethodHead, manifestPath(private, digest), ""},
		"blob":               {http.MethodGet, blobPath(private, layer), ""},
		"config":             {http.MethodGet, blobPath(private, g.img.Config.Digest), ""},
		"range":              {http.MethodGet, blobPath(private, layer), "Range: bytes=10-1009"},
		"ranges":             {http.MethodGet, blobPath(private, layer), "Range: bytes=0-9,20-29"},
		"not modified":       {http.MethodGet, blobPath(private, layer), `If-None-Match: "` + layer.String() + `"`},
		"head of a blob":     {http.MethodHead, blobPath(private, layer), ""},
		"tags":               {http.MethodGet, "/v2/" + private + "/tags/list?ns=" + upstream, ""},
		"referrers":          {http.MethodGet, "/v2/" + private + "/referrers/" + digest + "?ns=" + upstream, ""},
	}
}

// leaks reports what of the private image is in an answer.
func (g *guarded) leaks(a answer) string {
	switch {
	case a.header.Get("Docker-Content-Digest") != "" || a.header.Get("Etag") != "":
		return "a digest"
	case bytes.Contains(a.body, []byte("schemaVersion")) || bytes.Contains(a.body, []byte(`"tags"`)):
		return "a manifest or a list"
	case len(a.body) > 0 && !bytes.HasPrefix(a.body, []byte(`{"errors":[`)):
		return fmt.Sprintf("%d bytes", len(a.body))
	case a.status < http.StatusBadRequest:
		return fmt.Sprintf("status %d", a.status)
	}
	return ""
}

// Whoever may not have it gets the upstream's challenge and not a byte, wherever
// the content is and whoever had it before; and whoever may gets it.
func TestPassthroughMatrix(t *testing.T) {
	t.Parallel()
	basic := func(user, password string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	type callers map[string]struct {
		header func(g *guarded) string
		good   bool
	}
	for how, callers := range map[registry.Auth]callers{
		registry.AuthToken: {
			"anonymous":         {func(*guarded) string { return "" }, false},
			"good":              {func(g *guarded) string { return g.token(time.Minute, private) }, true},
			"token for another": {func(g *guarded) string { return g.token(time.Minute, other) }, false},
			"expired":           {func(g *guarded) string { return g.token(-time.Second, private) }, false},
			"revoked":           {func(g *guarded) string { h := g.token(time.Minute, private); g.reg.RevokeTokens(); return h }, false},
			"nonsense":          {func(*guarded) string { return "Authorization: Bearer nonsense" }, false},
		},
		registry.AuthBasic: {
			"anonymous":      {func(*guarded) string { return "" }, false},
			"good":           {func(*guarded) string { return basic("ann", "s3cret") }, true},
			"wrong password": {func(*guarded) string { return basic("ann", "guess") }, false},
			"revoked":        {func(g *guarded) string { g.reg.RemoveUser("ann"); return basic("ann", "s3cret") }, false},
		},
	} {
		for name, caller := range callers {
			for _, place := range []string{"on disk", "at the origin only"} {
				t.Run(fmt.Sprintf("%v, %s, %s", how, name, place), func(t *testing.T) {
					t.Parallel()
					g := newGuarded(t, how, options{prefetch: true})
					if place == "on disk" {
						if how == registry.AuthToken {
							g.pull(t, g.token(time.Minute, private))
						} else {
							g.pull(t, basic("bob", "b0b"))
						}
						g.get(t, "/v2/"+private+"/tags/list?ns="+upstream, basic("bob", "b0b"))
					}
					header := caller.header(g)
					g.reg.Reset()
					if caller.good {
						g.pull(t, header)
						g.wantAll(t, header)
						return
					}
					for what, q := range g.questions() {
						a := g.ask(t, q.method, q.path, header, q.header)
						g.wantNothing(t, place+" "+what, how, a)
					}
					if n := g.reg.Count(); n.BlobBytes+n.ManifestBytes != 0 || n.BlobGets != 0 {
						t.Errorf("for who may not have it was fetched: %+v", n)
					}
				})
			}
		}
	}
}

func (g *guarded) wantAll(t *testing.T, header string) {
	t.Helper()
	for what, q := range g.questions() {
		want := map[string]int{"range": 206, "ranges": 206, "not modified": 304}[what]
		if want == 0 {
			want = 200
		}
		if a := g.ask(t, q.method, q.path, header, q.header); a.status != want {
			t.Errorf("%s: %d %.300s", what, a.status, a.body)
		}
	}
}

func (g *guarded) wantNothing(t *testing.T, what string, how registry.Auth, a answer) {
	t.Helper()
	if leak := g.leaks(a); leak != "" {
		t.Errorf("%s: %d with %s", what, a.status, leak)
	}
	challenge := a.header.Get("Www-Authenticate")
	switch {
	case strings.HasPrefix(what, "at the origin only") && a.status == http.StatusNotFound:
		if !strings.Contains(what, "blob") && !strings.Contains(what, "range") && !strings.Contains(what, "config") && !strings.Contains(what, "modified") {
			t.Errorf("%s: 404 %s", what, a.body)
		}
	case how == registry.AuthToken:
		if a.status != http.StatusUnauthorized || !strings.HasPrefix(challenge, `Bearer realm="`+g.regURL+`/token",`) || !strings.Contains(challenge, "repository:"+private+":pull") {
			t.Errorf("%s: %d, challenge %q", what, a.status, challenge)
		}
	default: // Basic is never offered unless it is configured
		if a.status != http.StatusForbidden || challenge != "" {
			t.Errorf("%s: %d, challenge %q", what, a.status, challenge)
		}
	}
}

// dockerd only logs in if the ping says so.
func TestPingChallenges(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{})
	a := g.get(t, "/v2/?ns="+upstream)
	if !strings.HasPrefix(a.header.Get("Www-Authenticate"), "Bearer realm=") || a.status != http.StatusUnauthorized {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := g.get(t, "/v2/?ns="+upstream, g.token(time.Minute, private)); a.status != http.StatusOK {
		t.Errorf("with a token: %d %s", a.status, a.body)
	}
	for _, path := range []string{"/v2/", "/v2/?ns=docker.io", "/v2/?ns=unknown.test", "/v2/?ns=%00"} {
		if a := g.get(t, path); a.status != http.StatusOK {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	g.get(t, "/v2/?ns="+upstream)
	if n := g.reg.Count(); n.Pings != 2 {
		t.Errorf("%d pings at the origin, want one without a token and one with", n.Pings)
	}
	g.handler.def = upstream
	if a := g.get(t, "/v2/"); a.status != http.StatusUnauthorized {
		t.Errorf("the default upstream: %d", a.status)
	}
}

// A whole login as clients do it: 401, the token from the realm that was
// relayed, and then the pull.
func TestPassthroughEndToEnd(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{prefetch: true})
	a := g.ask(t, http.MethodHead, manifestPath(private, "1"))
	challenge := a.header.Get("Www-Authenticate")
	var realm string
	if _, err := fmt.Sscanf(challenge, "Bearer realm=%q", &realm); err != nil {
		t.Fatalf("%q: %v", challenge, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, realm+"?service=shoal+test+registry&scope=repository:"+private+":pull", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("ann", "s3cret")
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	g.pull(t, "Authorization: Bearer "+got.Token)
	if text := g.log.String(); strings.Contains(text, got.Token) || strings.Contains(text, "s3cret") {
		t.Error("the token is in the log")
	}
}

// A blob is nobody's until a manifest of the repository is known that has it.
func TestBlobWithoutManifest(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{})
	good := g.token(time.Minute, private)
	g.get(t, blobPath(private, g.img.Layers[0].Digest), good).want(t, http.StatusNotFound, codeBlobUnknown)
	g.pull(t, good)
	if a := g.get(t, blobPath(private, g.img.Layers[0].Digest), g.token(time.Minute, private)); a.status != http.StatusOK {
		t.Errorf("another good token, once it is known: %d %s", a.status, a.body)
	}
	// Nor through a repository that does not have it.
	a := g.get(t, blobPath(other, g.img.Layers[0].Digest), g.token(time.Minute, other))
	a.want(t, http.StatusNotFound, codeBlobUnknown)
}

// With the origin down, a grant that is live is enough, and without one nothing
// is served, stale or not.
func TestPassthroughWithTheOriginDown(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{prefetch: true})
	good := g.token(time.Minute, private)
	g.pull(t, good)
	if a := g.get(t, "/v2/"+private+"/tags/list?ns="+upstream, good); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	fresh := g.token(time.Minute, private)
	g.down()
	for what, q := range g.questions() {
		if what != "tags" && what != "referrers" { // which are never kept
			if a := g.ask(t, q.method, q.path, good, q.header); a.status >= http.StatusBadRequest {
				t.Errorf("%s with a grant: %d %s", what, a.status, a.body)
			}
		}
		a := g.ask(t, q.method, q.path, fresh, q.header)
		if leak := g.leaks(a); leak != "" || a.status != http.StatusServiceUnavailable {
			t.Errorf("%s without a grant: %d with %s", what, a.status, leak)
		}
	}
	if _, ok, err := g.cache.Index().List(upstream, private, "tags/list"); ok || err != nil {
		t.Errorf("a list that one caller may see was kept: %v", err)
	}
}

// A token that the origin takes no more while content has still to come from it
// is a 401 for the client, which then logs in anew, and not a 403.
func TestTokenEndsBetweenManifestAndBlob(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{})
	good := g.token(time.Minute, private)
	if a := g.get(t, manifestPath(private, "1"), good); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	g.reg.RevokeTokens()
	a := g.get(t, blobPath(private, g.img.Layers[0].Digest), good)
	if a.status != http.StatusUnauthorized || g.leaks(a) != "" || a.header.Get("Www-Authenticate") == "" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if a := g.get(t, blobPath(private, g.img.Layers[0].Digest), g.token(time.Minute, private)); a.status != http.StatusOK {
		t.Errorf("after a new login: %d %s", a.status, a.body)
	}
	if a := g.get(t, blobPath(private, g.img.Layers[1].Digest), g.token(time.Minute, private)); a.status != http.StatusOK {
		t.Errorf("another blob: %d %s", a.status, a.body)
	}
}

// An anonymous upstream's mirror takes no notice of who asks.
func TestAnonymousIgnoresAuthorization(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	img := b.push(t, "team/app", "1", 1000)
	for _, header := range []string{"", "Authorization: Bearer x", "Authorization: Basic !!!"} {
		if a := b.get(t, manifestPath("team/app", "1"), header); a.status != http.StatusOK {
			t.Errorf("%q: %d", header, a.status)
		}
		if a := b.get(t, blobPath("team/app", img.Layers[0].Digest), header); a.status != http.StatusOK {
			t.Errorf("%q: %d", header, a.status)
		}
	}
	if n := b.reg.Count(); n.Leaks != 0 {
		t.Errorf("%d requests had an Authorization", n.Leaks)
	}
}

// One record of each GET of content that was answered, and of each refusal.
func TestAuditRecords(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, registry.AuthToken, options{gate: func(c *policy.Config) {
		c.Blocked = func(d proto.Digest) (string, bool) { return "", d == proto.DigestOf([]byte("bad")) }
	}})
	good, bad := g.token(time.Minute, private), g.token(time.Minute, other)
	layer := g.img.Layers[0]
	type step struct {
		method, path, header string
		want                 string // "" for no record
	}
	digest := g.img.Manifest.Digest.String()
	for _, s := range []step{
		{"GET", "/v2/?ns=" + upstream, "", ""},
		{"GET", manifestPath(private, "1"), "", ""}, // the beginning of a login
		{"GET", manifestPath(private, "1"), bad, "mirror 127.0.0.1 ann denied registry manifest 1 401 0"},
		{"HEAD", manifestPath(private, "1"), good, ""},
		{"GET", manifestPath(private, "1"), good, fmt.Sprintf("mirror 127.0.0.1 ann admitted  manifest 1 %s 200 %d origin", digest, g.img.Manifest.Size)},
		{"GET", manifestPath(private, digest), good, fmt.Sprintf("mirror 127.0.0.1 ann admitted  manifest %s %s 200 %d disk", digest, digest, g.img.Manifest.Size)},
		{"GET", blobPath(private, layer.Digest), good, fmt.Sprintf("mirror 127.0.0.1 ann admitted  blob %s %s 200 %d origin", layer.Digest, layer.Digest, layer.Size)},
		{"GET", blobPath(private, proto.DigestOf([]byte("bad"))), good, "denied blocklist blob"},
		{"GET", blobPath(private, proto.DigestOf([]byte("none"))), good, ""},
		{"GET", "/v2/" + private + "/tags/list?ns=" + upstream, bad, "denied registry list"},
		{"GET", "/v2/" + private + "/tags/list?ns=" + upstream, good, ""},
	} {
		g.ask(t, s.method, s.path, s.header)
		if s.method == http.MethodGet && s.path == manifestPath(private, "1") && s.header == good {
			whole(t, g.bed, g.img.Manifest)
		}
		if s.want == "" {
			continue
		}
		r := g.audited(t)
		if r.Time.IsZero() || r.Took <= 0 || r.Upstream != upstream || r.Repository != private {
			t.Errorf("%s %s: %+v", s.method, s.path, r)
		}
		got := fmt.Sprintf("%s %s %s %s %s %s %s %s %d %d %s", r.Door, r.Client, r.User, r.Verdict, r.Rule, r.Kind, r.Reference, r.Digest, r.Status, r.Bytes, r.Source)
		if text := fmt.Sprintf("%+v", r); strings.Contains(text, strings.TrimPrefix(good, "Authorization: Bearer ")) || strings.Contains(text, strings.TrimPrefix(bad, "Authorization: Bearer ")) {
			t.Errorf("a token is in the record: %s", text)
		}
		rest := strings.Fields(got)
		for _, w := range strings.Fields(s.want) { // in this order
			i := slices.Index(rest, w)
			if i < 0 {
				t.Errorf("%s %s (%.30q): recorded %q, want %q", s.method, s.path, s.header, got, s.want)
				break
			}
			rest = rest[i+1:]
		}
	}
	g.close() // and with it all handlers
	if len(g.records) > 0 {
		t.Errorf("recorded as well: %+v", <-g.records)
	}
}
