package scheduler

import (
	"container/heap"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/proto"
)

// rollout starts n nodes that join together.
func (w *world) rollout(n int, seed bool, zone func(i int) string) []string {
	if seed {
		w.connect("seed", zone(0), proto.RoleScheduler)
	}
	names := ids("n", n)
	for i, id := range names {
		w.connect(id, zone(i), proto.RoleDaemon)
	}
	for _, id := range names {
		w.join(id)
	}
	return names
}

func nowhere(int) string { return "" }

func TestDeadNodesDoNotStopTheOthers(t *testing.T) {
	for _, seed := range []bool{false, true} {
		w := newWorld(t, 64<<20, 3)
		names := w.rollout(20, seed, nowhere)
		for i, id := range names[:4] {
			w.after(time.Duration(i+1)*500*time.Millisecond, func() {
				w.nodes[id].dead = true
				for source := range w.used { // its downloads end with it
					w.used[source] = 0
					for _, l := range w.book.leases {
						if !l.origin && l.source.member.ID == source && l.part.node.member.ID != id {
							w.used[source]++
						}
					}
				}
				w.book.Disconnect(w.now, id)
				w.deliver()
			})
		}
		w.sabotage = func(_ string, l *proto.Lease) proto.Cause {
			if s := w.nodes[l.Source]; s != nil && s.dead {
				return proto.CauseBroken
			}
			return 0
		}
		w.run()
		w.last(names[4:]...)
	}
}

func TestLiarIsSilenced(t *testing.T) {
	w := newWorld(t, 64<<20, 4)
	names := w.rollout(8, false, nowhere)
	bad := 0
	w.sabotage = func(_ string, l *proto.Lease) proto.Cause {
		if l.Source == names[0] {
			bad++
			return proto.CauseCorrupt
		}
		return 0
	}
	w.run()
	w.last(names...)
	if bad == 0 || bad > w.book.tuning.Slots {
		t.Errorf("the node that sends wrong bytes served %d leases, want 1 to %d: those that were out when it was caught",
			bad, w.book.tuning.Slots)
	}
}

func TestStalledSoleHolder(t *testing.T) {
	// A holder that never sends anything has the only copies: what it has must
	// come from the origin after all.
	w := newWorld(t, 16<<20, 5)
	w.connect("stuck", "", proto.RoleDaemon)
	w.nodes["stuck"].have = proto.FullSet(w.blob.Chunks())
	w.book.Handle(w.now, "stuck", &proto.Hold{Blobs: []proto.Blob{w.blob}})
	names := w.rollout(4, false, nowhere)
	w.sabotage = func(_ string, l *proto.Lease) proto.Cause {
		if l.Source == "stuck" {
			return proto.CauseStalled
		}
		return 0
	}
	w.run()
	w.last(names...)
	w.onceFromOrigin()
}

func TestWholeHolderInsteadOfOrigin(t *testing.T) {
	w := newWorld(t, 64<<20, 6)
	w.connect("whole", "", proto.RoleDaemon)
	w.nodes["whole"].have = proto.FullSet(w.blob.Chunks())
	w.book.Handle(w.now, "whole", &proto.Hold{Blobs: []proto.Blob{w.blob}})
	names := w.rollout(6, true, nowhere)
	w.run()
	w.last(names...)
	if slices.Max(w.origin) != 0 {
		t.Error("a node went to the origin for what a member had whole")
	}
}

func TestHolderWithoutSumsIsNoSource(t *testing.T) {
	w := newWorld(t, 16<<20, 6)
	w.connect("blank", "", proto.RoleDaemon)
	w.book.Handle(w.now, "blank", &proto.Hold{Blobs: []proto.Blob{w.blob}}) // but will answer with no sums
	names := w.rollout(3, false, nowhere)
	w.run()
	w.last(names...)
	w.onceFromOrigin()
}

