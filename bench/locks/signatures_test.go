package locks_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go"
	notationsigner "github.com/notaryproject/notation-go/signer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/policy/signature"
	"github.com/shoal-project/shoal/proto"
)

// cosignFixtures is where what a real cosign has made is.
const cosignFixtures = "../../daemon/policy/signature/testdata/cosign"

// A signer has a key pair, and signs as cosign does.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	pub string // file
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{t, key, filepath.Join(t.TempDir(), "key.pub")}
	write(t, s.pub, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	return s
}

// named returns the key as a configuration has it, required in repositories.
func (s *signer) named(name string, repositories ...string) []signature.Key {
	return []signature.Key{{Name: name, Repositories: repositories, Cosign: signature.Cosign{Key: s.pub}}}
}

func (s *signer) sign(data []byte) []byte {
	s.t.Helper()
	sum := sha256.Sum256(data)
	signed, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

// An object is a layer of a signature.
type object struct {
	mediaType   string
	data        []byte
	annotations map[string]string
}

const annotationSignature = "dev.cosignproject.cosign/signature"

// simple returns a signature of d, made of another payload if that is given.
func (s *signer) simple(d proto.Digest, of ...proto.Digest) object {
	payload := func(d proto.Digest) []byte {
		return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x/app"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, d)
	}
	signed := payload(d)
	for _, other := range of {
		signed = payload(other)
	}
	return object{"application/vnd.dev.cosign.simplesigning.v1+json", payload(d),
		map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(s.sign(signed))}}
}

