package signature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// faults by what they break.
var faults = map[string]registry.Faults{
	"lists":            {ListStatus: http.StatusServiceUnavailable},
	"lists, 500":       {ListStatus: http.StatusInternalServerError},
	"manifests":        {ManifestStatus: http.StatusServiceUnavailable},
	"blobs":            {Status: http.StatusServiceUnavailable},
	"blobs cut":        {CutAfter: 10},
	"blobs wrong":      {WrongBytes: -1},
	"blobs short":      {ShortBody: true},
	"wrong digests":    {WrongDigest: true},
	"too many at once": {ManifestStatus: http.StatusTooManyRequests, RetryAfter: "60"},
	"login":            {Auth: registry.AuthToken, Realm: "https://elsewhere.example/token"},
	"down":             {Down: true},
}

// While the registry fails at any of the questions, an image is neither signed
// nor not signed, neither scanned nor not scanned, and it is right at once when
// the registry is back.
func TestRegistryFails(t *testing.T) {
	t.Parallel()
	s, a := newSigner(t), newAuthority(t, "team", time.Hour)
	report := func(d proto.Digest) []byte {
		return statementOf(d, typeCosignVuln, cosignVuln(time.Now().Format(time.RFC3339), trivyReport()))
	}
	// Faults of what need not be fetched, if nothing is there.
	fetches := []string{"blobs", "blobs cut", "blobs wrong", "blobs short", "wrong digests"}
	for _, test := range []struct {
		stored string
		attach func(w *world, d proto.Digest)
		signed string
		// spared are the faults that do not touch the questions for signatures,
		// spares those for scan results.
		spared, scanSpared []string
	}{
		{"nothing", func(*world, proto.Digest) {}, "", fetches, fetches},
		{"by tag", func(w *world, d proto.Digest) {
			w.attach("app", sigTag(d), d, "", s.simple(d))
			w.attach("app", attTag(d), d, "", s.envelope(report(d)))
		}, "key", nil, nil},
		{"bundle", func(w *world, d proto.Digest) {
			sig := w.attach("app", "", d, typeBundle3, s.bundle(statementOf(d, predicateSignature, "{}")))
			scan := w.attach("app", "", d, typeBundle3, s.bundle(report(d)))
			w.refer("app", d, w.described("app", sig), w.described("app", scan))
		}, "key", nil, nil},
		{"notation", func(w *world, d proto.Digest) {
			w.attach("app", "", d, typeNotation, a.sign(w.image, jws.MediaTypeEnvelope, 0))
		}, "notation", nil, fetches},
	} {
		w := newWorld(t)
		seed := uint64(100)
		for fault, f := range faults {
			// Nothing is known of the image, nor of the registry's mood.
			seed++
			w.image = w.pushImage("app", seed)
			w.connect()
			d := w.image.Manifest.Digest
			test.attach(w, d)
			k := s.named("key")
			k.Repositories = []string{testUpstream + "/none"} // so that it is not for scans only
			gate := Gate{Name: "gate", Repositories: []string{"**"}, Key: "key", Missing: "allow"}
			v := w.verifier([]Key{k, a.named("notation", "*")}, gate)
			w.registry.SetFaults(f)
			names, err := v.SignedBy(t.Context(), testUpstream, "app", d)
			got := strings.Join(names, " ")
			if (err == nil) != slices.Contains(test.spared, fault) {
				t.Errorf("%s, %s fail: signed by %q, %v", test.stored, fault, got, err)
			}
			// What is found before something fails is told along with the error.
			if got != "" && got != test.signed {
				t.Errorf("%s, %s fail: signed by %q", test.stored, fault, got)
			}
			var rejected *Rejected
			err = scanOf(t, v, "app", d)
			if errors.As(err, &rejected) || (err == nil) != slices.Contains(test.scanSpared, fault) {
				t.Errorf("%s, %s fail: scan says %v", test.stored, fault, err)
			}
			w.registry.SetFaults(registry.Faults{})
			if fault == "too many at once" {
				continue // it is left alone for a minute
			}
			if got := w.signedBy(v, "app", d); got != test.signed {
				t.Errorf("%s, %s work again: signed by %q, want %q", test.stored, fault, got, test.signed)
			}
			if err := scanOf(t, v, "app", d); err != nil {
				t.Errorf("%s, %s work again: scan says %v", test.stored, fault, err)
			}
		}
	}
}

