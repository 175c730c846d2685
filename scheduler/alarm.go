package scheduler

import (
	"container/heap"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// Next returns when Tick is to be called next, or the zero time if there is
// nothing to wait for.
func (b *Book) Next() time.Time {
	if len(b.alarms) == 0 {
		return time.Time{}
	}
	return b.alarms[0].at
}

// Tick does what is due at now: leases that have expired, seeds that did not
// come, suspects that get another chance.
func (b *Book) Tick(now time.Time) {
	for len(b.alarms) > 0 && !b.alarms[0].at.After(now) {
		b.ring(now, heap.Pop(&b.alarms).(*alarm))
	}
	b.pass(now)
}

func (b *Book) ring(now time.Time, a *alarm) {
	switch a.kind {
	case alarmLease:
		if l := b.leases[a.lease]; l != nil {
			b.counts.Expired++
			l.part.node.lapsed = true
			b.tell(l.part.node, &proto.Revoke{Digest: l.part.swarm.blob.Digest, Lease: l.id})
			b.endLease(l)
			if !l.origin {
				b.blame(now, l.part.swarm, l.source, proto.CauseStalled)
			}
		}
	case alarmSettled:
		b.toOrigin = append(b.toOrigin, b.active...)
	case alarmSwarm:
		s := a.swarm
		if !s.active() {
			return
		}
		if s.called != nil && !now.Before(s.callUntil) {
			s.decline(s.called)
		}
		if s.asked != nil && !now.Before(s.askUntil) {
			b.answered(now, s.asked.parts[s.blob.Digest])
		}
		b.toOrigin = append(b.toOrigin, s)
	case alarmFlight:
		if !a.swarm.active() {
			return
		}
		for _, p := range a.swarm.slots {
			if p != nil && p.strays > 0 {
				b.land(p, nil)
				b.toFeed = append(b.toFeed, p.node)
			}
		}
	case alarmSuspect:
		a.node.strikes = 0
		b.setSuspect(a.node, false)
		b.toOffer = append(b.toOffer, a.node)
	}
}

// The kinds of alarms.
const (
	alarmLease = iota
	alarmSettled
	alarmSwarm
	alarmFlight
	alarmSuspect
)

type alarm struct {
	at    time.Time
	kind  int
	lease uint64
	swarm *swarm
	node  *node
}

func (b *Book) alarm(at time.Time, kind int) *alarm {
	a := &alarm{at: at, kind: kind}
	heap.Push(&b.alarms, a)
	return a
}

// alarms is a heap (container/heap), the earliest first.
type alarms []*alarm

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a alarms) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *alarms) Push(x any)        { *a = append(*a, x.(*alarm)) }
func (a *alarms) Pop() any {
	old := *a
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*a = old[:len(old)-1]
	return x
}
