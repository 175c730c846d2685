package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/report"
)

// What a rollout takes of the machine beside what is measured; see doc.go.
const (
	// daemonMemory is what a daemon, a scheduler and the registry take each.
	daemonMemory = 100 << 20
	// overhead is what a byte costs in a rollout over what it costs in probe,
	// which has no bridges and queues, no disk, no leases and no other process
	// that wants the caches.
	overhead = 1.6
	// attending is what a daemon takes in a second beside its bytes, as the bytes
	// that probe delivers in the same CPU time. It comes from the cores that were busy
	// with 8 and 16 nodes at 25, 50, 70 and 100 Mbit/s: 0.042 of one for each process
	// and 9 s of one for each GiB fit them to within 3 %.
	attending = 8 << 20
	// share is how much of the idle cores a rollout may need: with more, the
	// processes wait for cores rather than for links. 16 nodes at 50 Mbit/s, which
	// are to need 1.5 of two, take about as long as 8 do; at 70 Mbit/s, 1.8, longer.
	share = 0.8
	// spare is how much of the free memory and disk it may need.
	spare = 0.9
)

// prepare makes sure that the rollout can be run here, removes what killed runs
// have left, and returns o with the place of its files.
func (o Options) prepare(ctx context.Context) (Options, error) {
	if err := o.sweep(); err != nil {
		return o, err
	}
	if !o.InProcess {
		if err := netns.Check(); err != nil {
			return o, fmt.Errorf("%w\n--in-process does without: the same fleet in one process, with rate limits for links", err)
		}
		if _, err := findRegistry(o.Registry); err != nil {
			return o, err
		}
	}
	var err error
	if o.files, err = o.findStorage(); err != nil {
		return o, err
	}
	have, err := measureMachine(ctx, o)
	if err != nil {
		return o, err
	}
	o.Log.Info("the machine", "cores", have.cores, "nsPerByte", have.cost*1e9, "memory", have.memory, "files", have.files.String(), "free", have.files.free)
	err = o.need(have.cost).check(have)
	if err != nil && o.Force {
		o.Say(fmt.Sprintf("warning: %s", strings.ReplaceAll(err.Error(), "\n", "\nwarning: ")))
		return o, nil
	}
	if err != nil {
		return o, fmt.Errorf("%w\nWhat would be measured is this machine. --force starts all the same", err)
	}
	return o, nil
}

// sweep removes what killed runs have left, and says what it was.
func (o Options) sweep() error {
	dirs := []string{os.TempDir(), sharedMemory}
	if o.Dir != "" {
		dirs = append(dirs, o.Dir)
	}
	swept, err := sweepFolders(dirs...)
	if err != nil {
		return fmt.Errorf("remove what a killed run has left: %w", err)
	}
	if !o.InProcess && os.Geteuid() == 0 {
		links, err := netns.Sweep()
		if err != nil {
			return fmt.Errorf("remove what a killed run has left: %w", err)
		}
		swept = append(swept, links...)
	}
	if len(swept) > 0 {
		o.Say("removed what a killed run had left: " + strings.Join(swept, ", "))
	}
	return nil
}

// A capacity is what a machine has for a rollout, a zero what is not known.
type capacity struct {
	cores  float64 // that are idle
	cost   float64 // seconds of one core that it takes to deliver a byte
	memory int64   // bytes that are free
	files  storage // where the run's are to be
}

func measureMachine(ctx context.Context, o Options) (capacity, error) {
	cost, others, err := probe(ctx, o.Mode != report.ModeDirect && o.Security == "tls")
	if err != nil {
		return capacity{}, fmt.Errorf("measure this machine: %w", err)
	}
	c := capacity{
		cores: max(float64(runtime.GOMAXPROCS(0))-others, 0.01), cost: cost, files: o.files,
	}
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		c.memory = kilobytes(info, "MemAvailable:")
	}
	return c, nil
}

// A demand is what a rollout needs of a machine while it goes as fast as its
// links allow.
type demand struct {
	cores        float64
	attending    float64 // that part of cores which does not depend on the rate
	bytesPerCore float64 // that one core delivers in a second
	rate         float64 // bytes per second to all nodes together
	memory       int64   // of the processes
	disk         int64   // of all files, in memory or not
	pulled       int64   // that part of disk which is written while the clients pull
}

// need returns what o needs where a delivered byte costs so many seconds.
func (o Options) need(cost float64) demand {
	d := demand{rate: float64(o.Nodes) * float64(o.Size) / o.bound(), bytesPerCore: 1 / (cost * overhead)}
	processes := int64(1) // the registry
	if o.Mode != report.ModeDirect {
		processes += int64(o.Nodes)
		d.pulled = int64(o.Nodes) * o.Size
	}
	if o.Mode == report.ModeShoal {
		processes++
		d.pulled += o.Size
	}
	if !o.InProcess {
		d.attending = float64(processes-1) * attending * cost
	}
	d.cores = d.rate/d.bytesPerCore + d.attending
	d.disk = d.pulled + 2*o.Size // the registry's, and what the clients compare with
	if o.Warm {
		d.pulled = 0 // it is there when the clients begin
	}
	d.memory = processes * daemonMemory
	return d
}

// check returns all that is too much, with figures.
func (d demand) check(have capacity) error {
	var errs []error
	if have.cost > 0 && d.cores > share*have.cores {
		errs = append(errs, fmt.Errorf("this machine is too slow for this rollout: it delivers %s/s to the nodes together, and needs %.1f cores for that (one is good for %s/s) and %.1f for the processes as such; %.1f are idle, and %.0f %% of them may be needed. Lower --nodes or the rates",
			size(d.rate), d.cores-d.attending, size(d.bytesPerCore), d.attending, have.cores, share*100))
	}
	memory, what := d.memory, ". Lower --nodes"
	if have.files.inMemory {
		memory, what = memory+d.disk, fmt.Sprintf("; %s of it are for files, which are in memory in %s. Lower --nodes or --size, or name another --dir", size(float64(d.disk)), have.files.path)
	}
	if have.memory > 0 && float64(memory) > spare*float64(have.memory) {
		errs = append(errs, fmt.Errorf("this rollout needs %s of memory, and %s are free%s", size(float64(memory)), size(float64(have.memory)), what))
	}
	if have.files.free > 0 && float64(d.disk) > spare*float64(have.files.free) {
		errs = append(errs, fmt.Errorf("this rollout needs %s for its files, and %s are free in %s. Lower --nodes or --size, or name another --dir", size(float64(d.disk)), size(float64(have.files.free)), have.files.path))
	}
	return errors.Join(errs...)
}

func size(n float64) string { return humanize.IBytes(uint64(max(n, 0))) }

// systemCongestion returns TCP's congestion control on this machine, or "" if
// that is not known.
func systemCongestion() string {
	name, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return string(bytes.TrimSpace(name))
}

// machine describes this machine in a few words.
func machine() string {
	what := fmt.Sprintf("%d × %s, %s/%s", runtime.GOMAXPROCS(0), cpuModel(), runtime.GOOS, runtime.GOARCH)
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		what += " " + string(bytes.TrimSpace(release))
	}
	return what
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "CPU"
	}
	for line := range bytes.Lines(info) {
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(key)) == "model name" {
			return string(bytes.TrimSpace(value))
		}
	}
	return "CPU"
}
