package cache

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoal-project/shoal/proto"
)

// ErrFull is Put's where the quota or the disk has no room for the blob, and
// there is nothing more that may be evicted for it. Nothing is wrong with the
// bytes: they can still go to whoever waits for them.
var ErrFull = errors.New("the cache is full")

// Defaults of Options.
const (
	defaultHigh = .95
	defaultLow  = .85
	defaultKeep = 10 * time.Minute
)

// A space is what of the disk the cache may take, and what it takes.
type space struct {
	// immutable
	quota, reserve Amount
	high, low      float64
	keep           time.Duration
	now            func() time.Time
	evictor        chan struct{} // holds one value: who has put it in evicts
	over           chan struct{} // holds one value: Run is to look at the watermarks

	writing atomic.Int64 // bytes that Puts are about to write

	// Cache.mu protects the fields below.

	// used is what the blobs here count, in bytes. One that is arriving counts
	// as if it were whole from its first Put on, so that of two which do not both
	// fit one comes in, and not half of each.
	used     int64
	arriving map[proto.Digest]int64 // what those that are not whole count
	uses     map[proto.Digest]use   // of all blobs here
	dirty    map[proto.Digest]struct{}
	small    uint64 // how many small blobs have become whole: one may be a manifest
}

func newSpace(o Options) (*space, error) {
	s := &space{
		quota: o.Quota, reserve: o.Reserve, high: o.High, low: o.Low, keep: o.Keep,
		now:      o.now,
		evictor:  make(chan struct{}, 1),
		over:     make(chan struct{}, 1),
		arriving: map[proto.Digest]int64{},
		uses:     map[proto.Digest]use{},
		dirty:    map[proto.Digest]struct{}{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.high == 0 {
		s.high = defaultHigh
	}
	if s.low == 0 {
		s.low = min(defaultLow, s.high)
	}
	if s.keep == 0 {
		s.keep = defaultKeep
	}
	switch {
	case !(s.low > 0 && s.low <= s.high && s.high <= 1):
		return nil, fmt.Errorf("cache.low is %.4g %% and cache.high is %.4g %%: low must be over 0 %% and not over high, high not over 100 %%", 100*s.low, 100*s.high)
	case s.keep < 0:
		return nil, fmt.Errorf("cache.keep is %s: it must not be negative", s.keep)
	}
	return s, nil
}

// limits are what the configuration and the disk allow now, in bytes.
type limits struct {
	quota   int64 // math.MaxInt64 if there is none
	reserve int64 // what of the file system is left alone
	free    int64 // what it has left
}

func (c *Cache) limits() (limits, error) {
	free, total, err := c.volume.stat()
	if err != nil {
		return limits{}, err
	}
	l := limits{quota: math.MaxInt64, reserve: max(c.space.reserve.Of(total), reserveBlobs), free: free}
	if !c.space.quota.IsZero() {
		l.quota = c.space.quota.Of(total)
	}
	return l, nil
}

// capacity is what blobs may count, where taken bytes of them are on the disk:
// the quota, or less if others have filled the disk.
func (l limits) capacity(taken int64) int64 {
	return max(min(l.quota, taken+l.free-l.reserve), 0)
}

// count has a blob that is not whole count n bytes. The caller holds c.mu.
func (c *Cache) count(d proto.Digest, n int64) {
	c.space.used += n - c.space.arriving[d]
	if n == 0 {
		delete(c.space.arriving, d)
	} else {
		c.space.arriving[d] = n
	}
}

// remember lists b as whole.
func (c *Cache) remember(b proto.Blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recall(b)
	u := c.space.uses[b.Digest]
	c.space.uses[b.Digest] = use{last: c.space.now(), count: max(u.count, 1)}
	c.space.dirty[b.Digest] = struct{}{}
	if b.Size <= maxManifest {
		c.space.small++
	}
}

// recall is remember without its being a use. The caller holds c.mu.
func (c *Cache) recall(b proto.Blob) {
	c.forget(b.Digest)
	c.count(b.Digest, 0)
	c.whole[b.Digest] = b.Size
	c.space.used += b.Size
	c.metrics.blobs.Inc()
	c.metrics.bytes.Add(float64(b.Size))
}

// forget takes d from the list of whole blobs. The caller holds c.mu.
func (c *Cache) forget(d proto.Digest) {
	size, ok := c.whole[d]
	if !ok {
		return
	}
	delete(c.whole, d)
	c.space.used -= size
	c.metrics.blobs.Dec()
	c.metrics.bytes.Sub(float64(size))
}

// nothing says that nothing of d is here any more. The caller holds c.mu.
func (c *Cache) nothing(d proto.Digest) {
	c.count(d, 0)
	delete(c.space.uses, d)
	delete(c.space.dirty, d)
}

// promised is how many of the bytes that blobs count are not on the disk yet.
// The caller holds c.mu.
func (c *Cache) promised() (n int64) {
	for d, counts := range c.space.arriving {
		if b := c.open[d]; b != nil {
			n += max(counts-b.bytesIn(), 0)
		}
	}
	return n
}

// bytesIn is how many bytes of b are in.
func (b *Blob) bytesIn() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.bytesIn(b.blob)
}

func (f *fill) bytesIn(b proto.Blob) int64 {
	n := int64(f.have.Count()) * b.ChunkSize()
	if last := b.Chunks() - 1; last >= 0 && f.have.Has(last) {
		n -= b.ChunkSize() - b.Chunk(last).Size
	}
	return n
}

// claim sees to it, before the first of b's chunks is written, that there is
// room for all of them, and has b count that much. It evicts if need be. An
// error wraps ErrFull, or is the disk's.
func (b *Blob) claim() error {
	c, d := b.cache, b.blob.Digest
	var short int64 // bytes
	goal := func(l limits, used, promised int64) int64 {
		if b.claimed.Load() {
			short = 0
			return 0
		}
		capacity := l.capacity(used - promised)
		counts := c.space.arriving[d]
		if short = used - counts + b.blob.Size - capacity; short > 0 {
			return short
		}
		c.count(d, b.blob.Size)
		b.claimed.Store(true)
		if float64(c.space.used) > c.space.high*float64(capacity) {
			c.space.wake()
		}
		return 0
	}
	l, err := c.limits()
	if err != nil {
		return err
	}
	c.mu.Lock()
	missing := goal(l, c.space.used, c.promised())
	c.mu.Unlock()
	if missing <= 0 {
		return nil
	}
	if b.blob.Size <= l.quota { // else nothing helps, and nothing has to go
		if _, err := c.evict(goal, true); err != nil {
			return err
		}
		if short <= 0 {
			return nil
		}
	}
	err = c.full(b.blob, short)
	if b.warned.CompareAndSwap(false, true) {
		c.log.Warn("blob is not kept", "digest", d.String(), "size", b.blob.Size, "error", err)
	}
	return err
}

// full says why there is no room for b, for which short bytes are missing.
func (c *Cache) full(b proto.Blob, short int64) error {
	l, err := c.limits()
	if err != nil {
		return err
	}
	size, quota := humanize.IBytes(uint64(b.Size)), humanize.IBytes(uint64(l.quota))
	c.mu.Lock()
	used := c.space.used - c.space.arriving[b.Digest]
	disk := l.quota-used >= b.Size
	c.mu.Unlock()
	switch {
	case b.Size > l.quota:
		return fmt.Errorf("%w: a blob of %s is larger than the quota of %s: set cache.quota to several times the largest blob", ErrFull, size, quota)
	case disk:
		return fmt.Errorf("%w: for a blob of %s there are %s too few: %w", ErrFull, size, humanize.IBytes(uint64(short)), c.volume.lacking(l))
	}
	return fmt.Errorf("%w: for a blob of %s there are %s too few within the quota of %s, of which %s are in use and what else there is is pinned, in use or was asked for in the last %s: raise cache.quota, or unpin something",
		ErrFull, size, humanize.IBytes(uint64(short)), quota, humanize.IBytes(uint64(used)), c.space.keep)
}

// outOfSpace has an error of the disk wrap ErrFull if it says that there is no
// room.
func outOfSpace(err error) error {
	if errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFull, err)
}

