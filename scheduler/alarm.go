package scheduler

import (
	"container/heap"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// Next returns when Tick is to be called next, or the zero time if there is
// nothing to wait for.
func (b *Book) Next() time.Time {
	var next time.Time
	if len(b.alarms) > 0 {
		next = b.alarms[0].at
	}
	if len(b.dues) > 0 && (next.IsZero() || b.dues[0].due.Before(next)) {
		next = b.dues[0].due
	}
	return next
}

// Tick does what is due at now: leases that have expired, seeds that did not
// come, suspects that get another chance. A Tick that comes later than Next by
// Tuning.MinWithin or more lets no lease expire that was due by then, and gives
// it the same time again.
func (b *Book) Tick(now time.Time) {
	b.now = now
	for len(b.alarms) > 0 && !b.alarms[0].at.After(now) {
		b.ring(now, heap.Pop(&b.alarms).(*alarm))
	}
	for len(b.dues) > 0 && !b.dues[0].due.After(now) {
		l := b.dues[0]
		if now.Sub(l.due) >= b.tuning.MinWithin {
			// It is this process that has been away, and what the nodes have said
			// meanwhile is still to be read. All leases would expire together and
			// every source be a suspect, so that the nodes went to the origin for
			// what they have.
			b.dues.renew(l, now)
			continue
		}
		b.expire(now, l)
	}
	b.pass(now)
}

// expire ends a lease of which nobody told the end in time. A node reports a
// failed lease itself, so it is the node that is silent.
func (b *Book) expire(now time.Time, l *lease) {
	b.counts.Expired++
	l.part.node.lapsed = true
	b.updateHungry(l.part.node)
	b.tell(l.part.node, &proto.Revoke{Digest: l.part.swarm.blob.Digest, Lease: l.id})
	b.endLease(l)
	if !l.origin {
		b.blame(now, l.part.swarm, l.source, proto.CauseStalled)
	}
}

func (b *Book) ring(now time.Time, a *alarm) {
	switch a.kind {
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
				b.feeds(p.node)
			}
		}
	case alarmSuspect:
		a.node.strikes = 0
		b.setSuspect(a.node, false)
		b.offers(a.node)
	case alarmSlow: // another chance, as if nothing were known
		if a.node.slow && !a.node.gone {
			a.node.rate, a.node.takes, a.node.gave, a.node.took = 0, 0, few{}, few{}
			b.setSlow(a.node, false)
			b.offers(a.node)
		}
	case alarmLate:
		if !a.node.watched.After(a.at) {
			a.node.watched = time.Time{}
		}
		b.feeds(a.node)
	}
}

// The kinds of alarms.
const (
	alarmSettled = iota
	alarmSwarm
	alarmFlight
	alarmSuspect
	alarmLate
	alarmSlow
)

type alarm struct {
	at    time.Time
	kind  int
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

// dues is a heap of the leases that are out, the one due first on top. Each
// keeps its place, so that those that end in time leave nothing behind.
type dues []*lease

func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].at, d[j].at = i, j
}
func (d *dues) Push(x any) {
	l := x.(*lease)
	l.at = len(*d)
	*d = append(*d, l)
}
func (d *dues) Pop() any {
	old := *d
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return x
}

func (d *dues) add(l *lease) { heap.Push(d, l) }

// renew puts l's due off, since its node has been heard.
func (d *dues) renew(l *lease, now time.Time) {
	l.due = now.Add(l.grace)
	heap.Fix(d, l.at)
}
func (d *dues) remove(l *lease) { heap.Remove(d, l.at) }
