package scheduler

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// A Book is what a scheduler knows and how it decides: the nodes that are
// connected, the blobs that they hold or want, the leases that are out. It is
// pure state: no I/O, no goroutine, no clock. Each method is told the time and
// puts what the nodes are to be told into the outbox (Letters). The same code
// runs behind Server and in the simulator. It is not safe for concurrent use.
//
// Everything in it was told by nodes and is forgotten when they disconnect;
// when they say it again, to this scheduler or another, it is whole again.
type Book struct {
	tuning Tuning
	rng    *rand.Rand
	now    time.Time // of the event that is dealt with

	nodes  map[string]*node
	seeds  []*node // those that are schedulers, in the order of their coming
	swarms map[proto.Digest]*swarm
	active []*swarm // those that somebody wants, in the order of their first join
	leases map[uint64]*lease
	lastID uint64
	// settled is when leases on the origin may be granted for blobs of which
	// another scheduler may have known more.
	settled time.Time
	// typical is the median of what sources gave lately, in bytes per second; 0
	// while too little is known.
	typical float64
	rates   recent
	alarms  alarms
	dues    dues
	zones   map[string]int // numbers of the zones that were seen
	// Room for candidates, offerOnce and seedParts.
	fresh, wanted   proto.Set
	again, seedRoom []*part
	// What an event has touched and pass looks at: nodes that may have room
	// for leases, sources that may have a free slot or something new, swarms of
	// which something may be had from the origin only.
	toFeed   []*node
	toOffer  []*node
	toOrigin []*swarm
	letters  []Letter
	counts   Counts
	// saved is how many bytes second leases may cost; see save.
	saved float64
}

// A Letter is a message for the node with the ID To.
type Letter struct {
	To      string
	Message proto.Message
}

// Counts says what a Book has done so far.
type Counts struct {
	PeerLeases, OriginLeases uint64 // granted
	Failed, Expired          uint64 // leases given back; leases that nobody ended in time
	Calls                    uint64 // seeds called
	Doubled                  uint64 // leases on a second source for a chunk that was late
}

// node is a member with a connection to this scheduler.
type node struct {
	member proto.Member
	zone   int // number of its zone
	// out counts the leases in flight to the node, outOrigin those of them that
	// are on the origin; used counts the leases of which it is the source.
	out, outOrigin, used int
	// up and down are the two ways of its link.
	up, down line
	// slots is how many uploads it serves at a time.
	slots int
	// rate is what it gives over all its slots, in bytes per second; 0 while
	// unknown.
	rate float64
	// takes is what it receives over all its leases, in bytes per second; 0
	// while unknown.
	takes float64
	// gave and took are the last of the measurements that rate and takes average.
	gave, took few
	// loop is how long its leases and its reports are on their way, in seconds:
	// what passes between a grant and the report of a chunk that is not the
	// chunk's own time.
	loop float64
	// trip is the least that loop was averaged from: the round trip while its link
	// was idle. lost is how many seconds round trips cost a lease that it gives or
	// takes; moreTaken and moreGiven are how many leases it may have beyond
	// Tuning.Window, and serve beyond Tuning.Slots, for that.
	trip, lost           float64
	moreTaken, moreGiven int

	strikes int
	stalls  int // leases in a row that ran out of time
	suspect bool
	slow    bool // its rate is far under the typical one
	// wants are its incomplete blobs in the order in which it asked for them,
	// which is the order in which it is served.
	wants []*part
	// parts are all blobs that it has or wants; busyIn those of them whose
	// swarms are active, in the order of their becoming so.
	parts  map[proto.Digest]*part
	busyIn []*part
	gone   bool
	// lapsed: it has let a lease expire without a word. It gets no other until
	// it is heard again.
	lapsed bool
	// toFeed and toOffer: it is in the Book's list of that name. watched is when
	// the next alarm is due for something of its that is late; zero: none is set.
	toFeed, toOffer bool
	watched         time.Time
}

