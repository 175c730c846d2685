package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
)

// checkCron returns what is wrong with a cron expression.
func checkCron(expression string) error {
	if err := gocron.NewDefaultCron(false).IsValid(expression, time.Local, time.Now()); err != nil {
		_, why, _ := strings.Cut(err.Error(), "\n") // of a list of lines, the first of which says that there was an error
		return fmt.Errorf("%q is not a cron expression: %s; write minute, hour, day of the month, month and day of the week, such as \"0 5 * * *\" for each day at five", expression, why)
	}
	return nil
}

// upkeep does what is done by the clock until ctx ends: garbage collection,
// scrubs, and images that are wanted at certain times. What runs then is
// stopped and waited for.
func (d *Daemon) upkeep(ctx context.Context) error {
	s, err := gocron.NewScheduler(gocron.WithLocation(time.Local),
		gocron.WithGlobalJobOptions(gocron.WithSingletonMode(gocron.LimitModeReschedule)))
	if err != nil {
		return fmt.Errorf("upkeep: %w", err)
	}
	add := func(name, at string, do func(context.Context)) {
		if at == "" || err != nil {
			return
		}
		if _, e := s.NewJob(gocron.CronJob(at, false), gocron.NewTask(func() { do(ctx) }), gocron.WithName(name)); e != nil {
			err = fmt.Errorf("upkeep: %s at %q: %w", name, at, e)
		}
	}
	add("gc", d.cfg.Cache.GC, d.collect)
	add("scrub", d.cfg.Cache.Scrub, func(ctx context.Context) {
		if _, err := d.scrub(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("scrub failed", "error", err)
		}
	})
	for _, p := range d.cfg.Prefetch {
		add("prefetch "+p.Image, p.At, func(ctx context.Context) { d.prefetch(ctx, p) })
	}
	if err == nil {
		s.Start()
		<-ctx.Done()
	}
	return errors.Join(err, s.Shutdown())
}

// collect is the scheduled garbage collection.
func (d *Daemon) collect(ctx context.Context) {
	_, err := d.cache.GC(ctx, cache.GCOptions{DryRun: d.cfg.Cache.DryRun})
	if err != nil && ctx.Err() == nil {
		d.log.Warn("garbage collection failed", "error", err)
	}
}

// scrub checks all blobs at the configured rate.
func (d *Daemon) scrub(ctx context.Context) (cache.ScrubReport, error) {
	report, err := d.cache.Scrub(ctx, func(ctx context.Context, n int64) error {
		for n > 0 {
			granted, err := d.scrubbing.Wait(ctx, n)
			if err != nil {
				return err
			}
			n -= granted
		}
		return nil
	})
	if err == nil {
		d.log.Info("scrub is over", "blobs", report.Blobs, "bytes", report.Bytes, "damaged", len(report.Damaged),
			"orphans", report.Orphans, "took", report.Took.Round(time.Millisecond))
	}
	return report, err
}

// prefetch starts the job that brings an image that is wanted now.
func (d *Daemon) prefetch(ctx context.Context, p PrefetchConfig) {
	j, err := d.jobs.Start(ctx, jobs.Spec{Images: []string{p.Image}, Platforms: p.Platforms, AllPlatforms: p.AllPlatforms, Nodes: p.Nodes})
	if err != nil {
		d.log.Warn("prefetch not started", "image", p.Image, "error", err)
		return
	}
	d.log.Info("prefetch started", "image", p.Image, "job", j.ID)
}
