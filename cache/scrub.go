package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// ErrScrubbing is Scrub's while another one is running.
var ErrScrubbing = errors.New("a scrub is running already")

// errStopped marks what the caller of Scrub gave as the reason to end it.
var errStopped = errors.New("stopped")

// A ScrubReport says what a Scrub did.
type ScrubReport struct {
	Blobs   int            `json:"blobs"`             // that were read, whole and partial
	Bytes   int64          `json:"bytes"`             // that were read
	Damaged []proto.Digest `json:"damaged,omitempty"` // whole blobs that were set aside, and adopted ones that are ignored now
	Chunks  int            `json:"chunks"`            // of partial blobs that were damaged and are dropped
	Orphans int            `json:"orphans"`           // files of no blob that were removed
	Took    time.Duration  `json:"took"`              // in nanoseconds
}

// ScrubProgress says how far a Scrub is. What is to be done was counted when it
// began.
type ScrubProgress struct {
	Started   time.Time `json:"started"`
	Blobs     int       `json:"blobs"` // to be read in all
	Bytes     int64     `json:"bytes"` // to be read in all
	BlobsDone int       `json:"blobsDone"`
	BytesDone int64     `json:"bytesDone"`
	Damaged   int       `json:"damaged"`
}

// scrub is what is known of a Scrub that is running.
type scrub struct {
	mu       sync.Mutex // protects the fields below
	running  bool
	progress ScrubProgress
}

// ScrubProgress returns how far the running Scrub is, and false if none is.
func (c *Cache) ScrubProgress() (ScrubProgress, bool) {
	c.scrub.mu.Lock()
	defer c.scrub.mu.Unlock()
	return c.scrub.progress, c.scrub.running
}

// Scrub reads everything in the cache and checks it: whole blobs against their
// digests, the chunks of partial ones that nobody uses now against their sums,
// and adopted ones that were found right before. A damaged whole blob is set
// aside, as Options.Damaged has it. Then it removes files in the cache's
// directories that belong to no blob, as a crash can leave them; files with
// names that the cache does not give stay.
//
// wait, if not nil, is called before each piece is read, with its length in
// bytes, at most 256 KiB, and makes the byte rate. Scrub ends when ctx ends or
// wait fails, with that error and what was done until then. The order is random,
// so that scrubs that never get to the end see everything all the same. It
// fails with ErrScrubbing if one is running.
func (c *Cache) Scrub(ctx context.Context, wait func(ctx context.Context, n int64) error) (ScrubReport, error) {
	s := &scrubber{c: c}
	if err := s.begin(); err != nil {
		return ScrubReport{}, err
	}
	defer c.work.Done()
	start := time.Now()
	err := s.run(func(n int64) error {
		err := context.Cause(ctx)
		if err == nil && wait != nil {
			err = wait(ctx, n)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errStopped, err)
		}
		s.count(n)
		return nil
	})
	s.report.Took = time.Since(start)
	c.scrub.mu.Lock()
	c.scrub.running, c.scrub.progress = false, ScrubProgress{}
	c.scrub.mu.Unlock()
	if err != nil {
		return s.report, fmt.Errorf("scrub: %w", err)
	}
	return s.report, nil
}

// A scrubber is one run of Scrub.
type scrubber struct {
	c       *Cache
	whole   []proto.Digest // the cache's own and the adopted ones that were vouched for
	partial []proto.Digest
	report  ScrubReport
}

// begin makes s the scrub that is running, and finds out what there is to do.
func (s *scrubber) begin() error {
	c := s.c
	vouched := c.vouched()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("scrub: %w", ErrClosed)
	}
	c.scrub.mu.Lock()
	defer c.scrub.mu.Unlock()
	if c.scrub.running {
		return ErrScrubbing
	}
	c.work.Add(1)
	p := ScrubProgress{Started: time.Now()}
	for d, size := range c.whole {
		s.whole = append(s.whole, d)
		p.Bytes += size
	}
	for _, d := range vouched {
		_, own := c.whole[d]
		if _, size, ok := c.adopted(d); ok && !own {
			s.whole = append(s.whole, d)
			p.Bytes += size
		}
	}
	for d := range c.partial {
		s.partial = append(s.partial, d)
	}
	rand.Shuffle(len(s.whole), func(i, j int) { s.whole[i], s.whole[j] = s.whole[j], s.whole[i] })
	p.Blobs = len(s.whole) + len(s.partial)
	c.scrub.running, c.scrub.progress = true, p
	return nil
}

