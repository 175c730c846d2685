package scheduler

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

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
		b.originLease(now, p, -1, true)
	}
}

// seeded reports whether a seed is bringing s from its origin.
func (s *swarm) seeded() bool {
	return slices.ContainsFunc(s.seeds, func(p *part) bool { return !p.barred })
}

// originLease grants p a lease on the origin if it may have one: from chunk c
// on, or, if c is negative, from the first that nobody has or fetches. idle says
// that it has nothing else to do.
func (b *Book) originLease(now time.Time, p *part, c int, idle bool) bool {
	s, n := p.swarm, p.node
	if !s.rare() || s.originOut >= b.originSlots(s) {
		return false
	}
	if p.seed || s.wants == 1 {
		if n.out >= b.originSlots(s) || s.originOut > 0 && p.firstByte() {
			return false
		}
	} else if n.out >= b.window(n) || n.outOrigin > 0 {
		// One each: a node with its whole window on the origin would still lack
		// what the others fetched when the origin has sent everything.
		return false
	} else if !idle && !s.ahead(n.zone) {
		return false
	}
	switch {
	case c >= 0 && s.copies(c) > 0:
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

// firstByte reports whether a reader waits for the very first chunk of p, alone.
// That one has the line to itself: with three others beside it a quarter of the
// line is all that the reader gets, and the first byte comes four times as late.
func (p *part) firstByte() bool { return p.swarm.wants == 1 && p.count == 0 && p.await >= 0 }

// originSlots returns how many leases on the origin may be in flight for s.
// Without a seed they are as many as a node's Window at least: each node that has
// one gives it that part of its link, and fewer would not fill the origin's.
func (b *Book) originSlots(s *swarm) int {
	switch t := b.tuning; {
	case s.wants == 1:
		return t.OriginSlots
	case s.seeded():
		return t.SharedOriginSlots
	default:
		return max(t.SharedOriginSlots, t.Window)
	}
}

// rare reports whether there is a chunk that nobody has or fetches.
func (s *swarm) rare() bool { return s.none > 0 }

// nextRare returns the first chunk from c on that p misses and nobody has or
// fetches, or -1. What only p has, and nobody may fetch from it, counts no
// copies either.
func (p *part) nextRare(c int) int {
	for copies := p.swarm.all; c < len(copies); c++ {
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
	if p.seed || s.chunks() == 1 {
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

// firstRun is how many bytes the first lease on an origin of which nothing is
// known covers if one node wants the blob. 1 MiB in four requests took four times
// as long as in one.
const firstRun = 1 << 20

func (b *Book) grantOrigin(now time.Time, p *part, c int) {
	s, t := p.swarm, b.tuning
	limit := min(t.MaxRun, runLength(s.originRate, s.blob.ChunkSize(), t.OriginRunTime))
	if s.originRate == 0 && s.wants == 1 {
		// A request costs more than the first bytes: nobody else gains from
		// having a small blob cut up.
		limit = max(limit, int(firstRun/s.blob.ChunkSize()))
	}
	if s.wants > 1 && !p.seed {
		// Spread what is left over the nodes, or the first takes a large bite.
		limit = min(limit, max(1, s.chunks()/(8*t.SharedOriginSlots)))
	}
	count := 1
	for count < limit && c+count < s.chunks() && s.copies(c+count) == 0 && !p.have.Has(c+count) {
		count++
	}
	l := b.newLease(p, nil, c, count)
	s.originOut++
	p.node.outOrigin++
	b.counts.OriginLeases++
	b.send(now, l, max(t.OriginWithin, time.Duration(count)*atLeast(s.blob.ChunkSize())), nil)
}