func TestTakeover(t *testing.T) {
	// Half way through, the scheduler dies, the seed with it, and another takes
	// over. It hears of all that the nodes have and of what is on its way, and
	// sends nobody to the origin for that again; only what nobody but the seed
	// had leaves the origin twice.
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); testTakeover(t, seed) })
	}
}

func testTakeover(t *testing.T, seed uint64) {
	w := newWorld(t, 64<<20, seed)
	w.reticent, w.hasty = seed%2 == 1, seed%4 > 1
	names := w.rollout(10, true, nowhere) // the seed goes with its scheduler
	w.after(3*time.Second, func() {
		w.nodes["seed"].dead = true
		w.book = NewBook(Tuning{}, 99+seed, w.now.Add(-time.Minute))
		for i, id := range names {
			w.after(time.Duration(i)*20*time.Millisecond, func() {
				n := w.nodes[id]
				flight := proto.NewSet(w.blob.Chunks())
				for c := range w.flying[id] {
					if !n.have.Has(c) {
						flight.Add(c)
					}
				}
				w.book.Connect(w.now, proto.Member{ID: id, Roles: proto.RoleDaemon, Addr: id})
				w.book.Handle(w.now, id, &proto.Join{
					Blob: w.blob, Origin: proto.Origin{Upstream: "docker.io", Repository: "library/alpine"},
					Have: n.have, Flight: flight, Await: -1,
				})
				w.deliver()
			})
		}
	})
	w.used = nil // two schedulers do not know of each other's slots
	w.run()
	w.last(names...)
	for c, n := range w.origin {
		if n > 2 {
			t.Errorf("chunk %d left the origin %d times, want twice at most", c, n)
		}
	}
}

// TestZonesGetOneCopyEach: each zone gets each chunk from outside once, from the
// origin, a seed or another zone, and it costs hardly any time.
func TestZonesGetOneCopyEach(t *testing.T) {
	zone := func(i int) string { return fmt.Sprintf("z%d", i%4) }
	sizes := []int{16, 32, 64, 128}
	if testing.Short() {
		sizes = sizes[:2]
	}
	for _, nodes := range sizes {
		for _, seed := range []string{"", "core", "z0"} { // in no zone of the nodes, or in one
			w := newWorld(t, 64<<20, 9)
			if seed != "" {
				w.connect("seed", seed, proto.RoleScheduler)
			}
			names := w.rollout(nodes, false, zone)
			w.run()
			n, f := float64(nodes), float64(w.blob.Size)
			ratio := w.last(names...).Seconds() / max(f/w.rate, n*f/(w.rate+n*w.rate))
			copies := float64(w.crossing) / f / 4
			if seed == "" { // what comes from the origin crosses as well
				copies += 0.25
			}
			t.Logf("%d nodes, seed in %q: %.3f × the fluid bound, %.2f copies crossed into each zone", nodes, seed, ratio, copies)
			if copies > 1.01 || ratio > 1.3 {
				t.Errorf("%d nodes, seed in %q: %.2f × the fluid bound and %.2f copies into each zone, want 1.3 and 1.01 at most", nodes, seed, ratio, copies)
			}
		}
	}
}

// TestSlowNodes: a tenth of the nodes at a tenth of the rate hold nobody up.
func TestSlowNodes(t *testing.T) {
	for _, zones := range []int{1, 4} {
		w := newWorld(t, 64<<20, 5)
		w.connect("seed", "", proto.RoleScheduler)
		names := w.rollout(40, false, func(i int) string { return fmt.Sprintf("z%d", i%zones) })
		var others []string
		for i, id := range names {
			if i%10 == 3 {
				w.slow[id] = 10
			} else {
				others = append(others, id)
			}
		}
		w.audited = true
		w.run()
		w.last(names...)
		bound := float64(w.blob.Size) / w.rate
		ratio := w.last(others...).Seconds() / bound
		t.Logf("%d zones: the last of the others at %.3f × the fluid bound, %+v", zones, ratio, w.book.Counts())
		if ratio > 1.4 {
			t.Errorf("%d zones: the last of the others at %.2f × the fluid bound, want 1.4 at most", zones, ratio)
		}
		for _, id := range names {
			if n := w.book.nodes[id]; n.slow && w.slow[id] == 0 {
				t.Errorf("%s is taken for slow", id)
			}
		}
	}
}

