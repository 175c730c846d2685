package scheduler

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// swarm is one blob and the nodes that have or want it. While nobody wants it,
// it is a list of holders; the tables below "active" are made when the first
// node joins to get it and dropped when the last one has it.
type swarm struct {
	blob   proto.Blob
	origin proto.Origin
	// slots are the parts by their slot, the bit that stands for them in the
	// bitsets; a nil slot is free.
	slots []*part
	parts int     // slots that are not nil
	wants int     // parts that are incomplete
	seeds []*part // incomplete parts that bring it from the origin for others

	// The rest is of use while the swarm is active.

	// holders has a bitset over slots for each chunk, stride words each.
	holders []uint64
	stride  int
	// busy are the slots that cannot be a source now: all upload slots in use,
	// suspect, or mute. slow are those whose rate is far under the typical.
	busy, slow []uint64
	// copies counts, per chunk, the holders and the leases in flight (W).
	copies []int32
	zones  map[string][]int32 // the same within a zone (Wz)
	sums   []proto.Sum
	hungry []*part // incomplete parts of nodes that may have another lease

	awaited    int // a chunk that a reader somewhere waits for, or -1
	originOut  int
	originRate float64 // bytes per second of one lease on the origin
	settled    time.Time
	// called is the seed that was called and has not joined; it has until
	// callUntil.
	called    *node
	callUntil time.Time
	declined  map[string]bool // IDs of seeds that will not come
	asked     *node           // whom Ask was sent to
	askUntil  time.Time
}

// part is what one node has and wants of one blob.
type part struct {
	node  *node
	swarm *swarm
	slot  int
	whole bool
	seed  bool
	// barred: the node can not fetch this blob from its origin.
	barred bool
	// mute: the node has sent wrong bytes of this blob, or has not got what it
	// said; it is no source of it any more.
	mute    bool
	told    bool // it has told the sums of all that it has
	answers int  // how often it answered Ask and left some out
	// have are the chunks that are there, leased those on their way; unused
	// when whole.
	have, leased proto.Set
	// strays counts the leased chunks that are on leases of another scheduler.
	strays int
	leases []*lease
	// await is the chunk that a reader waits for, or -1.
	await int
	hpos  int // position in swarm.hungry, or -1
}

func (p *part) has(c int) bool { return p.whole || p.have.Has(c) }

// lease is a lease that is out.
type lease struct {
	id           uint64
	part         *part
	source       *node // nil for the origin
	origin       bool
	first, count int
	left         int // chunks that are not done
}

func (l *lease) covers(c int) bool { return c >= l.first && c < l.first+l.count }

func (s *swarm) active() bool { return s.wants > 0 }

func bitAt(set []uint64, i int) bool { return set[i>>6]&(1<<(uint(i)&63)) != 0 }
func setBit(set []uint64, i int, v bool) {
	if v {
		set[i>>6] |= 1 << (uint(i) & 63)
	} else {
		set[i>>6] &^= 1 << (uint(i) & 63)
	}
}

func (s *swarm) holdersOf(c int) []uint64 { return s.holders[c*s.stride : (c+1)*s.stride] }

// zone returns the copies per chunk in a zone.
func (s *swarm) zone(name string) []int32 {
	z := s.zones[name]
	if z == nil {
		z = make([]int32, s.blob.Chunks())
		s.zones[name] = z
	}
	return z
}

func (s *swarm) count(p *part, c int, by int32) {
	s.copies[c] += by
	s.zone(p.node.member.Zone)[c] += by
}

// decline takes note that a seed will not bring the blob.
func (s *swarm) decline(n *node) {
	if s.called == n {
		s.called = nil
	}
	if s.declined == nil {
		s.declined = make(map[string]bool)
	}
	s.declined[n.member.ID] = true
}

// enter returns the part of n in the swarm of blob, making both if need be. It
// returns nil if the swarm knows the blob with another size: one of the two
// nodes is wrong, and the one that came first has been believed.
func (b *Book) enter(n *node, blob proto.Blob) *part {
	s := b.swarms[blob.Digest]
	if s == nil {
		s = &swarm{blob: blob}
		b.swarms[blob.Digest] = s
	}
	if s.blob.Size != blob.Size {
		return nil
	}
	if p := n.parts[blob.Digest]; p != nil {
		return p
	}
	p := &part{node: n, swarm: s, await: -1, hpos: -1}
	p.slot = slices.Index(s.slots, nil)
	if s.parts == len(s.slots) {
		p.slot = len(s.slots)
		s.slots = append(s.slots, nil)
	}
	s.slots[p.slot] = p
	s.parts++
	n.parts[blob.Digest] = p
	if s.active() {
		b.admit(p)
	}
	return p
}

