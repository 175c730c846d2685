package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/report"
)

const mbit = 1e6 / 8

// even returns options with all links equal.
func even(nodes int, size int64, rate float64) Options {
	return Options{Nodes: nodes, Size: size, Layers: 1, NodeRate: rate, OriginRate: rate, Seed: 1}
}

func with(o Options, change func(o *Options)) Options {
	change(&o)
	return o
}

func simulate(t *testing.T, o Options) *report.Result {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAlone: with one node there is nothing to decide, and the time is what the
// slower of the two links takes.
func TestAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		size         int64
		layers       int
		origin, node float64
		goodput      float64
	}{
		{64 << 20, 1, 100 * mbit, 100 * mbit, 1},
		{64 << 20, 1, 10 * mbit, 100 * mbit, 1},
		{64 << 20, 1, 100 * mbit, 10 * mbit, 1},
		{64<<20 + 12345, 7, 100 * mbit, 100 * mbit, 1},
		{1000, 1, 100 * mbit, 100 * mbit, 1},
		{3 << 30, 1, 10000 * mbit, 10000 * mbit, 1},
		{64 << 20, 1, 100 * mbit, 100 * mbit, 0.956},
		{64 << 20, 1, 10 * mbit, 100 * mbit, 0.956},
	} {
		o := Options{Nodes: 1, Size: tt.size, Layers: tt.layers, NodeRate: tt.node, OriginRate: tt.origin, Goodput: tt.goodput, Mode: report.ModeNoScheduler}
		r := simulate(t, o)
		want := float64(tt.size) / min(tt.origin, tt.node) / tt.goodput
		if got := r.Nodes[0].Done; got < want*(1-1e-9) || got > want*1.01+1e-6 {
			t.Errorf("%+v: took %v s, want %v", tt, got, want)
		}
	}
}

// TestRoundTrips: a blob of one chunk takes the transfer and the round trips
// that its messages and connections take, to the nanosecond.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	const rtt, size = 10 * time.Millisecond, 100_000
	transfer := time.Duration(math.Ceil(size / (100 * mbit) * 1e9))
	for mode, trips := range map[string]int{
		report.ModeNoScheduler: 3, // the node schedules for itself; TCP, TLS, the request
		report.ModeShoal:       4, // to the scheduler and back before that
	} {
		o := even(1, size, 100*mbit)
		o.Mode, o.RTT = mode, rtt
		r := simulate(t, o)
		if got, want := r.Nodes[0].Done, (time.Duration(trips)*rtt + transfer).Seconds(); math.Abs(got-want) > 2e-9 {
			t.Errorf("%s: %v s, want %v", mode, got, want)
		}
	}
}

// fleets are rollouts of all kinds.
var fleets = map[string]Options{
	"one":            even(1, 64<<20, 100*mbit),
	"eight":          even(8, 64<<20, 100*mbit),
	"a kilobyte":     even(8, 1000, 100*mbit),
	"a few bytes":    with(even(3, 5, 100*mbit), func(o *Options) { o.Layers = 5 }),
	"no scheduler":   with(even(16, 64<<20, 100*mbit), func(o *Options) { o.Mode = report.ModeNoScheduler }),
	"round trips":    with(even(16, 64<<20, 1000*mbit), func(o *Options) { o.RTT = 5 * time.Millisecond }),
	"layers":         with(even(12, 70<<20+3, 100*mbit), func(o *Options) { o.Layers, o.RTT = 6, time.Millisecond }),
	"many owners":    with(even(12, 70<<20, 100*mbit), func(o *Options) { o.Layers, o.Mode = 8, report.ModeNoScheduler }),
	"zones":          with(even(24, 64<<20, 100*mbit), func(o *Options) { o.Zones, o.CrossZoneRate = 4, 200*mbit }),
	"thin zones":     with(even(12, 32<<20, 100*mbit), func(o *Options) { o.Zones, o.CrossZoneRate = 3, 20*mbit }),
	"slow nodes":     with(even(20, 64<<20, 100*mbit), func(o *Options) { o.SlowNodes, o.SlowRate = 2, 10*mbit }),
	"late nodes":     with(even(30, 64<<20, 100*mbit), func(o *Options) { o.ArrivalRate = 3 }),
	"killed":         with(even(16, 64<<20, 100*mbit), func(o *Options) { o.Kill, o.RTT = 2*time.Second, time.Millisecond }),
	"killed, layers": with(even(16, 64<<20, 100*mbit), func(o *Options) { o.Kill, o.Layers, o.ArrivalRate = 2*time.Second, 4, 10 }),
	"fast origin":    with(even(8, 64<<20, 100*mbit), func(o *Options) { o.OriginRate = 1000 * mbit }),
	"thin origin":    with(even(8, 16<<20, 100*mbit), func(o *Options) { o.OriginRate = 10 * mbit }),
	"busy scheduler": with(even(8, 64<<20, 100*mbit), func(o *Options) { o.Decision = time.Millisecond }),
	"slow start":     with(even(16, 64<<20, 100*mbit), func(o *Options) { o.RTT, o.SlowStart = 20*time.Millisecond, true }),
	"killed, slow":   with(even(12, 64<<20, 100*mbit), func(o *Options) { o.Kill, o.RTT, o.SlowStart = 2*time.Second, 5*time.Millisecond, true }),
	"two hundred":    with(even(200, 256<<20, 1000*mbit), func(o *Options) { o.RTT = time.Millisecond }),
}