// TestReadersDoNotOccupyTheSeed: everybody's reader waits for much the same
// chunks, and those go first; a seed must not send them again and again.
func TestReadersDoNotOccupyTheSeed(t *testing.T) {
	w := newWorld(t, 64<<20, 5)
	w.readers = true
	w.connect("seed", "", proto.RoleScheduler)
	names := w.rollout(16, false, nowhere)
	w.run()
	ratio := w.last(names...).Seconds() / (float64(w.blob.Size) / w.rate)
	t.Logf("%.3f × the fluid bound, the seed sent %d chunks of %d", ratio, w.sent["seed"], w.blob.Chunks())
	if ratio > 1.25 {
		t.Errorf("last node at %.2f × the fluid bound, want 1.25 at most", ratio)
	}
	if most := w.blob.Chunks() * 5 / 4; w.sent["seed"] > most {
		t.Errorf("the seed sent %d chunks, want %d at most", w.sent["seed"], most)
	}
}

// TestNear: a lease that is about to end makes room for the next, at its node
// and at its source, and counts once only.
func TestNear(t *testing.T) {
	blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 8 * proto.MinChunk}
	b := NewBook(Tuning{Window: 2, Slots: 2}, 1, epoch.Add(-time.Minute))
	var sums []proto.Sum
	for c := range blob.Chunks() {
		sums = append(sums, proto.Sum{1, byte(c)})
	}
	b.Connect(epoch, proto.Member{ID: "a"})
	b.Connect(epoch, proto.Member{ID: "b"})
	b.Handle(epoch, "a", &proto.Hold{Blobs: []proto.Blob{blob}})
	b.Handle(epoch, "b", &proto.Join{Blob: blob, Await: -1})
	b.Handle(epoch, "a", &proto.Sums{Digest: blob.Digest, Sums: sums})
	granted := func() (leases []*proto.Lease) {
		for _, l := range b.Letters() {
			if m, ok := l.Message.(*proto.Lease); ok {
				leases = append(leases, m)
			}
		}
		return leases
	}
	first := granted()
	if len(first) != 2 {
		t.Fatalf("%d leases to start with, want 2", len(first))
	}
	near := &proto.Near{Digest: blob.Digest, Lease: first[0].ID}
	b.Handle(epoch, "a", near) // it is not its lease
	if got := granted(); len(got) != 0 {
		t.Errorf("%d leases because of what another said", len(got))
	}
	b.Handle(epoch, "b", near)
	b.Handle(epoch, "b", near)
	if got := granted(); len(got) != 1 {
		t.Errorf("%d leases when one was near its end, want 1", len(got))
	}
	audit(t, b)
	b.Handle(epoch, "b", &proto.Done{Digest: blob.Digest, Lease: first[0].ID, Index: first[0].First, Sum: sums[first[0].First], Took: time.Second})
	if got := granted(); len(got) != 0 {
		t.Errorf("%d leases when it ended, want none", len(got))
	}
	audit(t, b)
}

// TestFastSourceGetsSlots: one with ten times the bandwidth of the others serves
// more of them at a time, without being told that it can.
func TestFastSourceGetsSlots(t *testing.T) {
	w := newWorld(t, 64<<20, 5)
	w.connect("seed", "", proto.RoleScheduler)
	w.slow["seed"], w.slow[""] = 0.1, 0.1
	w.uplinks = 0.2 // the others could take more than they give each other
	names := w.rollout(40, false, nowhere)
	most, others := 0, 0
	var look func()
	look = func() {
		most = max(most, w.book.nodes["seed"].slots)
		for _, id := range names {
			others = max(others, w.book.nodes[id].slots)
		}
		if len(w.finished) < 40 {
			w.after(10*time.Millisecond, look)
		}
	}
	look()
	w.run()
	w.last(names...)
	if most < 2*DefaultTuning().Slots || most > DefaultTuning().MaxSlots {
		t.Errorf("the seed got %d slots", most)
	}
	if others > DefaultTuning().Slots+1 { // one more is the trial
		t.Errorf("one of the others got %d slots", others)
	}
}

