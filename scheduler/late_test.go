package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// TestOverdueChunk: the first copy of a chunk went to a node that does not get it
// in time, and all readers wait for it. The seed, which has others to send,
// sends it once more, and the others get it from there.
func TestOverdueChunk(t *testing.T) {
	const step = 20 * time.Millisecond
	blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 256 * proto.MinChunk}
	b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
	var sums []proto.Sum
	for c := range blob.Chunks() {
		sums = append(sums, proto.Sum{1, byte(c)})
	}
	b.Connect(epoch, proto.Member{ID: "seed", Roles: proto.RoleScheduler})
	b.Handle(epoch, "seed", &proto.Hold{Blobs: []proto.Blob{blob}})
	others := []string{"n1", "n2", "n3", "n4", "n5"}
	for _, id := range append([]string{"slow"}, others...) {
		b.Connect(epoch, proto.Member{ID: id})
		b.Handle(epoch, id, &proto.Join{Blob: blob, Await: -1})
		if id == "slow" {
			b.Handle(epoch, "seed", &proto.Sums{Digest: blob.Digest, Sums: sums})
			b.Handle(epoch, id, &proto.Await{Digest: blob.Digest, Index: 0})
		}
	}
	type flight struct {
		to  string
		l   *proto.Lease
		end time.Time
	}
	var flights []flight
	stuck := -1 // the first chunk that was leased to the slow node
	var from []string
	var when []time.Duration
	for now := epoch; now.Before(epoch.Add(2 * time.Second)); now = now.Add(step) {
		b.Tick(now)
		for _, f := range slices.Clone(flights) {
			if f.end.After(now) {
				continue
			}
			flights = slices.DeleteFunc(flights, func(g flight) bool { return g.l.ID == f.l.ID })
			for c := f.l.First; c < f.l.First+f.l.Count; c++ {
				b.Handle(now, f.to, &proto.Done{Digest: blob.Digest, Lease: f.l.ID, Index: c, Sum: sums[c], Took: 5 * step})
			}
		}
		for _, letter := range b.Letters() {
			l, ok := letter.Message.(*proto.Lease)
			if !ok {
				continue
			}
			if letter.To == "slow" && stuck < 0 {
				stuck = l.First
				for _, id := range others {
					b.Handle(now, id, &proto.Await{Digest: blob.Digest, Index: stuck})
				}
			}
			if letter.To == "slow" && l.First == stuck {
				continue // it never gets that one
			}
			if l.First <= stuck && stuck < l.First+l.Count {
				from, when = append(from, l.Source), append(when, now.Sub(epoch))
			}
			flights = append(flights, flight{letter.To, l, now.Add(5 * step)})
		}
		audit(t, b)
	}
	late := DefaultTuning().LateAfter
	if len(from) != len(others) || from[0] != "seed" || slices.Contains(from[1:], "seed") || when[0] < late || when[0] > late+300*time.Millisecond {
		t.Errorf("chunk %d came from %v after %v, want from the seed once, a little after %s, and then from who got it", stuck, from, when, late)
	}
}

// TestTakerOfASlowSource: a node that has chunks of a source whose link has become
// slow is not slow itself. The source is, after a few.
func TestTakerOfASlowSource(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
	for _, id := range []string{"taker", "source", "other"} {
		b.Connect(epoch, proto.Member{ID: id})
	}
	chunk := func(to, from string, rate float64) {
		l := &lease{part: &part{node: b.nodes[to], swarm: &swarm{}}, source: b.nodes[from], left: 1, count: 1}
		b.measure(epoch, l, size, time.Duration(size/rate*float64(time.Second)))
	}
	for range 10 { // everybody is fast
		chunk("taker", "source", fast)
		chunk("taker", "other", fast)
	}
	for i := range 3 {
		chunk("taker", "source", fast/10)
		chunk("taker", "other", fast)
		if b.nodes["taker"].slow {
			t.Fatalf("the taker counts as slow after %d chunks of a slow source", i+1)
		}
	}
	if !b.nodes["source"].slow || b.nodes["other"].slow {
		t.Errorf("slow: the source %v, the other %v; want the source only", b.nodes["source"].slow, b.nodes["other"].slow)
	}
}

