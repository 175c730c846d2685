package signature

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// What the real cosign has signed, in each form, is accepted for its key and
// for no other.
func TestRealCosign(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	for _, test := range []struct {
		name string
		load func(repository string)
		want string
	}{
		{"tag", func(r string) { w.load("tag", r) }, "real"},
		{"referrer", func(r string) { w.load("referrer", r) }, "real"},
		{"other", func(r string) { w.load("other", r) }, "other"},
		{"bundle", func(r string) {
			w.attach(r, "", d, typeBundle3, object{mediaType: typeBundle3, data: w.file("signed.bundle.json")})
		}, "real"},
		{"bundle of the manifest's bytes", func(r string) {
			w.attach(r, "", d, typeBundle3, object{mediaType: typeBundle3, data: w.file("blob.bundle.json")})
		}, "real"},
		{"attestation is no signature", func(r string) { w.load("attested", r) }, ""},
		{"bundle of a scan is no signature", func(r string) {
			w.attach(r, "", d, typeBundle3, object{mediaType: typeBundle3, data: w.file("scanned.bundle.json")})
		}, ""},
		{"nothing", func(string) {}, ""},
	} {
		// Each in a world of its own: what is known of a digest is known of it
		// everywhere.
		w = newWorld(t)
		test.load("app")
		v := w.verifier([]Key{realKey, otherKey})
		if got := w.signedBy(v, "app", d); got != test.want {
			t.Errorf("%s: signed by %q, want %q", test.name, got, test.want)
		}
	}
}

// A signature that is changed, by somebody else, or of something else is none.
func TestForgedCosign(t *testing.T) {
	t.Parallel()
	s, stranger := newSigner(t), newSigner(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	moved := w.pushImage("moved", 2).Manifest.Digest
	statement := func(d proto.Digest) []byte { return statementOf(d, predicateSignature, "{}") }
	good := s.simple(d)
	with := func(o object, data []byte, signature string) object {
		o.data = data
		if signature != "" {
			o.annotations = map[string]string{annotationSignature: signature}
		}
		return o
	}
	change := func(o object, old, new string) object {
		if !bytes.Contains(o.data, []byte(old)) {
			t.Fatalf("no %q in %s", old, o.data)
		}
		return with(o, bytes.Replace(o.data, []byte(old), []byte(new), 1), "")
	}
	encoded := func(d proto.Digest) string { return base64.StdEncoding.EncodeToString(statement(d)) }
	payloadOfType := fmt.Appendf(nil, `{"critical":{"image":{"docker-manifest-digest":%q},"type":"something else"}}`, d)
	for _, test := range []struct {
		name   string
		bundle bool
		o      object
		want   string
	}{
		{"good", false, good, "key"},
		{"good bundle", true, s.bundle(statement(d)), "key"},
		{"payload changed", false, change(good, "x/app", "y/app"), ""},
		{"digest changed", false, change(s.simple(moved), moved.Hex(), d.Hex()), ""},
		{"signature changed", false, with(good, good.data, base64.StdEncoding.EncodeToString(s.sign([]byte("x")))), ""},
		{"signature is no base64", false, with(good, good.data, "%"), ""},
		{"no signature", false, object{typeSimpleLayer, good.data, nil}, ""},
		{"another key", false, stranger.simple(d), ""},
		{"of another image", false, s.simple(moved), ""},
		{"payload of another type", false, with(good, payloadOfType, base64.StdEncoding.EncodeToString(s.sign(payloadOfType))), ""},
		{"no JSON", false, with(good, []byte("x"), base64.StdEncoding.EncodeToString(s.sign([]byte("x")))), ""},
		{"bundle changed", true, change(s.bundle(statement(moved)), encoded(moved), encoded(d)), ""},
		{"bundle of another key", true, stranger.bundle(statement(d)), ""},
		{"bundle of another image", true, s.bundle(statement(moved)), ""},
		{"bundle of another type", true, s.bundle(statementOf(d, "https://slsa.dev/provenance/v1", "{}")), ""},
		{"no bundle", true, object{mediaType: typeBundle3, data: []byte("{}")}, ""},
	} {
		w := newWorld(t)
		if test.bundle {
			w.attach("app", "", d, typeBundle3, test.o)
		} else {
			w.attach("app", sigTag(d), d, "", test.o)
		}
		if got := w.signedBy(w.verifier([]Key{s.named("key")}), "app", d); got != test.want {
			t.Errorf("%s: signed by %q, want %q", test.name, got, test.want)
		}
	}
}

// A whole signature that is copied to the tag of another image is refused.
func TestMovedByTag(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := w.pushImage("app", 2).Manifest.Digest
	var raw []byte
	w.load("tag", "app")
	f := takeFixture(t, w.url, "app")
	raw = f.Manifests[0].Raw
	if err := pushManifest(w, "app", sigTag(victim), raw); err != nil {
		t.Fatal(err)
	}
	v := w.verifier([]Key{realKey})
	if got := w.signedBy(v, "app", victim); got != "" {
		t.Errorf("the other image is signed by %q", got)
	}
	if got := w.signedBy(v, "app", w.image.Manifest.Digest); got != "real" {
		t.Errorf("the image is signed by %q", got)
	}
}

// Statements of other types count if the key says so.
func TestPredicates(t *testing.T) {
	t.Parallel()
	const provenance = "https://slsa.dev/provenance/v1"
	s := newSigner(t)
	k := s.named("key")
	k.Predicates = []string{provenance}
	for name, attach := range map[string]func(w *world, d proto.Digest){
		"bundle": func(w *world, d proto.Digest) {
			w.attach("app", "", d, typeBundle3, s.bundle(statementOf(d, provenance, "{}")))
		},
		"attestation": func(w *world, d proto.Digest) {
			w.attach("app", "", d, typeCosignAtt, s.envelope(statementOf(d, provenance, "{}")))
		},
	} {
		w := newWorld(t)
		d := w.image.Manifest.Digest
		attach(w, d)
		if got := w.signedBy(w.verifier([]Key{k, s.named("strict")}), "app", d); got != "key" {
			t.Errorf("%s: signed by %q", name, got)
		}
	}
}

// Keys of other curves, and several in one file.
func TestKeyFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.image.Manifest.Digest
	s, next := newSignerOf(t, elliptic.P384()), newSigner(t)
	both := next.named("both")
	appendFile(t, next.pub, s.pub)
	w.attach("app", sigTag(d), d, "", s.simple(d))
	if got := w.signedBy(w.verifier([]Key{s.named("p384"), both}), "app", d); got != "p384 both" {
		t.Errorf("signed by %q", got)
	}
}