func TestSeedThatDeclines(t *testing.T) {
	w := newWorld(t, 16<<20, 10)
	w.connect("seed", "", proto.RoleScheduler)
	w.declines = map[string]bool{"seed": true}
	names := ids("n", 3)
	for _, id := range names {
		w.connect(id, "", proto.RoleDaemon)
	}
	for _, id := range names {
		w.join(id)
	}
	w.run()
	w.last(names...)
	w.onceFromOrigin()
}

func TestSeedThatIsSilent(t *testing.T) {
	w := newWorld(t, 16<<20, 10)
	w.connect("seed", "", proto.RoleScheduler)
	w.deaf = map[string]bool{"seed": true}
	w.connect("n", "", proto.RoleDaemon)
	w.join("n")
	w.run()
	w.last("n")
	w.onceFromOrigin()
}

func TestBarredNodeLeavesItToTheOthers(t *testing.T) {
	w := newWorld(t, 16<<20, 11)
	names := w.rollout(4, false, nowhere)
	w.sabotage = func(to string, l *proto.Lease) proto.Cause {
		if l.FromOrigin() && to == names[0] {
			return proto.CauseDenied
		}
		return 0
	}
	w.run()
	w.last(names...)
	w.onceFromOrigin()
}

func TestSilentNodeExpires(t *testing.T) {
	// A node takes a lease on the origin and is never heard of again, though
	// its stream stands.
	w := newWorld(t, 16<<20, 12)
	w.connect("mute", "", proto.RoleDaemon)
	w.deaf = map[string]bool{"mute": true}
	w.join("mute")
	w.connect("n", "", proto.RoleDaemon)
	w.join("n")
	w.run()
	w.last("n")
	if c := w.book.Counts(); c.Expired == 0 {
		t.Error("no lease expired")
	}
}

func TestLateTickExpiresNothing(t *testing.T) {
	// The scheduler's process has no CPU for a while. The nodes' reports wait in
	// its sockets, and nobody is to be blamed.
	w := newWorld(t, 16<<20, 12)
	w.connect("whole", "", proto.RoleDaemon)
	w.nodes["whole"].have = proto.FullSet(w.blob.Chunks())
	w.book.Handle(w.now, "whole", &proto.Hold{Blobs: []proto.Blob{w.blob}})
	w.connect("n", "", proto.RoleDaemon)
	w.join("n")
	for w.book.Counts().PeerLeases == 0 {
		e := heap.Pop(&w.events).(simEvent)
		w.now = e.at
		e.do()
	}
	late := w.book.dues[0].due.Add(w.book.tuning.MinWithin)
	w.book.Tick(late)
	w.book.Letters()
	if c := w.book.Counts(); c.Expired != 0 || c.OriginLeases != 0 || w.book.nodes["whole"].suspect {
		t.Fatalf("after a Tick that came late: %+v, the source is a suspect: %t", c, w.book.nodes["whole"].suspect)
	}
	// A node that is silent after that is so for no fault of the scheduler's.
	w.book.Tick(w.book.dues[0].due)
	if c := w.book.Counts(); c.Expired == 0 {
		t.Error("no lease of a silent node expired")
	}
}

