package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/admin"
)

// settleWithin is how long the members' own figures may take to be those of
// the registry, after the last byte reached the clients. They count the last
// chunk of a blob when it is safely on the disk.
const settleWithin = 15 * time.Second

// run is the demo. All that it started is gone when it returns.
func run(ctx context.Context, o options, s *screen) (err error) {
	dir, err := os.MkdirTemp("", "shoal-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s.say("Shoal: a registry, a scheduler and %s, all on this machine", daemons(o.nodes))
	begun := time.Now()
	f, err := start(ctx, o, dir)
	defer func() { err = errors.Join(err, f.stop()) }()
	if err != nil {
		return cause(ctx, err)
	}
	s.introduce(f, o)
	s.say("%sone fleet after %s", indent, seconds(time.Since(begun)))
	ctx, end := f.watch(ctx)
	err = show(ctx, f, o, s)
	end()
	return cause(ctx, err)
}

// cause returns why ctx ended instead of an error that is the consequence.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); err != nil && c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

func daemons(n int) string { return english.Plural(n, "daemon", "") }

// introduce says who takes part.
func (s *screen) introduce(f *fleet, o options) {
	limit := "as fast as it can"
	if o.rate > 0 {
		limit = "sends at most " + bytes(o.rate) + "/s"
	}
	s.say("")
	s.say("%s%-10s http://%-16s %s", indent, "registry", f.origin[len("http://"):], limit)
	s.say("%s%-10s http://%-16s no mirror; it is a seed", indent, "scheduler", f.scheduler.Admin)
	for _, n := range f.daemons {
		s.say("%s%-10s http://%-16s mirror", indent, n.Name(), n.Mirror)
	}
}

// show pushes an image and pulls it twice.
func show(ctx context.Context, f *fleet, o options, s *screen) error {
	begun := time.Now()
	img, err := registry.PushImage(ctx, f.origin, "demo/app", "v1", o.layers, rand.Uint64())
	if err != nil {
		return err
	}
	s.say("")
	s.say("Pushed %s/%s:%s: %d layers, %s of random bytes, in %s",
		upstream, img.Repository, img.Tag, len(img.Layers), bytes(img.Size()), seconds(time.Since(begun)))
	if err := cold(ctx, f, o, s, img); err != nil {
		return err
	}
	return warm(ctx, f, s, img)
}

// cold pulls an image that nobody has.
func cold(ctx context.Context, f *fleet, o options, s *screen, img registry.Image) error {
	s.say("")
	s.say("Pulling it through %s at once", daemons(len(f.daemons)))
	before, err := f.figures(ctx)
	if err != nil {
		return err
	}
	took, err := pullAll(ctx, s, f.daemons, img)
	if err != nil {
		return err
	}
	got, err := f.settled(ctx, before, img.Size())
	if err != nil {
		return err
	}
	s.say("")
	s.results(f, got, took)
	s.say("")
	s.say("The registry sent %s, %.2f × the image.", bytes(got.left()), ratio(got.left(), img))
	alone := int64(len(f.daemons)) * img.Size()
	if o.rate > 0 && len(f.daemons) > 1 {
		s.say("Without Shoal, %d nodes take %s from it: %s at %s/s.", len(f.daemons), bytes(alone),
			seconds(time.Duration(float64(alone)/float64(o.rate)*float64(time.Second))), bytes(o.rate))
	}
	return judge(got, img)
}

// settled returns what was counted since before, once the members' figures have
// caught up with the clients.
func (f *fleet) settled(ctx context.Context, before figures, size int64) (figures, error) {
	timeout := time.After(settleWithin)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := f.figures(ctx)
		if err != nil {
			return now, err
		}
		now = now.since(before)
		if sum := now.sum(); sum.Origin == now.left() && sum.Origin+sum.Peers() >= int64(len(f.daemons))*size {
			return now, nil
		}
		select {
		case <-tick.C:
		case <-timeout:
			return now, nil // judge says what is wrong with it
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}

func ratio(n int64, img registry.Image) float64 { return float64(n) / float64(img.Size()) }

// judge returns an error unless the registry sent the image once, by its own
// count and by what the members say.
func judge(got figures, img registry.Image) error {
	counted, told := got.left(), got.sum().Origin
	once := func(n int64) bool { r := ratio(n, img); return 0.995 <= r && r < 1.005 }
	if once(counted) && once(told) {
		return nil
	}
	return fmt.Errorf("the image has %d bytes and should have left the registry once: the registry counted %d (%.2f ×), the members told of %d (%.2f ×)",
		img.Size(), counted, ratio(counted, img), told, ratio(told, img))
}

// results prints what came from where.
func (s *screen) results(f *fleet, got figures, took []time.Duration) {
	rows := [][]string{{"node", "seconds", "from origin", "from seed", "from peers", "from disk"}}
	row := func(name, took string, b admin.Bytes) {
		rows = append(rows, []string{name, took, bytes(b.Origin), bytes(b.Seed), bytes(b.Zone + b.Far), bytes(b.Disk)})
	}
	for i, n := range f.daemons {
		row(n.Name(), fmt.Sprintf("%.2f", took[i].Seconds()), got.nodes[i])
	}
	row("scheduler", "-", got.nodes[len(f.daemons)])
	row("total", "", got.sum())
	s.table(rows...)
}

// warm pulls the image again.
func warm(ctx context.Context, f *fleet, s *screen, img registry.Image) error {
	s.say("")
	s.say("Pulling it again")
	before, err := f.figures(ctx)
	if err != nil {
		return err
	}
	took, err := pullAll(ctx, s, f.daemons, img)
	if err != nil {
		return err
	}
	now, err := f.figures(ctx)
	if err != nil {
		return err
	}
	got := now.since(before)
	s.say("")
	s.results(f, got, took)
	s.say("")
	if n := got.left(); n != 0 {
		return fmt.Errorf("every node has the image, and yet %d bytes left the registry", n)
	}
	s.say("The registry sent nothing: it was asked what the tag stands for, and no more.")
	return nil
}
