package locks_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// A request is one kind of thing that can be asked for.
type request struct {
	name   string
	path   func(img registry.Image) string
	header []string
	// right returns what is right of the content that has been fetched.
	right func(img registry.Image, layer []byte) []byte
	blob  bool
}

var requests = []request{
	{name: "manifest by tag", path: func(img registry.Image) string { return "manifests/" + img.Tag },
		right: func(img registry.Image, _ []byte) []byte { return img.Raw }},
	{name: "manifest by digest", path: func(img registry.Image) string { return "manifests/" + img.Manifest.Digest.String() },
		right: func(img registry.Image, _ []byte) []byte { return img.Raw }},
	{name: "blob", path: func(img registry.Image) string { return "blobs/" + img.Layers[0].Digest.String() }, blob: true,
		right: func(_ registry.Image, layer []byte) []byte { return layer }},
	{name: "range", path: func(img registry.Image) string { return "blobs/" + img.Layers[0].Digest.String() }, blob: true,
		header: []string{"Range", "bytes=270000-270099"},
		right:  func(_ registry.Image, layer []byte) []byte { return layer[270000:270100] }},
}

// A place is where the content is when it is asked for at node 0.
type place struct {
	name string
	put  func(b *bed, img registry.Image, r request, good string)
}

var places = []place{
	{"on disk", func(b *bed, img registry.Image, _ request, good string) { b.pull(0, img, good) }},
	{"at a peer only", func(b *bed, img registry.Image, r request, good string) {
		b.pull(1, img, good)
		b.manifestAt0(img, r, good)
		b.SetFaults(registry.Faults{Status: http.StatusServiceUnavailable}) // its blobs; who may have them it still says
	}},
	{"at the origin only", func(b *bed, img registry.Image, r request, good string) { b.manifestAt0(img, r, good) }},
}

// manifestAt0 brings the manifest to node 0 if a blob of it is to be asked for:
// no blob is served without a manifest that names it.
func (b *bed) manifestAt0(img registry.Image, r request, good string) {
	if r.blob {
		if a := b.ask(0, "GET", img.Repository+"/manifests/"+img.Tag, good); a.status != http.StatusOK {
			b.t.Fatalf("manifest: status %d: %.300s", a.status, a.body)
		}
	}
}

// A caller is somebody who asks, with an Authorization that may not be good.
type caller struct{ name, authorization string }

// callers returns those who may not have secretRepo, and the Authorization of
// one who may. The one that is revoked was good until a moment ago, at node 0.
func (b *bed) callers(img registry.Image) (bad []caller, good string) {
	b.t.Helper()
	gone := b.as("gone", secretRepo)
	if a := b.ask(0, "GET", secretRepo+"/manifests/"+img.Tag, gone); a.status != http.StatusOK {
		b.t.Fatalf("before it was revoked: status %d: %.300s", a.status, a.body)
	}
	if b.login == registry.AuthBasic {
		b.RemoveUser("gone")
		return []caller{
			{"anonymous", ""}, {"wrong password", basic("ann", "guess")}, {"unknown user", basic("nobody", "x")}, {"revoked", gone},
		}, b.as("ann")
	}
	b.RevokeTokens()
	return []caller{
		{"anonymous", ""},
		{"token for another repository", b.as("bob", otherRepo)},
		{"expired", "Bearer " + b.Token("ann", -time.Minute, secretRepo)},
		{"revoked", gone},
		{"garbage", "Bearer " + strings.Repeat("x", 4000)},
	}, b.as("ann", secretRepo)
}

