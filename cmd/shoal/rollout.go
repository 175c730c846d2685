package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/bench/rollout"
	"github.com/shoal-project/shoal/daemon/rate"
)

type rolloutCmd struct {
	Nodes         int           `default:"8" help:"how many nodes pull (default: ${default})"`
	Size          byteSize      `default:"64MiB" placeholder:"SIZE" help:"length of the image (default: ${default})"`
	Layers        int           `default:"1" help:"layers that it is divided into (default: ${default})"`
	NodeRate      rate.Rate     `default:"100mbit" placeholder:"RATE" help:"each way of a node's link (default: ${default})"`
	OriginRate    rate.Rate     `default:"100mbit" placeholder:"RATE" help:"each way of the registry's link (default: ${default})"`
	SeedRate      rate.Rate     `placeholder:"RATE" help:"each way of the scheduler's link (default: that of a node)"`
	Zones         int           `placeholder:"N" help:"zones that the nodes are spread over (default: none)"`
	CrossZoneRate rate.Rate     `placeholder:"RATE" help:"each way of the link between a zone and the others (default: unshaped)"`
	Delay         time.Duration `placeholder:"TIME" help:"what every packet takes from host to host, such as 10ms"`
	Arrival       arrival       `default:"together" placeholder:"HOW" help:"when nodes begin: together, or poisson:5/s (default: ${default})"`
	Mode          string        `default:"shoal" placeholder:"MODE" help:"shoal (with a scheduler process), no-scheduler or direct (default: ${default})"`
	Fault         []fault       `sep:"none" placeholder:"WHAT" help:"ACTION TARGET@TIME, such as \"kill scheduler@2s\"; actions are kill, stop, cont, cut, heal and restart, targets scheduler, node-N, owner and origin; may be given several times"`
	Slow          slow          `placeholder:"HOW" help:"nodes with slower links, such as 10%:10mbit"`
	Warm          bool          `help:"measure a second pull"`
	Security      string        `default:"tls" placeholder:"HOW" help:"between members: tls or none (default: ${default})"`
	Congestion    string        `placeholder:"NAME" help:"TCP's congestion control on all hosts, such as bbr; system is this machine's (default: cubic, and what peer.congestion says between members)"`
	InProcess     bool          `help:"run the fleet in this process, with rate limits for links; needs no root"`
	Force         bool          `help:"start even if this machine would be the limit"`
	Seed          uint64        `placeholder:"N" help:"of what is random (default: by chance)"`
	Registry      string        `placeholder:"PROGRAM" help:"the registry to run (default: registry or docker-registry)"`
	Dir           string        `placeholder:"FOLDER" help:"where a folder for the run is made (default: in memory if that is roomy, else that of temporary files)"`
	JSON          string        `name:"json" placeholder:"FILE" help:"write all that was measured"`
	Plot          string        `placeholder:"FILE" help:"write each node's progress as SVG"`
	Logs          string        `placeholder:"FOLDER" help:"keep a log of each process"`
	LogLevel      string        `default:"info" placeholder:"LEVEL" help:"of those logs (default: ${default})"`
	Verbose       bool          `short:"v" help:"say what the harness does"`
}

// Help is kong's longer text.
func (rolloutCmd) Help() string {
	return "Starts a registry, a scheduler and daemons as processes of their own, each in a network namespace with a link of the given rate, and pulls an image of random bytes through all of them. It needs root and Linux, unless it is --in-process. All that it makes is gone afterwards."
}

// An arrival is a flag.
type arrival struct{ rollout.Arrival }

// UnmarshalText is for kong.
func (a *arrival) UnmarshalText(text []byte) (err error) {
	a.Arrival, err = rollout.ParseArrival(string(text))
	return err
}

// A fault is a flag.
type fault struct{ rollout.Fault }

// UnmarshalText is for kong.
func (f *fault) UnmarshalText(text []byte) (err error) {
	f.Fault, err = rollout.ParseFault(string(text))
	return err
}

// A slow is a flag.
type slow struct{ rollout.Slow }

// UnmarshalText is for kong.
func (s *slow) UnmarshalText(text []byte) (err error) {
	s.Slow, err = rollout.ParseSlow(string(text))
	return err
}

// Run rolls out and prints what came of it.
func (c *rolloutCmd) Run() error {
	o := c.options()
	if err := o.Validate(); err != nil {
		return usageError{err}
	}
	out, err := openOutputs(c.JSON, c.Plot)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := interruptible()
	defer stop()
	p := newProgress(os.Stderr)
	o.Say, o.Progress = p.say, p.show
	r, err := rollout.Run(ctx, o)
	p.clear()
	if r == nil {
		return errors.Join(err, out.discard())
	}
	return errors.Join(err, out.write(r), failed(r))
}

