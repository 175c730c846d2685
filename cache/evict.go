package cache

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/proto"
)

// Why blobs are evicted, the label of shoal_cache_evictions_total.
const (
	forSpace = "space" // the quota, or the reserve of the disk
	forAge   = "stale" // a partial blob that nobody asks for any more
)

type spaceMetrics struct {
	evictions *prometheus.CounterVec
	evicted   prometheus.Counter
	funcs     []prometheus.Collector // gauges that look when they are asked
}

func newSpaceMetrics(c *Cache) spaceMetrics {
	m := spaceMetrics{
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_cache_evictions_total",
			Help: "Blobs that were evicted: for space, or partial ones that went stale.",
		}, []string{"reason"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_cache_evicted_bytes_total",
			Help: "Bytes of the blobs that were evicted.",
		}),
	}
	for _, why := range []string{forSpace, forAge} {
		m.evictions.WithLabelValues(why)
	}
	for _, g := range []struct {
		name, help string
		value      func(Use) int64
	}{
		{"shoal_cache_quota_bytes", "Bytes that the blobs of the cache may take; 0 if there is no quota.", func(u Use) int64 { return u.Quota }},
		{"shoal_cache_used_bytes", "Bytes that the blobs of the cache take on the disk, whole and partial.", func(u Use) int64 { return u.Bytes }},
		{"shoal_cache_free_bytes", "Bytes that the file system of the cache has left, the reserve included.", func(u Use) int64 { return u.Free }},
		{"shoal_cache_pinned_bytes", "Bytes of the blobs in the cache that are pinned.", func(u Use) int64 { return u.PinnedBytes }},
	} {
		m.funcs = append(m.funcs, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help},
			func() float64 { return float64(g.value(c.Use())) }))
	}
	return m
}

// flushEvery is how often Run writes to the index which blobs were used. What a
// kill takes is that much of the order in which blobs go.
const flushEvery = time.Minute

// Run keeps the cache below its high watermark, remembers in the index how
// blobs are used, and returns nil when ctx ends or the cache is closed. Without
// it, a Put that finds no room evicts what that Put needs.
func (c *Cache) Run(ctx context.Context) error {
	defer c.tidy()
	tick := time.NewTicker(flushEvery) // others fill the disk without telling
	defer tick.Stop()
	short := false
	for {
		short = c.relax(ctx, short)
		select {
		case <-ctx.Done():
			return nil
		case <-c.closing:
			return nil
		case <-c.space.over:
		case <-tick.C:
			c.tidy()
		}
	}
}

// tidy writes down what the index and the file of pins are behind by.
func (c *Cache) tidy() {
	_, _, err := c.pinned() // so that the file has what is pinned by now
	if err = errors.Join(err, c.flushUses(), c.pins.save()); err != nil && !errors.Is(err, ErrClosed) {
		c.log.Warn("use of blobs is not remembered", "error", err)
	}
}

// relax brings the cache down to the low watermark if it is over the high one.
// It reports whether that did not succeed, and logs it unless it knew.
func (c *Cache) relax(ctx context.Context, knew bool) (short bool) {
	over := false
	_, err := c.evict(func(l limits, used, promised int64) int64 {
		capacity := float64(l.capacity(used - promised))
		if over = over || float64(used) > c.space.high*capacity; !over || ctx.Err() != nil {
			return 0
		}
		need := used - int64(c.space.low*capacity)
		short = need > 0
		return need
	}, false)
	if err != nil && !errors.Is(err, ErrClosed) {
		c.log.Warn("cache cannot be kept below its quota", "error", err)
	}
	if short && !knew {
		c.log.Warn("cache stays over its watermark: what is left is pinned, in use or was asked for just now; raise cache.quota, or unpin something")
	}
	return short
}

// A goal says how many bytes have to become free, where the blobs here count
// used bytes, of which promised are not on the disk yet. It is called with c.mu
// held, again and again until it is reached.
type goal func(l limits, used, promised int64) int64

