package sim

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

// Bounds of what can be asked for, beyond which it is a slip of the finger, or
// would fill the memory.
const (
	maxNodes    = 100_000
	maxLayers   = 127           // what image formats hold
	maxParts    = 5_000_000     // nodes × layers
	maxChunks   = 1_000_000_000 // nodes × chunks
	minRate     = 100e3 / 8     // 100 kbit/s
	maxRate     = 1e12 / 8      // 1 Tbit/s
	maxRTT      = 2 * time.Second
	maxDecision = time.Second
	maxSize     = int64(1) << 40
)

// Options say what to simulate. Rates are in bytes per second, each way of a
// link.
type Options struct {
	// Nodes is the number of nodes, Size the length of the image's layers
	// together, which are about as long as each other.
	Nodes  int
	Size   int64
	Layers int
	// NodeRate is a node's link, OriginRate the origin's, SeedRate the
	// scheduler's; 0 for SeedRate is NodeRate.
	NodeRate, OriginRate, SeedRate float64
	// RTT is the round trip between any two hosts without load.
	RTT time.Duration
	// Zones is the number of zones that the nodes are spread over, in turn; the
	// origin and the scheduler are in the first. Below 2 there are none.
	Zones int
	// CrossZoneRate is the link between a zone and the rest; 0 has no limit.
	CrossZoneRate float64
	// ArrivalRate is nodes per second that begin to pull, as a Poisson process;
	// with 0 all begin at once.
	ArrivalRate float64
	// SlowNodes have links of SlowRate. They are the last ones.
	SlowNodes int
	SlowRate  float64
	// Mode is report.ModeShoal or report.ModeNoScheduler.
	Mode string
	// Goodput is the share of a link's rate that the image's bytes have, after
	// headers; 0 is 1. Ethernet frames of 1514 bytes carry 1448: 0.956.
	Goodput float64
	// SlowStart has TCP's windows in it. RTT has to be more than 0.
	SlowStart bool
	// Decision is how long the scheduler is busy with each message; 0 is not at
	// all.
	Decision time.Duration
	// Kill is when the scheduler process dies, if it does; 0 is never.
	Kill time.Duration
	// Tuning is the scheduler's.
	Tuning scheduler.Tuning
	// Seed decides all that is random.
	Seed uint64

	// Command is the command line, for the result.
	Command string
	// Progress is told now and then how far the simulation is. It may be nil.
	Progress func(Progress)
}

// Progress is how far a simulation is.
type Progress struct {
	Elapsed time.Duration // of virtual time
	// Bytes that all nodes have, and will have.
	Bytes, Total int64
	// Done is the number of nodes that have everything.
	Done int
}

// filled returns o with what is derived.
func (o Options) filled() Options {
	if o.Mode == "" {
		o.Mode = report.ModeShoal
	}
	if o.SeedRate == 0 {
		o.SeedRate = o.NodeRate
	}
	if o.Goodput == 0 {
		o.Goodput = 1
	}
	if o.Zones < 2 {
		o.Zones, o.CrossZoneRate = 0, 0
	}
	return o
}

