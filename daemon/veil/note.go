package veil

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/proto"
)

// Hidden is the upstream that the fleet is told of a private blob. It can't be
// one: registry hosts have a dot or a port, or are localhost.
const Hidden = "private"

// maxNote bounds a note in bytes: texts of the protocol are no longer.
const maxNote = 1024

// ErrNote is wrapped by what Open returns of a note that can't be opened here.
var ErrNote = errors.New("the origin of this private blob is not for this node to know")

// Origin returns what the fleet is told of a blob's origin: the origin, or, if
// the blob is private, a note for seeds if it is to be sealed in one, and else
// nothing. Seal what the credentials of other nodes may bring (auth: node), not
// what only a client's own token brings.
func (v *Veil) Origin(b proto.Blob, o proto.Origin, sealed bool) proto.Origin {
	private := v.private(b.Digest)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.hidden(b.Digest, private) {
		return o
	}
	hidden := proto.Origin{Upstream: Hidden}
	k := v.current()[0]
	if !sealed {
		return hidden
	}
	nonce := make([]byte, k.note.NonceSize())
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	alias := k.aliasOf(b.Digest).String()
	note := base64.RawURLEncoding.EncodeToString(k.note.Seal(nonce, nonce, packNote(b.Digest, o), []byte(alias)))
	if len(note) <= maxNote {
		hidden.Repository = note
	}
	return hidden
}

// Open returns the blob and the origin that a seed is called for. An error is a
// reason to decline.
//
// What is called for under an alias is remembered as private, whatever is known
// of it here. What is called for in the clear, and is not known here as private,
// is returned as it is; see Clear.
func (v *Veil) Open(name proto.Blob, o proto.Origin) (proto.Blob, proto.Origin, error) {
	if o.Upstream != Hidden {
		return v.openClear(name, o)
	}
	raw, err := base64.RawURLEncoding.DecodeString(o.Repository)
	if err != nil || len(raw) == 0 || len(o.Repository) > maxNote {
		return proto.Blob{}, proto.Origin{}, fmt.Errorf("%w: there is no note", ErrNote)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range v.current() {
		n := k.note.NonceSize()
		if len(raw) < n {
			break
		}
		text, err := k.note.Open(nil, raw[:n], raw[n:], []byte(name.Digest.String()))
		if err != nil {
			continue
		}
		d, real, err := unpackNote(text)
		if err != nil || k.aliasOf(d) != name.Digest {
			break
		}
		v.told[d] = true
		v.remember(d)
		return proto.Blob{Digest: d, Size: name.Size}, real, nil
	}
	return proto.Blob{}, proto.Origin{}, fmt.Errorf("%w: the note was made for another or with another secret", ErrNote)
}

// openClear is Open for what is called for in the clear.
func (v *Veil) openClear(b proto.Blob, o proto.Origin) (proto.Blob, proto.Origin, error) {
	private := v.private(b.Digest)
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, alias := v.reals[b.Digest]; alias || v.hidden(b.Digest, private) && v.names[b.Digest] != nil {
		return proto.Blob{}, proto.Origin{}, fmt.Errorf("%w: it is called for in the clear", ErrNote)
	}
	return b, o, nil
}

// Clear has d count as public, though no link says so yet, because it is about
// to be brought here from an upstream that asks nobody: nothing of d may be here
// before. That ends with undo, or when the Session of the pull ends in vain.
func (v *Veil) Clear(d proto.Digest) (undo func()) {
	if !v.private(d) {
		return func() {}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear[d] = true
	return func() { v.unclear(d) }
}

func (v *Veil) unclear(d proto.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.clear, d)
}

func packNote(d proto.Digest, o proto.Origin) []byte {
	flag := "blob"
	if o.Manifest {
		flag = "manifest"
	}
	return []byte(strings.Join([]string{d.String(), o.Upstream, o.Repository, flag}, "\x00"))
}

func unpackNote(text []byte) (proto.Digest, proto.Origin, error) {
	parts := strings.Split(string(text), "\x00")
	if len(parts) != 4 || parts[3] != "blob" && parts[3] != "manifest" || parts[1] == Hidden {
		return proto.Digest{}, proto.Origin{}, errors.New("malformed note")
	}
	d, err := proto.ParseDigest(parts[0])
	if err != nil {
		return proto.Digest{}, proto.Origin{}, err
	}
	return d, proto.Origin{Upstream: parts[1], Repository: parts[2], Manifest: parts[3] == "manifest"}, nil
}
