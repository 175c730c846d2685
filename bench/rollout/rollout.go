package rollout

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/bench/report"
)

const (
	// settleWithin is how long the members' own figures may take to be final
	// after the last byte reached the clients: they count what is safely on disk.
	settleWithin = 10 * time.Second
	// points is how many there are in a node's progress, about.
	points = 250
	// minSample is the shortest time between two of them.
	minSample = 10 * time.Millisecond
)

// Run rolls an image out and returns what came of it; nodes that failed are in
// the result. It blocks until everything that it made is gone again, also when
// ctx ends; then the error is the cause of that.
func Run(ctx context.Context, o Options) (*report.Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.filled()
	for o.Seed == 0 {
		o.Seed = rand.Uint64() >> 11 // so that JSON's numbers hold it
	}
	if o.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		o.Binary = self
	}
	if o.Congestion == System {
		o.Congestion = systemCongestion()
	}
	o, err := o.prepare(ctx)
	if err != nil {
		return nil, cause(ctx, err)
	}
	dir, err := newFolder(o.files.path)
	if err != nil {
		return nil, err
	}
	r, err := rollOut(ctx, o, dir.path)
	return r, errors.Join(cause(ctx, err), dir.remove())
}

// cause returns why ctx ended instead of an error that is the consequence.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); err != nil && c != nil {
		return c
	}
	return err
}

// rollOut does what Run does with everything below dir.
func rollOut(ctx context.Context, o Options, dir string) (_ *report.Result, err error) {
	img, err := newImage(o.Size, o.Layers, o.Seed)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, img.close()) }() // after the clients, and what they pull from
	if err := img.write(filepath.Join(dir, "image")); err != nil {
		return nil, err
	}
	begun := time.Now()
	b, err := start(ctx, o, dir, img)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	o.Log.Info("the fleet is up", "took", time.Since(begun))
	if o.Warm {
		o.Say("pulling once, to fill the caches")
		if r, err := measure(ctx, o, b, img, nil); err != nil || r.Failed() > 0 {
			return r, err
		}
	}
	before, err := settled(ctx, b)
	if err != nil {
		return nil, err
	}
	begun = time.Now()
	if err := touchMemory(ctx, o.need(0).pulled); err != nil {
		return nil, err
	}
	o.Log.Info("memory is at hand", "took", time.Since(begun))
	sent := b.sent()
	r, err := measure(ctx, o, b, img, o.Faults)
	if err != nil {
		return nil, err
	}
	after, err := settled(ctx, b)
	if err != nil {
		return nil, err
	}
	r.OriginBytes = b.sent() - sent
	for i, f := range after {
		n := &report.Node{Name: targetScheduler, Zone: o.zoneName(0)}
		if i < len(r.Nodes) {
			n = &r.Nodes[i]
		} else {
			r.Scheduler = n
		}
		f = f.minus(before[i])
		n.Bytes, n.CPU, n.RSS = report.Bytes(f.bytes), f.usage.cpu, f.usage.rss
	}
	if o.Mode == report.ModeDirect { // there is nobody else who could tell
		for i := range r.Nodes {
			if p := r.Nodes[i].Progress; len(p) > 0 {
				r.Nodes[i].Bytes.Origin = p[len(p)-1].Bytes
			}
		}
	}
	return r, nil
}

