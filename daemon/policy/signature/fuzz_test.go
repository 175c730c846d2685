package signature

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// fuzzDigest is of an image that nobody has signed.
var fuzzDigest = proto.DigestOf([]byte("never signed"))

// fuzzKeys are a key and an identity whose private halves nobody has.
func fuzzKeys(f *testing.F) []*sigstoreKey {
	f.Helper()
	keyed, _, err := newCosign(Cosign{Key: "testdata/cosign/cosign.pub"})
	if err != nil {
		f.Fatal(err)
	}
	keyless, _, err := newKeyless(Keyless{TrustRoot: "testdata/public/trusted_root.json", Identity: ".*", Issuer: "https://token.actions.githubusercontent.com"})
	if err != nil {
		f.Fatal(err)
	}
	keyless.predicates = []string{"https://slsa.dev/provenance/v1"}
	return []*sigstoreKey{keyed, keyless}
}

func read(f *testing.F, name string) []byte {
	f.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// Whatever is in a bundle or an envelope, it is no signature of an image that
// nobody has signed, and nothing panics (key.signed would hide that).
func FuzzBundle(f *testing.F) {
	for _, name := range []string{"cosign/signed.bundle.json", "cosign/blob.bundle.json", "cosign/scanned.bundle.json", "public/bundle.json"} {
		f.Add(read(f, "testdata/"+name), false)
	}
	var fix fixture
	if err := json.Unmarshal(read(f, "testdata/cosign/attested.json"), &fix); err != nil {
		f.Fatal(err)
	}
	for _, b := range fix.Blobs {
		f.Add(b, true)
	}
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{}},"messageSignature":{}}`), false)
	f.Add([]byte(`{"payloadType":"x","payload":"","signatures":[{}]}`), true)
	keys := fuzzKeys(f)
	f.Fuzz(func(t *testing.T, data []byte, envelope bool) {
		it := item{kind: kindBundle, data: data}
		if envelope {
			it.kind = kindEnvelope
		}
		for _, k := range keys {
			if err := k.signed(it, fuzzDigest); err == nil {
				t.Error("signed")
			}
			if _, err := k.attested(it, fuzzDigest); err == nil {
				t.Error("attested")
			}
		}
	})
}

// The same of simple signatures and what is in their annotations.
func FuzzSimple(f *testing.F) {
	for _, name := range []string{"tag", "referrer"} {
		var fix fixture
		if err := json.Unmarshal(read(f, "testdata/cosign/"+name+".json"), &fix); err != nil {
			f.Fatal(err)
		}
		for _, m := range fix.Manifests {
			var a artifact
			if err := json.Unmarshal(m.Raw, &a); err != nil {
				f.Fatal(err)
			}
			for _, l := range a.Layers {
				f.Add(fix.Blobs[0], l.Annotations[annotationSignature], "", "", "")
			}
		}
	}
	var public struct {
		VerificationMaterial struct {
			X509CertificateChain struct {
				Certificates []struct{ RawBytes string }
			}
		}
	}
	if err := json.Unmarshal(read(f, "testdata/public/bundle.json"), &public); err != nil {
		f.Fatal(err)
	}
	certificate := "-----BEGIN CERTIFICATE-----\n" + public.VerificationMaterial.X509CertificateChain.Certificates[0].RawBytes + "\n-----END CERTIFICATE-----\n"
	f.Add(payload(fuzzDigest), "AAAA", certificate,
		`{"SignedEntryTimestamp":"AAAA","Payload":{"body":"eyJhcGlWZXJzaW9uIjoiMC4wLjEiLCJraW5kIjoiaGFzaGVkcmVrb3JkIiwic3BlYyI6e319","integratedTime":1,"logIndex":2,"logID":"c0d23d6ad406973f9559f3ba2d1ca01f84147d8ffc5b8445c224f98b9591801d"}}`,
		`{"SignedRFC3161Timestamp":"MAA="}`)
	keys := fuzzKeys(f)
	f.Fuzz(func(t *testing.T, data []byte, signature, certificate, log, stamp string) {
		it := item{kind: kindSimple, data: data, annotations: map[string]string{
			annotationSignature: signature, annotationCertificate: certificate, annotationLogEntry: log, annotationTimestamp: stamp,
		}}
		for _, k := range keys {
			if err := k.signed(it, fuzzDigest); err == nil {
				t.Error("signed")
			}
		}
	})
}

// The same of notation's envelopes.
func FuzzNotation(f *testing.F) {
	f.Add([]byte(`{"payload":"e30","protected":"e30","header":{"x5c":["AAAA"]},"signature":"AAAA"}`), false)
	f.Add(read(f, "testdata/notation.jws"), false)
	f.Add(read(f, "testdata/notation.cose"), true)
	k, _, err := newNotation(Notation{Certificates: []string{"testdata/notation.pem"}, Identities: []string{"*"}})
	if err != nil {
		f.Fatal(err)
	}
	desc := subject{digest: fuzzDigest}.describe(ociManifest, 12)
	f.Fuzz(func(t *testing.T, data []byte, isCOSE bool) {
		it := item{kind: kindNotation, mediaType: jws.MediaTypeEnvelope, data: data}
		if isCOSE {
			it.mediaType = cose.MediaTypeEnvelope
		}
		if _, err := k.signed(t.Context(), it, desc); err == nil {
			t.Error("signed")
		}
	})
}

// TestNotationSeeds makes the seeds of FuzzNotation, if told to.
func TestNotationSeeds(t *testing.T) {
	if os.Getenv("SHOAL_NOTATION_SEEDS") == "" {
		t.Skip("set SHOAL_NOTATION_SEEDS to make the seeds of FuzzNotation anew")
	}
	a := newAuthority(t, "seeds", 24*time.Hour)
	img := registry.Image{MediaType: ociManifest, Manifest: proto.Blob{Digest: proto.DigestOf([]byte("signed")), Size: 6}}
	for name, mediaType := range map[string]string{"jws": jws.MediaTypeEnvelope, "cose": cose.MediaTypeEnvelope} {
		if err := os.WriteFile("testdata/notation."+name, a.sign(img, mediaType, 0).data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("testdata/notation.pem", data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a registry says of referrers is read without a panic and within bounds.
func FuzzReferrers(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"a","digest":"sha256:`+strings.Repeat("0", 64)+`","size":1,"artifactType":"`+typeNotation+`","annotations":{"a":"b"}}]}`), `</v2/a/referrers/b?n=1>; rel="next"`)
	f.Add([]byte(`{"manifests":null}`), `<`)
	f.Add([]byte(`[]`), `<>;rel=next,`)
	f.Fuzz(func(t *testing.T, body []byte, link string) {
		list, err := parseReferrers(body)
		if len(list) > maxDescriptors || err != nil && list != nil {
			t.Errorf("%d referrers, %v", len(list), err)
		}
		for _, d := range list {
			if b, err := d.blob(100); err == nil && (b.Validate() != nil || b.Size > 100 || b.Size < 1) {
				t.Errorf("%+v", b)
			}
			k, known := kindOf(d.ArtifactType)
			if known == (k == "") {
				t.Errorf("kind %q, %v", k, known)
			}
			_, _ = layerKind(d.MediaType, k)
		}
		if q := nextPage([]string{link}); strings.ContainsAny(q, "#\n\r") {
			t.Errorf("query %q", q)
		}
	})
}