// TestFleets: whatever the fleet, all nodes end with all bytes, every byte came
// from somewhere, and nothing is faster than the links.
func TestFleets(t *testing.T) {
	t.Parallel()
	for name, o := range fleets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := simulate(t, o)
			if n := r.Failed(); n > 0 {
				t.Fatalf("%d nodes failed: %s", n, r.Nodes[len(r.Nodes)-1].Error)
			}
			// A nanosecond is what times are rounded to.
			if r.Ratio() < 1-1e-8 {
				t.Errorf("the last node is at %v of the bound", r.Ratio())
			}
			origin := int64(0)
			for i := range r.Nodes {
				n := &r.Nodes[i]
				checkNode(t, o, n)
				origin += n.Bytes.Origin
			}
			if s := r.Scheduler; s != nil {
				origin += s.Bytes.Origin
			}
			if origin != r.OriginBytes || origin < o.Size {
				t.Errorf("%d bytes came from the origin, and %d left it, of %d", origin, r.OriginBytes, o.Size)
			}
			if o.Kill == 0 && o.Size > 1<<20 && r.Copies() > 1.001 {
				t.Errorf("%v copies left the origin", r.Copies())
			}
			if (o.Kill > 0) != (len(r.Faults) == 1) {
				t.Errorf("faults: %v", r.Faults)
			}
			if r.Grants == 0 || r.GrantSeconds <= 0 {
				t.Errorf("%d leases in %v s", r.Grants, r.GrantSeconds)
			}
			t.Logf("%s: %.3f of the bound, %.3f copies", name, r.Ratio(), r.Copies())
		})
	}
}

func checkNode(t *testing.T, o Options, n *report.Node) {
	t.Helper()
	b := n.Bytes
	if got := b.Origin + b.Seed + b.Zone + b.Far - b.Duplicate; got != o.Size {
		t.Errorf("%s has %d bytes of %d: %+v", n.Name, got, o.Size, b)
	}
	if o.Zones < 2 && b.Far > 0 {
		t.Errorf("%s has bytes from another zone, and there is none", n.Name)
	}
	own := n.Done - n.Arrived
	if own < n.Bound*(1-1e-8) {
		t.Errorf("%s took %v s, and its links take %v", n.Name, own, n.Bound)
	}
	if n.Silence <= 0 || n.Silence > own*(1+1e-9) {
		t.Errorf("%s was silent for %v of %v s", n.Name, n.Silence, own)
	}
	last := 0.0
	for i, at := range n.Layers {
		if at <= n.Arrived || at > n.Done {
			t.Errorf("%s had layer %d at %v, between %v and %v", n.Name, i, at, n.Arrived, n.Done)
		}
		last = max(last, at)
	}
	if last != n.Done {
		t.Errorf("%s was done at %v, its last layer at %v", n.Name, n.Done, last)
	}
	if points := float64(len(n.Progress)); points > 64*own/n.Bound+1 {
		t.Errorf("%s has %d points", n.Name, len(n.Progress))
	}
	for i, p := range n.Progress {
		if p.Bytes > o.Size || i > 0 && (p.At < n.Progress[i-1].At || p.Bytes < n.Progress[i-1].Bytes) {
			t.Errorf("%s went from %+v to %+v", n.Name, n.Progress[max(i-1, 0)], p)
		}
	}
}

