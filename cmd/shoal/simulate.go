package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/shoal-project/shoal/bench/rollout"
	"github.com/shoal-project/shoal/bench/sim"
	"github.com/shoal-project/shoal/daemon/rate"
)

type simulateCmd struct {
	Nodes         int           `default:"1000" help:"how many nodes pull (default: ${default})"`
	Size          byteSize      `default:"1GiB" placeholder:"SIZE" help:"length of the image (default: ${default})"`
	Layers        int           `default:"1" help:"layers that it is divided into (default: ${default})"`
	NodeRate      rate.Rate     `default:"1gbit" placeholder:"RATE" help:"each way of a node's link (default: ${default})"`
	OriginRate    rate.Rate     `default:"1gbit" placeholder:"RATE" help:"each way of the registry's link (default: ${default})"`
	SeedRate      rate.Rate     `placeholder:"RATE" help:"each way of the scheduler's link (default: that of a node)"`
	RTT           time.Duration `name:"rtt" placeholder:"TIME" help:"round trip between two hosts, such as 0.5ms (default: none)"`
	SlowStart     bool          `help:"connections begin with TCP's small windows, and again when they were idle (needs --rtt)"`
	Zones         int           `placeholder:"N" help:"zones that the nodes are spread over (default: none)"`
	CrossZoneRate rate.Rate     `placeholder:"RATE" help:"each way of the link between a zone and the others (default: no limit)"`
	Arrival       arrival       `default:"together" placeholder:"HOW" help:"when nodes begin: together, or poisson:5/s (default: ${default})"`
	Slow          slow          `placeholder:"HOW" help:"nodes with slower links, such as 10%:10mbit"`
	Mode          string        `default:"shoal" placeholder:"MODE" help:"shoal (with a scheduler process) or no-scheduler (default: ${default})"`
	Fault         []fault       `sep:"none" placeholder:"WHAT" help:"\"kill scheduler@2s\", once, is all that can be simulated"`
	Goodput       float64       `default:"1" placeholder:"SHARE" help:"what headers leave of a link; 0.956 for TCP in Ethernet frames of 1514 bytes (default: ${default})"`
	Decision      time.Duration `placeholder:"TIME" help:"how long the scheduler is busy with each message, such as 2us (default: not at all)"`
	Seed          uint64        `default:"1" placeholder:"N" help:"of what is random; the same seed gives the same rollout (default: ${default})"`
	JSON          string        `name:"json" placeholder:"FILE" help:"write all that was found"`
	Plot          string        `placeholder:"FILE" help:"write each node's progress as SVG"`
}

// Help is kong's longer text.
func (simulateCmd) Help() string {
	return "Runs the real scheduler's decisions under virtual time, over a model of the network in which flows share links fairly and nothing else costs anything. It says what the decisions are good for at sizes that no machine can try, and what they cost. The model is described in bench/sim."
}

// Run simulates and prints what came of it.
func (c *simulateCmd) Run() error {
	o, err := c.options()
	if err := errors.Join(err, o.Validate()); err != nil {
		return usageError{err}
	}
	out, err := openOutputs(c.JSON, c.Plot)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := interruptible()
	defer stop()
	p := newProgress(os.Stderr)
	began := time.Now()
	o.Progress = func(is sim.Progress) {
		p.show(rollout.Progress{Elapsed: time.Since(began), Bytes: is.Bytes, Total: is.Total, Done: is.Done, Nodes: c.Nodes})
	}
	r, err := sim.Run(ctx, o)
	p.clear()
	if r == nil {
		return errors.Join(err, out.discard())
	}
	return errors.Join(err, out.write(r), failed(r))
}

func (c *simulateCmd) options() (sim.Options, error) {
	o := sim.Options{
		Nodes: c.Nodes, Size: int64(c.Size), Layers: c.Layers,
		NodeRate: float64(c.NodeRate), OriginRate: float64(c.OriginRate), SeedRate: float64(c.SeedRate),
		RTT: c.RTT, SlowStart: c.SlowStart, Zones: c.Zones, CrossZoneRate: float64(c.CrossZoneRate), ArrivalRate: c.Arrival.Rate,
		SlowNodes: slowNodes(c.Slow.Slow, c.Nodes), SlowRate: c.Slow.Rate, Mode: c.Mode,
		Goodput: c.Goodput, Decision: c.Decision, Seed: c.Seed,
		Command: commandLine(os.Args),
	}
	if c.Goodput == 0 {
		return o, errors.New("--goodput 0: headers leave something of a link; want 0.5 to 1")
	}
	for _, f := range c.Fault {
		if f.Action != "kill" || f.Target != "scheduler" || f.At <= 0 || o.Kill > 0 {
			return o, fmt.Errorf("--fault %q: only one kill scheduler@TIME, after the start, can be simulated; `shoal bench rollout` does the others", f)
		}
		o.Kill = f.At
	}
	return o, nil
}

// slowNodes returns how many of n nodes are slow: a share is rounded, and is at
// least one.
func slowNodes(s rollout.Slow, n int) int {
	if s.Count > 0 || s.Share == 0 {
		return s.Count
	}
	return max(int(math.Round(s.Share*float64(n))), 1)
}
