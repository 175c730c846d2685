package scheduler

import (
	"math/bits"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// The decisions: which node fetches which chunks from whom. See doc.go for the
// policy and where it comes from; origin.go decides about the origin.

// feeds has pass look for leases for n, offers for nodes that n could serve.
func (b *Book) feeds(n *node) {
	if !n.toFeed {
		n.toFeed = true
		b.toFeed = append(b.toFeed, n)
	}
}

func (b *Book) offers(n *node) {
	if !n.toOffer {
		n.toOffer = true
		b.toOffer = append(b.toOffer, n)
	}
}

// pass grants what the events since the last pass have made possible. It ends
// when nothing that was touched has anything more to give or take. Sources with
// a free slot go before nodes with room: the node that has just finished a
// chunk would else take the slot that it freed again and again, and whoever
// found none at the start would find none until the others are done.
func (b *Book) pass(now time.Time) {
	var fed, offered, sent int
	for {
		switch {
		case offered < len(b.toOffer):
			n := b.toOffer[offered]
			offered++
			n.toOffer = false
			b.offer(now, n)
		case fed < len(b.toFeed):
			n := b.toFeed[fed]
			fed++
			n.toFeed = false
			b.feed(now, n)
		case sent < len(b.toOrigin):
			sent++
			b.offerOrigin(now, b.toOrigin[sent-1])
		default:
			clear(b.toFeed)
			clear(b.toOffer)
			clear(b.toOrigin)
			b.toFeed, b.toOffer, b.toOrigin = b.toFeed[:0], b.toOffer[:0], b.toOrigin[:0]
			return
		}
	}
}

// window returns how many leases on peers n may have in flight. One to which little
// comes at a time gets one: its leases keep slots of sources busy that others would
// use better. One of which only what it gives seems slow has its whole window, since
// that it seems so is often no fault of its link: the first chunk over a new
// connection, to a node that two warm ones keep busy, gets a tenth of that node's
// link.
func (b *Book) window(n *node) int {
	if n.slow && (n.took.n < enoughOfOne || b.tooSlow(n.took.median)) {
		return 1
	}
	return b.tuning.Window + n.moreTaken
}

// feed grants n leases until its window is full or nothing is to be had.
func (b *Book) feed(now time.Time, n *node) {
	for !n.gone && !n.lapsed && b.feedOnce(now, n, nil) {
	}
	if !n.gone && !n.lapsed && len(n.wants) > 0 {
		b.double(now, n)
		b.updateHungry(n)
	}
}

// feedOnce grants n one lease, if it may have one. If offered is not nil, it is
// among the sources that are considered.
func (b *Book) feedOnce(now time.Time, n, offered *node) bool {
	for _, p := range n.wants { // what a reader waits for goes first
		c := p.await
		if c < 0 || p.have.Has(c) || p.leased.Has(c) {
			continue
		}
		if b.originLease(now, p, c, false) {
			return true
		}
		if n.out < b.window(n) && p.swarm.copies(c) > 0 && p.swarm.known.Has(c) {
			if src := b.source(now, p, c, nil); src != nil {
				b.grant(now, p, src, c)
				return true
			}
		}
	}
	for _, p := range n.wants {
		if b.originLease(now, p, -1, false) {
			return true
		}
		if n.out >= b.window(n) {
			continue
		}
		if c, src := b.rarest(now, p, offered); src != nil {
			b.grant(now, p, src, c)
			return true
		}
	}
	return false
}

// rarest returns the chunk that p misses of which there are the fewest copies,
// counting those in flight, of those that some source can give now, and that
// source. Ties are broken at random: with an equal order everywhere, all nodes
// would ask for the same chunks.
func (b *Book) rarest(now time.Time, p *part, offered *node) (int, *node) {
	best := -1
	var src *node
	try := func(c int) bool {
		best, src = c, b.source(now, p, c, offered)
		return src != nil
	}
	fresh, more := b.candidates(p)
	if fresh {
		p.swarm.rarity.rarest(b.rng, b.fresh, try)
	}
	if src == nil && more {
		p.swarm.rarity.rarest(b.rng, b.wanted, try)
	}
	return best, src
}

// candidates fills b.fresh and b.wanted with the chunks that p misses and free
// sources can give it, those that p's zone has not got and the others, and reports
// whether there are any.
func (b *Book) candidates(p *part) (fresh, more bool) {
	s := p.swarm
	b.fresh, b.wanted = b.fresh[:0], b.wanted[:0]
	z := s.zone(p.node.zone)
	needed := b.seedIsNeeded(s)
	seeds := b.seedParts(s)
	for w, known := range s.known {
		near, far := z.spare.set[w], s.spare.set[w]
		if z.spareWhole > 0 {
			near = ^uint64(0)
		}
		if s.spareWhole > 0 {
			far = ^uint64(0)
		}
		seedsNear, seedsFar := give(seeds, w, p.node.zone)
		if needed {
			seedsNear &^= s.rarity.has[w]
			seedsFar &^= s.rarity.has[w]
		}
		near |= seedsNear
		far = (far | seedsFar) &^ z.has[w]
		// Better from a slow one than not at all.
		x := known & p.missing(w) & (near | far | s.lone[w])
		b.fresh, b.wanted = append(b.fresh, x&^z.has[w]), append(b.wanted, x&z.has[w])
		fresh, more = fresh || x&^z.has[w] != 0, more || x&z.has[w] != 0
	}
	return fresh, more
}

// sampled is how many free holders of a chunk are compared.
const sampled = 8

// source returns the holder of chunk c from which p would have it soonest, of
// up to 8 that have a free slot, or nil; offered is among them if it can be.
// Holders in other zones count for the first copy into p's zone only, slow ones
// only if there are no others at all.
func (b *Book) source(now time.Time, p *part, c int, offered *node) *node {
	s := p.swarm
	cross := !s.zone(p.node.zone).has.Has(c)
	if s.lone.Has(c) {
		return b.slowSource(p, c, cross)
	}
	best := choice{book: b, part: p, chunk: c, cross: cross, holders: s.holdersOf(c)}
	best.spareSeeds = s.rarity.copies[c] > 0 && b.seedIsNeeded(s) && !b.overdue(now, p, c)
	if offered != nil {
		if sp := offered.parts[s.blob.Digest]; sp != nil && sp.fpos >= 0 {
			best.consider(sp)
		}
	}
	n := len(s.free)
	if n == 0 {
		return best.source
	}
	if n <= max(s.stride, sampled) {
		start := b.rng.IntN(n)
		for i := 0; i < n && best.seen < sampled; i++ {
			best.consider(s.free[(start+i)%n])
		}
		return best.source
	}
	start := b.rng.IntN(s.stride)
	for i := 0; i < s.stride && best.seen < sampled; i++ {
		w := (start + i) % s.stride
		for free := best.holders[w] &^ (s.busy[w] | s.slow[w]); free != 0 && best.seen < sampled; free &= free - 1 {
			best.consider(s.slots[w<<6+bits.TrailingZeros64(free)])
		}
	}
	return best.source
}

// seedIsNeeded reports whether a seed is still bringing chunks, or has one that
// nobody else has or is being sent. Then it serves no other, even if it has
// nothing else to do at the moment: everybody's reader waits for much the same
// chunks, and a seed that sends those to all who ask has no slot when the next
// one arrives that only it has. All nodes then wait for it, with idle uplinks.
func (b *Book) seedIsNeeded(s *swarm) bool {
	if len(b.seeds) == 0 {
		return false
	}
	if s.seeded() {
		return true
	}
	seeds := b.seedParts(s)
	for w, has := range s.rarity.has {
		if near, far := give(seeds, w, 0); (near|far)&^has != 0 {
			return true
		}
	}
	return false
}

// seedParts returns the parts of s of seeds with a free slot, until the next call.
func (b *Book) seedParts(s *swarm) []*part {
	b.seedRoom = b.seedRoom[:0]
	for _, n := range b.seeds {
		if p := n.parts[s.blob.Digest]; p != nil && p.fpos >= 0 {
			b.seedRoom = append(b.seedRoom, p)
		}
	}
	return b.seedRoom
}

// give returns a word of the chunks that others may have from parts, those of
// nodes in a zone and those of others.
func give(parts []*part, w, zone int) (near, far uint64) {
	for _, p := range parts {
		if p.node.zone == zone {
			near |= p.gives(w)
		} else {
			far |= p.gives(w)
		}
	}
	return near, far
}

// slowSource is source for a chunk that only slow nodes have.
func (b *Book) slowSource(p *part, c int, cross bool) *node {
	s := p.swarm
	best := choice{book: b, part: p, chunk: c, cross: cross, holders: s.holdersOf(c)}
	for w, h := range best.holders {
		for free := h &^ s.busy[w]; free != 0; free &= free - 1 {
			best.consider(s.slots[w<<6+bits.TrailingZeros64(free)])
		}
	}
	return best.source
}

// isSentBy reports whether src is sending p something.
func (p *part) isSentBy(src *node) bool {
	for _, l := range p.leases {
		if l.source == src {
			return true
		}
	}
	return false
}

// offer lets hungry nodes that could use src choose, until its slots are full
// or nobody needs what it has.
func (b *Book) offer(now time.Time, src *node) {
	for !src.gone && !src.suspect && src.used < src.slots && b.offerOnce(now, src) {
	}
}

// offerOnce grants one lease on src. With a seed, who is being sent something by it
// goes last, so that what it sends goes to many.
func (b *Book) offerOnce(now time.Time, src *node) bool {
	for _, sp := range src.busyIn {
		s := sp.swarm
		n := len(s.hungry)
		if sp.mute || n == 0 || !sp.isWanted() {
			continue
		}
		start := b.rng.IntN(n)
		again := b.again[:0]
		for i := range n {
			switch q := s.hungry[(start+i)%n]; {
			case src.seeds() && q.isSentBy(src):
				again = append(again, q)
			case b.useful(q, sp) && b.feedOnce(now, q.node, src):
				return true
			}
		}
		b.again = again
		for _, q := range again {
			if b.useful(q, sp) && b.feedOnce(now, q.node, src) {
				return true
			}
		}
	}
	return false
}

// isWanted reports whether sp has anything that a hungry node wants.
func (sp *part) isWanted() bool {
	for w, x := range sp.swarm.wanted.set {
		if x&sp.gives(w) != 0 {
			return true
		}
	}
	return false
}

// useful reports whether sp has a chunk that it may give q.
func (b *Book) useful(q, sp *part) bool {
	if q == sp {
		return false
	}
	var here proto.Set
	if sp.node.zone != q.node.zone {
		here = q.swarm.zone(q.node.zone).has
	}
	for w := range q.have {
		x := q.missing(w) & sp.gives(w)
		if here != nil {
			x &^= here[w]
		}
		if x != 0 {
			return true
		}
	}
	return false
}

// gives returns a word of the chunks that others may have from sp.
func (sp *part) gives(w int) uint64 {
	s := sp.swarm
	x := s.known[w]
	if !sp.whole {
		x &= sp.have[w]
	}
	if sp.node.slow {
		x &= s.lone[w]
	}
	return x
}

func (b *Book) grant(now time.Time, p *part, src *node, c int) {
	s, t := p.swarm, b.tuning
	sp := src.parts[s.blob.Digest]
	limit := min(t.MaxRun, runLength(src.rate/float64(src.slots), s.blob.ChunkSize(), t.RunTime))
	count := 1
	for next := c + 1; count < limit && next < s.chunks() && sp.has(next) && !p.have.Has(next) &&
		!p.leased.Has(next) && s.rarity.copies[next] <= s.rarity.copies[c]+1 && s.known.Has(next); next++ {
		count++
	}
	l := b.newLease(p, src, c, count)
	src.used++
	b.updateBusy(src)
	within := time.Duration(count) * max(t.FirstWithin, atLeast(s.blob.ChunkSize()))
	if src.rate > 0 {
		expected := float64(src.used+src.moreGiven)*float64(int64(count)*s.blob.ChunkSize())/src.rate + max(src.lost, p.node.lost)
		within = time.Duration(3 * min(expected, 600) * float64(time.Second))
	}
	within <<= min(src.stalls, 6) // it may be the link that is thin
	var sums []proto.Sum
	if s.chunks() > 1 {
		sums = append(sums, s.sums[c:c+count]...)
	}
	b.counts.PeerLeases++
	b.save(int64(count) * s.blob.ChunkSize())
	b.send(now, l, max(within, t.MinWithin), sums)
	l.late = now.Add(b.lateAfter(l))
}

// atLeast returns how long a chunk takes at a rate that is as low as one that
// somebody would set as a limit: half a megabit per second.
func atLeast(chunk int64) time.Duration {
	const slowest = 64 << 10 // bytes per second
	return time.Duration(chunk) * time.Second / slowest
}

// newLease enters a lease on count chunks from c on into the tables.
func (b *Book) newLease(p *part, src *node, c, count int) *lease {
	b.lastID++
	l := &lease{id: b.lastID, part: p, source: src, origin: src == nil, first: c, count: count}
	b.leases[l.id] = l
	p.leases = append(p.leases, l)
	l.down = p.node.down.count(b.now, 1)
	if src != nil {
		l.up = src.up.count(b.now, 1)
	}
	for i := c; i < c+count; i++ {
		if p.have.Has(i) {
			continue
		}
		l.left++
		if !p.leased.Has(i) {
			p.swarm.setLeased(p, i, true)
		}
	}
	if p.node.out++; p.node.out >= b.window(p.node) {
		b.updateHungry(p.node)
	}
	return l
}

// send tells the node of its lease and sets the dead man's alarm: a node
// reports a failed lease itself, so it is due well after the deadline.
func (b *Book) send(now time.Time, l *lease, within time.Duration, sums []proto.Sum) {
	l.granted = now
	m := &proto.Lease{
		ID: l.id, Digest: l.part.swarm.blob.Digest, First: l.first, Count: l.count,
		Within: within, Sums: sums, Early: early(l),
	}
	if l.source != nil {
		m.Source, m.Addr = l.source.member.ID, l.source.member.Addr
	}
	b.tell(l.part.node, m)
	l.grace = 2*within + b.tuning.MinWithin
	l.due = now.Add(l.grace)
	b.dues.add(l)
}

// early returns how long before the end of l its node is to say that it is near:
// as long as what it says and what it is told are on their way, and as long
// again for its request and the first bytes that answer it. An origin has its own
// time for that, and may be far from a seed that is beside its scheduler.
func early(l *lease) time.Duration {
	seconds := 2 * min(l.part.node.loop, 1)
	if l.origin {
		seconds = min(l.part.node.loop+l.part.swarm.originWait, 2)
	}
	return time.Duration(seconds * float64(time.Second))
}

// runLength returns how many chunks of the given size fit into d at rate bytes
// per second: at least 1, and 1 while the rate is not known.
func runLength(rate float64, chunk int64, d time.Duration) int {
	return max(1, int(rate*d.Seconds()/float64(chunk)))
}

// askSums asks a holder for sums, if there are chunks that somebody has and
// nobody could check.
func (b *Book) askSums(now time.Time, s *swarm) {
	if !s.active() || s.asked != nil || s.chunks() == 1 {
		return
	}
	for c := range s.sums {
		if !s.sums[c].IsZero() || s.copies(c) == 0 {
			continue
		}
		for w, h := range s.holdersOf(c) {
			for ; h != 0; h &= h - 1 {
				p := s.slots[w<<6+bits.TrailingZeros64(h)]
				if p.told || p.mute {
					continue
				}
				s.asked, s.askUntil = p.node, now.Add(b.tuning.CallWait)
				b.alarm(s.askUntil, alarmSwarm).swarm = s
				b.tell(p.node, &proto.Ask{Digest: s.blob.Digest})
				return
			}
		}
	}
}