func (n *node) seeds() bool { return n.member.Roles&proto.RoleScheduler != 0 }

// NewBook returns an empty Book. Until now + Tuning.Settle it grants no lease
// on the origin, since the nodes that hold blobs have not said so yet. The
// same seed and the same calls give the same decisions.
func NewBook(t Tuning, seed uint64, now time.Time) *Book {
	t = t.withDefaults()
	rng := rand.New(rand.NewPCG(seed, 0x5e0a1))
	b := &Book{
		tuning: t,
		rng:    rng,
		// A report on another scheduler's lease must not be taken for one on
		// a lease of this one's.
		lastID:  rng.Uint64() >> 8,
		nodes:   make(map[string]*node),
		swarms:  make(map[proto.Digest]*swarm),
		leases:  make(map[uint64]*lease),
		zones:   make(map[string]int),
		settled: now.Add(t.Settle),
		saved:   savedFirst,
	}
	b.alarm(b.settled, alarmSettled)
	return b
}

// Counts returns what the Book has done so far.
func (b *Book) Counts() Counts { return b.counts }

// Letters returns what the nodes are to be told since the last call, in order,
// and empties the outbox. The slice is the caller's.
func (b *Book) Letters() []Letter {
	l := b.letters
	b.letters = nil
	return l
}

func (b *Book) tell(n *node, m proto.Message) {
	b.letters = append(b.letters, Letter{To: n.member.ID, Message: m})
}

// Connect says that a node is there. A node that is there already is replaced:
// what it said before is forgotten.
func (b *Book) Connect(now time.Time, m proto.Member) {
	if _, known := b.nodes[m.ID]; known {
		b.Disconnect(now, m.ID)
	}
	zone, known := b.zones[m.Zone]
	if !known {
		zone = len(b.zones)
		b.zones[m.Zone] = zone
	}
	n := &node{member: m, zone: zone, slots: b.tuning.Slots, parts: make(map[proto.Digest]*part)}
	b.nodes[m.ID] = n
	if n.seeds() {
		b.seeds = append(b.seeds, n)
	}
}

// Disconnect says that a node is gone. What it held is forgotten and its
// leases end; those of which it is the source run on until their nodes report
// or they expire, since the data plane may be alive.
func (b *Book) Disconnect(now time.Time, id string) {
	b.now = now
	n := b.nodes[id]
	if n == nil {
		return
	}
	delete(b.nodes, id)
	b.seeds = remove(b.seeds, n)
	n.gone = true
	for _, p := range slices.Clone(n.busyIn) {
		b.dropPart(p)
		b.askSums(now, p.swarm)
	}
	for _, p := range n.parts { // nobody wants these: the order says nothing
		b.dropPart(p)
	}
	for _, s := range b.active {
		if s.called == n {
			s.decline(n)
			b.toOrigin = append(b.toOrigin, s)
		}
	}
	b.pass(now)
}

// Unsettle says that the members which may own digests have changed: for a
// moment other nodes' reports may be on their way, and nobody is sent to the
// origin.
func (b *Book) Unsettle(now time.Time) {
	b.settled = now.Add(b.tuning.Settle)
	b.alarm(b.settled, alarmSettled)
}

// Handle takes a message of the node with the given ID, which must be
// connected; messages of others are ignored, as are those of a kind that
// nodes do not send.
func (b *Book) Handle(now time.Time, from string, m proto.Message) {
	b.now = now
	n := b.nodes[from]
	if n == nil {
		return
	}
	if n.lapsed {
		n.lapsed = false
		b.feeds(n)
	}
	switch m := m.(type) {
	case *proto.Hold:
		for _, blob := range m.Blobs {
			b.hold(now, n, blob)
		}
	case *proto.Join:
		b.join(now, n, m)
	case *proto.Done:
		b.done(now, n, m)
	case *proto.Fail:
		b.fail(now, n, m)
	case *proto.Near:
		if l := b.leases[m.Lease]; l != nil && l.part.node == n && !l.near {
			l.near = true
			b.makeRoom(l)
		}
	case *proto.Await:
		if p := n.parts[m.Digest]; p != nil && p.have != nil && m.Index < p.swarm.blob.Chunks() {
			p.swarm.awaited = m.Index
			b.awaits(now, p, m.Index)
			b.feeds(n)
		}
	case *proto.Part:
		if p := n.parts[m.Digest]; p != nil {
			b.dropPart(p)
			b.askSums(now, p.swarm)
			b.feeds(n)
		}
	case *proto.Decline:
		if s := b.swarms[m.Digest]; s != nil && s.called == n {
			s.decline(n)
			b.toOrigin = append(b.toOrigin, s)
		}
	case *proto.Sums:
		b.sums(now, n, m)
	}
	b.pass(now)
}

