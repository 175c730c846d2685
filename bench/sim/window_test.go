package sim

import (
	"math"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/report"
)

// TestSlowStart: over links that are no limit, a chunk takes the round trips in which
// the window grows from ten segments until all is sent.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	const rtt = 10 * time.Millisecond
	for _, tt := range []struct {
		size  int64
		trips float64 // after those of the connection and the request
	}{
		{firstWindow / 2, 0.5},
		{firstWindow, 1},
		{2 * firstWindow, 1.5},
		{3 * firstWindow, 2},
		{7 * firstWindow, 3},
		{100_000, 2 + (100_000-3*firstWindow)/(4.0*firstWindow)},
	} {
		o := with(even(1, tt.size, 1e6*mbit), func(o *Options) { o.Mode, o.RTT, o.SlowStart = report.ModeNoScheduler, rtt, true })
		got, want := simulate(t, o).Nodes[0].Done, (3+tt.trips)*rtt.Seconds()
		if math.Abs(got-want) > 1e-6 {
			t.Errorf("%d bytes: %v s, want %v", tt.size, got, want)
		}
	}
}

// TestFullLinkEndsSlowStart: with round trips that are short beside what the link holds,
// a large blob takes little longer than without windows.
func TestFullLinkEndsSlowStart(t *testing.T) {
	t.Parallel()
	o := with(even(1, 64<<20, 100*mbit), func(o *Options) { o.Mode, o.RTT = report.ModeNoScheduler, time.Millisecond })
	without := simulate(t, o).Nodes[0].Done
	o.SlowStart = true
	if got := simulate(t, o).Nodes[0].Done; got < 0.999*without || got > 1.01*without {
		t.Errorf("took %v s, and %v without windows", got, without)
	}
}

// TestConnections: a transfer has the connection that was used last, whose window is
// halved for each time-out that it was idle, or a new one if all are busy.
func TestConnections(t *testing.T) {
	t.Parallel()
	const rtt, window = 100 * time.Millisecond, 20 * firstWindow
	s := newSim(with(even(2, 64<<20, 1e6*mbit), func(o *Options) { o.RTT, o.SlowStart = rtt, true }).filled())
	begin := func() (f *flow, fresh bool) {
		f = s.newFlow()
		f.src, f.dst = s.hosts[0], s.hosts[1]
		return f, s.connect(f)
	}
	a, fresh := begin()
	if !fresh || a.connection.window != firstWindow {
		t.Fatalf("the first connection: new is %v, window %v", fresh, a.connection.window)
	}
	b, fresh := begin()
	if !fresh || b.connection == a.connection {
		t.Fatal("a busy connection has a second transfer")
	}
	older, newer := b.connection, a.connection
	s.now = time.Second
	s.free(b)
	s.now += time.Millisecond
	s.free(a)
	for _, tt := range []struct {
		idle time.Duration
		want float64
	}{
		{300 * time.Millisecond, window}, // a time-out is 200 ms and a round trip
		{301 * time.Millisecond, window / 2},
		{601 * time.Millisecond, window / 4},
		{time.Hour, firstWindow},
	} {
		newer.window = window
		s.now += tt.idle
		f, fresh := begin()
		s.open(f)
		if fresh || f.connection == older || f.connection.window != tt.want {
			t.Errorf("after %s: new is %v, the other one is %v, window %v, want %v", tt.idle, fresh, f.connection == older, f.connection.window, tt.want)
		}
		s.free(f)
	}
}
