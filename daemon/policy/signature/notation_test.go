package signature

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go"
	notationsigner "github.com/notaryproject/notation-go/signer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// An authority is a CA with one that it vouches for.
type authority struct {
	t     *testing.T
	file  string // the CA's certificate
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate
}

func newAuthority(t *testing.T, name string, valid time.Duration) *authority {
	t.Helper()
	certificate := func(template, parent *x509.Certificate, pub, key any) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	subject := func(cn string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: []string{name}, Country: []string{"DE"}, Province: []string{"Berlin"}}
	}
	rootKey, leafKey := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject("root"), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLen: 1,
	}
	root = certificate(root, root, rootKey.Public(), rootKey)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: subject("builder"), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	leaf = certificate(leaf, root, leafKey.Public(), rootKey)
	a := &authority{t, filepath.Join(t.TempDir(), "ca.pem"), leafKey, []*x509.Certificate{leaf, root}}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	if err := os.WriteFile(a.file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) named(name string, identities ...string) Key {
	return Key{Name: name, Notation: Notation{Certificates: []string{a.file}, Identities: identities}}
}

func (a *authority) sign(img registry.Image, mediaType string, expiry time.Duration) object {
	a.t.Helper()
	s, err := notationsigner.NewGenericSigner(a.key, a.chain)
	if err != nil {
		a.t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: img.MediaType, Digest: digest.Digest(img.Manifest.Digest.String()), Size: img.Manifest.Size}
	data, _, err := s.Sign(a.t.Context(), desc, notation.SignerSignOptions{SignatureMediaType: mediaType, ExpiryDuration: expiry})
	if err != nil {
		a.t.Fatal(err)
	}
	return object{mediaType: mediaType, data: data}
}

func TestNotation(t *testing.T) {
	t.Parallel()
	a, stranger := newAuthority(t, "team", time.Hour), newAuthority(t, "team", time.Hour)
	w := newWorld(t)
	moved := w.pushImage("moved", 2)
	wrongType := w.image
	wrongType.MediaType = "application/vnd.oci.image.index.v1+json"
	tampered := a.sign(w.image, jws.MediaTypeEnvelope, 0)
	var e map[string]any
	if err := json.Unmarshal(tampered.data, &e); err != nil {
		t.Fatal(err)
	}
	var other map[string]any
	if err := json.Unmarshal(a.sign(moved, jws.MediaTypeEnvelope, 0).data, &other); err != nil {
		t.Fatal(err)
	}
	other["payload"] = e["payload"]
	var err error
	if tampered.data, err = json.Marshal(other); err != nil {
		t.Fatal(err)
	}
	key := a.named("team", "x509.subject: C=DE, ST=Berlin, O=team")
	for _, test := range []struct {
		name string
		key  Key
		o    object
		want string
	}{
		{"JWS", key, a.sign(w.image, jws.MediaTypeEnvelope, 0), "team"},
		{"COSE", key, a.sign(w.image, cose.MediaTypeEnvelope, 24*time.Hour), "team"},
		{"anybody of the CA", a.named("any", "*"), a.sign(w.image, cose.MediaTypeEnvelope, 0), "any"},
		{"another subject", a.named("any", "x509.subject: C=DE, ST=Berlin, O=others"), a.sign(w.image, cose.MediaTypeEnvelope, 0), ""},
		{"another CA of the same name", key, stranger.sign(w.image, jws.MediaTypeEnvelope, 0), ""},
		{"JWS of another image", key, a.sign(moved, jws.MediaTypeEnvelope, 0), ""},
		{"COSE of another image", key, a.sign(moved, cose.MediaTypeEnvelope, 0), ""},
		{"of the image as another type", key, a.sign(wrongType, jws.MediaTypeEnvelope, 0), ""},
		{"tampered", key, tampered, ""},
		{"no envelope", key, object{mediaType: jws.MediaTypeEnvelope, data: []byte("{}")}, ""},
		{"of another form", key, object{mediaType: cose.MediaTypeEnvelope, data: a.sign(w.image, jws.MediaTypeEnvelope, 0).data}, ""},
		{"unknown form", key, object{mediaType: "application/x", data: []byte("{}")}, ""},
	} {
		w := newWorld(t)
		w.attach("app", "", w.image.Manifest.Digest, typeNotation, test.o)
		if got := w.signedBy(w.verifier([]Key{test.key}), "app", w.image.Manifest.Digest); got != test.want {
			t.Errorf("%s: signed by %q, want %q", test.name, got, test.want)
		}
	}
}