// What the registry names as a signature and does not have, it has lost.
func TestNamedButNotThere(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.refer("app", d, descriptor{MediaType: ociManifest, ArtifactType: typeBundle3, Digest: proto.DigestOf([]byte("x")).String(), Size: 1})
	v := w.verifier([]Key{s.named("key")})
	if _, err := v.SignedBy(t.Context(), testUpstream, "app", d); !errors.Is(err, origin.ErrProtocol) {
		t.Errorf("error = %v", err)
	}
	// A registry whose list is a page of something else has not answered either.
	w.registry.SetReferrers("app", d, []byte(`[1]`))
	if _, err := v.SignedBy(t.Context(), testUpstream, "app", d); !errors.Is(err, origin.ErrProtocol) {
		t.Errorf("error = %v", err)
	}
	// And so with an image whose descriptor notation needs.
	a := newAuthority(t, "team", time.Hour)
	gone := w.image
	gone.Manifest.Digest = proto.DigestOf([]byte("gone"))
	w.attach("app", "", gone.Manifest.Digest, typeNotation, a.sign(gone, jws.MediaTypeEnvelope, 0))
	v = w.verifier([]Key{a.named("team", "*")})
	if names, err := v.SignedBy(t.Context(), testUpstream, "app", gone.Manifest.Digest); err == nil {
		t.Errorf("signed by %q", names)
	}
}

// A valid signature that was found is enough, whatever fails beside it, where
// no other one is required.
func TestFoundBesideAFailure(t *testing.T) {
	t.Parallel()
	here, there := newSigner(t), newSigner(t)
	app, elsewhere := []string{testUpstream + "/app"}, []string{testUpstream + "/elsewhere"}
	for _, test := range []struct {
		name        string
		here, there []string // where they are required
		both        bool     // who has signed: both, or "here" alone
		before      bool     // that a lookup was complete before
		want        string
	}{
		{"all found", nil, nil, true, false, "here there"},
		{"required found", app, nil, false, false, "here"},
		{"required found, other required elsewhere", app, elsewhere, false, false, "here"},
		{"other required", nil, app, false, false, "here error"},
		{"other required, looked for before", nil, app, false, true, "here error"},
		{"none required", nil, nil, false, false, "here error"},
		{"none required, looked for before", nil, nil, false, true, "here"},
	} {
		w := newWorld(t)
		d := w.image.Manifest.Digest
		objects := []object{here.simple(d)}
		if test.both {
			objects = append(objects, there.simple(d))
		}
		w.attach("app", sigTag(d), d, "", objects...)
		h, th := here.named("here"), there.named("there")
		h.Repositories, th.Repositories = test.here, test.there
		if test.before {
			if got := w.signedBy(w.verifier([]Key{h, th}), "app", d); got != "here" {
				t.Errorf("%s: signed by %q before", test.name, got)
			}
		}
		w.registry.SetFaults(registry.Faults{ListStatus: http.StatusServiceUnavailable})
		if got := w.signedBy(w.verifier([]Key{h, th}), "app", d); got != test.want {
			t.Errorf("%s: signed by %q, want %q", test.name, got, test.want)
		}
	}
}

// A valid signature is verified once, and remembered across restarts: for the
// digest and the key, wherever the image is.
func TestRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.load("tag", "app")
	if got := w.signedBy(w.verifier([]Key{realKey}), "app", d); got != "real" {
		t.Fatalf("signed by %q", got)
	}
	if err := w.cache.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	w.registry.Reset()
	w.registry.SetFaults(registry.Faults{Down: true})
	renamed := realKey
	renamed.Name, renamed.Repositories = "renamed", []string{"**"}
	v := w.verifier([]Key{renamed})
	for _, repository := range []string{"app", "elsewhere"} {
		if got := w.signedBy(v, repository, d); got != "renamed" {
			t.Errorf("%s after a restart: signed by %q", repository, got)
		}
	}
	if n := w.registry.Count().Dropped; n != 0 {
		t.Errorf("%d requests", n)
	}
	// A key whose file has other content now is another one.
	changed := newSigner(t)
	file, err := os.ReadFile(changed.pub)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(changed.pub, w.file("cosign.pub"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.registry.SetFaults(registry.Faults{})
	if got := w.signedBy(w.verifier([]Key{changed.named("changed")}), "app", d); got != "changed" {
		t.Errorf("before the change: signed by %q", got)
	}
	w.registry.SetFaults(registry.Faults{Down: true})
	if err := os.WriteFile(changed.pub, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := w.signedBy(w.verifier([]Key{changed.named("changed")}), "app", d); got != " error" {
		t.Errorf("after the change: signed by %q", got)
	}
	// Another key under the same name has not signed it, and neither has the
	// same key that takes more for a signature.
	other, lax := otherKey, realKey
	other.Name, lax.Predicates = "real", []string{"x"}
	for _, k := range []Key{other, lax} {
		if got := w.signedBy(w.verifier([]Key{k}), "app", d); got != " error" {
			t.Errorf("with another key: signed by %q", got)
		}
	}
}

// "Not signed" is remembered for a moment, per repository.
func TestUnsignedIsRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	v := w.verifier([]Key{realKey})
	for range 3 {
		if got := w.signedBy(v, "app", d); got != "" {
			t.Fatalf("signed by %q", got)
		}
	}
	if n := w.registry.ReferrerLists("app", d); n != 1 {
		t.Errorf("%d questions for referrers, want 1", n)
	}
	w.load("tag", "copy")
	if got := w.signedBy(v, "copy", d); got != "real" {
		t.Errorf("in another repository: signed by %q", got)
	}
	if got := w.signedBy(v, "app", d); got != "real" {
		t.Errorf("after it is known: signed by %q", got)
	}
}

// Many that ask at once are one question.
func TestOneLookup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.load("tag", "app")
	w.registry.SetFaults(registry.Faults{Rate: 2000}) // so that they meet
	v := w.verifier([]Key{realKey, otherKey})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := w.signedBy(v, "app", d); got != "real" {
				t.Errorf("signed by %q", got)
			}
		})
	}
	wg.Wait()
	if n := w.registry.ReferrerLists("app", d); n != 1 {
		t.Errorf("%d questions for referrers, want 1", n)
	}
}

