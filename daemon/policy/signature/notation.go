package signature

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	corex509 "github.com/notaryproject/notation-core-go/x509"
	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	// The two forms of envelopes.
	_ "github.com/notaryproject/notation-core-go/signature/cose"
	_ "github.com/notaryproject/notation-core-go/signature/jws"
)

// A notationKey verifies signatures of the Notary Project by its strict level,
// but for revocation, which would need the network.
type notationKey struct {
	verifier notation.Verifier
}

// A trustStore has the CAs of one key, under any name. What a signing authority
// says of the time of a signature is not believed: none is configured.
type trustStore []*x509.Certificate

func (s trustStore) GetCertificates(_ context.Context, t truststore.Type, _ string) ([]*x509.Certificate, error) {
	if t != truststore.TypeCA {
		return nil, nil
	}
	return s, nil
}

// newNotation returns the key, and the content of its files.
func newNotation(n Notation) (*notationKey, []byte, error) {
	var store trustStore
	var content []byte
	for _, name := range n.Certificates {
		data, err := readFile(name)
		if err != nil {
			return nil, nil, err
		}
		certs, err := corex509.ReadCertificateFile(name)
		if err == nil {
			err = truststore.ValidateCertificates(certs)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		store = append(store, certs...)
		content = append(content, data...)
	}
	policy := &trustpolicy.Document{
		Version: "1.0",
		TrustPolicies: []trustpolicy.TrustPolicy{{
			Name:           "shoal",
			RegistryScopes: []string{"*"},
			SignatureVerification: trustpolicy.SignatureVerification{
				VerificationLevel: trustpolicy.LevelStrict.Name,
				Override:          map[trustpolicy.ValidationType]trustpolicy.ValidationAction{trustpolicy.TypeRevocation: trustpolicy.ActionSkip},
			},
			TrustStores:       []string{string(truststore.TypeCA) + ":shoal"},
			TrustedIdentities: n.Identities,
		}},
	}
	v, err := verifier.New(policy, store, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("identities %q: %w", n.Identities, err)
	}
	return &notationKey{v}, content, nil
}

func (*notationKey) wants(k kind, _ string) bool { return k == kindNotation }

// signed returns until when it is a signature of what desc describes: no longer
// than the signature and the certificates are valid, since without a timestamp
// it would not be accepted after that.
func (k *notationKey) signed(ctx context.Context, it item, desc ocispec.Descriptor) (until time.Time, err error) {
	outcome, err := k.verifier.Verify(ctx, desc, it.data, notation.VerifierVerifyOptions{
		// It selects the policy, and there is one for all. Names of upstreams
		// need not be ones that the library takes.
		ArtifactReference:  "registry.invalid/image@" + desc.Digest.String(),
		SignatureMediaType: it.mediaType,
	})
	switch {
	case err != nil:
		return time.Time{}, err
	case outcome == nil || outcome.EnvelopeContent == nil:
		return time.Time{}, errors.New("the signature was not verified")
	}
	info := outcome.EnvelopeContent.SignerInfo
	until = info.SignedAttributes.Expiry
	for _, c := range info.CertificateChain {
		if until.IsZero() || c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return until, nil
}

// describe returns the descriptor that a notation signature has to be of.
func (s subject) describe(mediaType string, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(s.digest.String()), Size: size}
}