// vouched returns the adopted blobs of several chunks that were found right.
func (c *Cache) vouched() (all []proto.Digest) {
	for _, alg := range algorithms {
		entries, err := os.ReadDir(filepath.Join(c.layout.verdicts(), alg))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("adopted blobs are not scrubbed", "error", err)
		}
		for _, e := range entries {
			if d, err := proto.ParseDigest(alg + ":" + e.Name()); err == nil {
				all = append(all, d)
			}
		}
	}
	return all
}

// count counts bytes that are about to be read.
func (s *scrubber) count(n int64) {
	s.report.Bytes += n
	s.c.metrics.care.scrubbed.Add(float64(n))
	s.c.scrub.mu.Lock()
	defer s.c.scrub.mu.Unlock()
	s.c.scrub.progress.BytesDone += n
}

func (s *scrubber) run(wait func(n int64) error) error {
	for _, d := range s.whole {
		blob, damaged, err := s.c.recheckWhole(d, foundScrub, wait)
		if stop := s.done(err); stop != nil {
			return stop
		}
		if !blob.Digest.IsZero() {
			s.report.Blobs++
		}
		if damaged {
			s.report.Damaged = append(s.report.Damaged, d)
			s.c.scrub.mu.Lock()
			s.c.scrub.progress.Damaged++
			s.c.scrub.mu.Unlock()
		}
	}
	for _, d := range s.partial {
		n, err := s.c.recheckPartial(d, wait)
		if stop := s.done(err); stop != nil {
			return stop
		}
		s.report.Blobs++
		s.report.Chunks += n
	}
	n, err := s.c.sweep()
	s.report.Orphans = n
	return err
}

// done counts a blob as done, and returns err if it ends the scrub: others,
// such as being out of descriptors, pass with the next blob.
func (s *scrubber) done(err error) error {
	if errors.Is(err, errStopped) || errors.Is(err, ErrClosed) {
		return err
	}
	if err != nil {
		s.c.log.Warn("blob is not scrubbed", "error", err)
	}
	s.c.scrub.mu.Lock()
	defer s.c.scrub.mu.Unlock()
	s.c.scrub.progress.BlobsDone++
	return nil
}

