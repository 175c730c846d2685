package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
)

// signatureSize is the length of an Ed25519 signature.
const signatureSize = 64

// What is signed begins with what it is for, so that no signature can stand
// for something else.
const (
	cardLabel  = "shoal gossip card v2"
	helloLabel = "shoal gossip hello v1"
	noteLabel  = "shoal gossip note v1"
	stateLabel = "shoal gossip state v1"
)

var errUnsigned = errors.New("it is not signed by the owner of its ID")

// statement joins what is signed, each part with its length before it.
func statement(label string, parts ...[]byte) []byte {
	b := append([]byte(label), 0)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// appendSignature appends to b the signature of the statement.
func appendSignature(b []byte, sign func([]byte) ([]byte, error), label string, parts ...[]byte) ([]byte, error) {
	signature, err := sign(statement(label, parts...))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if len(signature) != signatureSize {
		return nil, fmt.Errorf("signing: the signature has %d bytes, one of Ed25519 has %d", len(signature), signatureSize)
	}
	return append(b, signature...), nil
}

// cutSignature cuts off what appendSignature appended.
func cutSignature(b []byte) (said, signature []byte, err error) {
	if len(b) < signatureSize {
		return nil, nil, errors.New("too short for a signature")
	}
	n := len(b) - signatureSize
	return b[:n:n], b[n:], nil
}

// verify checks the signature of a statement by the owner of a peer ID, which
// for Ed25519 holds the public key itself (libp2p specs, peer-ids).
func verify(id string, signature []byte, label string, parts ...[]byte) error {
	decoded, err := libp2ppeer.Decode(id)
	if err != nil {
		return fmt.Errorf("%.80q is no peer ID: %w", id, err)
	}
	key, err := decoded.ExtractPublicKey()
	if err != nil || key.Type() != crypto.Ed25519 || decoded.String() != id {
		return fmt.Errorf("%.80q is no peer ID of an Ed25519 key in its usual form", id)
	}
	if ok, err := key.Verify(statement(label, parts...), signature); err != nil || !ok {
		return errUnsigned
	}
	return nil
}
