package gossip

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// MaxNote is the longest note in bytes: with its signature it fits into one
	// packet.
	MaxNote = 1 << 10
	// maxNotes bounds the notes that wait to be passed on, and those that wait
	// to be taken in. What is lost is in the next full exchange.
	maxNotes = 256
	// maxSeen bounds the notes that are known to have been seen.
	maxSeen = 4096
	// passOnFor is how old a note may be to be passed on, so that one who has
	// recorded packets can't have the whole fleet repeat them.
	passOnFor = 2 * time.Minute
	// maxState bounds what is told in a full exchange beside the members, and
	// smallState what is told in each: more than that only to those who join,
	// and in one exchange of largeEvery.
	maxState   = 4 << 20
	smallState = 64 << 10
	largeEvery = 12
)

// A letter is a note or a state with its sender's signature:
//
//	time in milliseconds since 1970, 8 bytes; the ID, with its length in a byte
//	before it; the content; the signature
type letter struct {
	id      string
	sent    time.Time
	content []byte
}

func (g *Gossip) writeLetter(label string, content []byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))
	b = append(b, byte(len(g.self.ID)))
	b = append(b, g.self.ID...)
	b = append(b, content...)
	return appendSignature(b, g.sign, label, b)
}

// parseLetter reads a letter and checks its signature.
func parseLetter(label string, b []byte) (letter, error) {
	said, signature, err := cutSignature(b)
	if err != nil || len(said) < 9 || len(said) < 9+int(said[8]) {
		return letter{}, errors.New("a letter is cut short")
	}
	n := 9 + int(said[8])
	l := letter{
		id: string(said[9:n]), content: said[n:],
		sent: time.UnixMilli(int64(binary.BigEndian.Uint64(said) & (1<<62 - 1))),
	}
	return l, verify(l.id, signature, label, said)
}

// Tell has a note of at most MaxNote bytes passed on to all members, in under a
// second among 1,000. It does not block. A note may be lost; what must not be
// is in Config.State too. The note is not told to this member itself.
func (g *Gossip) Tell(note []byte) {
	if len(note) > MaxNote {
		g.log.Error("a note for the fleet is too long", "size", len(note), "most", MaxNote)
		return
	}
	b, err := g.writeLetter(noteLabel, note)
	if err != nil {
		g.log.Error("a note for the fleet can't be signed", "error", err)
		return
	}
	g.firstSeen(b)
	g.passOn(b)
}

// firstSeen reports whether a letter has not been seen lately.
func (g *Gossip) firstSeen(b []byte) bool {
	sum := sha256.Sum256(b)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen[sum] {
		return false
	}
	if len(g.seen) >= maxSeen {
		delete(g.seen, g.seenRing[g.seenNext])
		g.seenRing[g.seenNext] = sum
		g.seenNext = (g.seenNext + 1) % maxSeen
	} else {
		g.seenRing = append(g.seenRing, sum)
	}
	g.seen[sum] = true
	return true
}

// passOn queues a letter for the members.
func (g *Gossip) passOn(b []byte) {
	g.notes.QueueBroadcast(broadcast(b))
	if g.notes.NumQueued() > maxNotes {
		g.notes.Prune(maxNotes)
	}
}

// A broadcast is a letter in memberlist's queue.
type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
func (b broadcast) UniqueBroadcast()                      {}

// NotifyMsg takes a note in. memberlist calls it where it reads its packets, so
// it must not wait.
func (d delegate) NotifyMsg(b []byte) {
	g := d.g
	if len(b) > MaxNote+9+maxText+signatureSize || !g.firstSeen(b) {
		return
	}
	b = append([]byte(nil), b...) // memberlist's buffer
	l, err := parseLetter(noteLabel, b)
	if err == nil && !g.allows(l.id) {
		err = errNotListed
	}
	if err != nil {
		g.stranger(l.id, "", err)
		return
	}
	if age := time.Since(l.sent); age < passOnFor && age > -passOnFor {
		g.passOn(b)
	}
	select {
	case g.taken <- l.content:
	default:
		g.log.Debug("a note was dropped: too many at once", "peer", l.id)
	}
}

// takeNotes hands the notes over until ctx ends.
func (g *Gossip) takeNotes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case note := <-g.taken:
			if g.note != nil {
				g.note(note)
			}
		}
	}
}

// GetBroadcasts returns the letters that go with the next packet.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.notes.GetBroadcasts(overhead, limit)
}

// LocalState returns what this member tells in a full exchange.
func (d delegate) LocalState(join bool) []byte {
	g := d.g
	if g.state == nil {
		return nil
	}
	state := g.state()
	if len(state) == 0 || !join && len(state) > smallState && g.exchanges.Add(1)%largeEvery != 0 {
		return nil
	}
	if len(state) > maxState {
		g.log.Error("the state for the fleet is too long", "size", len(state), "most", maxState)
		return nil
	}
	b, err := g.writeLetter(stateLabel, state)
	if err != nil {
		g.log.Error("the state for the fleet can't be signed", "error", err)
		return nil
	}
	return b
}

// MergeRemoteState takes in what another member tells in a full exchange.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	g := d.g
	if g.merge == nil || len(b) == 0 || len(b) > maxState+9+maxText+signatureSize {
		return
	}
	l, err := parseLetter(stateLabel, b)
	if err == nil && !g.allows(l.id) {
		err = errNotListed
	}
	if err != nil {
		g.stranger(l.id, "", err)
		return
	}
	g.merge(l.content)
}