// Only so much is looked at, whatever is there.
func TestBounds(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	key := []Key{s.named("key")}

	var list []descriptor
	for i := range maxSignatures + 10 {
		junk := fmt.Appendf(nil, `{"junk":%d}`, i)
		list = append(list, w.described("app", w.attach("app", "", d, typeBundle3, object{mediaType: typeBundle3, data: junk})))
	}
	w.refer("app", d, list...)
	w.registry.Reset()
	if got := w.signedBy(w.verifier(key), "app", d); got != "" {
		t.Errorf("junk: signed by %q", got)
	}
	if c := w.registry.Count(); c.ManifestGets != maxSignatures || c.BlobGets != maxSignatures {
		t.Errorf("%d manifests and %d blobs of junk were fetched, want %d", c.ManifestGets, c.BlobGets, maxSignatures)
	}

	var many []object
	for i := range maxSignatures {
		o := newSigner(t).simple(d)
		o.data = fmt.Appendf(o.data, "%*s", i+1, "")
		many = append(many, o)
	}
	last := w.pushImage("many", 3).Manifest.Digest
	w.attach("many", sigTag(last), last, "", append(many, s.simple(last))...)
	if got := w.signedBy(w.verifier(key), "many", last); got != "" {
		t.Errorf("behind %d others: signed by %q", maxSignatures, got)
	}
	w.attach("few", sigTag(last), last, "", append(many[1:], s.simple(last))...)
	if got := w.signedBy(w.verifier(key), "few", last); got != "key" {
		t.Errorf("the last that is looked at: signed by %q", got)
	}

	big := s.simple(d)
	big.data = append(big.data, strings.Repeat(" ", maxLayer)...)
	w.attach("big", sigTag(d), d, "", big)
	w.refer("big", d, descriptor{MediaType: ociManifest, ArtifactType: typeBundle3, Digest: d.String(), Size: origin.MaxManifest + 1},
		descriptor{MediaType: ociManifest, ArtifactType: typeBundle3, Digest: "x", Size: 1})
	w.registry.Reset()
	if got := w.signedBy(w.verifier(key), "big", d); got != "" {
		t.Errorf("too large: signed by %q", got)
	}
	if c := w.registry.Count(); c.BlobGets != 0 || c.ManifestGets != 1 {
		t.Errorf("%d blobs and %d manifests were fetched", c.BlobGets, c.ManifestGets)
	}
}

// A list of referrers that does not end is read up to a point.
func TestEndlessReferrers(t *testing.T) {
	t.Parallel()
	var pages atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			http.NotFound(rw, r)
			return
		}
		n := pages.Add(1)
		rw.Header().Set("Content-Type", ociIndex)
		rw.Header().Set("Link", fmt.Sprintf(`</v2/evil/else?page=%d>; rel="next"`, n))
		_ = json.NewEncoder(rw).Encode(map[string]any{"manifests": []any{map[string]any{"artifactType": "application/x"}}})
	}))
	defer server.Close()
	client, err := origin.New(origin.Config{Upstreams: map[string]origin.Upstream{testUpstream: {URLs: []string{server.URL}}}, Tries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	w := newWorld(t)
	v, err := New(Config{Origin: client, Index: w.cache.Index(), Keys: []Key{realKey}})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.signedBy(v, "app", w.image.Manifest.Digest); got != "" || pages.Load() != maxPages {
		t.Errorf("signed by %q after %d pages, want %d", got, pages.Load(), maxPages)
	}
}

// Who gives up is let go at once, and the others get their answer.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.load("tag", "app")
	w.registry.SetFaults(registry.Faults{StallManifests: true})
	v := w.verifier([]Key{realKey})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := v.SignedBy(ctx, testUpstream, "app", d)
		gone <- err
	}()
	for gets := 0; gets == 0; time.Sleep(time.Millisecond) {
		_, gets = w.registry.Lookups("app", strings.TrimSuffix(sigTag(d), ".sig")) // in the place of the referrers API
	}
	other := make(chan string, 1)
	go func() { other <- w.signedBy(v, "app", d) }()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the first one: %v", err)
	}
	w.registry.SetFaults(registry.Faults{})
	if got := <-other; got != "real" {
		t.Errorf("the second one: signed by %q", got)
	}
}
