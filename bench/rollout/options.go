package rollout

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/daemon/rate"
)

// Bounds of what can be asked for, beyond which it is a slip of the finger.
const (
	maxNodes  = 500            // processes on one machine
	maxLayers = 127            // what image formats hold
	minRate   = 100e3 / 8      // 100 kbit/s: below it a link's burst is the rollout
	maxRate   = 100e9 / 8      // 100 Gbit/s
	maxDelay  = time.Second    // one way
	maxTime   = 6 * time.Hour  // that the links alone would take
	maxSize   = int64(1) << 40 // of an image
)

// What Options.Congestion may be beside the kernel's names.
const (
	// cubic is Linux's own default. It is the harness's too, whatever the machine
	// has, so that figures of two machines can be compared.
	cubic = "cubic"
	// System is what this machine has.
	System = "system"
)

// Options say what to roll out to whom. Rates are in bytes per second.
type Options struct {
	// Nodes is the number of nodes, Size the length of the image's layers
	// together.
	Nodes  int
	Size   int64
	Layers int
	// NodeRate is each way of a node's link, OriginRate of the origin's,
	// SeedRate of the scheduler's; 0 for SeedRate is NodeRate.
	NodeRate, OriginRate, SeedRate float64
	// Zones is the number of zones that the nodes are spread over, in turn; the
	// origin and the scheduler are in the first. Below 2 there are none.
	Zones int
	// CrossZoneRate is each way of the link between a zone and the rest; 0 is
	// as fast as the machine can.
	CrossZoneRate float64
	// Delay is added to every packet between two hosts, one way.
	Delay   time.Duration
	Arrival Arrival
	// Mode is one of report's.
	Mode   string
	Faults []Fault
	Slow   Slow
	// Warm pulls the image once before what is measured.
	Warm bool
	// Security of the data plane: tls or none.
	Security string
	// Congestion is TCP's congestion control on all hosts, by the kernel's name;
	// System is what this machine has. "" is cubic, in whose place members send to
	// each other with what their own default says; if one is named they have that.
	Congestion string
	members    string // peer.congestion of all members
	// InProcess runs the fleet in this process, with rate limits for links.
	InProcess bool
	// Force starts even if the machine is expected to be the limit.
	Force bool
	// Seed decides all that is random. 0 takes one by chance.
	Seed uint64

	// Binary is the path of shoal; "" is this process's.
	Binary string
	// Registry is the program that is the origin; "" is the first of registry
	// and docker-registry that is in PATH.
	Registry string
	// Dir is where a folder for the run is made; "" is a place in memory if that
	// is roomy, else the system's for temporary files.
	Dir string
	// Logs is a folder that gets a log of each process, at LogLevel; "" keeps
	// none.
	Logs, LogLevel string
	// Command is the command line, for the result.
	Command string

	// Say is told what a person should know as it happens, a line each, and
	// Progress how far the rollout is, several times a second. Both may be nil.
	Say      func(line string)
	Progress func(Progress)
	// Log gets what the harness does. Nil is nowhere.
	Log *slog.Logger

	files storage // where the folder is made, once that is decided
}

// congestionName is what the kernel takes for a name: it is written into a file
// of /proc.
var congestionName = regexp.MustCompile(`^[a-z0-9_]{1,15}$`)

// Progress is how far a rollout is.
type Progress struct {
	Elapsed time.Duration
	// Bytes that all clients have, and will have.
	Bytes, Total int64
	// Done is the number of nodes that have everything.
	Done, Nodes int
}