// admit gives p its place in the tables of an active swarm.
func (b *Book) admit(p *part) {
	s := p.swarm
	if words := (len(s.slots) + 63) / 64; words > s.stride {
		s.widen(max(words, 2*s.stride))
	}
	p.node.busyIn = append(p.node.busyIn, p)
	s.setBusy(p)
	setBit(s.slow, p.slot, p.node.slow)
	b.occupy(p)
}

// occupy counts p's chunks as copies, unless its node is not to be a source.
func (b *Book) occupy(p *part) {
	if p.mute || p.node.suspect {
		return
	}
	for c := range p.swarm.copies {
		if p.has(c) {
			p.swarm.mark(p, c)
		}
	}
}

// mark counts chunk c of p as a copy.
func (s *swarm) mark(p *part, c int) {
	if h := s.holdersOf(c); !bitAt(h, p.slot) {
		setBit(h, p.slot, true)
		s.count(p, c, 1)
	}
}

// widen makes the bitsets stride words long.
func (s *swarm) widen(stride int) {
	holders := make([]uint64, stride*len(s.copies))
	for c := range s.copies {
		copy(holders[c*stride:], s.holdersOf(c))
	}
	s.holders, s.stride = holders, stride
	s.busy = append(s.busy, make([]uint64, stride-len(s.busy))...)
	s.slow = append(s.slow, make([]uint64, stride-len(s.slow))...)
}

// setBusy brings p's bit in busy up to date.
func (s *swarm) setBusy(p *part) {
	setBit(s.busy, p.slot, p.mute || p.node.suspect || p.node.used >= p.node.slots)
}

// updateBusy brings n's bits in busy up to date everywhere.
func (b *Book) updateBusy(n *node) {
	for _, p := range n.busyIn {
		p.swarm.setBusy(p)
	}
}

// want makes p, which has just entered, an incomplete part of its swarm,
// activating the swarm if it is the first.
func (b *Book) want(p *part) {
	s, n := p.swarm, p.node
	p.have, p.leased = proto.NewSet(s.blob.Chunks()), proto.NewSet(s.blob.Chunks())
	s.wants++
	n.wants = append(n.wants, p)
	if p.seed {
		s.seeds = append(s.seeds, p)
	}
	if s.wants == 1 {
		b.activate(s)
	}
	b.updateHungry(n)
}

func (b *Book) activate(s *swarm) {
	k := s.blob.Chunks()
	s.stride, s.holders, s.busy, s.slow = 0, nil, nil, nil
	s.copies = make([]int32, k)
	s.zones = make(map[string][]int32)
	s.sums = make([]proto.Sum, k)
	s.awaited = -1
	b.active = append(b.active, s)
	for _, p := range s.slots {
		if p != nil {
			b.admit(p)
		}
	}
}

func (b *Book) deactivate(s *swarm) {
	for _, p := range s.slots {
		if p != nil {
			p.node.busyIn = remove(p.node.busyIn, p)
			p.mute, p.told, p.answers = false, false, 0
		}
	}
	b.active = remove(b.active, s)
	s.stride, s.holders, s.busy, s.slow = 0, nil, nil, nil
	s.copies, s.zones, s.sums, s.hungry = nil, nil, nil, nil
	s.called, s.declined, s.asked, s.originOut = nil, nil, nil, 0
}

// unwant takes p out of the incomplete parts; its leases end. The caller sees
// to the swarm's deactivation.
func (b *Book) unwant(p *part) {
	for len(p.leases) > 0 {
		b.endLease(p.leases[0])
	}
	b.land(p, nil)
	p.swarm.setHungry(p, false)
	p.node.wants = remove(p.node.wants, p)
	p.swarm.seeds = remove(p.swarm.seeds, p)
	p.swarm.wants--
	p.await = -1
}