// recheckPartial reads the chunks of a partial blob that is not open, and
// clears the marks of those that do not have their sums. It returns how many
// these are.
func (c *Cache) recheckPartial(d proto.Digest, wait func(n int64) error) (dropped int, err error) {
	c.mu.Lock()
	_, partial := c.partial[d]
	_, busy := c.busy[d]
	c.mu.Unlock()
	if !partial || busy {
		return 0, nil
	}
	// It can be opened meanwhile and change under way, and nobody should wait
	// for the scrub. So what seems damaged is looked at again, alone.
	bad, _, err := c.wrongChunks(d, nil, wait)
	if err == nil && len(bad) == 0 || err != nil && !spoilt(err) {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.idle(d); err != nil {
		return 0, err
	}
	if _, partial = c.partial[d]; !partial {
		return 0, nil
	}
	c.alone(d, func() { dropped, err = c.dropChunks(d, bad) })
	if errors.Is(err, errDamaged) {
		delete(c.partial, d)
		c.nothing(d)
		err = nil
	}
	return dropped, err
}

// wrongChunks returns which of the chunks only, or of all if that is nil, are
// marked as in and do not have their sums, and how many are marked in all.
func (c *Cache) wrongChunks(d proto.Digest, only []int, wait func(n int64) error) (bad []int, marked int, err error) {
	raw, err := readSide(c.layout.state(d))
	if err != nil {
		return nil, 0, err
	}
	size, have, sums, err := parseState(raw)
	if err != nil {
		return nil, 0, err
	}
	data, err := os.Open(c.layout.partial(d))
	if err != nil {
		return nil, 0, err
	}
	defer data.Close()
	blob, h := proto.Blob{Digest: d, Size: size}, blake3.New()
	for i := have.Next(0); i >= 0; i = have.Next(i + 1) {
		if only != nil && !slices.Contains(only, i) {
			continue
		}
		h.Reset()
		err := c.pour(data, blob.Chunk(i), h, wait)
		if err != nil && !spoilt(err) {
			return nil, 0, err
		}
		var sum proto.Sum
		if h.Sum(sum[:0]); err != nil || sum != sums[i] {
			bad = append(bad, i)
		}
	}
	return bad, have.Count(), nil
}

// dropChunks clears the marks of those of the chunks in bad that are still
// wrong. A blob of which nothing is left, or whose files cannot be used at all,
// is given up: the error then wraps errDamaged. It runs alone on d's files.
func (c *Cache) dropChunks(d proto.Digest, bad []int) (dropped int, err error) {
	bad, marked, err := c.wrongChunks(d, bad, nil)
	switch {
	case err != nil && !spoilt(err):
		return 0, err
	case err != nil:
	case len(bad) == marked:
		err = errors.New("no chunk of it is right")
	default:
		err = c.unmark(d, bad)
	}
	if err != nil {
		c.log.Warn("partial blob is given up", "digest", d.String(), "error", err)
		return len(bad), errors.Join(errDamaged, c.discard(c.layout.partial(d), c.layout.state(d)))
	}
	for _, i := range bad {
		c.metrics.corrupt.Inc()
		c.log.Info("chunk on the disk is dropped", "digest", d.String(), "chunk", i)
	}
	return len(bad), nil
}

// unmark notes that chunks of a partial blob are not in.
func (c *Cache) unmark(d proto.Digest, chunks []int) error {
	state, err := os.OpenFile(c.layout.state(d), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, i := range chunks {
		_, markErr := state.WriteAt(make([]byte, recordSize), recordOffset(i))
		err = errors.Join(err, markErr)
	}
	return errors.Join(err, state.Close())
}

// sweep removes the files in the cache's directories that belong to no blob,
// and returns how many these were.
func (c *Cache) sweep() (n int, err error) {
	var errs []error
	clean := func(dir, alg, suffix string, belongs func(d proto.Digest, side bool) bool) {
		k, err := c.sweepDir(dir, alg, suffix, belongs)
		n += k
		errs = append(errs, err)
	}
	for _, alg := range algorithms {
		dir := filepath.Join(c.layout.blobs(), alg)
		shards, err := subdirs(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, shard := range shards {
			clean(filepath.Join(dir, shard), alg, sumsSuffix, c.ownsWhole)
		}
		clean(filepath.Join(c.layout.partials(), alg), alg, stateSuffix, c.ownsPartial)
		clean(filepath.Join(c.layout.verdicts(), alg), alg, sumsSuffix, c.ownsVerdict)
	}
	errs = append(errs, c.pruneQuarantine())
	return n, errors.Join(errs...)
}

// ownsWhole reports whether a file with d's name, or its sums, belongs among
// the whole blobs. The caller holds c.mu, as of the two below.
func (c *Cache) ownsWhole(d proto.Digest, sums bool) bool {
	size, whole := c.whole[d]
	return whole && (!sums || proto.Blob{Digest: d, Size: size}.Chunks() > 1)
}

// ownsPartial is ownsWhole for partial blobs. One that is open has its files
// until it is whole and they are in their place.
func (c *Cache) ownsPartial(d proto.Digest, _ bool) bool {
	b := c.open[d]
	if b == nil {
		_, partial := c.partial[d]
		return partial
	}
	settled, whole := b.settling()
	if !whole {
		return true
	}
	select {
	case <-settled:
		return b.has(c.layout.partial(d)) // it could not be moved
	default:
		return true
	}
}

// has reports whether the bytes of b are at path.
func (b *Blob) has(path string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.path == path
}

// ownsVerdict is ownsWhole for what is noted of adopted blobs.
func (c *Cache) ownsVerdict(d proto.Digest, _ bool) bool {
	_, _, adopted := c.adopted(d)
	return adopted
}

// sweepDir removes the files in dir with the names of digests, with or without
// suffix, that do not belong there. The caller does not hold c.mu.
func (c *Cache) sweepDir(dir, alg, suffix string, belongs func(d proto.Digest, side bool) bool) (n int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var errs []error
	for _, e := range entries {
		enc, side := strings.CutSuffix(e.Name(), suffix)
		d, err := proto.ParseDigest(alg + ":" + enc)
		if err != nil {
			c.log.Warn("file in the cache is not one of its own", "path", filepath.Join(dir, e.Name()))
			continue
		}
		path := filepath.Join(dir, e.Name())
		c.mu.Lock()
		err = c.idle(d)
		if err == nil && !belongs(d, side) {
			c.alone(d, func() {
				if _, gone := os.Lstat(path); gone != nil {
					return // with its blob, since it was listed
				}
				if err = c.discard(path); err == nil {
					n++
					c.log.Info("file of no blob removed", "path", path)
				}
			})
		}
		c.mu.Unlock()
		if errors.Is(err, ErrClosed) {
			return n, err
		}
		errs = append(errs, err)
	}
	return n, errors.Join(errs...)
}