func TestAwaitedChunkGoesFirst(t *testing.T) {
	for _, held := range []bool{false, true} { // by a peer, or by the origin only
		w := newWorld(t, 64<<20, 13)
		if held {
			sums := make([]proto.Sum, w.blob.Chunks())
			for c := range sums {
				sums[c] = proto.Sum{1, byte(c)}
			}
			w.book.Connect(w.now, proto.Member{ID: "whole"})
			w.book.Handle(w.now, "whole", &proto.Hold{Blobs: []proto.Blob{w.blob}})
			w.book.Connect(w.now, proto.Member{ID: "other"}) // keeps the swarm, and what it knows, alive
			w.book.Handle(w.now, "other", &proto.Join{Blob: w.blob, Flight: proto.FullSet(w.blob.Chunks()), Await: -1})
			w.book.Handle(w.now, "whole", &proto.Sums{Digest: w.blob.Digest, Sums: sums})
			w.book.Letters()
		}
		w.book.Connect(w.now, proto.Member{ID: "n"})
		w.book.Handle(w.now, "n", &proto.Join{
			Blob: w.blob, Origin: proto.Origin{Upstream: "docker.io", Repository: "library/alpine"}, Await: 77,
		})
		var firsts []int
		for _, l := range w.book.Letters() {
			if m, ok := l.Message.(*proto.Lease); ok && l.To == "n" {
				firsts = append(firsts, m.First)
			}
		}
		if len(firsts) == 0 || firsts[0] != 77 {
			t.Errorf("held by a peer %v: leases begin at %v, want first at chunk 77, which a reader waits for", held, firsts)
		}
	}
}

func TestFirstByteHasTheLine(t *testing.T) {
	w := newWorld(t, 64<<20, 13)
	leases := func() (n int, first *proto.Lease) {
		for _, l := range w.book.Letters() {
			if m, ok := l.Message.(*proto.Lease); ok {
				if n++; first == nil {
					first = m
				}
			}
		}
		return n, first
	}
	w.book.Connect(w.now, proto.Member{ID: "n"})
	w.book.Handle(w.now, "n", &proto.Join{Blob: w.blob, Origin: proto.Origin{Upstream: "docker.io", Repository: "library/alpine"}, Await: 77})
	n, first := leases()
	if n != 1 || first.First != 77 {
		t.Fatalf("%d leases, the first %+v; want one, of the chunk that a reader waits for", n, first)
	}
	w.book.Handle(w.now, "n", &proto.Done{Digest: w.blob.Digest, Lease: first.ID, Index: 77, Sum: proto.Sum{1}, Took: time.Millisecond})
	if n, _ := leases(); n != DefaultTuning().OriginSlots-1 {
		t.Errorf("%d more leases after the first chunk, want the other %d", n, DefaultTuning().OriginSlots-1)
	}
}

func TestSameSeedSameDecisions(t *testing.T) {
	run := func() string {
		w := newWorld(t, 32<<20, 14)
		names := w.rollout(12, true, nowhere)
		w.run()
		return fmt.Sprint(w.last(names...), w.book.Counts())
	}
	if a, b := run(), run(); a != b {
		t.Errorf("two runs with one seed differ: %s and %s", a, b)
	}
}

