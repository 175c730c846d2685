package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/proto"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrLocked is Open's where another daemon has the directory.
	ErrLocked = errors.New("another daemon is running on it")
	// ErrClosed is what everything returns once the cache is being closed.
	ErrClosed = errors.New("the cache is closed")
	// ErrCorrupt is Put's for bytes that are not the chunk's. Nothing of them
	// is stored; who sent them is to blame.
	ErrCorrupt = errors.New("bytes are not the chunk's")
	// ErrDigest says that all chunks were in and the whole was not what the
	// digest names. Everything of the blob is dropped; nobody in particular is
	// to blame, unless all of it came from one source.
	ErrDigest = errors.New("content does not match the digest")
	// ErrSize says that the blob is here, or arriving, with another size.
	ErrSize = errors.New("the blob has another size")
)

var errReleased = errors.New("the blob was released")

var errAbsent = errors.New("nothing of the blob is here")

// reserveBlobs is how much of the file system Put leaves free, in bytes: what
// the index needs (see reserveIndex) and as much again for everybody else.
const reserveBlobs = 2 * reserveIndex

// Options are what Open needs beside a directory. The zero Options is usable.
type Options struct {
	// Log takes what goes wrong where no caller can be told. Default: discard.
	Log *slog.Logger
	// Registry takes the metrics, all named shoal_cache_…; nil registers none.
	Registry prometheus.Registerer
	// Whole, if not nil, is called once each time a blob becomes whole, by the
	// Put that completed it or the Blob that resumed it, as soon as readers may
	// have it all and before it is synced. It must not block, and not call the
	// cache about that blob.
	Whole func(proto.Blob)
	// Evicted, if not nil, is called after a blob that was whole has gone: it
	// was evicted, deleted or set aside as damaged, or the content store that it
	// was adopted from has it no more. It must not block, and not call the cache
	// about that blob.
	Evicted func(proto.Digest)
	// Adopt are directories of containerd content stores, each with
	// blobs/sha256. Their blobs count as whole here and are served from there,
	// without a copy, to everybody whom the cache serves. They may go at any
	// time. Watch follows what comes and goes.
	Adopt []string
	// Damaged, if not nil, is called once each time a whole blob was damaged and
	// set aside and no other copy is here, for somebody to fetch it again. It
	// must not block, and not call the cache about that blob.
	Damaged func(proto.Blob)
	// Quota is how much the blobs here may take: bytes, or a share of the file
	// system. The zero Amount is no limit but that of the file system.
	Quota Amount
	// Reserve is how much of the file system is left alone, for others; 32 MiB
	// if it is less. When others come into it, blobs are evicted.
	Reserve Amount
	// High and Low are shares, from 0 to 1, of what blobs may take: Run evicts
	// when they take more than High, until they take no more than Low. Defaults:
	// 0.95, so that most pulls find room at once, and 0.85, so that it is not for
	// each of them.
	High, Low float64
	// Keep is for how long a blob that was asked for is not evicted, however
	// little room there is. Default: 10 minutes, in which a client that got a
	// manifest has come for its layers.
	Keep time.Duration
	// Pins are patterns of images that are never evicted: see ParsePin.
	Pins []string

	now func() time.Time // time.Now, but in tests
}

// A Cache keeps blobs in a directory of its own. Its methods may be called
// from several goroutines at once. The zero Cache is not usable: see Open.
type Cache struct {
	// immutable
	layout  layout
	log     *slog.Logger
	onWhole func(proto.Blob)
	onEvict func(proto.Digest)
	damaged func(proto.Blob)
	stores  []*contentStore // adopted; what they have is protected by mu
	scrub   scrub
	doubts  doubts
	space   *space
	pins    *pins
	lock    *os.File
	volume  volume
	index   *Index
	metrics metrics
	closing chan struct{}          // closed when Close begins
	fsync   func(f *os.File) error // (*os.File).Sync; tests see by it what is done in which order
	buffers sync.Pool              // of *[feedBuffer]byte
	work    sync.WaitGroup         // Puts and work on files; added to under mu while not closed

	// mu protects the fields below, and refs of each Blob. It is taken before
	// a Blob's mu if both are, and never held over I/O.
	mu      sync.Mutex
	closed  bool
	whole   map[proto.Digest]int64         // size in bytes
	partial map[proto.Digest]struct{}      // on disk and not open
	open    map[proto.Digest]*Blob         // referenced
	busy    map[proto.Digest]chan struct{} // their files are being opened, closed or removed; closed after that
}

