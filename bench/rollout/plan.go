package rollout

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/daemon/rate"
)

// An Arrival says when the nodes begin to pull: all together, or as a Poisson
// process with so many nodes a second. The zero value is together.
type Arrival struct{ Rate float64 }

// ParseArrival reads together or poisson:RATE/s.
func ParseArrival(s string) (Arrival, error) {
	if s == "together" {
		return Arrival{}, nil
	}
	if rest, ok := strings.CutPrefix(s, "poisson:"); ok {
		rate, err := strconv.ParseFloat(strings.TrimSuffix(rest, "/s"), 64)
		if err == nil && rate > 0 && !math.IsInf(rate, 0) {
			return Arrival{Rate: rate}, nil
		}
	}
	return Arrival{}, fmt.Errorf("%q is no arrival; write together, or poisson:5/s for five nodes a second", s)
}

// String returns what ParseArrival reads.
func (a Arrival) String() string {
	if a.Rate == 0 {
		return "together"
	}
	return fmt.Sprintf("poisson:%g/s", a.Rate)
}

func (a Arrival) check(m *mistakes, nodes int) {
	m.unless(a.Rate >= 0, "--arrival: %g nodes a second; want more than none", a.Rate)
	if a.Rate > 0 {
		t := seconds(float64(nodes) / a.Rate)
		m.unless(t <= maxTime, "--arrival %s: the last of %d nodes would come after %s; raise the rate", a, nodes, t.Round(time.Minute))
	}
}

// times returns when each of n nodes arrives, since the start, the first at 0.
func (a Arrival) times(n int, seed uint64) []time.Duration {
	out := make([]time.Duration, n)
	if a.Rate == 0 {
		return out
	}
	random := rand.New(rand.NewPCG(seed, 1))
	for i := 1; i < n; i++ {
		out[i] = out[i-1] + seconds(random.ExpFloat64()/a.Rate)
	}
	return out
}

// Slow says that some nodes have slower links, each way: a number of them, or
// a share of all. The zero value is none.
type Slow struct {
	Count int
	Share float64 // of all nodes, if Count is 0
	Rate  float64 // bytes per second
}

// ParseSlow reads 10%:10mbit or 2:10mbit.
func ParseSlow(s string) (Slow, error) {
	wrong := fmt.Errorf("%q does not say how many nodes are how slow; write 10%%:10mbit, or 2:10mbit for two nodes", s)
	many, fast, ok := strings.Cut(s, ":")
	if !ok {
		return Slow{}, wrong
	}
	r, err := rate.Parse(fast)
	if err != nil {
		return Slow{}, errors.Join(wrong, err)
	}
	if percent, ok := strings.CutSuffix(many, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(0 < p && p < 100) {
			return Slow{}, wrong
		}
		return Slow{Share: p / 100, Rate: float64(r)}, nil
	}
	n, err := strconv.Atoi(many)
	if err != nil || n < 1 {
		return Slow{}, wrong
	}
	return Slow{Count: n, Rate: float64(r)}, nil
}

// String returns what ParseSlow reads.
func (s Slow) String() string {
	switch {
	case s == Slow{}:
		return ""
	case s.Count > 0:
		return fmt.Sprintf("%d:%s", s.Count, bits(s.Rate))
	}
	return fmt.Sprintf("%g%%:%s", s.Share*100, bits(s.Rate))
}

// Nodes returns how many of n nodes are slow: a share is rounded, and is at
// least one.
func (s Slow) Nodes(n int) int {
	if s.Count > 0 || s.Share == 0 {
		return s.Count
	}
	return max(int(math.Round(s.Share*float64(n))), 1)
}

// A place is what one node is given before it starts.
type place struct {
	name    string
	zone    int     // of those of the network
	rate    float64 // each way of its link
	slow    bool
	arrives time.Duration
}

// zoneName returns the zone that a node is told it is in.
func (o Options) zoneName(zone int) string {
	if o.Zones == 0 {
		return ""
	}
	return "zone-" + strconv.Itoa(zone+1)
}

// places returns what each node is given. The slow ones are the last, so that
// the one that the others join at is not among them.
func (o Options) places() []place {
	out := make([]place, o.Nodes)
	arrivals := o.Arrival.times(o.Nodes, o.Seed)
	slow := o.Slow.Nodes(o.Nodes)
	for i := range out {
		out[i] = place{name: nodeName(i), rate: o.NodeRate, arrives: arrivals[i]}
		if o.Zones > 0 {
			out[i].zone = i % o.Zones
		}
		if i >= o.Nodes-slow {
			out[i].rate, out[i].slow = o.Slow.Rate, true
		}
	}
	return out
}

func nodeName(i int) string { return "node-" + strconv.Itoa(i+1) }

// bound returns the least seconds in which the links can carry the image to all
// nodes, if they start together.
func (o Options) bound() float64 {
	r := o.result()
	r.SetBounds()
	return r.Bound
}

// result returns what is known before the start.
func (o Options) result() *report.Result {
	r := &report.Result{Command: o.Command, Kind: "rollout", Params: o.params(), ImageBytes: o.Size}
	if o.InProcess {
		r.Kind = "in-process"
	}
	for _, p := range o.places() {
		r.Nodes = append(r.Nodes, report.Node{
			Name: p.name, Zone: o.zoneName(p.zone), Slow: p.slow, Arrived: p.arrives.Seconds(),
		})
	}
	return r
}

// params returns what is reported of o.
func (o Options) params() report.Params {
	p := report.Params{
		Nodes: o.Nodes, Size: o.Size, Layers: o.Layers, NodeRate: o.NodeRate, OriginRate: o.OriginRate,
		SlowNodes: o.Slow.Nodes(o.Nodes), SlowRate: o.Slow.Rate, Zones: o.Zones, CrossZoneRate: o.CrossZoneRate,
		Delay: o.Delay.Seconds(), Arrival: o.Arrival.String(), Mode: o.Mode, Warm: o.Warm, Seed: o.Seed,
	}
	if o.Mode == report.ModeShoal {
		p.SeedRate = o.SeedRate
	}
	if o.Mode != report.ModeDirect {
		p.Security = o.Security
	}
	if !o.InProcess {
		p.Congestion = o.Congestion
	}
	if o.files.path != "" {
		p.Files = o.files.String()
	}
	return p
}