// TestLateInABusyFleet: what a reader waits for is tried from a second source even
// if nobody has a free slot.
func TestLateInABusyFleet(t *testing.T) {
	blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 64 * proto.MinChunk}
	b := NewBook(Tuning{Window: 2, Slots: 2}, 1, epoch.Add(-time.Minute))
	var sums []proto.Sum
	for c := range blob.Chunks() {
		sums = append(sums, proto.Sum{1, byte(c)})
	}
	for _, id := range []string{"a", "b"} {
		b.Connect(epoch, proto.Member{ID: id})
		b.Handle(epoch, id, &proto.Hold{Blobs: []proto.Blob{blob}})
	}
	for id, await := range map[string]int{"n": 7, "other": -1} { // two leases each: all slots of a and b
		b.Connect(epoch, proto.Member{ID: id})
		b.Handle(epoch, id, &proto.Join{Blob: blob, Await: await})
	}
	b.Handle(epoch, "a", &proto.Sums{Digest: blob.Digest, Sums: sums})
	leases := func() (of []*proto.Lease) {
		for _, letter := range b.Letters() {
			if l, ok := letter.Message.(*proto.Lease); ok && letter.To == "n" && l.First == 7 {
				of = append(of, l)
			}
		}
		return of
	}
	first := leases()
	if len(first) != 1 || b.nodes["a"].used+b.nodes["b"].used != 4 {
		t.Fatalf("%d leases on the chunk, %d and %d slots are in use; want 1, and all", len(first), b.nodes["a"].used, b.nodes["b"].used)
	}
	b.Tick(epoch.Add(DefaultTuning().LateAfter))
	if second := leases(); len(second) != 1 || second[0].Source == first[0].Source {
		t.Errorf("after it was late: %+v, want one lease on the other holder", second)
	}
	audit(t, b)
}

// TestSecondSourcesArePaidFor: where everything is late, second sources are tried
// for no more than a small part of what is leased.
func TestSecondSourcesArePaidFor(t *testing.T) {
	blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 2048 * proto.MinChunk}
	b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
	var sums []proto.Sum
	for c := range blob.Chunks() {
		sums = append(sums, proto.Sum{1, byte(c), byte(c >> 8)})
	}
	for _, id := range []string{"a", "b", "c"} {
		b.Connect(epoch, proto.Member{ID: id})
		b.Handle(epoch, id, &proto.Hold{Blobs: []proto.Blob{blob}})
	}
	b.Connect(epoch, proto.Member{ID: "n"})
	b.Handle(epoch, "n", &proto.Join{Blob: blob, Await: 0})
	b.Handle(epoch, "a", &proto.Sums{Digest: blob.Digest, Sums: sums})
	type flight struct {
		l     *proto.Lease
		since time.Time
	}
	var flights []flight
	have := proto.NewSet(blob.Chunks())
	for now := epoch; have.Count() < blob.Chunks(); now = now.Add(100 * time.Millisecond) {
		b.Tick(now)
		for _, letter := range b.Letters() {
			switch m := letter.Message.(type) {
			case *proto.Lease:
				flights = append(flights, flight{m, now})
			case *proto.Revoke:
				flights = slices.DeleteFunc(flights, func(f flight) bool { return f.l.ID == m.Lease })
			}
		}
		// All take longer than what makes a chunk late.
		over := slices.IndexFunc(flights, func(f flight) bool { return now.Sub(f.since) > DefaultTuning().LateAfter+200*time.Millisecond })
		if over < 0 {
			continue
		}
		l := flights[over].l
		flights = slices.Delete(flights, over, over+1)
		for c := l.First; c < l.First+l.Count; c++ {
			have.Add(c)
			b.Handle(now, "n", &proto.Done{Digest: blob.Digest, Lease: l.ID, Index: c, Sum: sums[c], Took: time.Millisecond})
		}
		b.Handle(now, "n", &proto.Await{Digest: blob.Digest, Index: max(have.NextMissing(0, blob.Chunks()), 0)})
		if now.After(epoch.Add(time.Hour)) {
			t.Fatal("it does not end")
		}
	}
	doubled, chunk := int(b.Counts().Doubled), int(blob.ChunkSize())
	if most := 1 + (savedFirst+blob.Chunks()*chunk/100)/chunk; doubled == 0 || doubled > most {
		t.Errorf("%d of %d chunks from a second source, want some and %d at most", doubled, blob.Chunks(), most)
	}
}