// filled returns o with what is derived.
func (o Options) filled() Options {
	if o.SeedRate == 0 {
		o.SeedRate = o.NodeRate
	}
	if o.Mode == "" {
		o.Mode = report.ModeShoal
	}
	if o.Security == "" {
		o.Security = "tls"
	}
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	o.members = "system"
	if o.Congestion == "" && !o.InProcess {
		o.Congestion, o.members = cubic, "auto"
	}
	o.Layers = max(o.Layers, 1)
	if o.Zones < 2 {
		o.Zones, o.CrossZoneRate = 0, 0
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate returns all that makes no sense, each with what to do, or nil. It
// looks at nothing but o.
func (o Options) Validate() error {
	m := &mistakes{}
	m.unless(1 <= o.Nodes && o.Nodes <= maxNodes, "--nodes %d: want 1 to %d; `shoal bench simulate` takes more", o.Nodes, maxNodes)
	m.unless(1 <= o.Layers && o.Layers <= maxLayers, "--layers %d: an image has 1 to %d", o.Layers, maxLayers)
	m.unless(int64(max(o.Layers, 1)) <= o.Size && o.Size <= maxSize, "--size %d bytes: want at least a byte for each layer, and at most 1TiB", o.Size)
	m.rate("--node-rate", o.NodeRate, false)
	m.rate("--origin-rate", o.OriginRate, false)
	m.rate("--seed-rate", o.SeedRate, true)
	m.oneOf("--mode", o.Mode, report.ModeShoal, report.ModeNoScheduler, report.ModeDirect)
	m.oneOf("--security", o.Security, "tls", "none")
	m.oneOf("--log-level", cmp.Or(o.LogLevel, "info"), "debug", "info", "warn", "error")
	m.unless(o.Mode == report.ModeShoal || o.SeedRate == 0, "--seed-rate is the link of the scheduler, and --mode %s has none; leave it out", o.Mode)
	m.unless(!o.Warm || o.Mode != report.ModeDirect, "--warm: with --mode direct there is no cache to be warm; leave one of them out")
	m.unless(0 <= o.Delay && o.Delay <= maxDelay, "--delay %s: want 0s to %s, one way", o.Delay, maxDelay)
	o.checkZones(m)
	o.checkSlow(m)
	m.unless(congestionName.MatchString(cmp.Or(o.Congestion, cubic)), "--congestion %q: want the kernel's name of one, such as cubic, or %s", o.Congestion, System)
	o.Arrival.check(m, o.Nodes)
	for _, f := range o.Faults {
		f.check(m, o)
	}
	if o.InProcess {
		o.checkInProcess(m)
	}
	if err := m.err(); err != nil {
		return err
	}
	if t := seconds(o.filled().bound()); t > maxTime {
		m.unless(false, "the links alone would take %s for this; lower --size, or raise the rates", t.Round(time.Minute))
	}
	return m.err()
}

func (o Options) checkZones(m *mistakes) {
	m.unless(0 <= o.Zones && o.Zones <= max(o.Nodes, 1), "--zones %d: want at most one for each of the %d nodes", o.Zones, o.Nodes)
	m.unless(o.CrossZoneRate == 0 || o.Zones > 1, "--cross-zone-rate: there is one zone only; add --zones, at least 2")
	m.rate("--cross-zone-rate", o.CrossZoneRate, true)
}

func (o Options) checkSlow(m *mistakes) {
	if o.Slow == (Slow{}) {
		return
	}
	m.rate("--slow", o.Slow.Rate, false)
	n := o.Slow.Nodes(o.Nodes)
	m.unless(0 < n && n < max(o.Nodes, 2), "--slow %s: that is %d of %d nodes; want at least one, and one that is not slow", o.Slow, n, o.Nodes)
	m.unless(o.Slow.Rate < o.NodeRate, "--slow %s: that is not slower than --node-rate", o.Slow)
}

// checkInProcess refuses what takes processes and links of their own.
func (o Options) checkInProcess(m *mistakes) {
	for _, c := range []struct {
		is   bool
		flag string
	}{
		{len(o.Faults) > 0, "--fault"},
		{o.Delay > 0, "--delay"},
		{o.CrossZoneRate > 0, "--cross-zone-rate"},
		{o.Registry != "", "--registry"},
		{o.Logs != "", "--logs"},
		{o.Congestion != "", "--congestion"},
	} {
		m.unless(!c.is, "%s takes processes with links of their own; leave it or --in-process out", c.flag)
	}
}

// mistakes collects what is wrong with Options.
type mistakes struct{ errs []error }

func (m *mistakes) unless(ok bool, format string, args ...any) {
	if !ok {
		m.errs = append(m.errs, fmt.Errorf(format, args...))
	}
}

func (m *mistakes) rate(flag string, r float64, optional bool) {
	ok := minRate <= r && r <= maxRate || optional && r == 0
	m.unless(ok && !math.IsNaN(r), "%s: %s is not the rate of a link; want 100kbit to 100gbit", flag, bits(r))
}

func (m *mistakes) oneOf(flag, value string, allowed ...string) {
	m.unless(slices.Contains(allowed, value), "%s %q: want %s", flag, value, strings.Join(allowed, ", "))
}

func (m *mistakes) err() error { return errors.Join(m.errs...) }

// bits writes a rate in bytes per second as people write links.
func bits(r float64) string { return rate.Rate(r).String() }

// seconds returns s seconds as a duration; more than fits is the longest.
func seconds(s float64) time.Duration {
	if s > math.MaxInt64/1e9 {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}
