package scheduler

// The tables of who could give now and who could take, and what.

// setBusy brings p's bit in busy and its place in free up to date.
func (s *swarm) setBusy(p *part) {
	n := p.node
	busy := p.mute || n.suspect || n.used >= n.slots
	setBit(s.busy, p.slot, busy)
	s.setFree(p, !busy && !n.slow && (p.whole || p.count > 0))
}

// parts is a set of parts, in no order.
type parts []*part

// put brings p in, or takes it out; at is where p keeps its place.
func (l *parts) put(p *part, in bool, at func(*part) *int) {
	list := *l
	switch i := *at(p); {
	case in && i < 0:
		*at(p) = len(list)
		*l = append(list, p)
	case !in && i >= 0:
		last := list[len(list)-1]
		list[i], *at(last) = last, i
		list[len(list)-1] = nil
		*l = list[:len(list)-1]
		*at(p) = -1
	}
}

// setFree brings p into free, or out of it, and counts what it has to give.
func (s *swarm) setFree(p *part, free bool) {
	if free == (p.fpos >= 0) {
		return
	}
	s.free.put(p, free, func(p *part) *int { return &p.fpos })
	if p.node.seeds() {
		return // they are few: see seedParts
	}
	z := s.zone(p.node.zone)
	if p.whole {
		by := pick(free, 1, -1)
		s.spareWhole += by
		z.spareWhole += by
		return
	}
	s.spare.count(p.have, free)
	z.spare.count(p.have, free)
}

// setHungry brings p into hungry, or out of it, and counts what it wants.
func (s *swarm) setHungry(p *part, hungry bool) {
	if hungry == (p.hpos >= 0) {
		return
	}
	s.hungry.put(p, hungry, func(p *part) *int { return &p.hpos })
	for w := range s.known {
		s.wanted.word(w, p.missing(w), hungry)
	}
}

// missing returns a word of the chunks that p has not and is not being sent.
func (p *part) missing(w int) uint64 {
	x := ^(p.have[w] | p.leased[w])
	if rest := uint(p.swarm.chunks() - w<<6); rest < 64 {
		x &= 1<<rest - 1
	}
	return x
}

// setLeased takes note that chunk c is on its way to p, or is so no more.
func (s *swarm) setLeased(p *part, c int, leased bool) {
	if leased {
		p.leased.Add(c)
		s.add(p, c)
	} else {
		p.leased.Remove(c)
		s.sub(p, c)
	}
	if p.hpos >= 0 && !p.have.Has(c) {
		if leased {
			s.wanted.sub(c)
		} else {
			s.wanted.add(c)
		}
	}
}

// updateBusy brings n's bits in busy up to date everywhere.
func (b *Book) updateBusy(n *node) {
	for _, p := range n.busyIn {
		p.swarm.setBusy(p)
	}
}

// updateHungry brings n's parts in the swarms' lists of hungry ones up to date.
// A node with room for leases becomes hungry only when it was fed and nothing
// was to be had, so that one which goes from lease to lease is never entered.
func (b *Book) updateHungry(n *node) {
	hungry := n.out < b.window(n) && !n.lapsed
	for _, p := range n.wants {
		p.swarm.setHungry(p, hungry)
	}
}