func (b *Book) hold(now time.Time, n *node, blob proto.Blob) {
	p := b.enter(n, blob)
	if p == nil || p.whole {
		return
	}
	if p.swarm.called == n {
		p.swarm.called = nil
	}
	b.completePart(p)
	p.told = false // it knows more by now
	b.askSums(now, p.swarm)
	b.offers(n)
}

func (b *Book) join(now time.Time, n *node, m *proto.Join) {
	if m.Blob.Chunks() == 0 {
		return
	}
	if old := n.parts[m.Blob.Digest]; old != nil {
		b.dropPart(old) // what the node says now is what counts
	}
	p := b.enter(n, m.Blob)
	if p == nil {
		return
	}
	s := p.swarm
	if !m.Origin.IsZero() {
		s.origin = m.Origin
	}
	if s.called == n {
		s.called = nil
	}
	if !s.active() && !m.Seed && (m.Have.Count() > 0 || m.Flight.Count() > 0) {
		// A pull that was under way elsewhere: others' reports are coming too.
		s.settled = now.Add(b.tuning.Settle)
		b.alarm(s.settled, alarmSwarm).swarm = s
	}
	p.seed = m.Seed || n.seeds()
	b.want(p)
	b.awaits(now, p, m.Await)
	s.awaited = max(s.awaited, m.Await)
	for c := m.Have.Next(0); c >= 0; c = m.Have.Next(c + 1) {
		b.gain(p, c)
	}
	for c := m.Flight.Next(0); c >= 0; c = m.Flight.Next(c + 1) {
		b.fly(p, c)
	}
	if p.strays > 0 {
		b.alarm(now.Add(b.tuning.OriginWithin), alarmFlight).swarm = s
	}
	b.askSums(now, s)
	b.feeds(n)
	b.offers(n)
	if p.count == s.blob.Chunks() {
		b.completePart(p)
	}
}

func (b *Book) done(now time.Time, n *node, m *proto.Done) {
	p := n.parts[m.Digest]
	if p == nil || !p.swarm.active() || m.Index >= p.swarm.blob.Chunks() {
		return
	}
	s := p.swarm
	if p.have == nil { // the node's word that the blob is whole came before
		if s.sums[m.Index].IsZero() {
			s.learn(m.Index, m.Sum)
			b.feedHungry(s)
		}
		return
	}
	s.learn(m.Index, m.Sum)
	if l := b.leases[m.Lease]; l != nil && l.part == p && l.covers(m.Index) && !p.have.Has(m.Index) {
		if l.left == l.count {
			n.looped(max(now.Sub(l.granted)-m.Took, 0).Seconds())
		}
		b.measure(now, l, s.blob.Chunk(m.Index).Size, m.Took)
		b.dues.renew(l, now)
	}
	b.gain(p, m.Index)
	b.settle(p, m.Index, m.Lease)
	if s.sums[m.Index].IsZero() {
		p.told = false // it knows more by now
		b.askSums(now, s)
	}
	if p.count == s.blob.Chunks() {
		b.completePart(p)
	}
	b.feeds(n)
	b.offers(n)
}

