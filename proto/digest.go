package proto

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// A Digest names content by its hash, as in the OCI image specification
// ("sha256:…"). The zero Digest names nothing. Digests are comparable.
type Digest struct{ text string }

// algorithms are the hash functions that Shoal knows, by their OCI names, with
// the length of their hash in hexadecimal.
func algorithm(name string) (newHash func() hash.Hash, hexLen int, ok bool) {
	switch name {
	case "sha256":
		return sha256.New, 2 * sha256.Size, true
	case "sha512":
		return sha512.New, 2 * sha512.Size, true
	}
	return nil, 0, false
}

// ParseDigest reads a digest in its OCI form, algorithm:hex, and accepts
// sha256 and sha512 with lower-case hexadecimal only (image-spec,
// descriptor.md, "Registered algorithms").
func ParseDigest(s string) (Digest, error) {
	name, enc, found := strings.Cut(s, ":")
	if !found {
		return Digest{}, fmt.Errorf("digest %.80q has no algorithm, such as sha256:…", s)
	}
	_, hexLen, ok := algorithm(name)
	if !ok {
		return Digest{}, fmt.Errorf("digest algorithm %.40q is not supported: use sha256 or sha512", name)
	}
	if len(enc) != hexLen {
		return Digest{}, fmt.Errorf("digest %.150q has %d hexadecimal characters, %s has %d", s, len(enc), name, hexLen)
	}
	for _, c := range []byte(enc) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Digest{}, fmt.Errorf("digest %.150q has a character that is not lower-case hexadecimal", s)
		}
	}
	return Digest{text: s}, nil
}

// DigestOf returns the sha256 digest of data.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest{text: "sha256:" + hex.EncodeToString(sum[:])}
}

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d.text == "" }

// String returns the OCI form, "sha256:…", or "" for the zero Digest.
func (d Digest) String() string { return d.text }

// Algorithm returns "sha256" or "sha512", or "" for the zero Digest.
func (d Digest) Algorithm() string {
	name, _, _ := strings.Cut(d.text, ":")
	return name
}

// Hex returns the hash in lower-case hexadecimal, without the algorithm.
func (d Digest) Hex() string {
	_, enc, _ := strings.Cut(d.text, ":")
	return enc
}

// NewHash returns a hash of d's algorithm. It panics for the zero Digest.
func (d Digest) NewHash() hash.Hash {
	newHash, _, ok := algorithm(d.Algorithm())
	if !ok {
		panic("proto: NewHash of the zero Digest")
	}
	return newHash()
}

// Matches reports whether what was written to h, a hash that NewHash returned,
// is the content that d names.
func (d Digest) Matches(h hash.Hash) bool {
	return hex.EncodeToString(h.Sum(nil)) == d.Hex()
}

// MarshalText returns the OCI form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.text), nil }

// UnmarshalText parses the OCI form; empty text is the zero Digest.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}