// Validate returns all that makes no sense, each with what to do, or nil.
func (o Options) Validate() error {
	var m mistakes
	m.unless(1 <= o.Nodes && o.Nodes <= maxNodes, "--nodes %d: want 1 to %d", o.Nodes, maxNodes)
	m.unless(1 <= o.Layers && o.Layers <= maxLayers, "--layers %d: an image has 1 to %d", o.Layers, maxLayers)
	m.unless(int64(max(o.Layers, 1)) <= o.Size && o.Size <= maxSize, "--size %d bytes: want at least a byte for each layer, and at most 1TiB", o.Size)
	m.rate("--node-rate", o.NodeRate, false)
	m.rate("--origin-rate", o.OriginRate, false)
	m.rate("--seed-rate", o.SeedRate, true)
	m.rate("--cross-zone-rate", o.CrossZoneRate, true)
	m.unless(slices.Contains([]string{"", report.ModeShoal, report.ModeNoScheduler}, o.Mode),
		"--mode %q: want %s or %s", o.Mode, report.ModeShoal, report.ModeNoScheduler)
	m.unless(o.Mode != report.ModeNoScheduler || o.SeedRate == 0, "--seed-rate is the link of the scheduler, and --mode %s has none; leave it out", o.Mode)
	m.unless(o.Mode != report.ModeNoScheduler || o.Kill == 0, "killing the scheduler: --mode %s has none", o.Mode)
	m.unless(0 <= o.RTT && o.RTT <= maxRTT, "--rtt %s: want 0s to %s", o.RTT, maxRTT)
	m.unless(!o.SlowStart || o.RTT > 0, "--slow-start: without a round trip a window is no limit; add --rtt")
	m.unless(0 <= o.Zones && o.Zones <= max(o.Nodes, 1), "--zones %d: want at most one for each of the %d nodes", o.Zones, o.Nodes)
	m.unless(o.CrossZoneRate == 0 || o.Zones > 1, "--cross-zone-rate: there is one zone only; add --zones, at least 2")
	m.unless(o.ArrivalRate == 0 || 1e-3 <= o.ArrivalRate && o.ArrivalRate <= 1e6, "--arrival: %g nodes a second; want 0.001 to 1000000", o.ArrivalRate)
	if o.SlowNodes != 0 || o.SlowRate != 0 {
		m.unless(0 < o.SlowNodes && o.SlowNodes < max(o.Nodes, 2), "--slow: that is %d of %d nodes; want at least one, and one that is not slow", o.SlowNodes, o.Nodes)
		m.rate("--slow", o.SlowRate, false)
		m.unless(o.SlowRate < o.NodeRate, "--slow: %s is not slower than --node-rate", rate.Rate(o.SlowRate))
	}
	m.unless(o.Goodput == 0 || 0.5 <= o.Goodput && o.Goodput <= 1, "--goodput %g: want 0.5 to 1, the share of a link that is not headers", o.Goodput)
	m.unless(0 <= o.Decision && o.Decision <= maxDecision, "--decision %s: want 0s to %s", o.Decision, maxDecision)
	m.unless(0 <= o.Kill, "killing the scheduler at %s: that is before the start", o.Kill)
	if len(m) == 0 {
		chunks := 0
		for _, b := range o.image() {
			chunks += b.Chunks()
		}
		m.unless(o.Nodes*o.Layers <= maxParts && o.Nodes*chunks <= maxChunks,
			"%d nodes with %d chunks in %d layers each are more than the memory is meant to hold; lower --nodes, --size or --layers", o.Nodes, chunks, o.Layers)
	}
	return errors.Join(m...)
}

// mistakes collects what is wrong with Options.
type mistakes []error

func (m *mistakes) unless(ok bool, format string, args ...any) {
	if !ok {
		*m = append(*m, fmt.Errorf(format, args...))
	}
}

func (m *mistakes) rate(flag string, r float64, optional bool) {
	ok := minRate <= r && r <= maxRate || optional && r == 0
	m.unless(ok, "%s: %s is not the rate of a link; want 100kbit to 1tbit", flag, rate.Rate(r))
}

// image returns the layers.
func (o Options) image() []proto.Blob {
	n := int64(o.Layers)
	out := make([]proto.Blob, n)
	for i := range n {
		out[i] = proto.Blob{
			Digest: proto.DigestOf(fmt.Appendf(nil, "layer %d", i)),
			Size:   o.Size/n*(i+1) + o.Size%n*(i+1)/n - o.Size/n*i - o.Size%n*i/n,
		}
	}
	return out
}

// arrivals returns when each node arrives since the start, the first at 0.
func (o Options) arrivals() []time.Duration {
	out := make([]time.Duration, o.Nodes)
	if o.ArrivalRate == 0 {
		return out
	}
	random := rand.New(rand.NewPCG(o.Seed, 1))
	for i := 1; i < o.Nodes; i++ {
		out[i] = out[i-1] + time.Duration(math.Round(random.ExpFloat64()/o.ArrivalRate*1e9))
	}
	return out
}

func (o Options) arrival() string {
	if o.ArrivalRate == 0 {
		return "together"
	}
	return "poisson:" + strconv.FormatFloat(o.ArrivalRate, 'g', -1, 64) + "/s"
}

func (o Options) zoneName(zone int) string {
	if o.Zones == 0 {
		return ""
	}
	return "zone-" + strconv.Itoa(zone+1)
}

// params returns what is reported of o, which is filled.
func (o Options) params() report.Params {
	p := report.Params{
		Nodes: o.Nodes, Size: o.Size, Layers: o.Layers, NodeRate: o.NodeRate, OriginRate: o.OriginRate,
		SlowNodes: o.SlowNodes, SlowRate: o.SlowRate, Zones: o.Zones, CrossZoneRate: o.CrossZoneRate,
		Delay: o.RTT.Seconds() / 2, Arrival: o.arrival(), Mode: o.Mode, Seed: o.Seed,
	}
	if o.Mode == report.ModeShoal {
		p.SeedRate = o.SeedRate
	}
	return p
}
