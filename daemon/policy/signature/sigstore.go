package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	sig "github.com/sigstore/sigstore/pkg/signature"

	"github.com/shoal-project/shoal/proto"
)

// predicateSignature is what cosign's signatures in bundles are about.
const predicateSignature = "https://sigstore.dev/cosign/sign/v1"

// maxFile bounds the files of the configuration in bytes.
const maxFile = 4 << 20

// A sigstoreKey verifies what cosign and others sign with Sigstore's formats,
// for one public key or one identity.
type sigstoreKey struct {
	verifier   *verify.Verifier
	policy     verify.PolicyOption
	keyed      bool
	predicates []string
}

// newCosign returns the key of a PEM file, and the file's content.
func newCosign(c Cosign) (*sigstoreKey, []byte, error) {
	data, err := readFile(c.Key)
	if err != nil {
		return nil, nil, err
	}
	var all publicKeys
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		pub, err := cryptoutils.UnmarshalPEMToPublicKey(pem.EncodeToMemory(block))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.Key, err)
		}
		vs, err := verifiersOf(pub)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.Key, err)
		}
		all = append(all, vs...)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("%s has no public key in PEM form: give it what `cosign public-key` prints", c.Key)
	}
	// A bundle may hint at the key that it was signed with. There is only this.
	trusted := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(all, time.Time{}, time.Time{}), nil
	})
	v, err := verify.NewVerifier(trusted, verify.WithNoObserverTimestamps(), verify.WithoutStatementPredicate())
	if err != nil {
		return nil, nil, err
	}
	return &sigstoreKey{verifier: v, policy: verify.WithKey(), keyed: true}, data, nil
}

// publicKeys verify what one of them has signed.
type publicKeys []sig.Verifier

