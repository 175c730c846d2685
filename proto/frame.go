package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// MaxFrame is the longest frame in bytes. The longest message is Join with two
// sets of a blob of MaxBlob bytes, 32 KiB; long lists are split by their
// senders (see HoldsPerFrame and SumsPerFrame).
const MaxFrame = 256 << 10

// How many entries of a list a sender puts into one message.
const (
	HoldsPerFrame = 1000
	SumsPerFrame  = 4096
)

// maxText bounds every string on the wire, in bytes.
const maxText = 1024

// ErrFrame is wrapped by every error about bytes that are no message; the
// stream they came from is of no use any more.
var ErrFrame = errors.New("malformed message")

type kind byte

// The kinds of messages on the wire. A number is never used again.
const (
	kindHello kind = iota + 1
	kindWelcome
	kindBye
	kindPing
	kindPong
	kindHold
	kindJoin
	kindDone
	kindFail
	kindAwait
	kindPart
	kindDecline
	kindSums
	kindLease
	kindRevoke
	kindCall
	kindAsk
	kindNear
)

func newMessage(k kind) Message {
	switch k {
	case kindHello:
		return new(Hello)
	case kindWelcome:
		return new(Welcome)
	case kindBye:
		return new(Bye)
	case kindPing:
		return new(Ping)
	case kindPong:
		return new(Pong)
	case kindHold:
		return new(Hold)
	case kindJoin:
		return new(Join)
	case kindDone:
		return new(Done)
	case kindFail:
		return new(Fail)
	case kindAwait:
		return new(Await)
	case kindPart:
		return new(Part)
	case kindDecline:
		return new(Decline)
	case kindSums:
		return new(Sums)
	case kindLease:
		return new(Lease)
	case kindRevoke:
		return new(Revoke)
	case kindCall:
		return new(Call)
	case kindAsk:
		return new(Ask)
	case kindNear:
		return new(Near)
	}
	return nil
}

// AppendMessage appends m's frame to b and returns the result: the length of
// what follows as four bytes, big endian; a byte that says the kind; the
// fields.
func AppendMessage(b []byte, m Message) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(m.kind()))
	e := encoder{b}
	m.encode(&e)
	binary.BigEndian.PutUint32(e.b[start:], uint32(len(e.b)-start-4))
	return e.b
}

// ReadMessage reads one frame from r, which should be buffered, and returns
// its message, a pointer to one of this package's message types. It returns
// io.EOF if the stream ends between frames. buf is scratch space that may be
// nil; the grown one is returned for the next call. The message keeps nothing
// of it.
func ReadMessage(r io.Reader, buf []byte) (Message, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, buf, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return nil, buf, fmt.Errorf("%w: frame of %d bytes, 1 to %d are allowed", ErrFrame, n, MaxFrame)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, buf, err
	}
	m, err := parseMessage(buf)
	return m, buf, err
}

// parseMessage reads what follows the length in a frame. Bytes after the known
// fields are ignored, so that a later version can add fields.
func parseMessage(frame []byte) (Message, error) {
	m := newMessage(kind(frame[0]))
	if m == nil {
		return nil, fmt.Errorf("%w: kind %d is not known", ErrFrame, frame[0])
	}
	d := decoder{b: frame[1:]}
	m.decode(&d)
	if d.err != nil {
		return nil, fmt.Errorf("%w: %T: %w", ErrFrame, m, d.err)
	}
	return m, nil
}

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64)       { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int)           { e.uint(uint64(v)) }
func (e *encoder) dur(d time.Duration) { e.uint(uint64(max(d, 0) / time.Microsecond)) }
func (e *encoder) bool(v bool)         { e.b = append(e.b, boolByte(v)) }
func (e *encoder) text(s string) {
	s = s[:min(len(s), maxText)]
	e.int(len(s))
	e.b = append(e.b, s...)
}
func (e *encoder) digest(d Digest) { e.text(d.text) }
func (e *encoder) blob(b Blob)     { e.digest(b.Digest); e.uint(uint64(b.Size)) }
func (e *encoder) origin(o Origin) { e.text(o.Upstream); e.text(o.Repository); e.bool(o.Manifest) }
func (e *encoder) sum(s Sum) {
	known := !s.IsZero()
	e.bool(known)
	if known {
		e.b = append(e.b, s[:]...)
	}
}

func (e *encoder) sums(sums []Sum) {
	e.int(len(sums))
	for _, s := range sums {
		e.sum(s)
	}
}

func (e *encoder) set(s Set) {
	e.int(len(s))
	for _, w := range s {
		e.b = binary.LittleEndian.AppendUint64(e.b, w)
	}
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// A decoder reads fields one after the other. After the first error it returns
// zero values, so that callers check err once.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
		d.b = nil
	}
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("number cut short or too large")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// int reads a number from 0 to limit.
func (d *decoder) int(limit int) int {
	v := d.uint()
	if v > uint64(limit) {
		d.fail("number %d is over %d", v, limit)
		return 0
	}
	return int(v)
}

// dur reads a time of at most a day.
func (d *decoder) dur() time.Duration {
	return time.Duration(d.int(int(24*time.Hour/time.Microsecond))) * time.Microsecond
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail("field of %d bytes cut short", n)
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) bool() bool {
	b := d.bytes(1)
	if len(b) == 1 && b[0] > 1 {
		d.fail("truth value %d", b[0])
	}
	return len(b) == 1 && b[0] == 1
}

func (d *decoder) text() string { return string(d.bytes(d.int(maxText))) }

// digest reads a digest, which must not be zero.
func (d *decoder) digest() Digest {
	s := d.text()
	if d.err != nil {
		return Digest{}
	}
	dg, err := ParseDigest(s)
	if err != nil {
		d.fail("%w", err)
	}
	return dg
}

func (d *decoder) blob() Blob {
	b := Blob{Digest: d.digest(), Size: int64(d.int(MaxBlob))}
	if d.err != nil {
		return Blob{}
	}
	return b
}

func (d *decoder) origin() Origin {
	return Origin{Upstream: d.text(), Repository: d.text(), Manifest: d.bool()}
}

func (d *decoder) sum() (s Sum) {
	if d.bool() {
		copy(s[:], d.bytes(len(s)))
	}
	return s
}

func (d *decoder) sums() []Sum {
	n := d.int(SumsPerFrame)
	if n > len(d.b) { // each takes a byte at least
		d.fail("list of %d sums cut short", n)
	}
	if d.err != nil || n == 0 {
		return nil
	}
	sums := make([]Sum, n)
	for i := range sums {
		sums[i] = d.sum()
	}
	return sums
}

func (d *decoder) set() Set {
	const maxWords = MaxBlob / MaxChunk / 64
	n := d.int(maxWords)
	raw := d.bytes(8 * n)
	if d.err != nil || n == 0 {
		return nil
	}
	s := make(Set, n)
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	return s
}
