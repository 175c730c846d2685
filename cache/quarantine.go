package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// What is kept of damaged blobs, so that somebody can look at what happened to
// them: enough to see a pattern, and too little to matter.
const (
	quarantineFiles = 8
	quarantineBytes = 1 << 30
)

// How damage was found, the label of shoal_cache_damaged_total.
const (
	foundScrub = "scrub"
	foundRead  = "read"
	foundOpen  = "open"
)

type careMetrics struct {
	scrubbed                   prometheus.Counter
	damaged                    *prometheus.CounterVec
	adoptedBlobs, adoptedBytes prometheus.Gauge
}

func newCareMetrics() careMetrics {
	m := careMetrics{
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_cache_scrubbed_bytes_total",
			Help: "Bytes on the disk that the scrub has read and checked.",
		}),
		damaged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_cache_damaged_total",
			Help: "Whole blobs that were found damaged or unreadable: by the scrub, after a failed read, or when opened.",
		}, []string{"found"}),
		adoptedBlobs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_adopted_blobs",
			Help: "Blobs in the content stores that are adopted.",
		}),
		adoptedBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_adopted_bytes",
			Help: "Bytes of the blobs in the content stores that are adopted.",
		}),
	}
	for _, found := range []string{foundScrub, foundRead, foundOpen} {
		m.damaged.WithLabelValues(found)
	}
	return m
}

// spoilt reports whether err, of opening or reading a blob's files, is the
// files' fault. It is not if the process is short of something, or was told to
// stop.
func spoilt(err error) bool {
	for _, passing := range []error{
		ErrClosed, errStopped,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR,
	} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return err != nil
}

// verify reads all of a blob and returns the sums of its chunks, or an error
// that wraps errDamaged if it is not what its digest names. wait, if not nil,
// is called before each piece is read, with its length in bytes.
func (c *Cache) verify(blob proto.Blob, data *os.File, wait func(n int64) error) ([]proto.Sum, error) {
	whole, chunk := blob.Digest.NewHash(), blake3.New()
	both := io.MultiWriter(whole, chunk)
	sums := make([]proto.Sum, blob.Chunks())
	for i := range sums {
		chunk.Reset()
		if err := c.pour(data, blob.Chunk(i), both, wait); err != nil {
			return nil, fmt.Errorf("verify blob %s: %w", blob.Digest, err)
		}
		chunk.Sum(sums[i][:0])
	}
	if !blob.Digest.Matches(whole) {
		return nil, fmt.Errorf("%w: %w", errDamaged, ErrDigest)
	}
	return sums, nil
}

// check reads all of blob from the file at path and returns its sums. info is
// of the file that was read, nil if none could be opened. wait is as verify has
// it.
func (c *Cache) check(blob proto.Blob, path string, wait func(n int64) error) (sums []proto.Sum, info os.FileInfo, err error) {
	data, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer data.Close()
	if info, err = data.Stat(); err != nil {
		return nil, nil, err
	}
	if err = sized(info, blob.Size); err == nil {
		sums, err = c.verify(blob, data, wait)
	}
	return sums, info, err
}

// condemn sets the cache's own copy of d aside because of err, which check
// returned along with info, unless the file has gone or another one has come
// since.
func (c *Cache) condemn(d proto.Digest, info os.FileInfo, found string, err error) (done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, busy := c.deletable(d)
	size, whole := c.whole[d]
	if busy != nil || !whole {
		return false
	}
	c.alone(d, func() {
		if done = c.stillSo(c.layout.blob(d), info); done {
			c.setAside(proto.Blob{Digest: d, Size: size}, b, found, err)
		}
	})
	return done
}

// stillSo reports whether the file at path is the one that info is of, or still
// none that can be opened if info is nil.
func (c *Cache) stillSo(path string, info os.FileInfo) bool {
	f, err := os.Open(path)
	if err != nil {
		return info == nil && spoilt(err)
	}
	defer f.Close()
	now, err := f.Stat()
	if info == nil {
		return spoilt(err)
	}
	return err == nil && os.SameFile(info, now)
}

