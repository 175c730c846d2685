package signature

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/shoal-project/shoal/proto"
)

const (
	testIdentity = "builder@team.example"
	testIssuer   = "https://issuer.example"
)

// A deployment is a Sigstore deployment of the test's own.
type deployment struct {
	t *testing.T
	*ca.VirtualSigstore
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return &deployment{t, v}
}

// trustRoot writes the trusted_root.json of the deployment.
func (s *deployment) trustRoot(change func(logs map[string]*root.TransparencyLog)) string {
	s.t.Helper()
	logs := s.RekorLogs()
	for id, l := range logs { // it has the ID in hexadecimal there
		raw, err := hex.DecodeString(id)
		if err != nil {
			s.t.Fatal(err)
		}
		l.ID = raw
	}
	if change != nil {
		change(logs)
	}
	// Its certificates have no SCTs, so no certificate logs are named.
	r, err := root.NewTrustedRoot(root.TrustedRootMediaType01, s.FulcioCertificateAuthorities(), nil, s.TimestampingAuthorities(), logs)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := r.MarshalJSON()
	if err != nil {
		s.t.Fatal(err)
	}
	name := filepath.Join(s.t.TempDir(), "trusted_root.json")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func (s *deployment) named(name string) Key {
	return Key{Name: name, Keyless: Keyless{TrustRoot: s.trustRoot(nil), Identity: testIdentity, Issuer: testIssuer}}
}

// promise returns a log's promise of an entry.
func (s *deployment) promise(e *protorekor.TransparencyLogEntry) []byte {
	s.t.Helper()
	set, err := s.RekorSignPayload(tlog.RekorPayload{
		Body:           base64.StdEncoding.EncodeToString(e.CanonicalizedBody),
		IntegratedTime: e.IntegratedTime,
		LogIndex:       e.LogIndex,
		LogID:          hex.EncodeToString(e.LogId.KeyId),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return set
}

// simple signs as `cosign sign` does without a key: certificate and log entry
// are in annotations.
func (s *deployment) simple(identity, issuer string, p []byte) object {
	s.t.Helper()
	e, err := s.Sign(identity, issuer, p)
	if err != nil {
		s.t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		s.t.Fatal(err)
	}
	content, err := e.SignatureContent()
	if err != nil {
		s.t.Fatal(err)
	}
	verification, err := e.VerificationContent()
	if err != nil {
		s.t.Fatal(err)
	}
	entry := entries[0].TransparencyLogEntry()
	log, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": s.promise(entry),
		"Payload": map[string]any{
			"body": entry.CanonicalizedBody, "integratedTime": entry.IntegratedTime,
			"logIndex": entry.LogIndex, "logID": hex.EncodeToString(entry.LogId.KeyId),
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	stamps, err := e.Timestamps()
	if err != nil {
		s.t.Fatal(err)
	}
	stamp, err := json.Marshal(map[string]any{"SignedRFC3161Timestamp": stamps[0]})
	if err != nil {
		s.t.Fatal(err)
	}
	return object{typeSimpleLayer, p, map[string]string{
		annotationSignature:   base64.StdEncoding.EncodeToString(content.Signature()),
		annotationCertificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: verification.Certificate().Raw})),
		annotationLogEntry:    string(log),
		annotationTimestamp:   string(stamp),
	}}
}

// bundle signs a statement as cosign 3 and GitHub do.
func (s *deployment) bundle(identity, issuer string, st []byte) object {
	s.t.Helper()
	e, err := s.AttestAtTime(identity, issuer, st, time.Now().Add(5*time.Minute), true)
	if err != nil {
		s.t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		s.t.Fatal(err)
	}
	content, err := e.SignatureContent()
	if err != nil {
		s.t.Fatal(err)
	}
	verification, err := e.VerificationContent()
	if err != nil {
		s.t.Fatal(err)
	}
	entry := entries[0].TransparencyLogEntry()
	entry.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	entry.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: s.promise(entry)}
	data, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: typeBundle3,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: verification.Certificate().Raw}},
			TlogEntries: []*protorekor.TransparencyLogEntry{entry},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: st, PayloadType: inToto, Signatures: []*protodsse.Signature{{Sig: content.Signature()}},
		}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return object{mediaType: typeBundle3, data: data}
}