// settle ends the leases of p of which chunk c was the last that had not come.
// The node is told of those but the one by which it came.
func (b *Book) settle(p *part, c int, by uint64) {
	for i := len(p.leases) - 1; i >= 0; i-- {
		l := p.leases[i]
		if !l.covers(c) {
			continue
		}
		if l.left--; l.left == 0 {
			if l.id != by {
				b.tell(p.node, &proto.Revoke{Digest: p.swarm.blob.Digest, Lease: l.id})
			}
			b.endLease(l)
		}
	}
}

func (b *Book) fail(now time.Time, n *node, m *proto.Fail) {
	p := n.parts[m.Digest]
	if p == nil || p.have == nil {
		return
	}
	l := b.leases[m.Lease]
	if l == nil || l.part != p {
		b.land(p, nil) // a lease of another scheduler
		b.feeds(n)
		return
	}
	b.counts.Failed++
	b.endLease(l)
	switch {
	case m.Cause == proto.CauseDropped:
	case l.origin:
		p.barred = p.barred || m.Cause == proto.CauseDenied || m.Cause == proto.CauseAbsent
	default:
		b.blame(now, p.swarm, l.source, m.Cause)
	}
}

func (b *Book) sums(now time.Time, n *node, m *proto.Sums) {
	p := n.parts[m.Digest]
	if p == nil || !p.swarm.active() {
		return
	}
	s := p.swarm
	for i, sum := range m.Sums {
		if c := m.First + i; c < len(s.sums) && p.has(c) {
			s.learn(c, sum)
		}
	}
	if m.First+len(m.Sums) < len(s.sums) {
		return // there is more to come
	}
	b.answered(now, p)
	b.feedHungry(s)
}

// feedHungry looks again at all nodes that wait for something of s.
func (b *Book) feedHungry(s *swarm) {
	for _, q := range s.hungry {
		b.feeds(q.node)
	}
}

// patience is how often a node is asked for the sums of a blob. More than once,
// since it may have got chunks between its answer and our reading it.
const patience = 3

// answered takes note that p has told the sums that it knows. A copy that
// nobody can check is none: if it keeps having chunks without telling their
// sums, it is no source of this blob.
func (b *Book) answered(now time.Time, p *part) {
	s := p.swarm
	if s.asked == p.node {
		s.asked = nil
	}
	p.told = true
	for c := range s.sums {
		if s.sums[c].IsZero() && p.has(c) {
			if p.answers++; p.answers < patience {
				p.told = false
			} else {
				b.silence(p)
			}
			break
		}
	}
	b.askSums(now, s)
}

// silence makes p no source of its blob any more.
func (b *Book) silence(p *part) {
	if p.mute {
		return
	}
	b.vacate(p)
	p.mute = true
	p.swarm.setBusy(p)
	b.toOrigin = append(b.toOrigin, p.swarm)
}

// blame takes note that src failed a lease. Two failures in a row make it a
// suspect, which serves nobody for a while; wrong bytes, or a chunk that it
// said it had, bar it from the swarm.
func (b *Book) blame(now time.Time, s *swarm, src *node, cause proto.Cause) {
	src.rate /= 2
	src.strikes++
	if cause == proto.CauseStalled {
		src.stalls++
	}
	if sp := src.parts[s.blob.Digest]; sp != nil && s.active() &&
		(cause == proto.CauseCorrupt || cause == proto.CauseAbsent) {
		b.silence(sp)
	}
	if src.strikes >= 2 && !src.suspect && !src.gone {
		b.setSuspect(src, true)
		b.alarm(now.Add(b.tuning.SuspectFor), alarmSuspect).node = src
	}
}

// setSuspect takes a node's copies out of the count, or back in, so that what
// only a suspect has is fetched from the origin.
func (b *Book) setSuspect(n *node, suspect bool) {
	n.suspect = suspect
	for _, p := range n.busyIn {
		if suspect {
			b.vacate(p)
		} else {
			b.occupy(p)
		}
		b.toOrigin = append(b.toOrigin, p.swarm)
	}
	b.updateBusy(n)
}