// setAside takes the cache's own whole copy of blob out of use, because of err,
// and puts its bytes into the quarantine. b is its open Blob, if there is one.
// It runs alone on the blob's files.
func (c *Cache) setAside(blob proto.Blob, b *Blob, found string, err error) {
	d := blob.Digest
	c.log.Warn("damaged blob is set aside", "digest", d.String(), "found", found, "error", err)
	c.metrics.care.damaged.WithLabelValues(found).Inc()
	c.metrics.corrupt.Inc()
	c.mu.Lock()
	c.forget(d)
	c.nothing(d)
	if b != nil && c.open[d] == b {
		delete(c.open, d)
	}
	c.mu.Unlock()
	if b != nil {
		b.spoil(err)
	}
	// What cannot be moved or removed is found damaged again after a restart,
	// and written over if the blob comes again.
	if err := errors.Join(
		c.quarantine(c.layout.blob(d)),
		remove(c.layout.sums(d)),
		c.index.forgetBlobs(d),
	); err != nil {
		c.log.Warn("damaged blob is left where it is", "digest", d.String(), "error", err)
	}
	c.gone(d)
	if _, still := c.Whole(d); !still && c.damaged != nil {
		c.damaged(blob)
	}
}

// spoil fails all that would read b from now on, and tells b that its files are
// not its own any more. A file that Content has handed out is out of reach.
func (b *Blob) spoil(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.path = ""
	b.fill.err = fmt.Errorf("read blob %s: it is damaged on the disk: %w", b.blob.Digest, err)
}

// quarantine moves what is at path, if anything is, to where nobody takes it
// for a blob, and removes the oldest of what is there beyond its bounds. What
// cannot be moved is removed.
func (c *Cache) quarantine(path string) error {
	dir := c.layout.quarantine()
	err := os.MkdirAll(dir, dirMode)
	if err == nil {
		err = os.Rename(path, filepath.Join(dir, time.Now().UTC().Format(quarantineTime)+"-"+filepath.Base(path)))
	}
	if err != nil {
		err = remove(path)
	}
	return errors.Join(err, c.pruneQuarantine())
}

// quarantineTime begins the names in the quarantine, so that they are listed
// from the oldest to the newest.
const quarantineTime = "20060102T150405.000000000Z"

// pruneQuarantine removes the oldest of the quarantine until the rest is within
// its bounds.
func (c *Cache) pruneQuarantine() error {
	entries, err := os.ReadDir(c.layout.quarantine())
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	free, _, err := c.volume.stat()
	if err != nil {
		return err
	}
	slices.Reverse(entries)
	sizes := make([]int64, len(entries))
	for i, e := range entries {
		if info, err := e.Info(); err == nil {
			sizes[i] = blocksOf(info)
		}
	}
	var errs []error
	for _, e := range entries[quarantineKeeps(sizes, free):] {
		errs = append(errs, os.RemoveAll(filepath.Join(c.layout.quarantine(), e.Name())))
	}
	return errors.Join(errs...)
}

// quarantineKeeps returns how many of the files in quarantine stay, given their
// sizes from the newest on and what is free on the disk. Where little is left,
// blobs have more use of it.
func quarantineKeeps(sizes []int64, free int64) int {
	room := min(quarantineBytes, free/16)
	for i, size := range sizes {
		if room -= size; room < 0 || i == quarantineFiles {
			return i
		}
	}
	return len(sizes)
}

// discard removes files, and puts into the quarantine what has one of their
// names and is no file.
func (c *Cache) discard(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if !isDir(path) {
			errs = append(errs, remove(path))
			continue
		}
		errs = append(errs, c.quarantine(path))
	}
	return errors.Join(errs...)
}

// makeWay puts directories into the quarantine that are where files are to be,
// and could not be written over.
func (c *Cache) makeWay(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if isDir(path) {
			errs = append(errs, c.quarantine(path))
		}
	}
	return errors.Join(errs...)
}

// doubts are the blobs that are to be checked. Cache.mu protects its fields.
type doubts struct {
	waiting []proto.Digest
	running bool // a goroutine works them off; Close waits for it
}

// Doubt says that reading the blob with digest d failed in a way that may be
// the disk's fault. It returns at once; the blob is then read and checked, one
// at a time, and a damaged one is set aside as Options.Damaged has it. Of a blob
// that is not whole here it does nothing.
func (c *Cache) Doubt(d proto.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, whole := c.whole[d]
	_, _, adopted := c.adopted(d)
	if c.closed || !whole && !adopted || slices.Contains(c.doubts.waiting, d) {
		return
	}
	c.doubts.waiting = append(c.doubts.waiting, d)
	if !c.doubts.running {
		c.doubts.running = true
		c.work.Add(1)
		go c.settleDoubts()
	}
}