func TestNextPage(t *testing.T) {
	t.Parallel()
	for link, want := range map[string]string{
		`</v2/app/referrers/sha256:a?n=1&last=x>; rel="next"`: "n=1&last=x",
		`<https://evil.example/v2/x?token=1>; rel=next`:       "token=1",
		`</a?b=1>; rel="prev"`:                                "",
		`</a?b=1>; rel="prev", </a?c=2>; rel="next"`:          "c=2",
		`/a?b=1; rel="next"`:                                  "",
		`<%zz>; rel="next"`:                                   "",
		``:                                                    "",
		`<` + strings.Repeat("x", 100) + `?` + url.QueryEscape("ü") + `>;rel=next`: url.QueryEscape("ü"),
	} {
		if got := nextPage([]string{link}); got != want {
			t.Errorf("nextPage(%s) = %q, want %q", link, got, want)
		}
	}
}

// A sha512 has no tag, and can be signed all the same.
func TestSHA512(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSigner(t)
	d, err := proto.ParseDigest("sha512:" + strings.Repeat("0a", 64))
	if err != nil {
		t.Fatal(err)
	}
	w.attach("app", "", d, typeBundle3, s.bundle(statementOf(d, predicateSignature, "{}")))
	if got := w.signedBy(w.verifier([]Key{s.named("key")}), "app", d); got != "key" {
		t.Errorf("signed by %q", got)
	}
	if _, err := origin.ParseTag(sigTag(d)); err == nil {
		t.Error("the tag would do")
	}
}
