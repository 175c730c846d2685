package scheduler

import (
	"slices"
	"time"
)

// The tables of the leases that are out and of the chunks that they cover.

// lease is a lease that is out.
type lease struct {
	id           uint64
	part         *part
	source       *node // nil for the origin
	origin       bool
	first, count int
	left         int     // chunks that are not there
	up, down     float64 // what its two lines said when it began
	bytes        int64
	took         time.Duration // for the bytes that are there
	// firstBytes and firstTook are those of the first chunk that came.
	firstBytes int64
	firstTook  time.Duration
	// due is when it expires, at is its place among the dues. late is when it
	// has taken so long that a second source may be tried.
	granted, due, late time.Time
	grace              time.Duration // from one sign of life to due
	at                 int
	doubled            bool // a second source is being tried
	second             bool // it is on that source
	near               bool // it is about to end, and counts for nobody any more
}

func (l *lease) covers(c int) bool { return c >= l.first && c < l.first+l.count }

// onLease reports whether one of p's leases covers c.
func (p *part) onLease(c int) bool {
	return slices.ContainsFunc(p.leases, func(l *lease) bool { return l.covers(c) })
}

// fly takes note that chunk c is on its way to p.
func (b *Book) fly(p *part, c int) {
	if p.have.Has(c) || p.leased.Has(c) {
		return
	}
	p.strays++
	p.swarm.setLeased(p, c, true)
}

// land takes back chunks on their way to p: those of the lease l, which is no
// more among p's, or, if l is nil, those of another scheduler's leases.
func (b *Book) land(p *part, l *lease) {
	if l != nil {
		for c := l.first; c < l.first+l.count; c++ {
			if p.leased.Has(c) && !p.onLease(c) {
				p.swarm.setLeased(p, c, false)
			}
		}
		return
	}
	if p.strays == 0 {
		return
	}
	for c := p.leased.Next(0); c >= 0; c = p.leased.Next(c + 1) {
		if !p.onLease(c) {
			p.swarm.setLeased(p, c, false)
		}
	}
	p.strays = 0
}

// endLease ends a lease; its chunks that are not there are to be had again.
func (b *Book) endLease(l *lease) {
	p := l.part
	n := p.node
	delete(b.leases, l.id)
	n.down.count(b.now, -1)
	if l.source != nil {
		l.source.up.count(b.now, -1)
	}
	b.dues.remove(l)
	p.leases = remove(p.leases, l)
	b.land(p, l)
	if !l.near {
		b.makeRoom(l)
	}
	b.feeds(n)
	b.toOrigin = append(b.toOrigin, p.swarm)
}

// makeRoom counts a lease as over for its node and its source, which may have
// others.
func (b *Book) makeRoom(l *lease) {
	p := l.part
	p.node.out--
	if l.origin {
		p.node.outOrigin--
		p.swarm.originOut--
	} else {
		l.source.used--
		b.updateBusy(l.source)
		b.offers(l.source)
	}
	b.feeds(p.node)
	b.toOrigin = append(b.toOrigin, p.swarm)
}