// A signed report may be anything. What can be read is read the same way twice.
func FuzzReport(f *testing.F) {
	f.Add(typeCosignVuln, []byte(cosignVuln("2026-01-02T03:04:05Z", trivyReport("A", "HIGH"))))
	f.Add(typeCosignVuln, []byte(cosignVuln("2026-01-02T03:04:05Z", string(read(f, "testdata/grype.json")))))
	f.Add(typeCosignVuln, []byte(cosignVuln("", `{"runs":[{"tool":{"driver":{"rules":[{"id":"A","properties":{"security-severity":"9.8"}}]}},"results":[{"ruleId":"A","ruleIndex":0}]}]}`)))
	f.Add(typeInTotoVulns1, []byte(inTotoVulns("2026-01-02T03:04:05Z", `[{"id":"A","severity":[{"score":"5.2"}]}]`)))
	f.Add(typeInTotoVulns2, []byte(`{"scanner":{"result":[null]}}`))
	g := &gate{max: medium, ignore: map[string]bool{"A": true}, key: &key{}}
	f.Fuzz(func(t *testing.T, predicateType string, predicate []byte) {
		r, err := parseReport(predicateType, predicate)
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		for _, x := range r.Findings {
			if x.Severity <= none || x.Severity > critical {
				t.Errorf("severity %d", x.Severity)
			}
		}
		grave, n := g.grave(r.Findings)
		if len(grave) > maxGrave || n > len(r.Findings) || (n == 0) != (len(grave) == 0) {
			t.Errorf("%d of %d findings", len(grave), n)
		}
		if s := (scan{Grave: grave, Count: n}).describe(medium); len(s) > 2000 {
			t.Errorf("a message of %d bytes", len(s))
		}
	})
}