// TestNobodySeemsSlow: where all links are equal, nobody is taken for slow because
// its source serves more at the end of a lease than at the start. One who is ends
// long after the others.
func TestNobodySeemsSlow(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{2, 3} {
		o := even(200, 1<<30, 10000*mbit)
		o.RTT = 500 * time.Microsecond
		o.Tuning.Window, o.Tuning.Slots = slots, slots
		if ratio := simulate(t, o).Ratio(); ratio > 1.3 {
			t.Errorf("%d slots: %.2f times the bound, want 1.3 at most", slots, ratio)
		}
	}
}

// TestFarNodes: where round trips are long beside what a chunk takes, and connections
// begin slowly, more leases fill the links. With no more than usual these take 1.70,
// 3.8 and 9.7.
func TestFarNodes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		nodes int
		rtt   time.Duration
		most  float64
	}{
		{16, 30 * time.Millisecond, 1.40},
		{64, 60 * time.Millisecond, 2.3},
		{64, 150 * time.Millisecond, 5},
	} {
		o := with(even(tt.nodes, 64<<20, 100*mbit), func(o *Options) { o.RTT, o.SlowStart, o.Goodput = tt.rtt, true, 0.956 })
		r := simulate(t, o)
		if got := r.Ratio(); got > tt.most {
			t.Errorf("%d nodes with round trips of %s took %.2f, want at most %.2f", tt.nodes, tt.rtt, got, tt.most)
		}
		// What is merely far is not late.
		twice := int64(0)
		for _, n := range r.Nodes {
			twice += n.Bytes.Duplicate
		}
		if got := float64(twice) / float64(o.Size*int64(o.Nodes)); got > 0.01 {
			t.Errorf("%d nodes with round trips of %s got %.2f %% of their bytes twice", tt.nodes, tt.rtt, 100*got)
		}
	}
}

// TestOriginIsFull: without a seed the nodes take all that the origin can send,
// however many other leases they have beside those on the origin.
func TestOriginIsFull(t *testing.T) {
	t.Parallel()
	for _, window := range []int{2, 3} {
		o := even(16, 64<<20, 100*mbit)
		o.Mode, o.RTT = report.ModeNoScheduler, 200*time.Microsecond
		o.Tuning.Window, o.Tuning.Slots = window, window
		if ratio := simulate(t, o).Ratio(); ratio > 1.15 {
			t.Errorf("window of %d: %.2f times the bound, want 1.15 at most", window, ratio)
		}
	}
}

// TestSameAgain: the same options give the same rollout, another seed another.
func TestSameAgain(t *testing.T) {
	t.Parallel()
	o := with(even(24, 64<<20, 100*mbit), func(o *Options) {
		o.Layers, o.Zones, o.ArrivalRate, o.RTT, o.SlowNodes, o.SlowRate = 3, 3, 20, time.Millisecond, 2, 10*mbit
	})
	strip := func(r *report.Result) *report.Result {
		r.GrantSeconds, r.SchedulerMemory = 0, 0 // what is real is never the same
		return r
	}
	for _, mode := range []string{report.ModeShoal, report.ModeNoScheduler} {
		o.Mode = mode
		first, second := strip(simulate(t, o)), strip(simulate(t, o))
		if !reflect.DeepEqual(first, second) {
			t.Errorf("%s: the same again gave another rollout: %v and %v of the bound", mode, first.Ratio(), second.Ratio())
		}
		other := strip(simulate(t, with(o, func(o *Options) { o.Seed = 2 })))
		if reflect.DeepEqual(first.Nodes, other.Nodes) {
			t.Errorf("%s: another seed gave the same rollout", mode)
		}
	}
}

