package sim

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wire adds a flow of size bytes over the given links.
func wire(n *network, size float64, links ...*link) *flow {
	f := &flow{heap: -1, deadline: never, left: size, hops: len(links)}
	copy(f.links[:], links)
	n.add(f)
	return f
}

func TestFairShares(t *testing.T) {
	t.Parallel()
	l := func(rate float64) *link { return &link{rate: rate} }
	for _, tt := range []struct {
		name  string
		links []*link
		flows [][]int // links of each
		want  []float64
	}{
		{"alone", []*link{l(10), l(4)}, [][]int{{0, 1}}, []float64{4}},
		{"two out of one source", []*link{l(10), l(10), l(10)}, [][]int{{0, 1}, {0, 2}}, []float64{5, 5}},
		{"what one cannot use the other gets", []*link{l(10), l(2), l(10)}, [][]int{{0, 1}, {0, 2}}, []float64{2, 8}},
		{"a parking lot", []*link{l(10), l(10)}, [][]int{{0, 1}, {0}, {1}, {1}}, []float64{10.0 / 3, 20.0 / 3, 10.0 / 3, 10.0 / 3}},
		{
			// Each step frees something for the next.
			"a chain", []*link{l(2), l(6), l(12), l(20)},
			[][]int{{0}, {0, 1}, {1, 2}, {2, 3}}, []float64{1, 1, 5, 7},
		},
		{"nothing goes through", []*link{l(10), l(0)}, [][]int{{0, 1}, {0}}, []float64{0, 10}},
	} {
		n := &network{}
		var flows []*flow
		for _, hops := range tt.flows {
			var over []*link
			for _, i := range hops {
				over = append(over, tt.links[i])
			}
			flows = append(flows, wire(n, 1e9, over...))
		}
		for i, f := range flows {
			if math.Abs(f.rate-tt.want[i]) > 1e-6 {
				t.Errorf("%s: flow %d has %v, want %v", tt.name, i, f.rate, tt.want[i])
			}
		}
	}
}

// maxMin finds the max-min fair rates by filling all flows at the same pace and
// freezing those whose link is full.
func maxMin(links []*link, flows []*flow) []float64 {
	rates := make([]float64, len(flows))
	frozen := make([]bool, len(flows))
	for {
		step, full := math.Inf(1), (*link)(nil)
		for _, l := range links {
			used, open := 0.0, 0
			for i, f := range flows {
				if slices.Contains(f.links[:f.hops], l) {
					used += rates[i]
					if !frozen[i] {
						open++
					}
				}
			}
			if open > 0 && (l.rate-used)/float64(open) < step {
				step, full = (l.rate-used)/float64(open), l
			}
		}
		if full == nil {
			return rates
		}
		for i, f := range flows {
			if !frozen[i] {
				rates[i] += max(step, 0)
				frozen[i] = slices.Contains(f.links[:f.hops], full)
			}
		}
	}
}

// TestNetworkIsFair: however flows come and go, no link carries more than it
// can, no flow could go faster without another giving way by much, and the
// rates are near those that are exactly fair.
func TestNetworkIsFair(t *testing.T) {
	t.Parallel()
	worst := 0.0
	rapid.Check(t, func(t *rapid.T) {
		hosts := rapid.IntRange(2, 8).Draw(t, "hosts")
		var links []*link
		for range 2 * hosts {
			links = append(links, &link{rate: rapid.SampledFrom([]float64{1, 10, 10, 10, 25, 100}).Draw(t, "rate")})
		}
		n := &network{}
		var flows []*flow
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n.now += time.Millisecond
			if len(flows) > 0 && rapid.IntRange(0, 2).Draw(t, "leave") == 0 {
				i := rapid.IntRange(0, len(flows)-1).Draw(t, "which")
				n.remove(flows[i])
				flows = slices.Delete(flows, i, i+1)
			} else {
				from := rapid.IntRange(0, hosts-1).Draw(t, "from")
				to := rapid.IntRange(0, hosts-1).Draw(t, "to")
				flows = append(flows, wire(n, 1e9, links[2*from], links[2*to+1]))
			}
			for _, f := range flows {
				if _, at := n.next(); n.at(f) < at {
					t.Fatalf("a flow that ends at %v is not the next, but one that ends at %v", n.at(f), at)
				}
			}
			for i, l := range links {
				sum := 0.0
				for _, f := range l.flows {
					sum += f.rate
				}
				if sum > l.rate*(1+1e-6) {
					t.Fatalf("link %d carries %v of %v", i, sum, l.rate)
				}
			}
		}
		for i, want := range maxMin(links, flows) {
			got := flows[i].rate
			worst = max(worst, math.Abs(got-want)/want)
			if math.Abs(got-want) > 0.1*want {
				t.Fatalf("flow %d has %v, and fair is %v", i, got, want)
			}
		}
	})
	t.Logf("at most %.2f %% from fair", 100*worst)
}

// TestTransferTimes: the times at which flows end are those that their rates
// say, with a change on the way.
func TestTransferTimes(t *testing.T) {
	t.Parallel()
	n := &network{}
	up, a, b := &link{rate: 100}, &link{rate: 100}, &link{rate: 100}
	first := wire(n, 100, up, a)
	if n.at(first) != time.Second {
		t.Errorf("100 bytes at 100 a second take %s", n.at(first))
	}
	n.now = 500 * time.Millisecond
	second := wire(n, 100, up, b) // 50 bytes are left of the first, at half the rate
	if n.at(first) != 1500*time.Millisecond || n.at(second) != 2500*time.Millisecond {
		t.Errorf("sharing, they end at %s and %s, want 1.5 s and 2.5 s", n.at(first), n.at(second))
	}
	n.now = n.at(first)
	n.remove(first)
	if n.at(second) != 2*time.Second {
		t.Errorf("with the link to itself again, the second ends at %s, want 2 s", n.at(second))
	}
	second.deadline = 1700 * time.Millisecond
	n.schedule(second)
	if n.at(second) != second.deadline {
		t.Errorf("it is looked at at %s, want its deadline", n.at(second))
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var q queue[int]
		var model []int
		for i := range rapid.IntRange(0, 200).Draw(t, "steps") {
			if len(model) > 0 && rapid.Bool().Draw(t, "take") {
				if got := q.take(); got != model[0] {
					t.Fatalf("took %d, want %d", got, model[0])
				}
				model = model[1:]
			} else {
				q.put(i)
				model = append(model, i)
			}
			first := q.first()
			if (first == nil) != (len(model) == 0) || first != nil && *first != model[0] {
				t.Fatalf("the head is %v, want the first of %v", first, model)
			}
		}
	})
}
