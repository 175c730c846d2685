package sim

import (
	"math"
	"time"
)

// A link is one direction of a wire that flows share.
type link struct {
	rate  float64 // bytes per second
	level float64 // what a flow may have here at most, if its other links let it
	flows []*flow
	few   [4]*flow // where flows begins, beside the rest in memory
	dirty bool     // is in network.work
}

// maxLinks is how many links a flow can cross: out of its source, out of that
// one's zone, into the other's zone, into the receiver.
const maxLinks = 4

// A flow is bytes on their way from one host to another, as fast as the links
// between them let it. The fields are the network's; what they carry is in
// transfer.
type flow struct {
	transfer
	links [maxLinks]*link
	place [maxLinks]int // in links[i].flows
	hops  int
	rate  float64
	limit float64       // what its sender's window lets it have; 0: as much as there is
	left  float64       // bytes of the current piece
	as    time.Duration // the time that left is right for
	// order settles who is first of flows that are due at the same time.
	order uint64
	heap  int  // index in network.heap, or -1
	moved bool // is in network.moved
	// deadline is when the flow is to be looked at though the piece has not
	// arrived.
	deadline time.Duration
}

// set makes l a link of the given rate.
func (l *link) set(rate float64) {
	l.rate = rate
	l.flows = l.few[:0]
}

// hop lets f, which is not on the wire yet, cross l.
func (f *flow) hop(l *link) {
	f.links[f.hops] = l
	f.hops++
}

// never is later than anything that happens.
const never = time.Duration(math.MaxInt64)

// network shares the links among the flows as TCP does in the long run: max-min
// fair, each link dividing what it has equally among those of its flows that
// no other link holds back further.
//
// Each change moves the levels of the links that it touches, then of those
// whose flows changed because of that. The wave is cut off where it makes less
// than a hundredth of difference, and after budget links; but never so that a
// link carries more than it can.
type network struct {
	now   time.Duration
	heap  []entry // in the order in which flows are due
	work  []*link
	moved []*flow
	count uint64
}

const (
	tolerance = 0.01
	budget    = 256
)

// add puts f, which has its hops, on the wire. The caller has set left.
func (n *network) add(f *flow) {
	f.rate, f.as = 0, n.now
	f.heap = -1
	n.count++
	f.order = n.count
	for i := range f.hops {
		l := f.links[i]
		f.place[i] = len(l.flows)
		l.flows = append(l.flows, f)
		n.touch(l)
	}
	n.move(f)
	n.settle()
}

// remove takes f off the wire.
func (n *network) remove(f *flow) {
	for i := range f.hops {
		l := f.links[i]
		last := l.flows[len(l.flows)-1]
		l.flows[f.place[i]] = last
		for k := range last.hops {
			if last.links[k] == l {
				last.place[k] = f.place[i]
			}
		}
		l.flows[len(l.flows)-1] = nil
		l.flows = l.flows[:len(l.flows)-1]
		n.touch(l)
	}
	n.drop(f)
	n.settle()
}

func (n *network) touch(l *link) {
	if !l.dirty {
		l.dirty = true
		n.work = append(n.work, l)
	}
}

// move notes that f's rate is about to change, and brings left up to date.
func (n *network) move(f *flow) {
	f.left -= f.rate * (n.now - f.as).Seconds()
	f.as = n.now
	if !f.moved {
		f.moved = true
		n.moved = append(n.moved, f)
	}
}

// settle finds new levels, beginning with the links that were touched, and the
// new times of the flows that they change.
func (n *network) settle() {
	for done := 0; done < len(n.work); done++ {
		l := n.work[done]
		l.dirty = false
		n.update(l, done < budget)
	}
	n.work = n.work[:0]
	for i, f := range n.moved {
		f.moved = false
		n.moved[i] = nil
		n.schedule(f)
	}
	n.moved = n.moved[:0]
}