// TestArrivals: the gaps are exponential: their mean, their deviation and their
// median are what they should be.
func TestArrivals(t *testing.T) {
	t.Parallel()
	o := Options{Nodes: 20_001, ArrivalRate: 5, Seed: 3}
	times := o.arrivals()
	if times[0] != 0 {
		t.Errorf("the first arrives at %s", times[0])
	}
	n := float64(len(times) - 1)
	sum, squares, short := 0.0, 0.0, 0.0
	for i := range times[1:] {
		gap := (times[i+1] - times[i]).Seconds()
		if gap < 0 {
			t.Fatalf("node %d arrives before node %d", i+1, i)
		}
		sum += gap
		squares += gap * gap
		if gap < math.Ln2/5 {
			short++
		}
	}
	mean := sum / n
	deviation := math.Sqrt(squares/n - mean*mean)
	for what, x := range map[string]float64{"mean": mean * 5, "deviation": deviation * 5, "share under the median": short / n * 2} {
		if math.Abs(x-1) > 0.04 { // four standard errors and more
			t.Errorf("%s: %v of what it should be", what, x)
		}
	}
	for _, at := range (Options{Nodes: 3}).arrivals() {
		if at != 0 {
			t.Errorf("together, one arrives at %s", at)
		}
	}
}

// TestBusyScheduler: a scheduler that cannot keep up is the limit.
func TestBusyScheduler(t *testing.T) {
	t.Parallel()
	o := even(16, 64<<20, 10_000*mbit)
	free := simulate(t, o)
	o.Decision = 100 * time.Microsecond
	busy := simulate(t, o)
	// Each chunk of each node and of the seed is a message at least.
	if least := 17 * 128 * o.Decision.Seconds(); busy.Nodes[0].Done < least || free.Nodes[0].Done > least {
		t.Errorf("the rollout took %v s, with a busy scheduler %v s; its messages alone take %v s", free.Nodes[0].Done, busy.Nodes[0].Done, least)
	}
}

