package scheduler

import (
	"math"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// TestMore: leases are more where a chunk's round trips take longer than its bytes.
func TestMore(t *testing.T) {
	const chunk = 512 << 10
	for _, test := range []struct {
		name             string
		trip, size, rate float64
		want             int
	}{
		{"a rack, 100 Mbit/s", 0.0002, chunk, 12.5e6, 0},
		{"a rack under load", 0.003, chunk, 12.5e6, 0},
		{"a site", 0.010, chunk, 12.5e6, 1},
		{"a country", 0.027, chunk, 12.5e6, 4},
		{"a continent", 0.060, chunk, 12.5e6, mostMore},
		{"10 Gbit/s", 0.0005, 8 << 20, 1.25e9, 0},
		{"10 Gbit/s, a site", 0.002, 8 << 20, 1.25e9, 2},
		{"nothing is known of the link", 0.060, chunk, 0, 0},
		{"no round trip", 0, chunk, 12.5e6, 0},
	} {
		if got := more(cold(test.trip, test.size), test.size, test.rate); got != test.want {
			t.Errorf("%s: %d more, want %d", test.name, got, test.want)
		}
	}
}

// TestTrip: the round trip to a node is the least that was seen, since its link is
// often full.
func TestTrip(t *testing.T) {
	n := &node{}
	for _, ms := range []float64{30, 20, 60, 40} {
		n.looped(ms / 1000)
	}
	if n.trip != 0.020 || n.loop <= 0.020 {
		t.Errorf("the round trip is %v s, the loop %v", n.trip, n.loop)
	}
}

// TestFarNodesHaveMoreLeases: both ends of a transfer may have more of them if either
// is far away, and fewer again when they no longer are.
func TestFarNodesHaveMoreLeases(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b, chunk := threeNodes(fast, size)
	a, far := b.nodes["a"], b.nodes["new"]
	far.trip = 0.030
	blob := proto.Blob{Digest: proto.DigestOf([]byte("blob")), Size: 64 << 20}
	b.reach(a, far, float64(blob.ChunkSize()))
	b.fitSlots(a)
	if got := b.window(far); got <= b.tuning.Window {
		t.Errorf("the far node may have %d leases", got)
	}
	if a.slots <= b.tuning.Slots {
		t.Errorf("its source serves %d", a.slots)
	}
	far.trip = 0
	for range 100 {
		b.reach(a, far, float64(blob.ChunkSize()))
		chunk("b", "a", fast/3, 3, 3)
	}
	if got := b.window(far); got != b.tuning.Window || a.slots != b.tuning.Slots {
		t.Errorf("no longer far, it may have %d leases, and its source serves %d", got, a.slots)
	}
}

// TestBeginningsSayLittle: that a chunk took as long as a connection's beginning takes
// does not make a link slow.
func TestBeginningsSayLittle(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	for _, test := range []struct {
		trip time.Duration
		slow bool
	}{
		{0, true},
		{30 * time.Millisecond, false},
	} {
		b, chunk := threeNodes(fast, size)
		n := b.nodes["new"]
		n.trip = test.trip.Seconds()
		for range 5 {
			chunk("new", "a", fast/6, 1, 1)
		}
		if n.slow != test.slow {
			t.Errorf("with round trips of %s it counts as slow: %v", test.trip, n.slow)
		}
	}
}

// TestEarly: a lease on an origin is near its end when the next one has to be asked
// for so that no time is lost: by what the first chunks of runs took longer than the
// others.
func TestEarly(t *testing.T) {
	b := NewBook(Tuning{}, 1, epoch)
	s := &swarm{blob: proto.Blob{Digest: proto.DigestOf([]byte("blob")), Size: 64 << 20}}
	p := &part{node: &node{loop: 0.010}, swarm: s}
	run := func(first, each time.Duration, chunks int) *lease {
		l := &lease{part: p, origin: true, count: chunks, left: chunks}
		for took := first; l.left > 0; took = each {
			b.measure(epoch, l, 512<<10, took)
			l.left--
		}
		return l
	}
	l := run(50*time.Millisecond, 0, 1)
	if got := early(l); got != 10*time.Millisecond {
		t.Errorf("after a lease of one chunk: %s, want what messages take, 10ms", got)
	}
	l = run(150*time.Millisecond, 50*time.Millisecond, 4)
	if got := early(l); math.Abs((got - 110*time.Millisecond).Seconds()) > 1e-6 {
		t.Errorf("after one that took 100 ms to begin: %s, want 110ms", got)
	}
	for range 50 {
		l = run(50*time.Millisecond, 100*time.Millisecond, 4) // the first one was in a buffer
	}
	if got := early(l); got < 10*time.Millisecond || got > 11*time.Millisecond {
		t.Errorf("after many that began at once: %s, want 10ms", got)
	}
	peer := &lease{part: p, source: &node{}}
	if got := early(peer); got != 20*time.Millisecond {
		t.Errorf("on a peer: %s, want 20ms", got)
	}
}

// TestFarIsNotLate: a chunk that is on its way for as long as its round trips take is
// not late yet.
func TestFarIsNotLate(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b, _ := threeNodes(fast, size)
	l := &lease{part: &part{node: b.nodes["new"], swarm: &swarm{blob: proto.Blob{Size: 64 << 20}}}, source: b.nodes["a"], count: 1}
	if got := b.lateAfter(l); got != b.tuning.LateAfter {
		t.Errorf("nearby it is late after %s, want %s", got, b.tuning.LateAfter)
	}
	for _, far := range []*node{l.part.node, l.source} {
		far.lost = 0.5
		if got, want := b.lateAfter(l), 3*500*time.Millisecond; got != want {
			t.Errorf("if %s is far away it is late after %s, want %s", far.member.ID, got, want)
		}
		far.lost = 0
	}
}
