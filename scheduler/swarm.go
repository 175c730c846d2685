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
	// free are the parts that have something, a slot for it, and are not slow.
	free parts
	// spare are the chunks of those in free that are neither whole nor seeds, by
	// how many have them, and spareWhole counts those that are whole; wanted are the chunks that
	// those in hungry miss and are not being sent.
	spare      tally
	spareWhole int
	wanted     tally
	// all counts, per chunk, the holders and the leases in flight; none are the
	// chunks with neither.
	all  []int32
	none int
	// rarity counts those of them from which the chunk spreads (W).
	rarity rarity
	zones  []*zoneCount // the same within a zone (Wz), by the zone's number
	// held counts the holders of a chunk, fast those of them that are not slow;
	// lone are the chunks that only slow ones have.
	held, fast []int32
	lone       proto.Set
	sums       []proto.Sum
	// known are the chunks that can be checked, so that peers may be asked.
	known  proto.Set
	hungry parts // incomplete parts of nodes that may have another lease

	awaited    int // a chunk that a reader somewhere waits for, or -1
	originOut  int
	originRate float64 // bytes per second of one lease on the origin
	originWait float64 // seconds that the origin takes to answer
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
	// have are the chunks that are there, count many, leased those on their
	// way; unused when whole.
	have, leased proto.Set
	count        int
	// strays counts the leased chunks that are on leases of another scheduler.
	strays int
	leases []*lease
	// await is the chunk that a reader waits for since then, or -1.
	await int
	since time.Time
	// hpos and fpos are its places in swarm.hungry and swarm.free, or -1.
	hpos, fpos int
}

func (p *part) has(c int) bool { return p.whole || p.have.Has(c) }

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

// copies returns how many nodes have chunk c or are being sent it.
func (s *swarm) copies(c int) int32 { return s.all[c] }

// spreads reports whether what n has counts as copies that others will have
// theirs from. What a seed has does not: its uplink, which all depend on, would
// send the same chunks again and again. Nor does what a slow node has, or will
// have at some time.
func (n *node) spreads() bool { return !n.seeds() && !n.slow }

// add counts a copy of chunk c, there or in flight, and sub takes it back.
func (s *swarm) add(p *part, c int) {
	if s.all[c]++; s.all[c] == 1 {
		s.none--
	}
	if p.node.spreads() {
		s.rarity.add(c)
		s.zone(p.node.zone).add(c)
	}
}

func (s *swarm) sub(p *part, c int) {
	if s.all[c]--; s.all[c] == 0 {
		s.none++
	}
	if p.node.spreads() {
		s.rarity.remove(c)
		s.zone(p.node.zone).sub(c)
	}
}

// learn takes note of the sum of chunk c.
func (s *swarm) learn(c int, sum proto.Sum) {
	if s.sums[c].IsZero() && !sum.IsZero() {
		s.sums[c] = sum
		s.known.Add(c)
	}
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
	p := &part{node: n, swarm: s, await: -1, hpos: -1, fpos: -1}
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
	setBit(s.slow, p.slot, p.node.slow)
	if !p.node.seeds() {
		s.zone(p.node.zone).parts++
	}
	b.occupy(p)
	s.setBusy(p)
}

// occupy counts p's chunks as copies, unless its node is not to be a source.
func (b *Book) occupy(p *part) {
	if p.mute || p.node.suspect {
		return
	}
	for c := range p.swarm.chunks() {
		if p.has(c) {
			p.swarm.mark(p, c)
		}
	}
}

// mark counts chunk c of p as a copy, unmark takes it back.
func (s *swarm) mark(p *part, c int) {
	if h := s.holdersOf(c); !bitAt(h, p.slot) {
		setBit(h, p.slot, true)
		s.add(p, c)
		s.held[c]++
		s.hasten(c, pick(p.node.slow, int32(0), 1))
	}
}

func (s *swarm) unmark(p *part, c int) {
	if h := s.holdersOf(c); bitAt(h, p.slot) {
		setBit(h, p.slot, false)
		s.sub(p, c)
		s.held[c]--
		s.hasten(c, pick(p.node.slow, int32(0), -1))
	}
}

