package signature

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const testUpstream = "registry.test"

// A world is a registry and a node's cache.
type world struct {
	t        *testing.T
	registry *registry.Registry
	url      string
	dir      string
	cache    *cache.Cache
	client   *origin.Client
	image    registry.Image // in the repository "app"
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, registry: registry.New(registry.Options{}), dir: t.TempDir()}
	server := httptest.NewServer(w.registry)
	w.url = server.URL
	t.Cleanup(func() { server.Close(); w.registry.Close() })
	w.connect()
	w.open()
	t.Cleanup(func() { _ = w.cache.Close() })
	w.image = w.pushImage("app", fixtureSeed)
	return w
}

// connect gives the world a new client.
func (w *world) connect() {
	w.t.Helper()
	client, err := origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{testUpstream: {URLs: []string{w.url}}},
		Tries:     1,
		Backoff:   time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	w.client = client
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.cache, err = cache.Open(w.dir, cache.Options{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pushImage(repository string, seed uint64) registry.Image {
	w.t.Helper()
	img, err := registry.PushImage(w.t.Context(), w.url, repository, fixtureTag, []int64{100}, seed)
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// verifier returns a new one on the same cache.
func (w *world) verifier(keys []Key, gates ...Gate) *Verifier {
	w.t.Helper()
	v, err := New(Config{
		Origin: w.client, Index: w.cache.Index(), Keys: keys, Gates: gates,
		Log: slog.New(slog.NewTextHandler(testLog{w.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// signedBy asks of the image in a repository.
func (w *world) signedBy(v *Verifier, repository string, d proto.Digest) string {
	w.t.Helper()
	names, err := v.SignedBy(w.t.Context(), testUpstream, repository, d)
	if err != nil {
		return strings.Join(names, " ") + " error"
	}
	return strings.Join(names, " ")
}

// An object is a layer of a signature.
type object struct {
	mediaType   string
	data        []byte
	annotations map[string]string
}

// attach pushes a manifest with these layers, as a tag, or as a referrer of d
// if the tag is "".
func (w *world) attach(repository, tag string, d proto.Digest, artifactType string, objects ...object) proto.Digest {
	w.t.Helper()
	type layer struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	var layers []layer
	if err := registry.PushBlob(w.t.Context(), w.url, repository, []byte("{}")); err != nil {
		w.t.Fatal(err)
	}
	for _, o := range objects {
		if err := registry.PushBlob(w.t.Context(), w.url, repository, o.data); err != nil {
			w.t.Fatal(err)
		}
		layers = append(layers, layer{o.mediaType, proto.DigestOf(o.data).String(), len(o.data), o.annotations})
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "artifactType": artifactType,
		"config": layer{MediaType: "application/vnd.oci.empty.v1+json", Digest: proto.DigestOf([]byte("{}")).String(), Size: 2},
		"layers": layers,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	name := proto.DigestOf(raw)
	reference := tag
	if reference == "" {
		reference = name.String()
	}
	if err := registry.PushManifest(w.t.Context(), w.url, repository, reference, ociManifest, raw); err != nil {
		w.t.Fatal(err)
	}
	if tag == "" {
		w.refer(repository, d, descriptor{MediaType: ociManifest, Digest: name.String(), Size: int64(len(raw)), ArtifactType: artifactType})
	}
	return name
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// refer makes the registry's referrers API answer with these, all of them.
func (w *world) refer(repository string, d proto.Digest, list ...descriptor) {
	w.t.Helper()
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": list})
	if err != nil {
		w.t.Fatal(err)
	}
	w.registry.SetReferrers(repository, d, raw)
}

// load puts a fixture into a repository.
func (w *world) load(name, repository string) {
	w.t.Helper()
	var f fixture
	if err := json.Unmarshal(w.file(name+".json"), &f); err != nil {
		w.t.Fatal(err)
	}
	for _, b := range f.Blobs {
		if err := registry.PushBlob(w.t.Context(), w.url, repository, b); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, m := range f.Manifests {
		if err := registry.PushManifest(w.t.Context(), w.url, repository, m.Reference, m.MediaType, m.Raw); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) file(name string) []byte {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/cosign", name))
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// The keys that made the fixtures.
var (
	realKey  = Key{Name: "real", Cosign: Cosign{Key: "testdata/cosign/cosign.pub"}}
	otherKey = Key{Name: "other", Cosign: Cosign{Key: "testdata/cosign/other.pub"}}
)

// A signer has a key pair of the test's own.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	pub string // file
}

func newSigner(t *testing.T) *signer { t.Helper(); return newSignerOf(t, elliptic.P256()) }

func newSignerOf(t *testing.T, curve elliptic.Curve) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{t, key, filepath.Join(t.TempDir(), "key.pub")}
	data := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(s.pub, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *signer) named(name string) Key { return Key{Name: name, Cosign: Cosign{Key: s.pub}} }

func (s *signer) sign(data []byte) []byte {
	s.t.Helper()
	sum := sha256.Sum256(data)
	signature, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	return signature
}

// payload is one of simple signing.
func payload(d proto.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x/app"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, d)
}

// simple returns a layer with a simple signature of d.
func (s *signer) simple(d proto.Digest) object {
	p := payload(d)
	return object{typeSimpleLayer, p, map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(s.sign(p))}}
}

// statement is one of in-toto about d.
func statementOf(d proto.Digest, predicateType, predicate string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","predicateType":%q,"subject":[{"name":"app","digest":{%q:%q}}],"predicate":%s}`,
		predicateType, d.Algorithm(), d.Hex(), predicate)
}

const inToto = "application/vnd.in-toto+json"

// envelope returns a layer with a DSSE envelope, as in cosign's attestations.
func (s *signer) envelope(st []byte) object {
	s.t.Helper()
	data, err := json.Marshal(map[string]any{
		"payloadType": inToto, "payload": st,
		"signatures": []any{map[string]any{"keyid": "", "sig": s.sign(dsse.PAE(inToto, st))}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return object{typeEnvelopeLayer, data, map[string]string{annotationSignature: ""}}
}

const typeBundle3 = "application/vnd.dev.sigstore.bundle.v0.3+json"

// bundle returns a layer with a Sigstore bundle.
func (s *signer) bundle(st []byte) object {
	s.t.Helper()
	data, err := json.Marshal(map[string]any{
		"mediaType":            typeBundle3,
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": "somebody"}},
		"dsseEnvelope": map[string]any{
			"payloadType": inToto, "payload": st,
			"signatures": []any{map[string]any{"sig": s.sign(dsse.PAE(inToto, st))}},
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return object{mediaType: typeBundle3, data: data}
}

// sigTag and attTag are cosign's tags.
func sigTag(d proto.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }
func attTag(d proto.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".att" }

func scanOf(t *testing.T, v *Verifier, repository string, d proto.Digest) error {
	t.Helper()
	return v.Scan(context.WithoutCancel(t.Context()), testUpstream, repository, d)
}

func pushManifest(w *world, repository, reference string, raw []byte) error {
	return registry.PushManifest(w.t.Context(), w.url, repository, reference, ociManifest, raw)
}

// appendFile adds the content of another file to one.
func appendFile(t *testing.T, name, other string) {
	t.Helper()
	var all []byte
	for _, f := range []string{name, other} {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	if err := os.WriteFile(name, all, 0o600); err != nil {
		t.Fatal(err)
	}
}

// described returns the descriptor of a bundle's manifest.
func (w *world) described(repository string, d proto.Digest) descriptor {
	w.t.Helper()
	ref := origin.Ref{Upstream: testUpstream, Repository: repository, Digest: d, Manifest: true}
	found, err := w.client.Resolve(w.t.Context(), ref)
	if err != nil {
		w.t.Fatal(err)
	}
	return descriptor{MediaType: ociManifest, ArtifactType: typeBundle3, Digest: d.String(), Size: found.Blob.Size}
}
