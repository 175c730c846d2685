package signature

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
)

// legacyBundle is the media type of the bundles that what cosign stores in
// annotations is turned into: the only version that takes log entries without
// an inclusion proof, which those are.
const legacyBundle = "application/vnd.dev.sigstore.bundle+json;version=0.1"

// simpleBundle returns a simple signing payload's signature.
func (k *sigstoreKey) simpleBundle(it item) (*bundle.Bundle, error) {
	signature, err := decode(it.annotations[annotationSignature])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationSignature, err)
	}
	sum := sha256.Sum256(it.data)
	b := &protobundle.Bundle{
		MediaType: legacyBundle,
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     signature,
		}},
	}
	return k.withMaterial(b, it.annotations)
}

// envelopeBundle returns an attestation's envelope.
func (k *sigstoreKey) envelopeBundle(it item) (*bundle.Bundle, error) {
	var e struct {
		PayloadType string `json:"payloadType"`
		Payload     []byte `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(it.data, &e); err != nil {
		return nil, fmt.Errorf("DSSE envelope: %w", err)
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("DSSE envelope with %d signatures instead of one", len(e.Signatures))
	}
	b := &protobundle.Bundle{
		MediaType: legacyBundle,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &dsse.Envelope{
			Payload:     e.Payload,
			PayloadType: e.PayloadType,
			Signatures:  []*dsse.Signature{{Sig: e.Signatures[0].Sig, Keyid: e.Signatures[0].KeyID}},
		}},
	}
	return k.withMaterial(b, it.annotations)
}

// withMaterial adds what the annotations say of who has signed and when. For a
// key, that is nothing: it either fits or does not.
func (k *sigstoreKey) withMaterial(b *protobundle.Bundle, annotations map[string]string) (*bundle.Bundle, error) {
	b.VerificationMaterial = &protobundle.VerificationMaterial{}
	if k.keyed {
		b.VerificationMaterial.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}
		return bundle.NewBundle(b)
	}
	block, _ := pem.Decode([]byte(annotations[annotationCertificate]))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it has no certificate")
	}
	b.VerificationMaterial.Content = &protobundle.VerificationMaterial_Certificate{
		Certificate: &protocommon.X509Certificate{RawBytes: block.Bytes},
	}
	if s := annotations[annotationLogEntry]; s != "" {
		entry, err := parseLogEntry([]byte(s))
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotationLogEntry, err)
		}
		b.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if s := annotations[annotationTimestamp]; s != "" {
		var stamp struct{ SignedRFC3161Timestamp []byte }
		if err := json.Unmarshal([]byte(s), &stamp); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotationTimestamp, err)
		}
		b.VerificationMaterial.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	return bundle.NewBundle(b)
}

// parseLogEntry reads what cosign keeps of an entry in Rekor: the entry, and the
// log's promise to include it.
func parseLogEntry(data []byte) (*protorekor.TransparencyLogEntry, error) {
	var e struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(e.Payload.LogID)
	if err != nil {
		return nil, fmt.Errorf("log ID: %w", err)
	}
	var body struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(e.Payload.Body, &body); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex:          e.Payload.LogIndex,
		LogId:             &protocommon.LogId{KeyId: id},
		KindVersion:       &protorekor.KindVersion{Kind: body.Kind, Version: body.APIVersion},
		IntegratedTime:    e.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: e.SignedEntryTimestamp},
		CanonicalizedBody: e.Payload.Body,
	}, nil
}