// vacate takes back what an active swarm counts of p's chunks.
func (b *Book) vacate(p *part) {
	s := p.swarm
	for c := range s.copies {
		if h := s.holdersOf(c); bitAt(h, p.slot) {
			setBit(h, p.slot, false)
			s.count(p, c, -1)
		}
	}
}

// completePart makes p a whole holder.
func (b *Book) completePart(p *part) {
	s := p.swarm
	p.whole = true
	if p.have != nil {
		b.unwant(p)
		p.have, p.leased = nil, nil
		if !s.active() {
			b.deactivate(s)
		}
	}
	if s.active() {
		b.occupy(p)
	}
}

// dropPart forgets p.
func (b *Book) dropPart(p *part) {
	s := p.swarm
	if s.active() {
		b.vacate(p)
		if p.have != nil {
			b.unwant(p)
		}
		p.node.busyIn = remove(p.node.busyIn, p)
		if !s.active() {
			b.deactivate(s)
		}
	}
	delete(p.node.parts, s.blob.Digest)
	s.slots[p.slot] = nil
	s.parts--
	if s.asked == p.node {
		s.asked = nil
	}
	if s.parts == 0 {
		delete(b.swarms, s.blob.Digest)
	}
	b.toOrigin = append(b.toOrigin, s)
}

// gain takes note that p has chunk c.
func (b *Book) gain(p *part, c int) {
	s := p.swarm
	if p.have.Has(c) {
		return
	}
	p.have.Add(c)
	if p.leased.Has(c) { // it was counted as a copy in flight
		if p.strays > 0 && !p.onLease(c) {
			p.strays--
		}
		p.leased.Remove(c)
		s.count(p, c, -1)
	}
	if !p.mute && !p.node.suspect {
		s.mark(p, c)
	}
	if p.await == c {
		p.await = -1
	}
}

// onLease reports whether one of p's leases covers c.
func (p *part) onLease(c int) bool {
	return slices.ContainsFunc(p.leases, func(l *lease) bool { return l.covers(c) })
}

// fly takes note that chunk c is on its way to p.
func (b *Book) fly(p *part, c int) {
	if p.have.Has(c) || p.leased.Has(c) {
		return
	}
	p.leased.Add(c)
	p.strays++
	p.swarm.count(p, c, 1)
}

// land takes back the chunks on their way to p by the lease l, or, if l is nil,
// those of another scheduler's leases.
func (b *Book) land(p *part, l *lease) {
	if l == nil && p.strays == 0 {
		return
	}
	for c := p.leased.Next(0); c >= 0; c = p.leased.Next(c + 1) {
		if l != nil && l.covers(c) || l == nil && !p.onLease(c) {
			p.leased.Remove(c)
			p.swarm.count(p, c, -1)
		}
	}
	if l == nil {
		p.strays = 0
	}
}

// endLease ends a lease; its chunks that are not there are to be had again.
func (b *Book) endLease(l *lease) {
	p := l.part
	n := p.node
	delete(b.leases, l.id)
	b.land(p, l)
	p.leases = remove(p.leases, l)
	n.out--
	if l.origin {
		n.outOrigin--
		p.swarm.originOut--
	} else {
		l.source.used--
		b.updateBusy(l.source)
		b.toOffer = append(b.toOffer, l.source)
	}
	b.updateHungry(n)
	b.toFeed = append(b.toFeed, n)
	b.toOrigin = append(b.toOrigin, p.swarm)
}

// updateHungry brings n's parts in the swarms' lists of hungry ones up to date.
func (b *Book) updateHungry(n *node) {
	hungry := n.out < b.tuning.Window && !n.lapsed
	for _, p := range n.wants {
		p.swarm.setHungry(p, hungry)
	}
}

func (s *swarm) setHungry(p *part, hungry bool) {
	switch {
	case hungry && p.hpos < 0:
		p.hpos = len(s.hungry)
		s.hungry = append(s.hungry, p)
	case !hungry && p.hpos >= 0:
		last := len(s.hungry) - 1
		s.hungry[p.hpos] = s.hungry[last]
		s.hungry[p.hpos].hpos = p.hpos
		s.hungry[last] = nil
		s.hungry = s.hungry[:last]
		p.hpos = -1
	}
}

// remove returns list without its first x, keeping the order.
func remove[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
