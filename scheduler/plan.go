package scheduler

import (
	"math/bits"
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// The decisions: which node fetches which chunks from whom. See doc.go for the
// policy and where it comes from.

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
			offered++
			b.offer(now, b.toOffer[offered-1])
		case fed < len(b.toFeed):
			fed++
			b.feed(now, b.toFeed[fed-1])
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

// feed grants n leases until its window is full or nothing is to be had.
func (b *Book) feed(now time.Time, n *node) {
	for !n.gone && !n.lapsed && b.feedOnce(now, n) {
	}
}

func (b *Book) feedOnce(now time.Time, n *node) bool {
	for _, p := range n.wants { // what a reader waits for goes first
		c := p.await
		if c < 0 || p.have.Has(c) || p.leased.Has(c) {
			continue
		}
		if b.originLease(now, p, c) {
			return true
		}
		if n.out < b.tuning.Window && p.swarm.copies[c] > 0 && b.leasable(p.swarm, c) {
			if src := b.source(p, c); src != nil {
				b.grant(now, p, src, c)
				return true
			}
		}
	}
	for _, p := range n.wants {
		if b.originLease(now, p, -1) {
			return true
		}
		if n.out >= b.tuning.Window {
			continue
		}
		if c, src := b.rarest(p); src != nil {
			b.grant(now, p, src, c)
			return true
		}
	}
	return false
}

// leasable reports whether chunk c may be fetched from a peer: there must be
// something to check it by.
func (b *Book) leasable(s *swarm, c int) bool {
	return len(s.copies) == 1 || !s.sums[c].IsZero()
}

// rarest returns the chunk that p misses of which there are the fewest copies,
// counting those in flight, and that some source can give now. Ties are
// broken at random: with an equal order everywhere, all nodes would ask for
// the same chunks.
func (b *Book) rarest(p *part) (int, *node) {
	s := p.swarm
	words := len(p.have)
	best, bestCopies := -1, int32(0)
	var bestSrc *node
	start := b.rng.IntN(words)
	for i := range words {
		w := (start + i) % words
		missing := ^(p.have[w] | p.leased[w])
		for shift := b.rng.IntN(64); missing != 0; {
			bit := bits.TrailingZeros64(bits.RotateLeft64(missing, -shift))
			bit = (bit + shift) & 63
			missing &^= 1 << bit
			c := w<<6 + bit
			if c >= len(s.copies) || s.copies[c] == 0 || best >= 0 && s.copies[c] >= bestCopies || !b.leasable(s, c) {
				continue
			}
			if src := b.source(p, c); src != nil {
				best, bestCopies, bestSrc = c, s.copies[c], src
			}
		}
	}
	return best, bestSrc
}

// sampled is how many free holders of a chunk are compared.
const sampled = 8

// source returns the holder of chunk c from which p would have it soonest, of
// up to 8 that have a free slot, or nil. Holders in other zones count only for
// the first copy into p's zone or if p would be idle otherwise; slow ones only
// if there are no others at all.
func (b *Book) source(p *part, c int) *node {
	s := p.swarm
	holders := s.holdersOf(c)
	var best *node
	var bestEta float64
	seen := 0
	start := b.rng.IntN(len(holders))
	for i := 0; i < len(holders) && seen < sampled; i++ {
		w := (start + i) % len(holders)
		for free := holders[w] &^ s.busy[w]; free != 0 && seen < sampled; free &= free - 1 {
			src := s.slots[w<<6+bits.TrailingZeros64(free)].node
			if !b.mayServe(p, c, src) {
				continue
			}
			seen++
			if eta := b.eta(p, src); best == nil || eta < bestEta {
				best, bestEta = src, eta
			}
		}
	}
	return best
}

// mayServe reports whether policy lets src, which has chunk c and a free slot,
// serve it to p.
func (b *Book) mayServe(p *part, c int, src *node) bool {
	s, n := p.swarm, p.node
	if src == n {
		return false
	}
	if src.member.Zone != n.member.Zone && n.out > 0 && s.zone(n.member.Zone)[c] > 0 {
		return false
	}
	if src.slow {
		// Better to wait for a faster holder's slot, if there is such a holder.
		for w, h := range s.holdersOf(c) {
			if h&^s.slow[w] != 0 {
				return false
			}
		}
	}
	return true
}

// eta returns when p would have a chunk from src, in seconds, with a little
// that is random so that equals share the load.
func (b *Book) eta(p *part, src *node) float64 {
	rate := src.rate
	if rate == 0 {
		rate = max(b.typical, 1)
	}
	chunk := float64(p.swarm.blob.ChunkSize())
	eta := float64(src.used+1) * chunk / rate
	if src.member.Zone != p.node.member.Zone {
		// As far as in simulation: three quarters of a typical chunk time.
		eta += 0.75 * chunk / max(b.typical, 1) * float64(distance(src.member.Zone, p.node.member.Zone))
	}
	if src.strikes > 0 {
		eta *= 4 // it has just failed somebody: anybody else first
	}
	return eta * (1 + 0.01*b.rng.Float64())
}

// offer lets hungry nodes that could use src choose, until its slots are full
// or nobody needs what it has.
func (b *Book) offer(now time.Time, src *node) {
	for !src.gone && !src.suspect && src.used < src.slots && b.offerOnce(now, src) {
	}
}

func (b *Book) offerOnce(now time.Time, src *node) bool {
	for _, sp := range src.busyIn {
		s := sp.swarm
		if sp.mute || len(s.hungry) == 0 {
			continue
		}
		start := b.rng.IntN(len(s.hungry))
		for i := range s.hungry {
			q := s.hungry[(start+i)%len(s.hungry)]
			if q != sp && b.useful(q, sp) && b.feedOnce(now, q.node) {
				return true
			}
		}
	}
	return false
}

// useful reports whether sp has a chunk that it may give q.
func (b *Book) useful(q, sp *part) bool {
	for w, have := range q.have {
		missing := ^(have | q.leased[w])
		if !sp.whole {
			missing &= sp.have[w]
		}
		for ; missing != 0; missing &= missing - 1 {
			c := w<<6 + bits.TrailingZeros64(missing)
			if c < len(q.swarm.copies) && b.leasable(q.swarm, c) && b.mayServe(q, c, sp.node) {
				return true
			}
		}
	}
	return false
}

// offerOrigin lets nodes bring from the origin what nobody has, until its
// slots are full.
func (b *Book) offerOrigin(now time.Time, s *swarm) {
	if !s.active() || s.originOut >= b.originSlots(s) || !s.rare() {
		return
	}
	for _, p := range slices.Clone(s.seeds) {
		b.feed(now, p.node)
	}
	if s.called != nil || s.seeded() || len(s.hungry) == 0 {
		return
	}
	start := b.rng.IntN(len(s.hungry))
	for _, p := range slices.Concat(s.hungry[start:], s.hungry[:start]) {
		if !s.active() || s.originOut >= b.originSlots(s) {
			return
		}
		b.feed(now, p.node)
	}
}

// seeded reports whether a seed is bringing s from its origin.
func (s *swarm) seeded() bool {
	return slices.ContainsFunc(s.seeds, func(p *part) bool { return !p.barred })
}

// originLease grants p a lease on the origin if it may have one: from chunk c
// on, or, if c is negative, from the first that nobody has or fetches.
func (b *Book) originLease(now time.Time, p *part, c int) bool {
	s, n := p.swarm, p.node
	if s.originOut >= b.originSlots(s) {
		return false
	}
	if p.seed || s.wants == 1 {
		if n.out >= b.tuning.OriginSlots {
			return false
		}
	} else if n.out >= b.tuning.Window || n.outOrigin > 0 {
		// One each: a node with its whole window on the origin would still lack
		// what the others fetched when the origin has sent everything.
		return false
	}
	switch {
	case c >= 0 && s.copies[c] > 0:
		return false
	case c < 0:
		from := p.await
		if p.seed {
			from = s.awaited
		}
		if c = p.nextRare(max(from, 0)); c < 0 {
			c = p.nextRare(0)
		}
	}
	if c < 0 || !b.mayOrigin(now, p) {
		return false
	}
	b.grantOrigin(now, p, c)
	return true
}

// originSlots returns how many leases on the origin may be in flight for s.
func (b *Book) originSlots(s *swarm) int {
	if s.wants == 1 || len(s.seeds) > 0 {
		return b.tuning.OriginSlots
	}
	return b.tuning.SharedOriginSlots
}

// rare reports whether there is a chunk that nobody has or fetches.
func (s *swarm) rare() bool { return slices.Contains(s.copies, 0) }

// nextRare returns the first chunk from c on that p misses and nobody has or
// fetches, or -1. What only p has, and nobody may fetch from it, counts no
// copies either.
func (p *part) nextRare(c int) int {
	for copies := p.swarm.copies; c < len(copies); c++ {
		if copies[c] == 0 && !p.have.Has(c) {
			return c
		}
	}
	return -1
}

// mayOrigin reports whether p's node may fetch from the origin now. It leaves
// it to a seed where there is one, calling it if need be. A blob of one chunk
// skips the seed: to call it would cost more than it saves.
func (b *Book) mayOrigin(now time.Time, p *part) bool {
	s := p.swarm
	if p.barred || s.origin.IsZero() || now.Before(b.settled) || now.Before(s.settled) {
		return false
	}
	if p.seed || len(s.copies) == 1 {
		return true
	}
	if s.called != nil || s.seeded() {
		return false
	}
	seed := b.freeSeed(s)
	if seed == nil {
		return true
	}
	s.called, s.callUntil = seed, now.Add(b.tuning.CallWait)
	b.counts.Calls++
	b.alarm(s.callUntil, alarmSwarm).swarm = s
	b.tell(seed, &proto.Call{Blob: s.blob, Origin: s.origin})
	return false
}

// freeSeed returns the seed to call for s: of those that have not declined the
// one that owns the digest.
func (b *Book) freeSeed(s *swarm) *node {
	var best *node
	var bestWeight uint64
	for _, n := range b.seeds {
		if p := n.parts[s.blob.Digest]; s.declined[n.member.ID] || p != nil && (p.barred || p.mute || p.whole) {
			continue
		}
		if w := weight(s.blob.Digest.String(), n.member.ID); best == nil || w > bestWeight {
			best, bestWeight = n, w
		}
	}
	return best
}

func (b *Book) grantOrigin(now time.Time, p *part, c int) {
	s, t := p.swarm, b.tuning
	limit := min(t.MaxRun, runLength(s.originRate, s.blob.ChunkSize(), t.OriginRunTime))
	if s.wants > 1 && !p.seed {
		// Spread what is left over the nodes, or the first takes a large bite.
		limit = min(limit, max(1, len(s.copies)/(8*t.SharedOriginSlots)))
	}
	count := 1
	for count < limit && c+count < len(s.copies) && s.copies[c+count] == 0 && !p.have.Has(c+count) {
		count++
	}
	l := b.newLease(p, nil, c, count)
	s.originOut++
	p.node.outOrigin++
	b.counts.OriginLeases++
	b.send(now, l, t.OriginWithin, nil)
}

func (b *Book) grant(now time.Time, p *part, src *node, c int) {
	s, t := p.swarm, b.tuning
	sp := src.parts[s.blob.Digest]
	limit := min(t.MaxRun, runLength(src.rate/float64(src.slots), s.blob.ChunkSize(), t.RunTime))
	count := 1
	for next := c + 1; count < limit && next < len(s.copies) && sp.has(next) && !p.have.Has(next) &&
		!p.leased.Has(next) && s.copies[next] <= s.copies[c]+1 && b.leasable(s, next); next++ {
		count++
	}
	l := b.newLease(p, src, c, count)
	src.used++
	b.updateBusy(src)
	within := time.Duration(count) * t.FirstWithin
	if src.rate > 0 {
		expected := float64(src.used) * float64(int64(count)*s.blob.ChunkSize()) / src.rate
		within = time.Duration(3 * min(expected, 600) * float64(time.Second))
	}
	var sums []proto.Sum
	if len(s.copies) > 1 {
		sums = append(sums, s.sums[c:c+count]...)
	}
	b.counts.PeerLeases++
	b.send(now, l, max(within, t.MinWithin), sums)
}

// newLease enters a lease on count chunks from c on into the tables.
func (b *Book) newLease(p *part, src *node, c, count int) *lease {
	b.lastID++
	l := &lease{id: b.lastID, part: p, source: src, origin: src == nil, first: c, count: count, left: count}
	b.leases[l.id] = l
	p.leases = append(p.leases, l)
	for i := c; i < c+count; i++ {
		p.leased.Add(i)
		p.swarm.count(p, i, 1)
	}
	p.node.out++
	b.updateHungry(p.node)
	return l
}

// send tells the node of its lease and sets the dead man's alarm: a node
// reports a failed lease itself, so it is due well after the deadline.
func (b *Book) send(now time.Time, l *lease, within time.Duration, sums []proto.Sum) {
	m := &proto.Lease{
		ID: l.id, Digest: l.part.swarm.blob.Digest, First: l.first, Count: l.count,
		Within: within, Sums: sums,
	}
	if l.source != nil {
		m.Source, m.Addr = l.source.member.ID, l.source.member.Addr
	}
	b.tell(l.part.node, m)
	b.alarm(now.Add(2*within+b.tuning.MinWithin), alarmLease).lease = l.id
}

// runLength returns how many chunks of the given size fit into d at rate bytes
// per second: at least 1, and 1 while the rate is not known.
func runLength(rate float64, chunk int64, d time.Duration) int {
	return max(1, int(rate*d.Seconds()/float64(chunk)))
}

// measure takes the time of a chunk into account.
func (b *Book) measure(l *lease, size int64, took time.Duration) {
	const weightOfNew = 0.3
	rate := float64(size) / max(took.Seconds(), 1e-6)
	if l.origin {
		s := l.part.swarm
		s.originRate += pick(s.originRate == 0, 1, weightOfNew) * (rate - s.originRate)
		return
	}
	src := l.source
	src.strikes = 0
	rate *= float64(max(src.used, 1)) // the others had their share of the link
	src.rate += pick(src.rate == 0, 1, weightOfNew) * (rate - src.rate)
	// A running median moves by the same small factor at each sample that is
	// over or under it (frugal streaming, Ma, Muthukrishnan and Sandler, 2013).
	switch {
	case b.typical == 0:
		b.typical = src.rate
	case src.rate > b.typical:
		b.typical *= 1.02
	default:
		b.typical /= 1.02
	}
	if slow := src.rate < b.typical/4; slow != src.slow {
		src.slow = slow
		for _, p := range src.busyIn {
			setBit(p.swarm.slow, p.slot, slow)
		}
	}
}

func pick(first bool, a, b float64) float64 {
	if first {
		return a
	}
	return b
}

// askSums asks a holder for sums, if there are chunks that somebody has and
// nobody could check.
func (b *Book) askSums(now time.Time, s *swarm) {
	if !s.active() || s.asked != nil || len(s.copies) == 1 {
		return
	}
	for c := range s.sums {
		if !s.sums[c].IsZero() || s.copies[c] == 0 {
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
