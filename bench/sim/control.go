package sim

import (
	"time"

	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

// A server is a member that schedules: the scheduler process, or a daemon that
// owns the digests of some layers.
type server struct {
	host *host
	book *scheduler.Book
	tick time.Duration // when the book wants to be woken
	dead bool
	// far and near are messages on their way to it, from others and from its
	// own host.
	far, near queue[word]
	busy      time.Duration // until when it deals with earlier messages
}

// A word is a message to a server.
type word struct {
	at    time.Duration
	from  *host
	layer *layer
	kind  uint8
	cause proto.Cause
	chunk int
	lease uint64
	took  time.Duration
	join  *proto.Join
	sums  []proto.Sum
}

// The kinds of words.
const (
	sayJoin = iota
	sayAwait
	sayDone
	sayFail
	sayHold
	saySums
	sayNear
)

// An order is a message to a host.
type order struct {
	at      time.Duration
	to      *host
	from    *server
	message proto.Message
}

// A starting is a transfer whose request is on its way.
type starting struct {
	at   time.Duration
	flow *flow
}

// say sends a word about a layer to whoever schedules it.
func (s *sim) say(h *host, l *layer, w word) {
	v := l.server
	if v == nil || v.dead {
		return
	}
	w.from, w.layer = h, l
	if h == v.host || s.o.RTT == 0 {
		w.at = s.now
		v.near.put(w)
	} else {
		w.at = s.now + s.o.RTT/2
		v.far.put(w)
	}
}

// due returns when v has something to do, and which queue it is in, if it is in
// one.
func (v *server) due() (time.Duration, *queue[word]) {
	at, q := never, (*queue[word])(nil)
	if w := v.near.first(); w != nil {
		at, q = max(w.at, v.busy), &v.near
	}
	if w := v.far.first(); w != nil && max(w.at, v.busy) < at {
		at, q = max(w.at, v.busy), &v.far
	}
	if v.tick < at {
		return v.tick, nil
	}
	return at, q
}

// act lets the book of v deal with what is due.
func (s *sim) act(v *server, q *queue[word]) {
	if q == nil {
		s.decide(v, func(now time.Time) { v.book.Tick(now) })
		return
	}
	w := q.take()
	id, m := w.from.member.ID, s.message(&w)
	v.busy = s.now + s.o.Decision
	s.decide(v, func(now time.Time) { v.book.Handle(now, id, m) })
}

// decide changes v's book and sends what follows from it. It takes the time of
// what the scheduler itself would have to do.
func (s *sim) decide(v *server, change func(now time.Time)) {
	now := epoch.Add(s.now)
	began := time.Now()
	change(now)
	letters := v.book.Letters()
	next := v.book.Next()
	s.deciding += time.Since(began)
	v.tick = never
	if !next.IsZero() {
		v.tick = max(next.Sub(epoch), s.now)
	}
	for _, l := range letters {
		s.send(v, l)
	}
}

// send sends what v's book has decided.
func (s *sim) send(v *server, l scheduler.Letter) {
	o := order{at: max(s.now, v.busy), to: s.host(l.To), from: v, message: l.Message}
	if s.o.RTT == 0 || o.to == v.host {
		s.near.put(o)
		return
	}
	o.at += s.o.RTT / 2
	s.far.put(o)
}

// message returns what a word says. It is good until the next call: the book
// keeps nothing of a message.
func (s *sim) message(w *word) proto.Message {
	d := w.layer.blob.Digest
	switch w.kind {
	case sayJoin:
		return w.join
	case sayAwait:
		s.scratch.await = proto.Await{Digest: d, Index: w.chunk}
		return &s.scratch.await
	case sayDone:
		s.scratch.done = proto.Done{Digest: d, Lease: w.lease, Index: w.chunk, Sum: sum(w.chunk), Took: w.took}
		return &s.scratch.done
	case sayFail:
		return &proto.Fail{Digest: d, Lease: w.lease, Cause: w.cause}
	case sayNear:
		return &proto.Near{Digest: d, Lease: w.lease}
	case saySums:
		return &proto.Sums{Digest: d, Sums: w.sums}
	}
	return &proto.Hold{Blobs: []proto.Blob{w.layer.blob}}
}

// sum returns what stands for the sum of a chunk.
func sum(c int) proto.Sum { return proto.Sum{1, byte(c), byte(c >> 8), byte(c >> 16)} }

// obey lets a host do what it is told.
func (s *sim) obey(o order) {
	if o.to.dead || o.from.dead {
		return
	}
	switch m := o.message.(type) {
	case *proto.Lease:
		l := s.byDigest[m.Digest]
		if !o.to.parts[l.index].joined || l.server != o.from {
			s.say(o.to, l, word{kind: sayFail, lease: m.ID, cause: proto.CauseDropped})
			return
		}
		s.launch(o.to, l, m)
	case *proto.Revoke:
		s.revoke(o.to, m.Lease)
	case *proto.Call:
		s.join(o.to, s.byDigest[m.Blob.Digest], true)
	case *proto.Ask:
		l := s.byDigest[m.Digest]
		p := &o.to.parts[l.index]
		sums := make([]proto.Sum, l.chunks)
		for c := range sums {
			if p.have.Has(c) {
				sums[c] = sum(c)
			}
		}
		s.say(o.to, l, word{kind: saySums, sums: sums})
	}
}