// TestMatrix: {callers} × {places} × {requests}, with a token server and with an
// htpasswd file: who may have it gets the right bytes, and who may not gets none,
// neither before nor after somebody else did.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for name, login := range map[string]registry.Auth{"token server": registry.AuthToken, "htpasswd": registry.AuthBasic} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, login, 2, daemon.Upstream{Auth: "passthrough", GrantTTL: time.Nanosecond}, nil)
			bad, good := b.callers(b.push(secretRepo))
			cells := 0
			for _, p := range places {
				for _, r := range requests {
					t.Run(p.name+"/"+r.name, func(t *testing.T) {
						b := *b
						b.t = t
						b.SetFaults(registry.Faults{})
						img := b.pushSecret()
						p.put(&b, img.Image, r, good)
						for range 2 {
							for _, c := range bad {
								b.refused(img, r, c)
								cells++
							}
							b.served(img, r, good)
							cells++
						}
					})
				}
			}
			t.Logf("%d cells", cells)
		})
	}
}

// refused asks as somebody who may not have it.
func (b *bed) refused(img secret, r request, c caller) {
	b.t.Helper()
	for _, method := range []string{"GET", "HEAD"} {
		a := b.ask(0, method, img.Repository+"/"+r.path(img.Image), c.authorization, r.header...)
		if b.login == registry.AuthToken && a.status != http.StatusUnauthorized || a.status != http.StatusUnauthorized && a.status != http.StatusForbidden {
			b.t.Errorf("%s, %s: status %d: %.200s", c.name, method, a.status, a.body)
		}
		challenge := a.header.Get("Www-Authenticate")
		if strings.Contains(strings.ToLower(challenge), "basic") {
			b.t.Errorf("%s, %s: offered %q", c.name, method, challenge)
		}
		if want := `scope="repository:` + secretRepo + `:pull"`; b.login == registry.AuthToken && !strings.Contains(challenge, want) {
			b.t.Errorf("%s, %s: challenge %q, want one with %s", c.name, method, challenge, want)
		}
		if what := img.leaked(a, r.path(img.Image)); what != "" {
			b.t.Errorf("%s, %s: got %s", c.name, method, what)
		}
	}
}

// served asks as somebody who may have it.
func (b *bed) served(img secret, r request, good string) {
	b.t.Helper()
	a := b.ask(0, "GET", img.Repository+"/"+r.path(img.Image), good, r.header...)
	want := http.StatusOK
	if r.header != nil {
		want = http.StatusPartialContent
	}
	if right := r.right(img.Image, img.layer); a.status != want || !bytes.Equal(a.body, right) {
		b.t.Errorf("who may have it got status %d and %d bytes, want %d and %d: %.300s", a.status, len(a.body), want, len(right), a.body[:min(len(a.body), 300)])
	}
}

// TestDigestIsNoPermission: a digest of a private image opens nothing, under no
// other repository and without a manifest that names it.
func TestDigestIsNoPermission(t *testing.T) {
	t.Parallel()
	b := start(t, registry.AuthToken, 2, daemon.Upstream{Auth: "passthrough"}, nil)
	img, public := b.pushSecret(), b.push(publicRepo)
	b.pull(0, img.Image, b.as("ann", secretRepo))
	bob := b.as("bob", otherRepo, publicRepo)
	b.pull(0, public, bob)
	layer := img.Layers[0].Digest.String()
	for name, path := range map[string]string{
		"blob of another repository":     publicRepo + "/blobs/" + layer,
		"blob of one's own":              otherRepo + "/blobs/" + layer,
		"manifest of another repository": publicRepo + "/manifests/" + img.Manifest.Digest.String(),
		"manifest as a blob":             publicRepo + "/blobs/" + img.Manifest.Digest.String(),
		"blob as a manifest":             publicRepo + "/manifests/" + layer,
		"referrers":                      secretRepo + "/referrers/" + img.Manifest.Digest.String(),
		"tags":                           secretRepo + "/tags/list",
	} {
		for i := range b.fleet.Nodes {
			for _, authorization := range []string{"", bob} {
				a := b.ask(i, "GET", path, authorization)
				if a.status < 400 || a.status >= 500 {
					t.Errorf("%s at node %d: status %d: %.200s", name, i, a.status, a.body)
				}
				if what := img.leaked(a, path); what != "" {
					t.Errorf("%s at node %d: got %s", name, i, what)
				}
			}
		}
	}
	// Node 1 has no manifest that names the layer. Its owner has to ask for one.
	ann := b.as("ann", secretRepo)
	if a := b.ask(1, "GET", secretRepo+"/blobs/"+layer, ann); a.status != http.StatusNotFound {
		t.Errorf("a blob that no manifest names here: status %d", a.status)
	}
	b.pull(1, img.Image, ann)
}