// TestBookSurvivesAnything sends a Book messages in every order that rapid
// thinks of. Its counts must add up after each, no lease may be for a chunk
// that the node has, and no source may serve more than its slots.
func TestBookSurvivesAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		now := epoch
		b := NewBook(Tuning{}, rapid.Uint64().Draw(rt, "seed"), now.Add(-time.Minute))
		blobs := []proto.Blob{
			{Digest: proto.DigestOf([]byte("a")), Size: 100},
			{Digest: proto.DigestOf([]byte("b")), Size: 5*proto.MinChunk + 1},
			{Digest: proto.DigestOf([]byte("c")), Size: 0},
		}
		var leases []*proto.Lease
		node := rapid.SampledFrom([]string{"a", "b", "c", "s"})
		blob := rapid.SampledFrom(blobs)
		set := rapid.Custom(func(t *rapid.T) proto.Set { return proto.Set{rapid.Uint64Range(0, 63).Draw(t, "set")} })
		rt.Repeat(map[string]func(*rapid.T){
			"connect": func(t *rapid.T) {
				id := node.Draw(t, "node")
				roles := proto.RoleDaemon
				if id == "s" {
					roles = proto.RoleScheduler
				}
				b.Connect(now, proto.Member{ID: id, Zone: rapid.SampledFrom([]string{"", "z"}).Draw(t, "zone"), Roles: roles})
			},
			"disconnect": func(t *rapid.T) { b.Disconnect(now, node.Draw(t, "node")) },
			"join": func(t *rapid.T) {
				bl := blob.Draw(t, "blob")
				all := proto.FullSet(bl.Chunks())
				have, flight := set.Draw(t, "have"), set.Draw(t, "flight")
				for i := range have {
					if i >= len(all) {
						have[i], flight[i] = 0, 0
						continue
					}
					have[i] &= all[i]
					flight[i] &= all[i]
				}
				b.Handle(now, node.Draw(t, "node"), &proto.Join{
					Blob: bl, Origin: proto.Origin{Upstream: "o"}, Have: have, Flight: flight,
					Await: rapid.IntRange(-1, max(-1, bl.Chunks()-1)).Draw(t, "await"), Seed: rapid.Bool().Draw(t, "called"),
				})
			},
			"hold": func(t *rapid.T) {
				b.Handle(now, node.Draw(t, "node"), &proto.Hold{Blobs: []proto.Blob{blob.Draw(t, "blob")}})
			},
			"part": func(t *rapid.T) {
				b.Handle(now, node.Draw(t, "node"), &proto.Part{Digest: blob.Draw(t, "blob").Digest})
			},
			"done": func(t *rapid.T) {
				m := &proto.Done{Digest: blob.Draw(t, "blob").Digest, Index: rapid.IntRange(0, 9).Draw(t, "index")}
				if len(leases) > 0 {
					l := rapid.SampledFrom(leases).Draw(t, "lease")
					m.Lease, m.Digest, m.Index = l.ID, l.Digest, l.First+rapid.IntRange(0, l.Count).Draw(t, "of")
					m.Sum = proto.Sum{1}
					m.Took = rapid.SampledFrom([]time.Duration{time.Millisecond, 20 * time.Millisecond}).Draw(t, "took")
				}
				b.Handle(now, node.Draw(t, "node"), m)
			},
			"fail": func(t *rapid.T) {
				m := &proto.Fail{Digest: blob.Draw(t, "blob").Digest}
				if len(leases) > 0 {
					l := rapid.SampledFrom(leases).Draw(t, "lease")
					m.Lease, m.Digest = l.ID, l.Digest
				}
				m.Cause = proto.Cause(rapid.IntRange(0, 7).Draw(t, "cause"))
				b.Handle(now, node.Draw(t, "node"), m)
			},
			"near": func(t *rapid.T) {
				if len(leases) > 0 {
					l := rapid.SampledFrom(leases).Draw(t, "lease")
					b.Handle(now, node.Draw(t, "node"), &proto.Near{Digest: l.Digest, Lease: l.ID})
				}
			},
			"await": func(t *rapid.T) {
				b.Handle(now, node.Draw(t, "node"), &proto.Await{Digest: blob.Draw(t, "blob").Digest, Index: rapid.IntRange(0, 9).Draw(t, "index")})
			},
			"decline": func(t *rapid.T) {
				b.Handle(now, node.Draw(t, "node"), &proto.Decline{Digest: blob.Draw(t, "blob").Digest})
			},
			"sums": func(t *rapid.T) {
				b.Handle(now, node.Draw(t, "node"), &proto.Sums{
					Digest: blob.Draw(t, "blob").Digest, First: rapid.IntRange(0, 9).Draw(t, "first"),
					Sums: make([]proto.Sum, rapid.IntRange(0, 9).Draw(t, "n")),
				})
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 200_000).Draw(t, "ms")) * time.Millisecond)
				b.Tick(now)
			},
			"": func(t *rapid.T) {
				for _, l := range b.Letters() {
					if m, ok := l.Message.(*proto.Lease); ok {
						leases = append(leases, m)
					}
				}
				audit(t, b)
			},
		})
	})
}

// fataler is a *testing.T or *rapid.T.
type fataler interface{ Fatalf(string, ...any) }

