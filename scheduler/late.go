package scheduler

import "time"

// double tries a second source for what n waits for and is late: for its last
// chunks, when there is nothing else to do, and for the chunk that a reader
// waits for. Whichever comes first counts; the other lease is revoked.
func (b *Book) double(now time.Time, n *node) {
	for _, p := range n.wants {
		last := p.allLeased()
		for _, l := range p.leases {
			awaited := p.await >= 0 && l.covers(p.await) && !p.have.Has(p.await)
			if l.origin || l.doubled || !last && !awaited || n.out > b.window(n) || !awaited && n.out == b.window(n) {
				continue
			}
			if now.Before(l.late) {
				b.watch(n, l.late)
				continue
			}
			c := p.await
			if !awaited {
				c = p.have.NextMissing(l.first, l.first+l.count)
			}
			if src := b.source(p, c, nil); src != nil && src != l.source {
				l.doubled = true
				b.counts.Doubled++
				b.grant(now, p, src, c)
				return
			}
		}
	}
}

// watch has n looked at again at a time.
func (b *Book) watch(n *node, at time.Time) {
	if !n.watched {
		n.watched = true
		b.alarm(at, alarmLate).node = n
	}
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