// TestKilledScheduler: what a dead scheduler was sending and receiving breaks
// off, and those who take over are told what is whole.
func TestKilledScheduler(t *testing.T) {
	t.Parallel()
	o := even(8, 64<<20, 100*mbit)
	o.Kill = 2 * time.Second
	r := simulate(t, o)
	sent := int64(0)
	for i := range r.Nodes {
		sent += r.Nodes[i].Bytes.Seed
	}
	most := int64(o.Kill.Seconds() * 100 * mbit)
	if sent > most || r.Scheduler.Bytes.Origin > most {
		t.Errorf("the scheduler got %d bytes and sent %d, and had time for %d", r.Scheduler.Bytes.Origin, sent, most)
	}

	o = even(3, 8<<20, 100*mbit)
	o.ArrivalRate, o.Kill = 0.1, 2*time.Second
	r = simulate(t, o)
	if first, next := r.Nodes[0].Done, r.Nodes[1].Arrived; first > o.Kill.Seconds() || next < o.Kill.Seconds() {
		t.Fatalf("the first was done at %v and the next came at %v", first, next)
	}
	if r.Copies() != 1 {
		t.Errorf("%v copies left the origin, though one node had everything", r.Copies())
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	o := even(100, 1<<30, 1000*mbit)
	o.Progress = func(Progress) { cancel() }
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	o := even(50, 256<<20, 1000*mbit)
	var seen []Progress
	o.Progress = func(p Progress) { seen = append(seen, p) }
	simulate(t, o)
	if len(seen) < 2 {
		t.Fatalf("told %d times", len(seen))
	}
	for i, p := range seen[1:] {
		if q := seen[i]; p.Bytes < q.Bytes || p.Elapsed < q.Elapsed || p.Done < q.Done || p.Bytes > p.Total {
			t.Errorf("%+v came after %+v", p, q)
		}
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{Size: 100, Layers: 1}, {Size: 101, Layers: 7}, {Size: 1 << 40, Layers: 127}, {Size: 3, Layers: 3}} {
		sum := int64(0)
		for _, b := range o.image() {
			if n := int64(o.Layers); b.Size < o.Size/n || b.Size > o.Size/n+1 {
				t.Errorf("%d bytes in %d layers: one of %d", o.Size, o.Layers, b.Size)
			}
			sum += b.Size
		}
		if sum != o.Size {
			t.Errorf("layers of %d bytes, want %d", sum, o.Size)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := even(8, 64<<20, 100*mbit)
	for name, o := range fleets {
		if err := o.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tt := range []struct {
		change func(o *Options)
		want   string
	}{
		{func(o *Options) { o.Nodes = 0 }, "--nodes 0"},
		{func(o *Options) { o.Nodes = -1 }, "--nodes -1"},
		{func(o *Options) { o.Nodes = 1e6 }, "--nodes 1000000"},
		{func(o *Options) { o.Size = 0 }, "--size 0 bytes"},
		{func(o *Options) { o.Size = -5 }, "--size -5 bytes"},
		{func(o *Options) { o.Size = 1<<40 + 1 }, "at most 1TiB"},
		{func(o *Options) { o.Layers = -1 }, "--layers -1"},
		{func(o *Options) { o.Layers = 0 }, "--layers 0"},
		{func(o *Options) { o.Layers = 128 }, "--layers 128"},
		{func(o *Options) { o.Size, o.Layers = 3, 4 }, "a byte for each layer"},
		{func(o *Options) { o.NodeRate = 0 }, "--node-rate"},
		{func(o *Options) { o.NodeRate = math.NaN() }, "--node-rate"},
		{func(o *Options) { o.OriginRate = -1 }, "--origin-rate"},
		{func(o *Options) { o.OriginRate = math.Inf(1) }, "--origin-rate"},
		{func(o *Options) { o.SeedRate = 1 }, "--seed-rate"},
		{func(o *Options) { o.Mode, o.SeedRate = report.ModeNoScheduler, o.NodeRate }, "leave it out"},
		{func(o *Options) { o.Mode = "direct" }, "--mode \"direct\""},
		{func(o *Options) { o.RTT = -1 }, "--rtt"},
		{func(o *Options) { o.RTT = time.Hour }, "--rtt"},
		{func(o *Options) { o.Zones = 9 }, "--zones 9"},
		{func(o *Options) { o.Zones = -1 }, "--zones -1"},
		{func(o *Options) { o.CrossZoneRate = 10 * mbit }, "add --zones"},
		{func(o *Options) { o.Zones, o.CrossZoneRate = 2, 1 }, "--cross-zone-rate"},
		{func(o *Options) { o.ArrivalRate = -1 }, "--arrival"},
		{func(o *Options) { o.ArrivalRate = math.NaN() }, "--arrival"},
		{func(o *Options) { o.SlowNodes, o.SlowRate = 8, 10*mbit }, "8 of 8 nodes"},
		{func(o *Options) { o.SlowNodes, o.SlowRate = 1, 0 }, "--slow"},
		{func(o *Options) { o.SlowNodes, o.SlowRate = 1, 200*mbit }, "not slower"},
		{func(o *Options) { o.Goodput = 1.1 }, "--goodput"},
		{func(o *Options) { o.Goodput = 0.1 }, "--goodput"},
		{func(o *Options) { o.Decision = time.Minute }, "--decision"},
		{func(o *Options) { o.Kill = -1 }, "before the start"},
		{func(o *Options) { o.Mode, o.Kill = report.ModeNoScheduler, 1 }, "has none"},
		{func(o *Options) { o.Nodes, o.Size = 100_000, 1<<40 }, "memory"},
	} {
		o := with(good, tt.change)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want an error with %q, got %v", tt.want, err)
		}
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%s: it ran", tt.want)
		}
	}
	both := with(good, func(o *Options) { o.Nodes, o.RTT = 0, -1 })
	if err := both.Validate(); err == nil || len(strings.Split(err.Error(), "\n")) != 2 {
		t.Errorf("want both mistakes, got %v", err)
	}
}

func ExampleRun() {
	r, err := Run(context.Background(), Options{Nodes: 1, Size: 125_000_000, Layers: 1, NodeRate: 125e6, OriginRate: 125e6, Mode: report.ModeNoScheduler})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%.2f s, at least %.2f s\n", r.Nodes[0].Done, r.Bound)
	// Output: 1.00 s, at least 1.00 s
}