// Open opens the cache in dir, and makes the directory if need be. It removes
// what an earlier crash left behind and lists the blobs that are here; it reads
// none of them, so it takes milliseconds with thousands of blobs. The error
// wraps ErrLocked if a cache is open in dir, in this process or another.
func Open(dir string, o Options) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	c := &Cache{
		layout:  layout(dir),
		log:     o.Log,
		onWhole: o.Whole,
		onEvict: o.Evicted,
		damaged: o.Damaged,
		closing: make(chan struct{}),
		fsync:   (*os.File).Sync,
		whole:   map[proto.Digest]int64{},
		open:    map[proto.Digest]*Blob{},
		busy:    map[proto.Digest]chan struct{}{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.space, err = newSpace(o); err != nil {
		return nil, err
	}
	if c.stores, err = openStores(o.Adopt, dir); err != nil {
		return nil, err
	}
	if err := c.layout.make(); err != nil {
		return nil, err
	}
	if c.lock, err = c.layout.hold(); err != nil {
		return nil, err
	}
	c.volume = volume{dir: dir, file: c.lock}
	if err := c.start(o.Registry, o.Pins); err != nil {
		return nil, errors.Join(err, letGo(c.lock))
	}
	return c, nil
}

// start does the part of Open that needs the lock.
func (c *Cache) start(registry prometheus.Registerer, pins []string) error {
	found, err := c.layout.scan(c.log)
	if err != nil {
		return err
	}
	if c.pins, err = loadPins(c.layout.pins(), pins); err != nil {
		return err
	}
	c.partial = found.partial
	index, stays, err := openIndex(c.layout.index(), c.volume, c.log)
	if err != nil {
		return err
	}
	c.index = index
	if err := c.layout.loadBallast(); err != nil {
		c.log.Warn("no space is set aside for the index", "error", err)
	}
	c.reconcile(found.whole, stays)
	c.recount(stays)
	c.metrics = newMetrics(c)
	if err := c.metrics.register(registry); err != nil {
		return errors.Join(err, index.close())
	}
	for _, size := range c.whole {
		c.metrics.blobs.Inc()
		c.metrics.bytes.Add(float64(size))
	}
	c.adopt()
	return nil
}

// reconcile makes the list of whole blobs from the files that are here, and
// brings the index up to it: a crash can have left it behind.
func (c *Cache) reconcile(files map[proto.Digest]struct{}, stays map[proto.Digest]stay) {
	missing := map[proto.Digest]stay{}
	for d := range files {
		s, ok := stays[d]
		if !ok {
			info, err := os.Stat(c.layout.blob(d))
			if err != nil {
				c.log.Warn("blob cannot be used", "digest", d.String(), "error", err)
				continue
			}
			s = stay{size: info.Size(), added: info.ModTime()}
			missing[d] = s
		}
		c.whole[d] = s.size
	}
	var gone []proto.Digest
	for d := range stays {
		if _, ok := files[d]; !ok {
			gone = append(gone, d)
		}
	}
	if err := errors.Join(c.index.setBlobs(missing), c.index.forgetBlobs(gone...)); err != nil {
		c.log.Warn("index does not have all blobs", "error", err)
	}
}

// Close ends all waiting with ErrClosed, waits for the Puts that are running,
// and lets go of the directory. Blobs and Readers that are still referenced
// fail from then on; releasing them stays allowed.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	close(c.closing)
	c.mu.Unlock()

	c.work.Wait()
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for _, b := range open {
		b.shut()
		b.detach()
	}
	c.tidy()
	if c.volume.room(0, reserveIndex) != nil {
		remove(c.layout.ballast())
	}
	err := c.index.close()
	c.metrics.unregister()
	return errors.Join(err, letGo(c.lock))
}

// Index returns what the cache remembers of digests beside their bytes.
func (c *Cache) Index() *Index { return c.index }

// Blob returns b, whole, partial or new, and counts a reference that the
// caller gives back with Release. Concurrent callers get the same *Blob. The
// error wraps ErrSize if the blob is here or arriving with another size; a
// partial one of another size that nobody uses is dropped instead, since
// nothing has proved its size.
//
// The first to open a partial blob after a restart waits until the chunks that
// are here were read and checked, about a second per gigabyte or two, and so
// does everybody else who asks for that blob meanwhile.
func (c *Cache) Blob(b proto.Blob) (*Blob, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	return c.acquire(b.Digest, b.Size)
}

// Known returns the blob with digest d, whole or partial, with a reference as
// Blob does, and false if nothing of it is here.
func (c *Cache) Known(d proto.Digest) (*Blob, bool) {
	b, err := c.acquire(d, anySize)
	if err != nil && !errors.Is(err, errAbsent) && !errors.Is(err, ErrClosed) {
		c.log.Warn("blob cannot be opened", "digest", d.String(), "error", err)
	}
	return b, err == nil
}

// Whole returns the blob with digest d, and false if it is not whole here.
func (c *Cache) Whole(d proto.Digest) (proto.Blob, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size, ok := c.whole[d]
	if !ok {
		_, size, ok = c.adopted(d)
	}
	if !ok {
		return proto.Blob{}, false
	}
	return proto.Blob{Digest: d, Size: size}, true
}