// evict removes blobs, least worth first, until goal is reached or no blob is
// left that may go. If enough is set and all that may go is not enough, it
// removes nothing. One eviction runs at a time; others wait for it, since it may
// reach their goal as well.
func (c *Cache) evict(goal goal, enough bool) (gone []candidate, err error) {
	select {
	case c.space.evictor <- struct{}{}:
	case <-c.closing:
		return nil, ErrClosed
	}
	defer func() { <-c.space.evictor }()
	stuck := map[proto.Digest]bool{} // could not be removed, or came to be used
	for {
		pinned, version, err := c.pinned()
		if err != nil {
			return gone, err
		}
		l, err := c.limits()
		if err != nil {
			return gone, err
		}
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return gone, ErrClosed
		}
		need := goal(l, c.space.used, c.promised())
		if need <= 0 {
			c.mu.Unlock()
			return gone, nil
		}
		all := c.candidates(pinned)
		c.mu.Unlock()
		for i := range all {
			all[i].held = all[i].held || stuck[all[i].digest]
		}
		victims, ok := choose(all, need, c.space.now(), c.space.keep, use.worth)
		if len(victims) == 0 || enough && !ok {
			return gone, nil
		}
		for _, v := range victims {
			if c.pinVersion() != version {
				break // what was pinned since must stay
			}
			if c.remove(v, forSpace) {
				gone = append(gone, v)
			} else {
				stuck[v.digest] = true
			}
		}
	}
}

// candidates lists all blobs of the cache's own. The caller holds c.mu.
func (c *Cache) candidates(pinned map[proto.Digest]struct{}) []candidate {
	all := make([]candidate, 0, len(c.whole)+len(c.partial))
	add := func(d proto.Digest, size int64, partial bool) {
		_, pin := pinned[d]
		_, busy := c.busy[d]
		all = append(all, candidate{
			digest: d, size: size, use: c.space.uses[d], partial: partial,
			held: busy || c.open[d] != nil, pinned: pin,
		})
	}
	for d, size := range c.whole {
		add(d, size, false)
	}
	for d := range c.partial {
		add(d, c.space.arriving[d], true)
	}
	return all
}

// remove removes a blob if it is still as v says: not used since.
func (c *Cache) remove(v candidate, why string) bool {
	gone, err := c.removeIdle(v)
	if err != nil {
		c.log.Warn("blob cannot be evicted", "digest", v.digest.String(), "error", err)
	}
	if !gone {
		return false
	}
	c.metrics.space.evictions.WithLabelValues(why).Inc()
	c.metrics.space.evicted.Add(float64(v.size))
	c.log.Debug("blob is evicted", "digest", v.digest.String(), "size", v.size, "reason", why)
	if !v.partial {
		c.gone(v.digest)
	}
	return true
}

func (c *Cache) removeIdle(v candidate) (gone bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := v.digest
	if _, busy := c.busy[d]; busy || c.closed || c.open[d] != nil || !c.space.uses[d].last.Equal(v.use.last) {
		return false, nil
	}
	size, whole := c.whole[d]
	_, partial := c.partial[d]
	if whole == v.partial || partial != v.partial {
		return false, nil
	}
	use, counts := c.space.uses[d], c.space.arriving[d]
	c.forget(d)
	delete(c.partial, d)
	c.nothing(d)
	c.alone(d, func() { err = c.unlink(d) })
	if err == nil {
		return true, nil
	}
	c.space.uses[d] = use // it takes up space still
	if whole {
		c.recall(proto.Blob{Digest: d, Size: size})
	} else {
		c.partial[d] = struct{}{}
		c.count(d, counts)
	}
	return false, err
}

// unlink removes the files of d and its records. The bytes go first: what a
// crash leaves of the rest is found to be nobody's when the cache is opened.
func (c *Cache) unlink(d proto.Digest) error {
	l := c.layout
	if err := remove(l.blob(d), l.partial(d)); err != nil {
		return err
	}
	if err := remove(l.sums(d), l.state(d)); err != nil {
		c.log.Warn("file of an evicted blob is left behind", "digest", d.String(), "error", err)
	}
	if err := c.index.forgetBlobs(d); err != nil { // it cannot be written while the disk is full
		c.log.Debug("index still has an evicted blob", "digest", d.String(), "error", err)
	}
	return nil
}
