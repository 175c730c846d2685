package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

// maxDamaged bounds the damaged blobs that wait to be fetched again. Of more the
// disk is beyond repair, and they come when they are asked for.
const maxDamaged = 256

// openStore opens the cache, and what goes with it.
func (d *Daemon) openStore() error {
	d.damaged = make(chan proto.Blob, maxDamaged)
	d.scrubbing = rate.New(d.cfg.Cache.ScrubRate)
	c, err := cache.Open(d.cfg.Data, cache.Options{
		Log:      d.log,
		Registry: d.registry,
		Whole: func(b proto.Blob) {
			if d.client != nil {
				d.held(b)
			}
		},
		Evicted: func(dg proto.Digest) {
			if d.client != nil {
				d.gone(dg)
			}
		},
		Damaged: func(b proto.Blob) {
			select {
			case d.damaged <- b:
			default:
			}
		},
		Adopt: d.cfg.Cache.Adopt,
		Quota: d.cfg.Cache.Quota, Reserve: d.cfg.Cache.Reserve,
		High: share(d.cfg.Cache.High), Low: share(d.cfg.Cache.Low),
		Keep: orNot(d.cfg.Cache.Keep), Pins: d.cfg.Cache.Pins,
	})
	if err != nil {
		return err
	}
	d.cache = c
	d.opened(c.Close)
	return nil
}

// share returns a share as a number from 0 to 1.
func share(a cache.Amount) float64 { return float64(a.Of(10_000)) / 10_000 }

// orNot returns d for an option where 0 stands for its default: there, what is
// over at once is as good as nothing.
func orNot(d time.Duration) time.Duration { return max(d, time.Nanosecond) }

// mend fetches damaged blobs again, from wherever they are known to be, until
// ctx ends.
func (d *Daemon) mend(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-d.damaged:
			if err := d.refetch(b); err != nil {
				d.log.Warn("damaged blob is not fetched again now; it is when it is asked for", "digest", b.Digest.String(), "error", err)
			}
		}
	}
}

func (d *Daemon) refetch(b proto.Blob) error {
	from, err := d.cache.Index().LinkedFrom(b.Digest)
	if err != nil {
		return err
	}
	for _, l := range from {
		if !d.origin.Knows(l.Upstream) {
			continue
		}
		return d.puller.Start(b, proto.Origin{Upstream: l.Upstream, Repository: l.Repository, Manifest: policy.IsManifest(l.MediaType)})
	}
	return fmt.Errorf("no repository is known to have it")
}

// openGate opens the memory of tags, and the gate that asks it.
func (d *Daemon) openGate() error {
	rules := make(map[string][]tags.Rule) // by upstream
	for name, u := range d.cfg.Upstreams {
		for pattern, value := range u.Tags {
			r, err := tags.ParseRule(pattern, value)
			if err != nil {
				return fmt.Errorf("upstreams.%s.tags: %w", name, err)
			}
			rules[name] = append(rules[name], r)
		}
	}
	t := d.cfg.Tags
	d.tags = tags.New(tags.Config{
		Origin: d.origin, Index: d.cache.Index(),
		TTL: orNot(t.TTL), NotFound: orNot(t.NotFound), Revalidate: orNot(t.Revalidate), MaxStale: orNot(t.MaxStale),
		TTLOf: func(upstream, tag string) (time.Duration, bool, bool) {
			if _, named := d.cfg.Upstreams[upstream]; !named {
				upstream = "*"
			}
			if ttl, immutable, ok := tags.Of(rules[upstream], tag); ok {
				return ttl, immutable, true
			}
			ttl := d.cfg.Upstreams[upstream].TagTTL
			return ttl, false, ttl > 0
		},
		Upstreams: d.upstreams(), Log: d.log, Registry: d.registry,
	})
	return d.openPolicy()
}

// upstreams returns the names of the configured registries.
func (d *Daemon) upstreams() []string { return slices.Sorted(maps.Keys(d.cfg.Upstreams)) }
