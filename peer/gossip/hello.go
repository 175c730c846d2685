package gossip

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A connection of the gossip begins with both ends' proof of who they are,
// since memberlist answers whoever knows the secret with all it knows, before
// it asks anybody whether it should:
//
//	dialled by  "shoal/g1" nonce
//	accepted by nonce ID signature, of both nonces
//	dialled by  ID signature, of both nonces
//
// A nonce is 32 bytes, an ID its length in a byte and the bytes. What follows is
// memberlist's.
const (
	helloMagic = "shoal/g1"
	nonceSize  = 32
	// helloWithin bounds the exchange at the accepting side, which has one and
	// a half round trips in it.
	helloWithin = 5 * time.Second
)

// A door is who this member is to others and whom it lets in.
type door struct {
	id     string
	sign   func([]byte) ([]byte, error)
	allows func(id string) bool
}

// call proves who this is at the end that dialled, and returns who answers.
func (d *door) call(c net.Conn) (string, error) {
	mine, err := newNonce()
	if err != nil {
		return "", err
	}
	if _, err := c.Write(append([]byte(helloMagic), mine...)); err != nil {
		return "", err
	}
	theirs := make([]byte, nonceSize)
	if _, err := io.ReadFull(c, theirs); err != nil {
		return "", err
	}
	id, err := d.read(c, "accepted", mine, theirs)
	if err != nil {
		return id, err
	}
	proof, err := d.prove("dialled", mine, theirs)
	if err == nil {
		_, err = c.Write(proof)
	}
	return id, err
}

// answer proves who this is at the end that accepted, and returns who calls.
func (d *door) answer(c net.Conn) (string, error) {
	greeting := make([]byte, len(helloMagic)+nonceSize)
	if _, err := io.ReadFull(c, greeting[:1]); err != nil {
		return "", err
	}
	if greeting[0] != helloMagic[0] { // of another version or program: do not wait for more
		return "", errors.New("no greeting of this protocol")
	}
	if _, err := io.ReadFull(c, greeting[1:]); err != nil {
		return "", err
	}
	if string(greeting[:len(helloMagic)]) != helloMagic {
		return "", errors.New("no greeting of this protocol")
	}
	theirs := greeting[len(helloMagic):]
	mine, err := newNonce()
	if err != nil {
		return "", err
	}
	proof, err := d.prove("accepted", theirs, mine)
	if err != nil {
		return "", err
	}
	if _, err := c.Write(append(mine, proof...)); err != nil {
		return "", err
	}
	return d.read(c, "dialled", theirs, mine)
}

func newNonce() ([]byte, error) {
	nonce := make([]byte, nonceSize)
	_, err := rand.Read(nonce)
	return nonce, err
}

// prove returns this member's ID and its signature of both nonces, the one of
// the end that dialled first.
func (d *door) prove(end string, dialled, accepted []byte) ([]byte, error) {
	b := append([]byte{byte(len(d.id))}, d.id...)
	return appendSignature(b, d.sign, helloLabel, []byte(end), []byte(d.id), dialled, accepted)
}

// read reads and checks what prove made at the other end.
func (d *door) read(c net.Conn, end string, dialled, accepted []byte) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, int(n[0])+signatureSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return "", err
	}
	id, signature, err := cutSignature(b)
	if err != nil {
		return "", err
	}
	if err := checkText(string(id)); err != nil {
		return "", fmt.Errorf("ID: %w", err)
	}
	if err := verify(string(id), signature, helloLabel, []byte(end), id, dialled, accepted); err != nil {
		return string(id), err
	}
	if !d.allows(string(id)) {
		return string(id), errNotListed
	}
	return string(id), nil
}
