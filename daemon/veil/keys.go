package veil

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/shoal-project/shoal/proto"
)

// The labels separate the keys that are derived from one secret, from each
// other and from the gossip's, and their versions.
const (
	aliasLabel      = "shoal veil alias v1"
	capabilityLabel = "shoal veil capability v1"
	noteLabel       = "shoal veil note v1"
)

// keys are what is derived from one cluster secret.
type keys struct {
	secret            []byte
	alias, capability []byte
	note              cipher.AEAD
}

func derive(secret []byte) (*keys, error) {
	k := &keys{secret: bytes.Clone(secret)}
	var note []byte
	for _, d := range []struct {
		key   *[]byte
		label string
	}{{&k.alias, aliasLabel}, {&k.capability, capabilityLabel}, {&note, noteLabel}} {
		var err error
		if *d.key, err = hkdf.Key(sha256.New, secret, nil, d.label, 32); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(note)
	if err != nil {
		return nil, err
	}
	k.note, err = cipher.NewGCM(block)
	return k, err
}

// aliasOf returns what d is called by those who know the secret.
func (k *keys) aliasOf(d proto.Digest) proto.Digest {
	mac := hmac.New(sha256.New, k.alias)
	mac.Write([]byte(d.String()))
	alias, err := proto.ParseDigest("sha256:" + hex.EncodeToString(mac.Sum(nil)))
	if err != nil {
		panic("veil: " + err.Error()) // not with 32 bytes
	}
	return alias
}

// mac returns the proof in a capability.
func (k *keys) mac(alias proto.Digest, asker, expiry string) []byte {
	mac := hmac.New(sha256.New, k.capability)
	for i, part := range [...]string{alias.String(), asker, expiry} {
		if i > 0 {
			mac.Write([]byte{0})
		}
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

// current returns the keys of the secrets that are valid now, the one to make
// things with first: at least one, of a random secret if there is none. v.mu is
// held.
func (v *Veil) current() []*keys {
	var secrets [][]byte
	if v.cfg.Secrets != nil {
		secrets = v.cfg.Secrets()
	}
	if len(secrets) == 0 {
		secrets = [][]byte{v.alone}
	}
	if slices.EqualFunc(v.keys, secrets, func(k *keys, s []byte) bool { return bytes.Equal(k.secret, s) }) {
		return v.keys
	}
	fresh := make([]*keys, 0, len(secrets))
	for _, secret := range secrets {
		k, err := derive(secret)
		if err != nil {
			panic("veil: " + err.Error()) // not with 32 bytes of SHA-256
		}
		fresh = append(fresh, k)
	}
	v.keys = fresh
	for d := range v.names { // who is at another step of the change asks by another alias
		v.remember(d)
	}
	return v.keys
}

// randomSecret returns a secret that nobody else has.
func randomSecret() []byte {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	return secret
}
