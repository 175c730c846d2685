package scheduler

import "time"

// Tuning holds the numbers of the policy. The zero value of a field means its
// default.
type Tuning struct {
	// Window is how many leases on peers one node has in flight, over all
	// blobs (P). 3, as many as Slots: with fewer slots than that a source can't
	// fill its link (1.4 × the bound with 3 against 2), and with one the link is
	// idle for a round trip between two chunks. Two are as good where round trips
	// are short and connections warm; over links that are full, 10 ms, TCP begins
	// each chunk slowly, and a third one fills what the others leave: 16 real nodes
	// at 50 Mbit/s took 1.21 instead of 1.27, 256 simulated ones 1.32 instead of
	// 1.38. Where round trips are long beside a chunk's time, there are more (mostMore).
	Window int
	// Slots is how many uploads one node serves at a time, over all blobs (Q).
	// 3: see Window. More slots make each copy arrive later, so that it is
	// passed on later.
	Slots int
	// MaxSlots bounds the slots of a source that gives more with more of them.
	// 32: what one with sixteen times the others' bandwidth can use.
	MaxSlots int
	// OriginSlots is how many leases on the origin are in flight for one blob
	// if one node alone wants it. 4: enough to fill a link over a round trip of
	// 100 ms, few enough that a registry does not answer 429.
	OriginSlots int
	// SharedOriginSlots is the same where several want it: a seed has them all,
	// or nodes share the work among themselves, at most one each. 2: with a
	// seed, 8 real nodes took 0.03 less than with 4. Without a seed they are as many
	// as Window at least: with 2 of them and a window of 3, 64 nodes took 1.45
	// instead of 1.18.
	SharedOriginSlots int
	// RunTime is how much time's worth of chunks a lease on a peer covers, at
	// the source's measured rate. 20 ms: at 10 Gbit/s a chunk takes under a
	// millisecond, and a lease per chunk would make the control loop the
	// limit.
	RunTime time.Duration
	// OriginRunTime is the same for leases on the origin. 400 ms: a ranged
	// request to a registry costs a round trip, often a redirect, and more of the
	// registry's time than its bytes. The chunks of a run are passed on one by
	// one as they come.
	OriginRunTime time.Duration
	// MaxRun bounds the chunks in one lease. 64: what is lost with a source
	// that dies stays small.
	MaxRun int
	// MinWithin is the shortest deadline of a lease. 1 s: below it a node that
	// is merely busy looks stalled.
	MinWithin time.Duration
	// LateAfter is the least time after which a second source may be tried for
	// a chunk that somebody waits for; else it is three times what the lease
	// should take. 500 ms: a sender that was merely busy has sent by then; with
	// 250 ms, 20 nodes that starved on two cores fetched 1.4 % twice.
	LateAfter time.Duration
	// FirstWithin is the deadline per chunk while nothing is known of the
	// source's rate. 5 s.
	FirstWithin time.Duration
	// OriginWithin is the deadline of a lease on the origin. 2 min: the origin
	// client has retries and a stall watch of its own and reports a failure as
	// soon as it has given up, so this is a dead man's handle only.
	OriginWithin time.Duration
	// Settle is for how long a scheduler that has just become the owner of a
	// blob in mid-pull waits for the others' reports before it sends anybody to
	// the origin. 300 ms: longer than a round of reports takes, shorter than a
	// person notices.
	Settle time.Duration
	// CallWait is how long a seed that was called may take to join. 1 s; after
	// that the nodes go to the origin themselves.
	CallWait time.Duration
	// SlowFor is after what time a source that was found to be far slower than
	// the others is tried again. 10 s: each try costs somebody a slow chunk.
	SlowFor time.Duration
	// SuspectFor is how long a source with two failures in a row is not used.
	// 5 s: by then the gossip knows whether it is dead.
	SuspectFor time.Duration
}

// DefaultTuning returns the defaults that the fields' comments argue for.
func DefaultTuning() Tuning {
	return Tuning{
		Window:            3,
		Slots:             3,
		MaxSlots:          32,
		OriginSlots:       4,
		SharedOriginSlots: 2,
		RunTime:           20 * time.Millisecond,
		OriginRunTime:     400 * time.Millisecond,
		MaxRun:            64,
		MinWithin:         time.Second,
		LateAfter:         500 * time.Millisecond,
		FirstWithin:       5 * time.Second,
		OriginWithin:      2 * time.Minute,
		Settle:            300 * time.Millisecond,
		CallWait:          time.Second,
		SlowFor:           10 * time.Second,
		SuspectFor:        5 * time.Second,
	}
}

// withDefaults returns t with the default in each field that is zero.
func (t Tuning) withDefaults() Tuning {
	d := DefaultTuning()
	for _, f := range []struct{ v, d *int }{
		{&t.Window, &d.Window}, {&t.Slots, &d.Slots}, {&t.MaxSlots, &d.MaxSlots}, {&t.OriginSlots, &d.OriginSlots}, {&t.MaxRun, &d.MaxRun}, {&t.SharedOriginSlots, &d.SharedOriginSlots},
	} {
		if *f.v == 0 {
			*f.v = *f.d
		}
	}
	for _, f := range []struct{ v, d *time.Duration }{
		{&t.RunTime, &d.RunTime}, {&t.OriginRunTime, &d.OriginRunTime}, {&t.MinWithin, &d.MinWithin}, {&t.LateAfter, &d.LateAfter},
		{&t.FirstWithin, &d.FirstWithin}, {&t.OriginWithin, &d.OriginWithin}, {&t.Settle, &d.Settle},
		{&t.CallWait, &d.CallWait}, {&t.SuspectFor, &d.SuspectFor}, {&t.SlowFor, &d.SlowFor},
	} {
		if *f.v == 0 {
			*f.v = *f.d
		}
	}
	return t
}
