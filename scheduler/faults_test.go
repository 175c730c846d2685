package scheduler

import (
	"fmt"
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

func TestZonesGetOneCopyEach(t *testing.T) {
	w := newWorld(t, 64<<20, 9)
	zone := func(i int) string { return fmt.Sprintf("z%d", i%4) }
	names := w.rollout(32, true, zone)
	w.run()
	last := w.last(names...)
	copies := float64(w.crossing) / float64(w.blob.Size) / 3
	t.Logf("last %.2fs, %.2f copies crossed into each zone that has no seed", last.Seconds(), copies)
	if copies > 2 {
		t.Errorf("%.2f copies crossed into each zone, want about 1", copies)
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
					m.Sum, m.Took = proto.Sum{1}, time.Millisecond
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

// audit checks that a Book's tables agree with each other.
func audit(t *rapid.T, b *Book) {
	used, out := make(map[*node]int), make(map[*node]int)
	for _, l := range b.leases {
		out[l.part.node]++
		if !l.origin {
			used[l.source]++
		}
		if b.nodes[l.part.node.member.ID] != l.part.node {
			t.Fatalf("lease %d belongs to a node that is gone", l.id)
		}
	}
	for _, n := range b.nodes {
		if n.out != out[n] || n.used != used[n] || n.used > n.slots {
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
				if l.origin {
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
		if s.active() && (!slices.Equal(copies, s.copies) || originOut != s.originOut) {
			t.Fatalf("copies %v and %d on the origin, counted %v and %d", s.copies, s.originOut, copies, originOut)
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