// TestGrant: what the upstream said of a token holds for a while and spares it
// the questions, and not longer.
func TestGrant(t *testing.T) {
	t.Parallel()
	b := start(t, registry.AuthToken, 1, daemon.Upstream{Auth: "passthrough", GrantTTL: time.Minute}, nil)
	img := b.push(secretRepo)
	ann := b.as("ann", secretRepo)
	b.Reset()
	for range 5 {
		b.pull(0, img, ann)
	}
	if c := b.Count(); c.ManifestHeads+c.BlobHeads > 2 || c.BlobGets > len(img.Blobs()) {
		t.Errorf("five pulls of one caller made %+v", c)
	}
	b.RevokeTokens()
	b.pull(0, img, ann) // the grant's minute, which is documented
	if a := b.ask(0, "GET", secretRepo+"/manifests/"+img.Tag, b.as("bob", otherRepo)); a.status != http.StatusUnauthorized {
		t.Errorf("somebody else meanwhile: status %d", a.status)
	}
	short := "Bearer " + b.Token("ann", time.Second, secretRepo)
	b.pull(0, img, short)
	deadline := time.Now().Add(20 * time.Second)
	for {
		a := b.ask(0, "GET", secretRepo+"/blobs/"+img.Layers[0].Digest.String(), short)
		if a.status == http.StatusUnauthorized {
			break // before the minute, since the token said so itself
		}
		if time.Now().After(deadline) {
			t.Fatalf("a token of a second is still good: status %d", a.status)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestOriginDownIsNoYes: when the upstream can't be asked, nothing private is
// served to anybody who was not granted it.
func TestOriginDownIsNoYes(t *testing.T) {
	t.Parallel()
	b := start(t, registry.AuthToken, 1, daemon.Upstream{Auth: "passthrough"}, nil)
	img := b.push(secretRepo)
	ann := b.as("ann", secretRepo)
	b.pull(0, img, ann)
	b.SetFaults(registry.Faults{Down: true})
	for name, authorization := range map[string]string{"anonymous": "", "another": b.as("bob", otherRepo), "one who could": b.as("ann", secretRepo)} {
		for _, path := range []string{"manifests/" + img.Tag, "manifests/" + img.Manifest.Digest.String(), "blobs/" + img.Layers[0].Digest.String()} {
			a := b.ask(0, "GET", secretRepo+"/"+path, authorization)
			if a.status != http.StatusServiceUnavailable {
				t.Errorf("%s, %s: status %d: %.200s", name, path, a.status, a.body)
			}
		}
	}
	b.SetFaults(registry.Faults{Down: true})
	if a := b.ask(0, "GET", secretRepo+"/blobs/"+img.Layers[0].Digest.String(), ann); a.status != http.StatusOK || proto.DigestOf(a.body) != img.Layers[0].Digest {
		t.Errorf("who was granted it a moment ago: status %d", a.status)
	}
}

// TestPing: dockerd asks for /v2/ first and logs in only if that is refused.
func TestPing(t *testing.T) {
	t.Parallel()
	b := start(t, registry.AuthToken, 1, daemon.Upstream{Auth: "passthrough"}, nil)
	a := b.ask(0, "GET", "", "")
	if challenge := a.header.Get("Www-Authenticate"); a.status != http.StatusUnauthorized || !strings.HasPrefix(challenge, `Bearer realm="`+b.url+`/token"`) {
		t.Errorf("status %d with the challenge %q", a.status, challenge)
	}
	if a := b.ask(0, "GET", "", b.as("ann", secretRepo)); a.status != http.StatusOK {
		t.Errorf("with a token: status %d: %s", a.status, a.body)
	}
}