// Blobs returns all whole blobs, in no order.
func (c *Cache) Blobs() []proto.Blob {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]proto.Blob, 0, len(c.whole))
	for d, size := range c.whole {
		all = append(all, proto.Blob{Digest: d, Size: size})
	}
	return c.appendAdopted(all)
}

// Delete removes the blob with digest d; one that is not here is no error, and
// one that is adopted stays: it is somebody else's. Readers that are open keep
// its bytes until they are closed. A blob that is still arriving and in use is
// not removed: that is an error.
func (c *Cache) Delete(d proto.Digest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := c.deletable(d)
	if err != nil {
		return fmt.Errorf("delete %s: %w", d, err)
	}
	if b != nil && b.adopted {
		return nil
	}
	_, whole := c.whole[d]
	delete(c.open, d)
	delete(c.partial, d)
	c.forget(d)
	c.nothing(d)
	c.alone(d, func() {
		if b != nil {
			b.detach()
		}
		err = c.erase(d)
		if whole {
			c.gone(d)
		}
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", d, err)
	}
	return nil
}

// deletable waits until nobody is at work on d's files and returns d's Blob if
// it is open. The caller holds c.mu.
func (c *Cache) deletable(d proto.Digest) (*Blob, error) {
	for {
		if err := c.idle(d); err != nil {
			return nil, err
		}
		b := c.open[d]
		if b == nil {
			return nil, nil
		}
		settled, whole := b.settling()
		if !whole {
			return nil, errors.New("it is still arriving and in use")
		}
		select {
		case <-settled:
			return b, nil
		default:
		}
		c.mu.Unlock()
		<-settled
		c.mu.Lock()
	}
}

// erase removes everything of d from the disk and the index.
func (c *Cache) erase(d proto.Digest) error {
	return errors.Join(
		remove(c.layout.blob(d), c.layout.sums(d), c.layout.partial(d), c.layout.state(d)),
		c.index.forgetBlobs(d))
}

// anySize is what acquire takes from who does not know how long the blob is.
const anySize = -1

func (c *Cache) acquire(d proto.Digest, size int64) (*Blob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.idle(d); err != nil {
		return nil, err
	}
	if size != anySize {
		defer c.touch(d) // before c.mu is let go
	}
	b := c.open[d]
	if b == nil {
		_, partial := c.partial[d]
		known, whole := c.whole[d]
		if whole && size != anySize && size != known {
			return nil, sizeError(d, known, size)
		}
		var err error
		c.alone(d, func() { b, err = c.load(d, size, known, whole, partial) })
		if err != nil {
			return nil, err
		}
		c.open[d] = b
		delete(c.partial, d)
	}
	if size != anySize && size != b.blob.Size {
		return nil, sizeError(d, b.blob.Size, size)
	}
	b.refs++
	return b, nil
}

func sizeError(d proto.Digest, known, size int64) error {
	return fmt.Errorf("open blob %s of %d bytes: %w, %d bytes", d, size, ErrSize, known)
}

// release gives back a reference. The last one closes the files.
func (c *Cache) release(b *Blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.refs--
	switch {
	case b.refs < 0:
		panic("cache: Release of a Blob that was released")
	case b.refs > 0:
		return
	case c.open[b.blob.Digest] != b: // deleted, or the cache is closed
		c.mu.Unlock()
		b.shut()
		c.mu.Lock()
		return
	case c.closed: // Close is about to
		return
	}
	delete(c.open, b.blob.Digest)
	left := false
	c.alone(b.blob.Digest, func() { left = b.shut() })
	switch _, whole := c.whole[b.blob.Digest]; {
	case left:
		c.partial[b.blob.Digest] = struct{}{}
		c.count(b.blob.Digest, b.bytesIn())
	case !whole:
		c.nothing(b.blob.Digest)
	}
}

// enter counts a reference and a piece of work on b, until leave.
func (c *Cache) enter(b *Blob) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if b.refs == 0 {
		return errReleased
	}
	b.refs++
	c.work.Add(1)
	return nil
}

func (c *Cache) leave(b *Blob) {
	c.release(b)
	c.work.Done()
}

// idle waits until nobody is at work on d's files. The caller holds c.mu.
func (c *Cache) idle(d proto.Digest) error {
	for {
		if c.closed {
			return ErrClosed
		}
		done, busy := c.busy[d]
		if !busy {
			return nil
		}
		c.mu.Unlock()
		<-done
		c.mu.Lock()
	}
}

// alone runs f, without c.mu, while others wait in idle. The caller holds
// c.mu, the cache is not closed and nobody is at work on d's files.
func (c *Cache) alone(d proto.Digest, f func()) {
	done := make(chan struct{})
	c.busy[d] = done
	c.work.Add(1)
	c.mu.Unlock()
	f()
	c.mu.Lock()
	c.work.Done()
	delete(c.busy, d)
	close(done)
}