// writeRoom calls write, which writes n bytes, once the disk has room for them
// beside the reserve and what others are about to write. Others than the cache
// may have filled the disk since the blob was let in: then it evicts.
func (c *Cache) writeRoom(n int64, write func() error) error {
	defer c.space.writing.Add(-n)
	ahead := c.space.writing.Add(n)
	l, err := c.limits()
	if err != nil {
		return err
	}
	if l.free-ahead < l.reserve {
		goal := func(now limits, _, _ int64) int64 {
			l = now
			return l.reserve + c.space.writing.Load() - l.free
		}
		if _, err := c.evict(goal, true); err != nil {
			return err
		}
		if l.free-ahead < l.reserve {
			return outOfSpace(c.volume.lacking(l))
		}
	}
	err = write()
	if err = outOfSpace(err); !errors.Is(err, ErrFull) {
		return err
	}
	// Some file systems say no before they are full: those that have a quota of
	// their own, or that have to move things first.
	freed := false
	if _, evictErr := c.evict(func(limits, int64, int64) int64 {
		if freed {
			return 0
		}
		freed = true
		return n
	}, true); evictErr != nil || !freed {
		return err
	}
	return outOfSpace(write())
}

// lacking says that the file system has no room beside the reserve.
func (v volume) lacking(l limits) error {
	return fmt.Errorf("the file system of %s has %s left, of which shoal leaves %s alone: free some space, or set another directory as data: %w",
		v.dir, humanize.IBytes(uint64(max(l.free, 0))), humanize.IBytes(uint64(l.reserve)), syscall.ENOSPC)
}

// wake has Run look at the watermarks.
func (s *space) wake() {
	select {
	case s.over <- struct{}{}:
	default:
	}
}