func (c *rolloutCmd) options() rollout.Options {
	o := rollout.Options{
		Nodes: c.Nodes, Size: int64(c.Size), Layers: c.Layers,
		NodeRate: float64(c.NodeRate), OriginRate: float64(c.OriginRate), SeedRate: float64(c.SeedRate),
		Zones: c.Zones, CrossZoneRate: float64(c.CrossZoneRate), Delay: c.Delay, Arrival: c.Arrival.Arrival,
		Mode: c.Mode, Slow: c.Slow.Slow, Warm: c.Warm, Security: c.Security, Congestion: c.Congestion, InProcess: c.InProcess,
		Force: c.Force, Seed: c.Seed, Registry: c.Registry, Dir: c.Dir, Logs: c.Logs, LogLevel: c.LogLevel,
		Command: commandLine(os.Args),
	}
	for _, f := range c.Fault {
		o.Faults = append(o.Faults, f.Fault)
	}
	if c.Verbose {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return o
}

// failed returns an error if a node has not got everything.
func failed(r *report.Result) error {
	if n := r.Failed(); n > 0 {
		return fmt.Errorf("%d of %d nodes did not get the image", n, len(r.Nodes))
	}
	return nil
}

// An interrupted is the cause of what a signal has ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return "interrupted: " + i.signal.String() }

// interruptible returns a context that the first signal to end ends, so that
// everything can be cleaned up; the second one is not waited for.
func interruptible() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() { // until the process ends
		for s := range signals {
			n, _ := s.(syscall.Signal)
			if ctx.Err() != nil {
				os.Exit(128 + int(n))
			}
			cancel(interrupted{n})
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
	}
}

// commandLine returns args as one would type them.
func commandLine(args []string) string {
	words := []string{"shoal"}
	for _, a := range args[1:] {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$&|;<>()*?[]#~%!{}`") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// outputs are the files that a result goes to, beside the table. They are made
// before anything takes time, so that a wrong name costs none.
type outputs struct{ json, plot *os.File }

func openOutputs(json, plot string) (*outputs, error) {
	o := &outputs{}
	for _, f := range []struct {
		flag, name string
		to         **os.File
	}{{"--json", json, &o.json}, {"--plot", plot, &o.plot}} {
		if f.name == "" {
			continue
		}
		file, err := os.Create(f.name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", f.flag, err), o.discard())
		}
		*f.to = file
	}
	return o, nil
}

// discard removes the files again.
func (o *outputs) discard() error {
	var errs []error
	for _, f := range []*os.File{o.json, o.plot} {
		if f != nil {
			errs = append(errs, f.Close(), os.Remove(f.Name()))
		}
	}
	return errors.Join(errs...)
}

// write writes the table and the files.
func (o *outputs) write(r *report.Result) error {
	errs := []error{r.Table(os.Stdout)}
	for _, f := range []struct {
		file  *os.File
		write func(io.Writer) error
	}{{o.json, r.WriteJSON}, {o.plot, r.Plot}} {
		if f.file != nil {
			errs = append(errs, f.write(f.file), f.file.Close())
		}
	}
	return errors.Join(errs...)
}

// A progress is a line on a terminal that is written over, elsewhere a line
// now and then.
type progress struct {
	w        io.Writer
	terminal bool
	every    time.Duration
	told     time.Duration // when the last line was written, since the start
	wrote    bool          // there is a line to be cleared
}

func newProgress(f *os.File) *progress {
	p := &progress{w: f, terminal: isTerminal(f), every: 5 * time.Second}
	if p.terminal {
		p.every = 100 * time.Millisecond
	}
	return p
}

func (p *progress) say(line string) {
	p.clear()
	fmt.Fprintf(p.w, "shoal: %s\n", line)
}

func (p *progress) show(is rollout.Progress) {
	if is.Elapsed < p.told { // another rollout: a warm one is the second
		p.told = 0
	}
	if is.Elapsed < p.told+p.every {
		return
	}
	p.told = is.Elapsed
	p.tell(fmt.Sprintf("%5.1f s  %3.0f %% of the bytes, %d of %d nodes are done", is.Elapsed.Seconds(),
		100*float64(is.Bytes)/float64(max(is.Total, 1)), is.Done, is.Nodes))
}

// tell writes a line, over the one before where that is possible.
func (p *progress) tell(line string) {
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	p.wrote = true
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
}

// clear takes the line away.
func (p *progress) clear() {
	if p.wrote {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.wrote = false
}