// measure lets all clients pull, and carries out the faults meanwhile.
func measure(ctx context.Context, o Options, b bed, img *image, faults []Fault) (*report.Result, error) {
	r := o.result()
	r.Machine, r.Started = machine(), time.Now()
	start := r.Started
	ctx, cancel := context.WithTimeoutCause(ctx, o.patience(), fmt.Errorf("the rollout was not over after %s", o.patience()))
	defer cancel()
	tracks := make([]*track, o.Nodes)
	members := b.members()
	var pulls, others sync.WaitGroup
	for i, p := range o.places() {
		tracks[i] = newTrack(start, len(img.layers))
		base, dial := b.client(i)
		c := &client{base: base, img: img, track: tracks[i], broken: func() error { return nil }, patience: patience}
		if i < len(members) {
			c.broken = members[i].broken
		}
		pulls.Go(func() { c.run(ctx, dial, p.arrives, &r.Nodes[i]) })
	}
	over, done := context.WithCancel(ctx)
	defer done()
	others.Go(func() { watch(over, o, tracks, start) })
	var failed error
	others.Go(func() {
		if r.Faults, failed = injectAll(over, o, b, faults, start); failed != nil {
			cancel()
		}
	})
	busy, own := busyCPU(), ownCPU()
	pulls.Wait()
	o.Log.Info("all clients are done", "took", time.Since(start), "ownCPU", ownCPU()-own)
	if busy > 0 {
		r.Busy = (busyCPU() - busy) / time.Since(start).Seconds() / float64(runtime.NumCPU())
	}
	done()
	others.Wait()
	if failed != nil {
		return nil, failed
	}
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return nil, err
	}
	r.SetBounds()
	return r, nil
}

// run waits for the client's arrival and lets it pull.
func (c *client) run(ctx context.Context, dial dialer, arrives time.Duration, n *report.Node) {
	t := newTransport(dial)
	defer t.CloseIdleConnections()
	c.http = &http.Client{Transport: t}
	timer := time.NewTimer(time.Until(c.track.start.Add(arrives)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		c.track.end(n, context.Cause(ctx))
		return
	}
	c.track.arrive()
	c.track.end(n, c.pull(ctx))
}

// patience is how long a rollout may take: several times what it would take if
// every byte came from the origin, since waiting for a fleet that hangs is no
// measurement.
func (o Options) patience() time.Duration {
	alone := float64(o.Nodes) * float64(o.Size) / min(o.OriginRate, o.NodeRate)
	last := o.Arrival.times(o.Nodes, o.Seed)[o.Nodes-1]
	return (time.Minute + last + seconds(3*(o.bound()+alone))).Round(time.Second)
}

// watch takes samples of all progress, and tells a person, until ctx ends.
func watch(ctx context.Context, o Options, tracks []*track, start time.Time) {
	tick := time.NewTicker(max(seconds(o.bound()/points), minSample))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p := Progress{Elapsed: time.Since(start), Total: int64(o.Nodes) * o.Size, Nodes: o.Nodes}
		for _, t := range tracks {
			have, ended := t.sample()
			p.Bytes += have
			if ended {
				p.Done++
			}
		}
		o.Progress(p)
	}
}

// injectAll carries out the faults, each at its time, and returns those that
// were: the rollout may be over before.
func injectAll(ctx context.Context, o Options, b bed, faults []Fault, start time.Time) ([]string, error) {
	var done []string
	faults = slices.Clone(faults)
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	for i, f := range faults {
		timer := time.NewTimer(time.Until(start.Add(f.At)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			for _, late := range faults[i:] {
				o.Say(fmt.Sprintf("the rollout was over before the fault %q", late))
			}
			return done, nil
		}
		err := b.inject(ctx, f, final(f, faults[i+1:]))
		if err != nil && ctx.Err() == nil { // else it was cut off by the end
			return done, fmt.Errorf("fault %q: %w", f, err)
		}
		o.Log.Info("fault", "what", f.String(), "at", time.Since(start))
		done = append(done, f.String())
	}
	return done, nil
}

// final reports whether what f does to its target is undone by none of the later
// faults.
func final(f Fault, later []Fault) bool {
	return !slices.ContainsFunc(later, func(g Fault) bool { return g.Target == f.Target && g.Action == "restart" })
}

// settled returns the figures of all members once nothing is being pulled any
// more and they stay the same.
func settled(ctx context.Context, b bed) ([]figures, error) {
	timeout := time.After(settleWithin)
	tick := time.NewTicker(100 * time.Millisecond) // as an operator would: by asking
	defer tick.Stop()
	last := all(ctx, b)
	for {
		select {
		case <-tick.C:
		case <-timeout:
			return last, nil // what there is
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		now := all(ctx, b)
		same := slices.EqualFunc(now, last, func(a, b figures) bool { return a.bytes == b.bytes })
		if last = now; same {
			return now, nil
		}
	}
}