// audit checks that a Book's tables agree with each other.
func audit(t fataler, b *Book) {
	used, out, seconds := make(map[*node]int), make(map[*node]int), make(map[*node]int)
	for _, l := range b.leases {
		if l.near {
			continue
		}
		out[l.part.node]++
		if !l.origin {
			used[l.source]++
			if l.second {
				seconds[l.source] = 1
			}
		}
		if b.nodes[l.part.node.member.ID] != l.part.node {
			t.Fatalf("lease %d belongs to a node that is gone", l.id)
		}
	}
	for _, n := range b.nodes {
		if n.out != out[n] || n.used != used[n] || n.used > n.slots+seconds[n] { // one more for what is late
			t.Fatalf("%s: out %d used %d of %d, by its leases %d and %d", n.member.ID, n.out, n.used, n.slots, out[n], used[n])
		}
	}
	for _, s := range b.swarms {
		wants, parts, originOut := 0, 0, 0
		copies := make([]int32, s.blob.Chunks())
		for _, p := range s.slots {
			if p == nil {
				continue
			}
			parts++
			if p.have != nil {
				wants++
			}
			for _, l := range p.leases {
				if l.origin && !l.near {
					originOut++
				}
			}
			for c := range copies {
				if p.leased.Has(c) || p.has(c) && !p.mute && !p.node.suspect {
					copies[c]++
				}
				if p.leased.Has(c) && p.has(c) {
					t.Fatalf("chunk %d is both there and on its way", c)
				}
			}
		}
		if wants != s.wants || parts != s.parts {
			t.Fatalf("swarm counts %d of %d parts incomplete, there are %d of %d", s.wants, s.parts, wants, parts)
		}
		if s.active() {
			auditTallies(t, s)
		}
		if s.active() && (!slices.Equal(copies, s.all) || originOut != s.originOut) {
			t.Fatalf("copies %v and %d on the origin, counted %v and %d", s.all, s.originOut, copies, originOut)
		}
	}
}

// auditTallies checks what a swarm counts against its parts.
func auditTallies(t fataler, s *swarm) {
	spare, wanted, fast := newTally(s.chunks()), newTally(s.chunks()), make([]int32, s.chunks())
	whole, free, hungry := 0, 0, 0
	zones := make(map[int][]int32)
	for _, p := range s.slots {
		if p == nil {
			continue
		}
		n := p.node
		if want := !p.mute && !n.suspect && n.used < n.slots && !n.slow && (p.whole || p.count > 0); want != (p.fpos >= 0) {
			t.Fatalf("%s is free: %v, want %v", n.member.ID, p.fpos >= 0, want)
		}
		switch {
		case p.fpos < 0:
		case n.seeds():
			free++
		case p.whole:
			whole, free = whole+1, free+1
		default:
			free++
			spare.count(p.have, true)
		}
		if p.hpos >= 0 {
			hungry++
			for w := range p.have {
				wanted.word(w, p.missing(w), true)
			}
		}
		if !p.whole && p.count != p.have.Count() {
			t.Fatalf("%s counts %d chunks of %d", n.member.ID, p.count, p.have.Count())
		}
		z := zones[n.zone]
		if z == nil {
			z = make([]int32, s.chunks())
			zones[n.zone] = z
		}
		for c := range s.chunks() {
			if p.leased.Has(c) && n.spreads() {
				z[c]++
			}
			if bitAt(s.holdersOf(c), p.slot) {
				if n.spreads() {
					z[c]++
				}
				if !n.slow {
					fast[c]++
				}
			}
		}
	}
	if !reflect.DeepEqual(spare, s.spare) || whole != s.spareWhole || free != len(s.free) {
		t.Fatalf("spare %v, %d whole of %d, counted %v, %d of %d", spare, whole, free, s.spare, s.spareWhole, len(s.free))
	}
	if !reflect.DeepEqual(wanted, s.wanted) || hungry != len(s.hungry) {
		t.Fatalf("wanted %v by %d, counted %v by %d", wanted, hungry, s.wanted, len(s.hungry))
	}
	if !slices.Equal(fast, s.fast) {
		t.Fatalf("fast holders %v, counted %v", fast, s.fast)
	}
	for c := range s.chunks() {
		if want := fast[c] == 0 && slices.ContainsFunc(s.holdersOf(c), func(h uint64) bool { return h != 0 }); s.lone.Has(c) != want {
			t.Fatalf("chunk %d has slow holders only: %v, want %v", c, s.lone.Has(c), want)
		}
	}
	for number, want := range zones {
		if !slices.Equal(want, s.zone(number).copies) {
			t.Fatalf("zone %d has %v, counted %v", number, want, s.zone(number).copies)
		}
	}
	spread := make([]int32, s.chunks())
	none := 0
	for c := range s.chunks() {
		for _, z := range zones {
			spread[c] += z[c]
		}
		if s.all[c] == 0 {
			none++
		}
	}
	if !slices.Equal(spread, s.rarity.copies) || none != s.none {
		t.Fatalf("copies that spread %v, %d chunks with none, counted %v and %d", spread, none, s.rarity.copies, s.none)
	}
	auditOrder(t, &s.rarity)
}

