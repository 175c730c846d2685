package gossip

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/hashicorp/memberlist"
)

// keyLabel separates the gossip's key from any other that may be derived from
// the cluster secret, and its versions from each other.
const keyLabel = "shoal gossip key v1"

// maxSecrets bounds the secrets that are valid at once: each message that none
// of them fits costs a decryption with every one.
const maxSecrets = 8

// deriveKeys makes the keys of the gossip, 32 bytes each for AES-256, in the
// order of the secrets, or none.
func deriveKeys(secrets [][]byte, listen string, ip netip.Addr) ([][]byte, error) {
	if len(secrets) == 0 && !ip.IsLoopback() {
		return nil, fmt.Errorf("gossip: no cluster secret, and gossip.listen %q can be reached from other machines: "+
			"set gossip.secretFile, or listen on 127.0.0.1", listen)
	}
	if len(secrets) > maxSecrets {
		return nil, fmt.Errorf("gossip: %d cluster secrets, %d at most", len(secrets), maxSecrets)
	}
	var keys [][]byte
	for _, secret := range secrets {
		if len(secret) == 0 {
			return nil, errors.New("gossip: an empty cluster secret")
		}
		key, err := hkdf.Key(sha256.New, secret, nil, keyLabel, 32)
		if err != nil {
			return nil, fmt.Errorf("gossip: %w", err)
		}
		if !contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func contains(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}

// newKeyring returns a keyring that encrypts with the first of the keys and
// decrypts with all; nil without keys.
func newKeyring(keys [][]byte) (*memberlist.Keyring, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return ring, nil
}

// SetSecrets replaces the cluster secrets: the first is used to send from now
// on, all are accepted. A fleet changes its secret without a split in three
// steps, each on all members before the next: old and new, new and old, new.
// There can't be none if there was one, nor one if there was none.
func (g *Gossip) SetSecrets(secrets [][]byte) error {
	keys, err := deriveKeys(secrets, g.addr, g.listen)
	if err != nil {
		return err
	}
	ring := g.config.Keyring
	if (ring == nil) != (len(keys) == 0) {
		return errors.New("gossip: to begin or to end the use of a cluster secret needs a restart")
	}
	if ring == nil {
		return nil
	}
	g.rotating.Lock()
	defer g.rotating.Unlock()
	return install(ring, keys)
}

// install makes keys those of ring, in their order. memberlist takes a key out
// of the very slice that its readers go through, unless it is the last one, so
// the others are brought before it first.
func install(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	first := 1 // one move is enough if nothing is taken out, or all but one
	if len(ring.GetKeys()) > len(keys) {
		first = len(keys)
	}
	for _, key := range slices.Backward(keys[:first]) {
		if err := ring.UseKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	for {
		have := ring.GetKeys()
		if len(have) == len(keys) {
			return nil
		}
		if err := ring.RemoveKey(have[len(have)-1]); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
}