func TestKeyless(t *testing.T) {
	t.Parallel()
	s, stranger := newDeployment(t), newDeployment(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	moved := w.pushImage("moved", 2).Manifest.Digest
	statement := func(d proto.Digest) []byte { return statementOf(d, predicateSignature, "{}") }
	without := func(o object, annotations ...string) object {
		for _, a := range annotations {
			delete(o.annotations, a)
		}
		return o
	}
	replace := func(o object, annotation, value string) object {
		o.annotations[annotation] = value
		return o
	}
	for _, test := range []struct {
		name   string
		bundle bool
		o      object
		want   string
	}{
		{"signature", false, s.simple(testIdentity, testIssuer, payload(d)), "team"},
		{"signature without a timestamp", false, without(s.simple(testIdentity, testIssuer, payload(d)), annotationTimestamp), "team"},
		{"bundle", true, s.bundle(testIdentity, testIssuer, statement(d)), "team"},
		{"another identity", false, s.simple("mallory@team.example", testIssuer, payload(d)), ""},
		{"an identity that contains ours", false, s.simple("x"+testIdentity, testIssuer, payload(d)), ""},
		{"another issuer", false, s.simple(testIdentity, "https://issuer.example.evil", payload(d)), ""},
		{"another deployment", false, stranger.simple(testIdentity, testIssuer, payload(d)), ""},
		{"of another image", false, s.simple(testIdentity, testIssuer, payload(moved)), ""},
		{"not in the log", false, without(s.simple(testIdentity, testIssuer, payload(d)), annotationLogEntry), ""},
		{"in the log as something else", false, replace(s.simple(testIdentity, testIssuer, payload(d)),
			annotationLogEntry, s.simple(testIdentity, testIssuer, payload(d)).annotations[annotationLogEntry]), ""},
		{"no certificate", false, without(s.simple(testIdentity, testIssuer, payload(d)), annotationCertificate), ""},
		{"bundle of another identity", true, s.bundle("mallory@team.example", testIssuer, statement(d)), ""},
		{"bundle of another deployment", true, stranger.bundle(testIdentity, testIssuer, statement(d)), ""},
		{"bundle of another image", true, s.bundle(testIdentity, testIssuer, statement(moved)), ""},
		{"bundle of a key", true, newSigner(t).bundle(statement(d)), ""},
	} {
		w := newWorld(t)
		if test.bundle {
			w.attach("app", "", d, typeBundle3, test.o)
		} else {
			w.attach("app", sigTag(d), d, "", test.o)
		}
		if got := w.signedBy(w.verifier([]Key{s.named("team")}), "app", d); got != test.want {
			t.Errorf("%s: signed by %q, want %q", test.name, got, test.want)
		}
	}
}

// What the trust root names is demanded, and one that can't date a signature is
// refused.
func TestTrustRoot(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.attach("app", sigTag(d), d, "", s.simple(testIdentity, testIssuer, payload(d)))
	k := s.named("team")
	k.Keyless.TrustRoot = s.trustRoot(func(logs map[string]*root.TransparencyLog) { clear(logs) })
	if got := w.signedBy(w.verifier([]Key{k}), "app", d); got != "team" {
		t.Errorf("with timestamps alone: signed by %q", got)
	}
	for name, text := range map[string]string{
		"no JSON":       "x",
		"no CA":         `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`,
		"an older kind": `{"mediaType":"application/x"}`,
	} {
		file := filepath.Join(t.TempDir(), "root.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k.Keyless.TrustRoot = file
		if _, err := New(Config{Origin: w.client, Index: w.cache.Index(), Keys: []Key{k}}); err == nil || !strings.Contains(err.Error(), `key "team"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A bundle that the public deployment has vouched for, by the roots of that
// time: of npm's package, and so of no image, but that is all the same here.
func TestPublicSigstore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, err := proto.ParseDigest("sha512:" +
		"46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/public/bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	w.attach("app", "", d, "application/vnd.dev.sigstore.bundle+json;version=0.1",
		object{mediaType: "application/vnd.dev.sigstore.bundle+json;version=0.1", data: data})
	key := func(name, identity string) Key {
		return Key{Name: name, Predicates: []string{"https://slsa.dev/provenance/v1"}, Keyless: Keyless{
			TrustRoot: "testdata/public/trusted_root.json", Identity: identity, Issuer: "https://token.actions.githubusercontent.com",
		}}
	}
	v := w.verifier([]Key{
		key("sigstore", `https://github\.com/sigstore/sigstore-js/.*`),
		key("somebody", `https://github\.com/somebody/.*`),
	})
	if got := w.signedBy(v, "app", d); got != "sigstore" {
		t.Errorf("signed by %q", got)
	}
}