func (c *Cache) settleDoubts() {
	defer c.work.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && len(c.doubts.waiting) > 0 {
		d := c.doubts.waiting[0]
		c.mu.Unlock()
		if _, _, err := c.recheckWhole(d, foundRead, nil); err != nil {
			c.log.Info("doubted blob is not checked", "digest", d.String(), "error", err)
		}
		c.mu.Lock()
		c.doubts.waiting = c.doubts.waiting[1:]
	}
	c.doubts.running = false
}

// recheckWhole reads and checks a whole blob, the cache's own copy or else the
// adopted one, and sees to it that a damaged one is not used any more. It
// returns what the blob is, zero if it is not whole here any more. An error
// says why it could not be checked; that it is damaged is none.
func (c *Cache) recheckWhole(d proto.Digest, found string, wait func(n int64) error) (blob proto.Blob, damaged bool, err error) {
	c.mu.Lock()
	size, whole := c.whole[d]
	s, adoptedSize, adopted := c.adopted(d)
	c.mu.Unlock()
	switch {
	case whole:
		blob = proto.Blob{Digest: d, Size: size}
		damaged, err = c.recheckOwn(blob, found, wait)
	case adopted:
		blob = proto.Blob{Digest: d, Size: adoptedSize}
		damaged, err = c.recheckAdopted(s, blob, found, wait)
	}
	return blob, damaged, err
}

func (c *Cache) recheckOwn(blob proto.Blob, found string, wait func(n int64) error) (damaged bool, err error) {
	if !c.settled(blob.Digest) {
		return false, nil // its bytes were checked just now
	}
	sums, info, err := c.check(blob, c.layout.blob(blob.Digest), wait)
	switch {
	case err == nil:
		c.mendSums(blob, sums)
		return false, nil
	case !spoilt(err):
		return false, err
	}
	return c.condemn(blob.Digest, info, found, err), nil
}

// settled reports whether d's files are where they stay.
func (c *Cache) settled(d proto.Digest) bool {
	c.mu.Lock()
	b := c.open[d]
	c.mu.Unlock()
	if b == nil {
		return true
	}
	settled, whole := b.settling()
	if !whole {
		return false
	}
	select {
	case <-settled:
		return true
	default:
		return false
	}
}

// mendSums writes the sums of an own whole blob again if their file has been
// lost or is damaged.
func (c *Cache) mendSums(blob proto.Blob, sums []proto.Sum) {
	if len(sums) <= 1 {
		return
	}
	path := c.layout.sums(blob.Digest)
	if raw, err := readSide(path); err == nil {
		if have, err := parseSums(raw, blob.Size); err == nil && slices.Equal(have, sums) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle(blob.Digest) != nil {
		return
	}
	if _, whole := c.whole[blob.Digest]; !whole {
		return
	}
	c.alone(blob.Digest, func() {
		c.log.Info("sums of a blob are made again", "digest", blob.Digest.String())
		err := c.discard(path)
		if err == nil {
			err = c.volume.room(int64(len(sums)*sumSize), reserveBlobs)
		}
		if err == nil {
			err = os.WriteFile(path, encodeSums(blob.Size, sums), fileMode)
		}
		if err != nil {
			c.log.Warn("sums of a blob are not kept", "digest", blob.Digest.String(), "error", err)
		}
	})
}

func (c *Cache) recheckAdopted(s *contentStore, blob proto.Blob, found string, wait func(n int64) error) (damaged bool, err error) {
	_, info, err := c.check(blob, s.path(blob.Digest), wait)
	switch {
	case err == nil:
		return false, nil
	case !spoilt(err):
		return false, err
	case errors.Is(err, os.ErrNotExist):
		c.look(s, blob.Digest, false)
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.idle(blob.Digest); err != nil {
		return false, err
	}
	if _, listed := s.files[blob.Digest]; !listed {
		return false, nil
	}
	c.alone(blob.Digest, func() {
		if damaged = c.stillSo(s.path(blob.Digest), info); damaged {
			c.reject(s, blob.Digest, found, err)
		}
	})
	return damaged, nil
}

// missed is told that the file of b, which is whole, could not be opened again
// at path.
func (c *Cache) missed(b *Blob, path string) {
	if !b.Whole() {
		return
	}
	if !b.adopted {
		c.Doubt(b.blob.Digest)
		return
	}
	for _, s := range c.stores {
		if s.path(b.blob.Digest) == path {
			c.look(s, b.blob.Digest, false)
		}
	}
}