// A signature whose certificate or own time is over is none.
func TestNotationExpired(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second // of whole seconds, and some to sign in
	short, long := newAuthority(t, "team", life), newAuthority(t, "team", time.Hour)
	w := newWorld(t)
	certificate, signature := short.sign(w.image, jws.MediaTypeEnvelope, 0), long.sign(w.image, cose.MediaTypeEnvelope, life)
	time.Sleep(life) // the library goes by the wall clock
	w.attach("app", "", w.image.Manifest.Digest, typeNotation, certificate)
	if got := w.signedBy(w.verifier([]Key{short.named("team", "*")}), "app", w.image.Manifest.Digest); got != "" {
		t.Errorf("with an expired certificate: signed by %q", got)
	}
	w.attach("app", "", w.image.Manifest.Digest, typeNotation, signature)
	if got := w.signedBy(w.verifier([]Key{long.named("team", "*")}), "app", w.image.Manifest.Digest); got != "" {
		t.Errorf("after the signature's end: signed by %q", got)
	}
}

// A verdict ends with the signature and its certificates.
func TestNotationIsNotRememberedForEver(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "team", time.Hour)
	for expiry, want := range map[time.Duration]time.Duration{0: time.Hour, time.Minute: time.Minute} {
		w := newWorld(t)
		d := w.image.Manifest.Digest
		w.attach("app", "", d, typeNotation, a.sign(w.image, jws.MediaTypeEnvelope, expiry))
		v := w.verifier([]Key{a.named("team", "*")})
		if got := w.signedBy(v, "app", d); got != "team" {
			t.Fatalf("signed by %q", got)
		}
		verdict, ok, err := w.cache.Index().Verdict(v.keys[0].check, d)
		if left := time.Until(verdict.Until); !ok || err != nil || left > want || left < want-time.Minute {
			t.Errorf("remembered for %s, want %s; %v", left, want, err)
		}
		// Once it is over it counts as nothing, and the registry is asked.
		for _, left := range []string{"team", ""} {
			over := cache.Verdict{At: time.Now(), Until: time.Now().Add(-time.Second)}
			if err := w.cache.Index().SetVerdict(v.keys[0].check, d, over); err != nil {
				t.Fatal(err)
			}
			if left == "" {
				w.refer("app", d)
			}
			if got := w.signedBy(w.verifier([]Key{a.named("team", "*")}), "app", d); got != left {
				t.Errorf("signed by %q after the end, want %q", got, left)
			}
		}
	}
}

// The registry's word on the image's type and size is asked for only where it
// is not known.
func TestNotationKnowsTheDescriptor(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "team", time.Hour)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.attach("app", "", d, typeNotation, a.sign(w.image, jws.MediaTypeEnvelope, 0))
	// Known here: the image itself need not be at the registry.
	link := map[proto.Digest]cache.Link{d: {Size: w.image.Manifest.Size, MediaType: w.image.MediaType}}
	if err := w.cache.Index().SetLinks(testUpstream, "app", link); err != nil {
		t.Fatal(err)
	}
	w.registry.Reset()
	if got := w.signedBy(w.verifier([]Key{a.named("team", "*")}), "app", d); got != "team" {
		t.Errorf("signed by %q", got)
	}
	if heads, _ := w.registry.Lookups("app", d.String()); heads != 0 {
		t.Errorf("%d questions for the image", heads)
	}
}
