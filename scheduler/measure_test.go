package scheduler

import (
	"math"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// TestLine: a lease's share of a link is what it would be if each lease on it had
// the same, whenever they came and went.
func TestLine(t *testing.T) {
	at := func(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }
	var l line
	// rate is what the line seems to carry by a lease that got so many bytes.
	rate := func(bytes, alone float64, since, now int) float64 {
		seconds := float64(now-since) / 1000
		return bytes / seconds * l.shared(at(now), alone, seconds)
	}
	first := l.count(at(1000), 1)
	second := l.count(at(1010), 1)
	l.count(at(1010), 1)
	if got := rate(10, second, 1010, 1040); math.Abs(got-1000) > 1 { // of 1000 bytes a second a third
		t.Errorf("by the second of three it carries %v, want 1000", got)
	}
	l.count(at(1040), -2)
	if got := rate(10+10+20, first, 1000, 1060); math.Abs(got-1000) > 1 {
		t.Errorf("by one that was alone, then one of three, then alone, it carries %v, want 1000", got)
	}
	l.count(at(1060), -1)
	third := l.count(at(9000), 1)
	if got := rate(10, third, 9000, 9010); math.Abs(got-1000) > 1 {
		t.Errorf("by one that was alone, after nobody was there, it carries %v, want 1000", got)
	}
	if got := l.shared(at(9010), l.count(at(9010), 0), 0); got != 1 {
		t.Errorf("in no time it was shared among %v, want 1", got)
	}
}

// threeNodes returns a Book that knows the links of a and b, and nothing of a third
// node, "new", and what has a node receive a chunk at a rate, by one of so many leases
// on the source's link and on its own.
func threeNodes(rate float64, size int64) (*Book, func(to, from string, rate float64, up, down int)) {
	b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
	for _, id := range []string{"a", "b", "new"} {
		b.Connect(epoch, proto.Member{ID: id})
	}
	chunk := func(to, from string, rate float64, up, down int) {
		src, n := b.nodes[from], b.nodes[to]
		src.up.leases, n.down.leases = up, down
		l := &lease{part: &part{node: n, swarm: &swarm{blob: proto.Blob{Size: 64 << 20}}}, source: src, left: 1, count: 1}
		b.measure(epoch, l, size, time.Duration(float64(size)/rate*float64(time.Second)))
	}
	for range 10 {
		chunk("a", "b", rate/3, 3, 3)
		chunk("b", "a", rate/3, 3, 3)
	}
	return b, chunk
}

// TestFewMeasurements: a node is not slow because of its first two chunks, of which
// one may have come by a connection that had little of the link.
func TestFewMeasurements(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b, chunk := threeNodes(fast, size)
	for i := 1; i <= 3; i++ {
		chunk("new", "a", fast/10, 1, 1)
		if slow := b.nodes["new"].slow; slow != (i == 3) {
			t.Errorf("after %d slow chunks it counts as slow: %v", i, slow)
		}
	}
}

// TestSlowNoMore: a source that was slow is not any more if it gives more, even if
// what it gives is all that its taker can have by one of three leases.
func TestSlowNoMore(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b, chunk := threeNodes(fast, size)
	for range enoughOfOne {
		chunk("a", "new", fast/10, 1, 3)
	}
	if !b.nodes["new"].slow {
		t.Fatal("it is not slow to begin with")
	}
	for range len(few{}.last) {
		chunk("a", "new", fast/3, 1, 3)
	}
	if b.nodes["new"].slow {
		t.Error("it still counts as slow")
	}
}

// TestSharedTaker: a source from which a node takes one of three leases gives a third
// of what it could, and is not slow for it. One with a tenth of the others' link is.
func TestSharedTaker(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	for _, test := range []struct {
		name     string
		gets     float64 // of fast, by a lease
		up, down int     // leases that share either link
		slow     string
	}{
		{"one of the taker's three", 1.0 / 3, 1, 3, ""},
		{"the same, unevenly", 0.22, 1, 3, ""},
		{"one of the source's three", 1.0 / 3, 3, 1, ""},
		{"a slow source, one of the taker's three", 0.1, 1, 3, "new"},
		{"three of a slow source", 0.1 / 3, 3, 3, "new"},
	} {
		b, chunk := threeNodes(fast, size)
		for range 5 {
			chunk("a", "new", fast*test.gets, test.up, test.down)
		}
		slow := ""
		for _, n := range []string{"a", "b", "new"} {
			if b.nodes[n].slow {
				slow += n
			}
		}
		if slow != test.slow {
			t.Errorf("%s: %q counts as slow, want %q", test.name, slow, test.slow)
		}
	}
}

// TestWindow: a node that gives slowly may still take as many leases as others; one
// that takes slowly may not.
func TestWindow(t *testing.T) {
	b := NewBook(Tuning{}, 1, epoch)
	b.typical = 12e6
	gives, takes, unknown := &node{slow: true}, &node{slow: true}, &node{slow: true}
	for range enoughOfOne {
		gives.gave.add(1e6)
		gives.took.add(12e6)
		takes.took.add(1e6)
		unknown.gave.add(1e6)
	}
	for _, test := range []struct {
		name string
		n    *node
		want int
	}{
		{"nothing is slow", &node{}, b.tuning.Window},
		{"gives slowly", gives, b.tuning.Window},
		{"takes slowly", takes, 1},
		{"gives slowly, and nobody knows how it takes", unknown, 1},
	} {
		if got := b.window(test.n); got != test.want {
			t.Errorf("%s: window %d, want %d", test.name, got, test.want)
		}
	}
}
