package scheduler

import (
	"math/bits"
	"time"
)

// double tries a second source for what n waits for and is late: for its last
// chunks, when there is nothing else to do, and for the chunk that a reader
// waits for. Whichever comes first counts; the other lease is revoked.
func (b *Book) double(now time.Time, n *node) {
	for _, p := range n.wants {
		if at := p.since.Add(b.patience(p)); p.await >= 0 && !p.leased.Has(p.await) && now.Before(at) {
			b.watch(n, at)
		}
		last := p.allLeased()
		for _, l := range p.leases {
			awaited := p.await >= 0 && l.covers(p.await) && !p.have.Has(p.await)
			if l.origin || l.doubled || !last && !awaited || n.out > b.window(n) || !awaited && n.out == b.window(n) {
				continue
			}
			if !now.Before(l.late) && b.saved < 0 {
				l.late = now.Add(b.tuning.LateAfter) // by then it may be paid for
			}
			if now.Before(l.late) {
				b.watch(n, l.late)
				continue
			}
			c := p.await
			if !awaited {
				c = p.have.NextMissing(l.first, l.first+l.count)
			}
			src := b.source(now, p, c, nil)
			if awaited && (src == nil || src == l.source) {
				src = b.another(p, c, l.source)
			}
			if src == nil || src == l.source {
				l.late = now.Add(b.tuning.LateAfter) // by then one may be free
				b.watch(n, l.late)
				continue
			}
			l.doubled = true
			b.counts.Doubled++
			b.saved -= float64(p.swarm.blob.ChunkSize())
			b.grant(now, p, src, c)
			p.leases[len(p.leases)-1].second = true
			return
		}
	}
}

const (
	// doubledShare is how much of what peers are leased may be leased twice. What
	// comes twice is to stay under a hundredth of what comes, and most of it is
	// revoked before all of it has come.
	doubledShare = 1.0 / 192
	// savedFirst is how many bytes of that there are to begin with, so that a
	// small rollout can have more than one: a reader that hears nothing is worth
	// more than a few chunks.
	savedFirst = 1 << 20
	// savedMost is how many bytes of that may be saved up.
	savedMost = 4 << 20
)

// save adds to what second leases may cost. Without a bound to them a fleet that
// starves finds everything late, and sends more because it has too much to do: 20
// daemons on two cores that others used too got 1.2 % of their bytes twice. As in
// gRPC's throttling of hedged requests (gRFC A6) what is asked for once pays for
// them: b.saved may be spent while it is not negative.
func (b *Book) save(bytes int64) {
	b.saved = min(b.saved+float64(bytes)*doubledShare, savedMost)
}

// another returns the holder of chunk c, other than not, that serves the fewest,
// even if its slots are full: by one more at most. In a busy fleet there is hardly
// ever a free slot in the moment in which a chunk is found to be late, and a reader
// that waits for it hears nothing meanwhile.
func (b *Book) another(p *part, c int, not *node) *node {
	s := p.swarm
	cross := !s.zone(p.node.zone).has.Has(c)
	var best *node
	for w, h := range s.holdersOf(c) {
		for ; h != 0; h &= h - 1 {
			n := s.slots[w<<6+bits.TrailingZeros64(h)].node
			if n == not || n == p.node || n.slow || n.used > n.slots || !cross && n.zone != p.node.zone || n.seeds() && b.seedIsNeeded(s) {
				continue
			}
			if best == nil || n.used < best.used {
				best = n
			}
		}
	}
	return best
}

// lateAfter returns how long the lease l, which begins now, may take. It goes by
// what others give, since its source may be the one that is slow, and by what
// the node has been found to take.
func (b *Book) lateAfter(l *lease) time.Duration {
	n, size := l.part.node, float64(int64(l.count)*l.part.swarm.blob.ChunkSize())
	expected := 0.0
	if rate := max(l.source.rate, b.typical); rate > 0 { // more leases may come beside it
		expected = size * float64(l.source.used+l.source.moreGiven) / rate
	}
	if n.took.n > 0 {
		expected = max(expected, size*float64(n.out)/n.took.median)
	}
	expected += max(l.source.lost, n.lost)
	return max(b.tuning.LateAfter, time.Duration(3*min(expected, 600)*float64(time.Second)))
}

// watch has n looked at again at a time.
func (b *Book) watch(n *node, at time.Time) {
	if n.watched.IsZero() || at.Before(n.watched) {
		n.watched = at
		b.alarm(at, alarmLate).node = n
	}
}

// awaits takes note that a reader of p waits for chunk c, or, if c is negative,
// for none.
func (b *Book) awaits(now time.Time, p *part, c int) {
	if c != p.await {
		p.await, p.since = c, now
	}
}

// overdue reports whether p's reader has waited too long for chunk c, of which
// there is one copy beside the seeds': it is with a node that takes its time, of
// which nothing is known yet, and everybody waits for it. A seed sends it again
// then; the next copy is nobody's first, so it is not sent to all.
func (b *Book) overdue(now time.Time, p *part, c int) bool {
	return c == p.await && p.swarm.rarity.copies[c] == 1 && !now.Before(p.since.Add(b.patience(p)))
}

// patience returns how long a reader of p waits for a chunk that is not on its
// way before it is overdue.
func (b *Book) patience(p *part) time.Duration {
	expected := 0.0
	if b.typical > 0 {
		expected = float64(p.swarm.blob.ChunkSize()) * float64(b.tuning.Slots) / b.typical
	}
	return max(b.tuning.LateAfter, time.Duration(3*min(expected, 600)*float64(time.Second)))
}

// allLeased reports whether p has or is being sent every chunk.
func (p *part) allLeased() bool {
	for w := range p.have {
		if p.missing(w) != 0 {
			return false
		}
	}
	return true
}