// auditOrder checks that the chunks stand in the order of their copies.
func auditOrder(t fataler, r *rarity) {
	for i, c := range r.order {
		n := r.copies[c]
		if r.has.Has(int(c)) != (n > 0) || int(r.pos[c]) != i || i > 0 && r.copies[r.order[i-1]] > n || int(r.start[n]) > i || int(r.start[n+1]) <= i {
			t.Fatalf("chunk %d with %d copies stands at %d of %v, starts %v", c, n, i, r.order, r.start)
		}
	}
}

// TestHoldBeforeLastDone: a node may say that it holds the whole before its
// report of the last chunk, which has that chunk's sum, is read; or that report
// may have gone to another scheduler.
func TestHoldBeforeLastDone(t *testing.T) {
	for reported, want := range map[bool]string{true: "b *proto.Lease", false: "a *proto.Ask"} {
		blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 3 * proto.MinChunk}
		b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
		b.Connect(epoch, proto.Member{ID: "a"})
		b.Connect(epoch, proto.Member{ID: "b"})
		b.Handle(epoch, "a", &proto.Join{Blob: blob, Have: proto.Set{0b011}, Flight: proto.Set{0b100}, Await: -1})
		b.Handle(epoch, "a", &proto.Sums{Digest: blob.Digest, Sums: []proto.Sum{{1}, {2}, {}}})
		b.Handle(epoch, "b", &proto.Join{Blob: blob, Flight: proto.Set{0b011}, Await: -1})
		b.Letters()
		b.Handle(epoch, "a", &proto.Hold{Blobs: []proto.Blob{blob}})
		if reported {
			b.Letters()
			b.Handle(epoch, "a", &proto.Done{Digest: blob.Digest, Index: 2, Sum: proto.Sum{3}})
		}
		var got []string
		for _, l := range b.Letters() {
			got = append(got, fmt.Sprintf("%s %T", l.To, l.Message))
		}
		if !slices.Contains(got, want) {
			t.Errorf("reported %v: letters are %q, want %q among them", reported, got, want)
		}
	}
}

// TestTypicalIsTheMedian: the first chunks of a rollout may come out of some
// buffer; that must not make everybody slow.
func TestTypicalIsTheMedian(t *testing.T) {
	var r recent
	for range enoughRates - 1 {
		if got := r.add(500e6); got != 0 {
			t.Fatalf("typical is %g before enough was measured", got)
		}
	}
	for range enoughRates {
		r.add(12e6)
	}
	if got := r.add(12e6); got != 12e6 {
		t.Errorf("typical is %g after a few chunks out of a buffer, want 12e6", got)
	}
	for range 2 * len(r.last) {
		r.add(1e6)
	}
	if r.median != 1e6 {
		t.Errorf("typical is %g, want what was measured lately", r.median)
	}
}