// scan returns an attestation of what a scanner has found in d.
func (s *signer) scan(d proto.Digest, at time.Time, severities ...string) object {
	var found []string
	for i, severity := range severities {
		found = append(found, fmt.Sprintf(`{"VulnerabilityID":"CVE-2026-%d","PkgName":"openssl","Severity":%q}`, i+1, severity))
	}
	finished := at.UTC().Format(time.RFC3339)
	statement := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://cosign.sigstore.dev/attestation/vuln/v1","subject":[{"name":"app","digest":{"sha256":%q}}],
		"predicate":{"scanner":{"uri":"pkg:github/aquasecurity/trivy@dev","result":{"SchemaVersion":2,"ArtifactName":"app","Results":[{"Target":"os","Vulnerabilities":[%s]}]}},
		"metadata":{"scanStartedOn":%q,"scanFinishedOn":%[3]q}}}`, d.Hex(), strings.Join(found, ","), finished)
	const inToto = "application/vnd.in-toto+json"
	data := marshal(s.t, map[string]any{"payloadType": inToto, "payload": statement,
		"signatures": []any{map[string]any{"keyid": "", "sig": s.sign(dsse.PAE(inToto, statement))}}})
	return object{"application/vnd.dsse.envelope.v1+json", data, map[string]string{annotationSignature: ""}}
}

// cosignTag is where cosign looks for what belongs to d.
func cosignTag(d proto.Digest, suffix string) string {
	return strings.Replace(d.String(), ":", "-", 1) + suffix
}

// attach pushes a manifest with these layers under a tag, or, with none, as a
// referrer of d.
func (b *bed) attach(repository, tag string, d proto.Digest, artifactType string, objects ...object) {
	b.t.Helper()
	empty := []byte("{}")
	blobs := [][]byte{empty}
	var layers []descriptor
	for _, o := range objects {
		l := describe(o.mediaType, o.data)
		l.Annotations = o.annotations
		layers, blobs = append(layers, l), append(blobs, o.data)
	}
	raw := marshal(b.t, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "artifactType": artifactType,
		"config": describe("application/vnd.oci.empty.v1+json", empty), "layers": layers})
	if tag != "" {
		b.put(sealed(repository, tag, ociManifest, raw, blobs...))
		return
	}
	b.put(sealed(repository, proto.DigestOf(raw).String(), ociManifest, raw, blobs...))
	at := describe(ociManifest, raw)
	at.ArtifactType = artifactType
	b.SetReferrers(repository, d, marshal(b.t, map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []descriptor{at}}))
}

// load pushes what a real cosign has made for fixtureImage.
func (b *bed) load(fixture, repository string) {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(cosignFixtures, fixture+".json"))
	if err != nil {
		b.t.Fatal(err)
	}
	var f struct {
		Manifests []struct {
			Reference, MediaType string
			Raw                  []byte
		}
		Blobs [][]byte
	}
	if err := json.Unmarshal(data, &f); err != nil {
		b.t.Fatal(err)
	}
	for _, blob := range f.Blobs {
		if err := registry.PushBlob(b.t.Context(), b.url, repository, blob); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, m := range f.Manifests {
		if err := registry.PushManifest(b.t.Context(), b.url, repository, m.Reference, m.MediaType, m.Raw); err != nil {
			b.t.Fatal(err)
		}
	}
}

// fixtureImage is the image that the fixtures sign.
func (b *bed) fixtureImage(repository string) image {
	b.t.Helper()
	img, err := registry.PushImage(b.t.Context(), b.url, repository, "1", []int64{100}, 1)
	if err != nil {
		b.t.Fatal(err)
	}
	i := image{Image: img}
	for _, blob := range img.Blobs() {
		resp, err := b.client.Get(b.url + "/v2/" + repository + "/blobs/" + blob.Digest.String())
		if err != nil {
			b.t.Fatal(err)
		}
		data := make([]byte, blob.Size)
		_, err = resp.Body.Read(data)
		resp.Body.Close()
		if proto.DigestOf(data) != blob.Digest {
			b.t.Fatalf("a blob of the fixture's image is not what it should be, %v", err)
		}
		i.blobs = append(i.blobs, data)
	}
	return i
}

// An authority is a CA with somebody that it vouches for, who signs as notation
// does.
type authority struct {
	t     *testing.T
	file  string // the CA's certificate
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	issue := func(template, parent *x509.Certificate, pub, key any) *x509.Certificate {
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
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	template := func(serial int64, name string, life time.Duration) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
			Subject: pkix.Name{CommonName: name, Organization: []string{"team"}, Country: []string{"DE"}, Province: []string{"Berlin"}},
		}
	}
	root, leaf := template(1, "root", 48*time.Hour), template(2, "builder", 24*time.Hour)
	root.IsCA, root.BasicConstraintsValid, root.KeyUsage, root.MaxPathLen = true, true, x509.KeyUsageCertSign, 1
	leaf.KeyUsage, leaf.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	root = issue(root, root, keys[0].Public(), keys[0])
	leaf = issue(leaf, root, keys[1].Public(), keys[0])
	a := &authority{t, filepath.Join(t.TempDir(), "ca.pem"), keys[1], []*x509.Certificate{leaf, root}}
	write(t, a.file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})))
	return a
}

func (a *authority) sign(i image, mediaType string) object {
	a.t.Helper()
	s, err := notationsigner.NewGenericSigner(a.key, a.chain)
	if err != nil {
		a.t.Fatal(err)
	}
	of := ocispec.Descriptor{MediaType: i.MediaType, Digest: digest.Digest(i.Manifest.Digest.String()), Size: i.Manifest.Size}
	data, _, err := s.Sign(a.t.Context(), of, notation.SignerSignOptions{SignatureMediaType: mediaType})
	if err != nil {
		a.t.Fatal(err)
	}
	return object{mediaType: mediaType, data: data}
}

const typeNotation = "application/vnd.cncf.notary.signature"

// TestSignatures: where a signature is required, what has one by the right key is
// served, and nothing else is, nor is any layer of it fetched.
func TestSignatures(t *testing.T) {
	t.Parallel()
	own, stranger := newSigner(t), newSigner(t)
	team, strangers := newAuthority(t), newAuthority(t)
	moved := newImage(t, "elsewhere/app", "v1", traits{})
	keys := append(own.named("release", fleet.Upstream+"/cosign/**"),
		signature.Key{Name: "real", Repositories: []string{fleet.Upstream + "/real/**"}, Cosign: signature.Cosign{Key: filepath.Join(cosignFixtures, "cosign.pub")}},
		signature.Key{Name: "team", Repositories: []string{fleet.Upstream + "/notation/**"}, Notation: signature.Notation{Certificates: []string{team.file}, Identities: []string{"x509.subject: C=DE, ST=Berlin, O=team"}}})
	b := govern(t, daemon.PolicyConfig{Signatures: keys}, nil)
	tag := func(repository string, d proto.Digest, o object) {
		b.attach(repository, cosignTag(d, ".sig"), d, "", o)
	}
	refer := func(repository string, d proto.Digest, o object) { b.attach(repository, "", d, typeNotation, o) }
	for _, test := range []struct {
		name string
		sign func(i image)
		by   string // who has not signed it, but should have; "" if it is served
	}{
		{"cosign/signed", func(i image) { tag("cosign/signed", i.Manifest.Digest, own.simple(i.Manifest.Digest)) }, ""},
		{"cosign/unsigned", func(image) {}, "release"},
		{"cosign/stranger", func(i image) { tag("cosign/stranger", i.Manifest.Digest, stranger.simple(i.Manifest.Digest)) }, "release"},
		{"cosign/tampered", func(i image) {
			tag("cosign/tampered", i.Manifest.Digest, own.simple(i.Manifest.Digest, moved.Manifest.Digest))
		}, "release"},
		{"cosign/moved", func(i image) { tag("cosign/moved", i.Manifest.Digest, own.simple(moved.Manifest.Digest)) }, "release"},
		{"cosign/notation", func(i image) { refer("cosign/notation", i.Manifest.Digest, team.sign(i, jws.MediaTypeEnvelope)) }, "release"},
		{"notation/jws", func(i image) { refer("notation/jws", i.Manifest.Digest, team.sign(i, jws.MediaTypeEnvelope)) }, ""},
		{"notation/cose", func(i image) { refer("notation/cose", i.Manifest.Digest, team.sign(i, cose.MediaTypeEnvelope)) }, ""},
		{"notation/unsigned", func(image) {}, "team"},
		{"notation/stranger", func(i image) {
			refer("notation/stranger", i.Manifest.Digest, strangers.sign(i, jws.MediaTypeEnvelope))
		}, "team"},
		{"notation/tampered", func(i image) {
			o := team.sign(i, cose.MediaTypeEnvelope)
			o.data[len(o.data)/2] ^= 1
			refer("notation/tampered", i.Manifest.Digest, o)
		}, "team"},
		{"notation/moved", func(i image) { refer("notation/moved", i.Manifest.Digest, team.sign(moved, jws.MediaTypeEnvelope)) }, "team"},
		{"other/unsigned", func(image) {}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.t = t
			i := newImage(t, test.name, "v1", traits{})
			b.put(i)
			test.sign(i)
			b.Reset()
			if test.by == "" {
				b.gets(i, "")
				return
			}
			for range 2 {
				b.forbidden(paths(i.Image), "", "signature", "is not signed by "+test.by+",")
			}
			b.untouched(i)
		})
	}
}

// TestRealCosign: what a real cosign has signed is served, as a tag and as a
// referrer, and not what it has signed with another key.
func TestRealCosign(t *testing.T) {
	t.Parallel()
	for fixture, good := range map[string]bool{"tag": true, "referrer": true, "other": false} {
		t.Run(fixture, func(t *testing.T) { // a node of its own: it is the same image, and who has signed that is remembered
			b := govern(t, daemon.PolicyConfig{Signatures: []signature.Key{
				{Name: "real", Repositories: []string{fleet.Upstream + "/team/*"}, Cosign: signature.Cosign{Key: filepath.Join(cosignFixtures, "cosign.pub")}},
			}}, nil)
			i := b.fixtureImage("team/app")
			b.forbidden(paths(i.Image), "", "signature", "is not signed by real,")
			b.restart() // "not signed" is believed for a while
			b.load(fixture, "team/app")
			if good {
				b.gets(i, "")
			} else {
				b.forbidden(paths(i.Image), "", "signature", "is not signed by real,")
			}
		})
	}
}

// TestSignedIndex: the signature of an index is one of its images, once the index
// is known, and of those alone.
func TestSignedIndex(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	b := govern(t, daemon.PolicyConfig{Signatures: s.named("release", fleet.Upstream+"/team/app")}, nil)
	child, other := newImage(t, "team/app", "amd", traits{}), newImage(t, "team/app", "alone", traits{})
	index := newIndex(t, "team/app", "v1", child)
	b.put(child, other, index)
	b.attach("team/app", cosignTag(index.Manifest.Digest, ".sig"), index.Manifest.Digest, "", s.simple(index.Manifest.Digest))
	b.Reset()
	b.forbidden(paths(child.Image), "", "signature", "release")
	b.gets(index, "")
	b.gets(child, "")
	b.forbidden(paths(other.Image), "", "signature", "release")
	b.untouched(other)
}

// TestOriginFailsWhileSignaturesAreLookedFor: then nobody can say whether there is
// one. That is neither a yes nor a no, and not remembered.
func TestOriginFailsWhileSignaturesAreLookedFor(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	b := govern(t, daemon.PolicyConfig{Signatures: s.named("release", fleet.Upstream+"/**")}, nil)
	signed, unsigned := newImage(t, "team/app", "v1", traits{}), newImage(t, "team/app", "v2", traits{})
	b.put(signed, unsigned)
	sign := func(i image) {
		b.attach("team/app", cosignTag(i.Manifest.Digest, ".sig"), i.Manifest.Digest, "", s.simple(i.Manifest.Digest))
	}
	unknown := func(path, why string, status int) {
		t.Helper()
		a := b.ask(0, "GET", path, "")
		if a.status != status || strings.Contains(string(a.body), "by policy") {
			t.Errorf("%s: status %d: %.300s", why, a.status, a.body)
		}
		b.untouched(signed, unsigned)
	}
	byTag, byDigest := paths(unsigned.Image)[0], paths(unsigned.Image)[1]
	b.Reset()
	b.SetFaults(registry.Faults{ListStatus: http.StatusInternalServerError})
	unknown(byTag, "no list of referrers", http.StatusServiceUnavailable) // the image comes in all the same
	b.SetFaults(registry.Faults{ManifestStatus: http.StatusInternalServerError})
	unknown(byDigest, "no manifests, of signatures neither", http.StatusServiceUnavailable)
	b.SetFaults(registry.Faults{})
	named := describe(ociManifest, []byte("a signature that is not there"))
	named.ArtifactType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	b.SetReferrers("team/app", unsigned.Manifest.Digest, marshal(t, map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []descriptor{named}}))
	unknown(byDigest, "a signature that is on the list is not there", http.StatusBadGateway)
	b.SetReferrers("team/app", unsigned.Manifest.Digest, nil)
	b.SetFaults(registry.Faults{ListStatus: http.StatusForbidden})
	if a := b.ask(0, "GET", byDigest, ""); a.status != http.StatusForbidden || strings.Contains(string(a.body), "by policy") {
		t.Errorf("the registry refuses the list: status %d: %.300s", a.status, a.body)
	}
	b.untouched(unsigned)
	b.SetFaults(registry.Faults{})
	b.forbidden(paths(unsigned.Image), "", "signature", "release")

	// A signature that was found is enough, whatever else fails.
	sign(signed)
	b.Reset()
	b.SetFaults(registry.Faults{ListStatus: http.StatusInternalServerError})
	b.gets(signed, "")
	b.Reset()
	b.SetFaults(registry.Faults{Down: true})
	b.gets(signed, "")
	b.restart()
	b.gets(signed, "")
	if c := b.Count(); c.Lists > 0 {
		t.Errorf("what is known to be signed was looked up again: %+v", c)
	}
	b.SetFaults(registry.Faults{Down: true})
	unknown(byDigest, "registry down", http.StatusServiceUnavailable)
}

// TestSharedLayer: a layer of an image that may not be served and of one that
// nobody can tell about now may be good, so it is neither served nor refused.
func TestSharedLayer(t *testing.T) {
	t.Parallel()
	s, strict := newSigner(t), false
	b := govern(t, daemon.PolicyConfig{}, func(c *daemon.Config) {
		if strict {
			c.Policy.Signatures = s.named("release", fleet.Upstream+"/**")
		}
	})
	unsigned, signed := newImage(t, "team/app", "v1", traits{layer: "shared"}), newImage(t, "team/app", "v2", traits{layer: "shared", architecture: "arm64"})
	b.put(unsigned, signed)
	b.gets(unsigned, "")
	b.gets(signed, "")
	strict = true
	b.restart()
	b.forbidden(paths(unsigned.Image)[:1], "", "signature", "release")
	layer := paths(unsigned.Image)[3]
	b.SetFaults(registry.Faults{ListStatus: http.StatusInternalServerError})
	if a := b.ask(0, "GET", layer, ""); a.status != http.StatusServiceUnavailable {
		t.Errorf("nobody can tell about one of its images: status %d: %.300s", a.status, a.body)
	}
	b.SetFaults(registry.Faults{})
	b.attach("team/app", cosignTag(signed.Manifest.Digest, ".sig"), signed.Manifest.Digest, "", s.simple(signed.Manifest.Digest))
	if a := b.ask(0, "GET", layer, ""); a.status != http.StatusOK || proto.DigestOf(a.body) != signed.Layers[0].Digest {
		t.Errorf("one of its images is signed: status %d: %.300s", a.status, a.body[:min(300, len(a.body))])
	}
}

// TestScans: where a scan result is required, it has to be there, by the right
// key, young enough and good enough.
func TestScans(t *testing.T) {
	t.Parallel()
	scanner, stranger := newSigner(t), newSigner(t)
	b := govern(t, daemon.PolicyConfig{
		Signatures: scanner.named("scanner"),
		Scans:      []signature.Gate{{Name: "cves", Repositories: []string{fleet.Upstream + "/scanned/*"}, Key: "scanner", MaxSeverity: "medium", MaxAge: 24 * time.Hour}},
	}, nil)
	now := time.Now()
	for _, test := range []struct {
		name   string
		result func(d proto.Digest) []object
		why    string // it is refused; "" if it is served
	}{
		{"clean", func(d proto.Digest) []object { return []object{scanner.scan(d, now, "LOW", "MEDIUM")} }, ""},
		{"bad", func(d proto.Digest) []object { return []object{scanner.scan(d, now, "LOW", "CRITICAL")} }, "CVE-2026-2"},
		{"missing", func(proto.Digest) []object { return nil }, "no scan result"},
		{"stranger", func(d proto.Digest) []object { return []object{stranger.scan(d, now)} }, "no scan result"},
		{"old", func(d proto.Digest) []object { return []object{scanner.scan(d, now.Add(-48*time.Hour))} }, "older than"},
		{"moved", func(d proto.Digest) []object {
			return []object{scanner.scan(proto.DigestOf([]byte("another image")), now)}
		}, "no scan result"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.t = t
			i := newImage(t, "scanned/"+test.name, "v1", traits{})
			b.put(i)
			if objects := test.result(i.Manifest.Digest); len(objects) > 0 {
				b.attach(i.Repository, cosignTag(i.Manifest.Digest, ".att"), i.Manifest.Digest, "", objects...)
			}
			b.Reset()
			if test.why == "" {
				b.gets(i, "")
				return
			}
			b.forbidden(paths(i.Image), "", "cves", test.why)
			b.untouched(i)
		})
	}
	i := newImage(t, "scanned/unknown", "v1", traits{})
	b.put(i)
	b.Reset()
	b.SetFaults(registry.Faults{ListStatus: http.StatusInternalServerError})
	if a := b.ask(0, "GET", paths(i.Image)[0], ""); a.status != http.StatusServiceUnavailable {
		t.Errorf("the registry does not say: status %d: %.300s", a.status, a.body)
	}
	b.untouched(i)
}