// update finds the level of l and the rates that follow from it. Unless it may
// raise, the level only sinks, which can overload nobody.
func (n *network) update(l *link, mayRaise bool) {
	level := l.fill()
	if !mayRaise {
		level = min(level, l.level)
	}
	l.level = level
	for _, f := range l.flows {
		rate := min(level, f.offer(l))
		if rate == f.rate {
			continue
		}
		// Where a rate rises, others may have to give way; where it sinks,
		// others may gain, which is worth a look if it is worth something.
		if rate > f.rate || rate < f.rate*(1-tolerance) {
			for i := range f.hops {
				if f.links[i] != l {
					n.touch(f.links[i])
				}
			}
		} else if f.rate-rate < f.rate*1e-12 {
			continue
		}
		n.move(f)
		f.rate = rate
	}
}

// widen gives f, which is on the wire, another limit.
func (n *network) widen(f *flow, limit float64) {
	f.limit = limit
	for i := range f.hops {
		n.touch(f.links[i])
	}
	n.settle()
}

// offer returns what the links of f other than l let it have, and its window.
func (f *flow) offer(l *link) float64 {
	offer := math.Inf(1)
	if f.limit > 0 {
		offer = f.limit
	}
	for i := range f.hops {
		if m := f.links[i]; m != l {
			offer = min(offer, m.level)
		}
	}
	return offer
}

// fill returns the level at which l is full. If its flows cannot fill it, the
// largest of them may have what is left as well.
func (l *link) fill() float64 {
	level := l.rate / float64(max(len(l.flows), 1))
	held := 0
	for {
		sum, largest, k := 0.0, 0.0, 0
		for _, f := range l.flows {
			if o := f.offer(l); o <= level {
				sum += o
				largest = max(largest, o)
				k++
			}
		}
		switch {
		case len(l.flows) > 0 && k == len(l.flows):
			return largest + max(l.rate-sum, 0)
		case k <= held: // less by rounding only
			return level
		}
		held = k
		level = (l.rate - sum) / float64(len(l.flows)-k)
	}
}

// schedule puts f where its rate now says.
func (n *network) schedule(f *flow) {
	at := never
	if f.left <= 0 {
		at = n.now
	} else if f.rate > 0 {
		if s := f.left / f.rate * 1e9; s < float64(never-n.now) {
			at = n.now + time.Duration(math.Ceil(s))
		}
	}
	at = min(at, f.deadline)
	if f.heap < 0 {
		f.heap = len(n.heap)
		n.heap = append(n.heap, entry{at, f.order, f})
		n.up(f.heap)
		return
	}
	e := &n.heap[f.heap]
	old := e.at
	e.at = at
	if at < old {
		n.up(f.heap)
	} else if at > old {
		n.down(f.heap)
	}
}

// at returns when f is next to be looked at.
func (n *network) at(f *flow) time.Duration { return n.heap[f.heap].at }

// drop takes f out of the order.
func (n *network) drop(f *flow) {
	i, last := f.heap, len(n.heap)-1
	if i < 0 {
		return
	}
	f.heap = -1
	e := n.heap[last]
	n.heap[last] = entry{}
	n.heap = n.heap[:last]
	if i < last {
		n.heap[i] = e
		e.flow.heap = i
		n.up(i)
		n.down(e.flow.heap)
	}
}

// An entry of the heap holds the key beside the flow, since comparing is most of
// what is done with it. A node has four children: half the depth, and the four
// lie side by side.
type entry struct {
	at    time.Duration
	order uint64
	flow  *flow
}

func (a *entry) before(b *entry) bool { return a.at < b.at || a.at == b.at && a.order < b.order }

func (n *network) up(i int) {
	h := n.heap
	e := h[i]
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		h[i].flow.heap = i
		i = parent
	}
	h[i] = e
	e.flow.heap = i
}

func (n *network) down(i int) {
	h := n.heap
	e := h[i]
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		best := first
		for k := first + 1; k < min(first+4, len(h)); k++ {
			if h[k].before(&h[best]) {
				best = k
			}
		}
		if !h[best].before(&e) {
			break
		}
		h[i] = h[best]
		h[i].flow.heap = i
		i = best
	}
	h[i] = e
	e.flow.heap = i
}

// next returns the flow that is to be looked at next, and when, or nil.
func (n *network) next() (*flow, time.Duration) {
	if len(n.heap) == 0 {
		return nil, never
	}
	return n.heap[0].flow, n.heap[0].at
}