// hasten takes note that the holders of chunk c which are not slow have become
// by more.
func (s *swarm) hasten(c int, by int32) {
	s.fast[c] += by
	if s.held[c] > 0 && s.fast[c] == 0 {
		s.lone.Add(c)
	} else {
		s.lone.Remove(c)
	}
}

// setSlow takes note that n gives far less than what is typical, or does so no
// more.
func (b *Book) setSlow(n *node, slow bool) {
	for _, p := range n.busyIn {
		s := p.swarm
		setBit(s.slow, p.slot, slow)
		for c := range s.chunks() {
			held := bitAt(s.holdersOf(c), p.slot)
			if held {
				s.hasten(c, pick(slow, int32(-1), 1))
			}
			if (held || p.leased.Has(c)) && !n.seeds() {
				s.rarity.count(c, !slow)
				s.zone(n.zone).count(c, !slow)
			}
		}
	}
	n.slow = slow
	for _, p := range n.busyIn {
		p.swarm.setBusy(p)
		b.toOrigin = append(b.toOrigin, p.swarm)
		b.feedHungry(p.swarm) // it may have been all that a zone relied on
	}
}

func (s *swarm) chunks() int { return len(s.all) }

// widen makes the bitsets stride words long.
func (s *swarm) widen(stride int) {
	holders := make([]uint64, stride*s.chunks())
	for c := range s.chunks() {
		copy(holders[c*stride:], s.holdersOf(c))
	}
	s.holders, s.stride = holders, stride
	s.busy = append(s.busy, make([]uint64, stride-len(s.busy))...)
	s.slow = append(s.slow, make([]uint64, stride-len(s.slow))...)
}

// want makes p, which has just entered, an incomplete part of its swarm,
// activating the swarm if it is the first.
func (b *Book) want(p *part) {
	s, n := p.swarm, p.node
	p.have, p.leased, p.count = proto.NewSet(s.blob.Chunks()), proto.NewSet(s.blob.Chunks()), 0
	s.wants++
	n.wants = append(n.wants, p)
	if p.seed {
		s.seeds = append(s.seeds, p)
	}
	if s.wants == 1 {
		b.activate(s)
	}
}

func (b *Book) activate(s *swarm) {
	k := s.blob.Chunks()
	s.stride, s.holders, s.busy, s.slow = 0, nil, nil, nil
	s.all, s.none = make([]int32, k), k
	s.rarity, s.zones = newRarity(k), nil
	s.held, s.fast, s.lone = make([]int32, k), make([]int32, k), proto.NewSet(k)
	s.spare, s.wanted, s.spareWhole = newTally(k), newTally(k), 0
	s.sums, s.known = make([]proto.Sum, k), proto.NewSet(k)
	if k == 1 {
		s.known.Add(0) // its digest says the same
	}
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
			p.hpos, p.fpos = -1, -1
		}
	}
	b.active = remove(b.active, s)
	s.stride, s.holders, s.busy, s.slow = 0, nil, nil, nil
	s.all, s.rarity, s.zones, s.held, s.fast, s.lone = nil, rarity{}, nil, nil, nil, nil
	s.sums, s.known, s.hungry, s.free = nil, nil, nil, nil
	s.spare, s.wanted = tally{}, tally{}
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
	for c := range p.swarm.chunks() {
		p.swarm.unmark(p, c)
	}
}

// completePart makes p a whole holder.
func (b *Book) completePart(p *part) {
	s := p.swarm
	s.setFree(p, false)
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
		s.setBusy(p)
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
		s.setFree(p, false)
		if !p.node.seeds() {
			s.zone(p.node.zone).parts--
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
	if p.leased.Has(c) { // it was counted as a copy in flight
		if p.strays > 0 && !p.onLease(c) {
			p.strays--
		}
		s.setLeased(p, c, false)
	}
	if p.hpos >= 0 {
		s.wanted.sub(c)
	}
	p.have.Add(c)
	p.count++
	if p.fpos >= 0 && !p.node.seeds() {
		s.spare.add(c)
		s.zone(p.node.zone).spare.add(c)
	}
	if !p.mute && !p.node.suspect {
		s.mark(p, c)
	}
	if p.count == 1 {
		s.setBusy(p)
	}
	if p.await == c {
		p.await = -1
	}
}

func pick[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}

// remove returns list without its first x, keeping the order.
func remove[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
