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

// TestFewMeasurements: a node is not slow because of its first two chunks, of which
// one may have come by a connection that had little of the link.
func TestFewMeasurements(t *testing.T) {
	const fast, size = 12.5e6, 512 << 10
	b := NewBook(Tuning{}, 1, epoch.Add(-time.Minute))
	for _, id := range []string{"a", "b", "new"} {
		b.Connect(epoch, proto.Member{ID: id})
	}
	chunk := func(to, from string, rate float64) {
		l := &lease{part: &part{node: b.nodes[to], swarm: &swarm{}}, source: b.nodes[from], left: 1, count: 1}
		b.measure(epoch, l, size, time.Duration(size/rate*float64(time.Second)))
	}
	for range 10 {
		chunk("a", "b", fast)
		chunk("b", "a", fast)
	}
	for i := 1; i <= 3; i++ {
		chunk("new", "a", fast/10)
		if slow := b.nodes["new"].slow; slow != (i == 3) {
			t.Errorf("after %d slow chunks it counts as slow: %v", i, slow)
		}
	}
}