// verifiersOf returns the ways in which cosign signs with a key. It always
// hashed with SHA-256, and with the curve's own hash since version 3.
func verifiersOf(pub crypto.PublicKey) (publicKeys, error) {
	v, err := sig.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	vs := publicKeys{v}
	hashes := map[elliptic.Curve]crypto.Hash{elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512}
	if ec, ok := pub.(*ecdsa.PublicKey); ok && hashes[ec.Curve] != 0 {
		if v, err = sig.LoadVerifier(pub, hashes[ec.Curve]); err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

func (k publicKeys) PublicKey(opts ...sig.PublicKeyOption) (crypto.PublicKey, error) {
	return k[0].PublicKey(opts...)
}

func (k publicKeys) VerifySignature(signature, message io.Reader, opts ...sig.VerifyOption) error {
	s, err := io.ReadAll(signature)
	if err != nil {
		return err
	}
	m, err := io.ReadAll(message)
	if err != nil {
		return err
	}
	for _, v := range k {
		if err = v.VerifySignature(bytes.NewReader(s), bytes.NewReader(m), opts...); err == nil {
			return nil
		}
	}
	return err
}

// newKeyless returns the key of an identity, and the trust root file's content.
func newKeyless(k Keyless) (*sigstoreKey, []byte, error) {
	data, err := readFile(k.TrustRoot)
	if err != nil {
		return nil, nil, err
	}
	trusted, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is no trusted_root.json: %w", k.TrustRoot, err)
	}
	if len(trusted.FulcioCertificateAuthorities()) == 0 {
		return nil, nil, fmt.Errorf("%s has no certificate authorities", k.TrustRoot)
	}
	// Certificates live for minutes, so somebody has to say when they were used.
	opts := []verify.VerifierOption{verify.WithObserverTimestamps(1), verify.WithoutStatementPredicate()}
	switch {
	case len(trusted.RekorLogs()) > 0:
		opts = append(opts, verify.WithTransparencyLog(1))
	case len(trusted.TimestampingAuthorities()) == 0:
		return nil, nil, fmt.Errorf("%s has neither transparency logs nor timestamp authorities: no signature could be dated", k.TrustRoot)
	}
	if len(trusted.CTLogs()) > 0 {
		opts = append(opts, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(trusted, opts...)
	if err != nil {
		return nil, nil, err
	}
	// The library would look for a match anywhere in the name.
	id, err := verify.NewShortCertificateIdentity(k.Issuer, "", "", `^(?:`+k.Identity+`)$`)
	if err != nil {
		return nil, nil, fmt.Errorf("identity %q: %w", k.Identity, err)
	}
	return &sigstoreKey{verifier: v, policy: verify.WithCertificateIdentity(id)}, data, nil
}

// readFile reads a file of the configuration.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return data, nil
}

func (k *sigstoreKey) wants(kd kind, predicate string) bool {
	switch kd {
	case kindSimple:
		return true
	case kindBundle:
		return predicate == "" || k.signs(predicate)
	case kindEnvelope:
		return len(k.predicates) > 0 && (predicate == "" || k.signs(predicate))
	}
	return false
}

// signs reports whether a statement of this type counts as a signature.
func (k *sigstoreKey) signs(predicateType string) bool {
	return predicateType == predicateSignature || slices.Contains(k.predicates, predicateType)
}

// signed returns nil if it is a signature of d.
func (k *sigstoreKey) signed(it item, d proto.Digest) error {
	if it.kind == kindSimple {
		return k.simple(it, d)
	}
	b, err := k.bundle(it)
	if err != nil {
		return err
	}
	if b.GetMessageSignature() != nil {
		// A signature of the manifest's own bytes.
		return k.verify(b, artifactDigest(d))
	}
	st, err := k.statement(b, d)
	if err != nil {
		return err
	}
	if !k.signs(st.PredicateType) {
		return fmt.Errorf("it is a statement of type %.100q, which is no signature of the image", st.PredicateType)
	}
	return nil
}

// attested returns the statement about d that it is, verified.
func (k *sigstoreKey) attested(it item, d proto.Digest) (statement, error) {
	b, err := k.bundle(it)
	if err != nil {
		return statement{}, err
	}
	return k.statement(b, d)
}

// statement verifies an envelope and returns what is in it. The digest of one of
// its subjects is d.
func (k *sigstoreKey) statement(b *bundle.Bundle, d proto.Digest) (statement, error) {
	var st statement
	if b.GetDsseEnvelope() == nil {
		return st, errors.New("it has no statement")
	}
	if err := k.verify(b, artifactDigest(d)); err != nil {
		return st, err
	}
	if err := json.Unmarshal(b.GetDsseEnvelope().GetPayload(), &st); err != nil {
		return st, fmt.Errorf("statement: %w", err)
	}
	return st, nil
}

func artifactDigest(d proto.Digest) verify.ArtifactPolicyOption {
	sum, _ := hex.DecodeString(d.Hex()) // a Digest is hexadecimal
	return verify.WithArtifactDigest(d.Algorithm(), sum)
}

func (k *sigstoreKey) verify(b *bundle.Bundle, about verify.ArtifactPolicyOption) error {
	_, err := k.verifier.Verify(b, verify.NewPolicy(about, k.policy))
	return err
}

// simple verifies a simple signing payload and that it names d.
func (k *sigstoreKey) simple(it item, d proto.Digest) error {
	b, err := k.simpleBundle(it)
	if err != nil {
		return err
	}
	if err := k.verify(b, verify.WithArtifact(bytes.NewReader(it.data))); err != nil {
		return err
	}
	return names(it.data, d)
}

// names returns nil if a simple signing payload is a signature of d. Where the
// payload says the image was is not compared: images are copied with their
// signatures, and the digest is the image.
func names(payload []byte, d proto.Digest) error {
	var p struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	switch c := p.Critical; {
	case c.Type != "cosign container image signature" && c.Type != predicateSignature:
		return fmt.Errorf("payload of type %.100q", c.Type)
	case c.Image.Digest != d.String():
		return fmt.Errorf("it is the signature of another image, %.150q", c.Image.Digest)
	}
	return nil
}

// bundle returns what an item that is no simple signing payload has in it.
func (k *sigstoreKey) bundle(it item) (*bundle.Bundle, error) {
	if it.kind == kindEnvelope {
		return k.envelopeBundle(it)
	}
	b := new(bundle.Bundle)
	if err := b.UnmarshalJSON(it.data); err != nil {
		return nil, err
	}
	return b, nil
}

// decode reads the base64 of an annotation.
func decode(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New("empty")
	}
	return base64.StdEncoding.DecodeString(s)
}
