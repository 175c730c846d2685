package cache

import (
	"context"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"github.com/shoal-project/shoal/proto"
)

// A Blob is one blob on this disk, whole or still arriving. It is where both
// halves of a pull meet: Put takes chunks in any order, Readers and Wait block
// for the chunk that they need. Its methods may be called from several
// goroutines at once, as long as the caller holds a reference.
type Blob struct {
	// immutable
	cache   *Cache
	blob    proto.Blob
	chunks  int
	awaited chan struct{} // of AwaitChanged
	adopted bool          // the bytes are another content store's
	claimed atomic.Bool   // it counts what it will have; set with cache.mu held
	warned  atomic.Bool   // the log has that there is no room for it

	refs int // protected by cache.mu

	// mu protects the fields below, and all of fill but where that says
	// otherwise. It is never held over I/O or hashing.
	mu       sync.Mutex
	turn     sync.Cond // a Put has ended, or a drop: who waits for its turn looks again
	fill     *fill
	path     string // where the bytes are; "" once the blob was deleted
	dropping bool   // the files of the last fill are being removed
}

// A fill is one try at getting all chunks of a blob in. A blob whose whole
// turned out wrong begins another one, and who holds on to the one before
// fails.
type fill struct {
	data, state *os.File // nil until the first Put; set once. A whole blob has no state
	opening     bool     // a Put is making them

	have proto.Set   // chunks that are in
	busy proto.Set   // chunks that a Put is writing
	sums []proto.Sum // of the chunks that are in, and what to expect of others; none for a blob of one chunk

	// The hashing baton: whoever sets hashing has hash to itself, outside the
	// lock, until it clears it, and advances hashed.
	hashing bool
	hash    hash.Hash
	hashed  int // chunks that are in hash

	waiters map[int]*waiter // by chunk; who waits for the whole is under the number of chunks

	err     error         // why this fill was given up
	fails   int           // how often Fail was called
	failed  error         // with what the last time
	whole   bool          // all in, and what the digest names
	done    chan struct{} // closed when whole
	placed  bool          // the data file is under its final name
	settled chan struct{} // closed when whole and either placed or not to be
}

// A waiter is all who wait for one thing.
type waiter struct {
	done    chan struct{} // closed when it is there, or err says why not
	err     error         // set before done is closed
	n       int           // how many wait
	readers int           // how many of these are clients' Readers
}

func newBlob(c *Cache, blob proto.Blob) *Blob {
	b := &Blob{
		cache:   c,
		blob:    blob,
		chunks:  blob.Chunks(),
		awaited: make(chan struct{}, 1),
		path:    c.layout.partial(blob.Digest),
	}
	b.turn.L = &b.mu
	b.fill = b.newFill()
	return b
}

func (b *Blob) newFill() *fill {
	f := &fill{
		have:    proto.NewSet(b.chunks),
		busy:    proto.NewSet(b.chunks),
		hash:    b.blob.Digest.NewHash(),
		waiters: map[int]*waiter{},
		done:    make(chan struct{}),
		settled: make(chan struct{}),
	}
	if b.chunks > 1 {
		f.sums = make([]proto.Sum, b.chunks)
	}
	return f
}

// Blob returns the digest and the size.
func (b *Blob) Blob() proto.Blob { return b.blob }

// Has reports whether chunk i is in.
func (b *Blob) Has(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.have.Has(i)
}

// Have returns the chunks that are in. The set is the caller's.
func (b *Blob) Have() proto.Set {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.have.Clone()
}

// Whole reports whether all chunks are in and the digest is right.
func (b *Blob) Whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.whole
}

// Done returns a channel that is closed once the blob is whole. If instead the
// whole turns out wrong, it stays open for ever and Done returns another.
func (b *Blob) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.done
}

// Sum returns the sum of chunk i: what it has if it is in, else what Put must
// see. It is zero if neither is known, and for a blob of one chunk, whose
// digest is its sum.
func (b *Blob) Sum(i int) proto.Sum {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i < 0 || i >= len(b.fill.sums) {
		return proto.Sum{}
	}
	return b.fill.sums[i]
}

// Sums returns the sums of all chunks, zero for those that are not in. All are
// zero for a blob of one chunk, whose digest is its sum. The slice is the
// caller's.
func (b *Blob) Sums() []proto.Sum {
	b.mu.Lock()
	defer b.mu.Unlock()
	sums := make([]proto.Sum, b.chunks)
	for i := range b.fill.sums {
		if b.fill.have.Has(i) {
			sums[i] = b.fill.sums[i]
		}
	}
	return sums
}

// Expect says what sums Put must see from chunk first on. Chunks that are in
// and sums that are zero are passed over; of two words on a chunk the newer
// counts. A blob whose whole turns out wrong forgets them: one may be why.
func (b *Blob) Expect(first int, sums []proto.Sum) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, sum := range sums {
		i := first + k
		if i >= 0 && i < len(b.fill.sums) && !sum.IsZero() && !b.fill.have.Has(i) {
			b.fill.sums[i] = sum
		}
	}
}

// File opens the file that has the blob's bytes at their offsets, whole or
// partial: a descriptor of its own, which the caller closes. Only the bytes of
// chunks that are in mean anything. The error wraps fs.ErrNotExist if none is,
// or the blob was deleted.
func (b *Blob) File() (*os.File, error) {
	for {
		b.mu.Lock()
		path, made := b.path, b.fill.data != nil
		b.mu.Unlock()
		if path == "" || !made {
			return nil, fmt.Errorf("open blob %s: no chunk of it is here: %w", b.blob.Digest, fs.ErrNotExist)
		}
		f, err := os.Open(path)
		if err == nil {
			return f, nil
		}
		b.mu.Lock()
		moved := path != b.path
		b.mu.Unlock()
		if !moved { // it became whole meanwhile
			b.cache.missed(b, path)
			return nil, fmt.Errorf("open blob %s: %w", b.blob.Digest, err)
		}
	}
}

// Awaited returns the chunks that clients' Readers wait for now. The set is
// the caller's.
func (b *Blob) Awaited() proto.Set {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := proto.NewSet(b.chunks)
	for i, w := range b.fill.waiters {
		i = min(i, b.chunks-1) // who waits for the whole began by wanting the last chunk
		if w.readers > 0 && !b.fill.have.Has(i) {
			s.Add(i)
		}
	}
	return s
}

// AwaitChanged returns a channel that gets a value when Awaited may have
// changed. It holds one: a receiver may be late but misses nothing. It is the
// same one each time.
func (b *Blob) AwaitChanged() <-chan struct{} { return b.awaited }

// awaitChanged is called with b.mu held.
func (b *Blob) awaitChanged() {
	select {
	case b.awaited <- struct{}{}:
	default:
	}
}

// Fail ends all Waits that wait now, and all Readers that exist now, with err,
// which must not be nil: a Reader that comes to a chunk which is not in fails
// even if it was not waiting yet, since whoever filled the blob for it has given
// up. Who comes later waits anew.
func (b *Blob) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill.fails++
	b.fill.failed = err
	b.wakeAll(b.fill, err)
}

// Wait waits until chunk i is in, whether or not the whole turns out right,
// and returns nil; or ctx ends, Fail is called, the whole turns out wrong or
// the cache is closed. It is for serving peers, who check what they get: the
// chunk does not count as awaited.
func (b *Blob) Wait(ctx context.Context, i int) error {
	if i < 0 || i >= b.chunks {
		return fmt.Errorf("wait for chunk %d of blob %s: it has %d", i, b.blob.Digest, b.chunks)
	}
	b.cache.Touch(b.blob.Digest)
	for {
		b.mu.Lock()
		f := b.fill
		if f.have.Has(i) {
			b.mu.Unlock()
			return nil
		}
		w := b.join(f, i, false)
		b.mu.Unlock()
		if err := b.await(ctx, nil, f, i, w, false); err != nil {
			return err
		}
	}
}

// extent waits until the bytes of f at off, which is inside the blob, may go
// to a client, and returns the range around off that may, and the file that
// they are in. The last chunk is held back until the whole is known to be
// right: so a client can have wrong bytes of an origin, but never all of a
// blob that is wrong. It fails as Wait does, if quit is closed, and if Fail was
// called more than fails times.
func (b *Blob) extent(ctx context.Context, quit <-chan struct{}, f *fill, fails int, off int64) (from, to int64, data *os.File, err error) {
	size, i, last := b.blob.ChunkSize(), int(off/b.blob.ChunkSize()), b.chunks-1
	for {
		b.mu.Lock()
		switch {
		case f.err != nil:
			b.mu.Unlock()
			return 0, 0, nil, f.err
		case f.whole:
			b.mu.Unlock()
			return 0, b.blob.Size, f.data, nil
		case i < last && f.have.Has(i):
			end := f.have.NextMissing(i, last)
			b.mu.Unlock()
			if end < 0 {
				end = last
			}
			return int64(i) * size, int64(end) * size, f.data, nil
		case f.fails > fails:
			b.mu.Unlock()
			return 0, 0, nil, f.failed
		}
		key := i
		if i == last {
			key = b.chunks
		}
		w := b.join(f, key, true)
		b.mu.Unlock()
		if err := b.await(ctx, quit, f, key, w, true); err != nil {
			return 0, 0, nil, err
		}
	}
}

// join counts one more who waits for key. The caller holds b.mu.
func (b *Blob) join(f *fill, key int, reader bool) *waiter {
	w := f.waiters[key]
	if w == nil {
		w = &waiter{done: make(chan struct{})}
		f.waiters[key] = w
	}
	w.n++
	if reader {
		w.readers++
		if w.readers == 1 {
			b.awaitChanged()
		}
	}
	return w
}

// await waits for w, which join returned, and counts one less.
func (b *Blob) await(ctx context.Context, quit <-chan struct{}, f *fill, key int, w *waiter, reader bool) (err error) {
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-quit:
		err = errReaderClosed
	case <-b.cache.closing:
		err = ErrClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	w.n--
	if reader {
		w.readers--
		if w.readers == 0 {
			b.awaitChanged()
		}
	}
	if w.n == 0 && f.waiters[key] == w {
		delete(f.waiters, key)
	}
	return fmt.Errorf("wait for blob %s: %w", b.blob.Digest, err)
}

// wake ends the waiting for key. The caller holds b.mu.
func (b *Blob) wake(f *fill, key int, err error) {
	w := f.waiters[key]
	if w == nil {
		return
	}
	delete(f.waiters, key)
	w.err = err
	close(w.done)
	if w.readers > 0 {
		b.awaitChanged()
	}
}

func (b *Blob) wakeAll(f *fill, err error) {
	for key := range f.waiters {
		b.wake(f, key, err)
	}
}

// Release gives back the reference that Blob or Known counted. The caller must
// not use b from then on.
func (b *Blob) Release() { b.cache.release(b) }

// settling reports whether b is whole, and returns a channel that is closed
// once its files are where they stay.
func (b *Blob) settling() (settled <-chan struct{}, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fill.settled, b.fill.whole
}

// detach tells b that its files are somebody else's from now on.
func (b *Blob) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.path = ""
}

// shut closes b's files, when nobody uses b any more. It removes a partial one
// in which nothing is, or nothing that could be resumed, and reports whether a
// partial one is left.
func (b *Blob) shut() (left bool) {
	b.mu.Lock()
	f, path, here := b.fill, b.path, b.fill.have.Count()
	b.mu.Unlock()
	f.close()
	if f.data == nil || f.placed || path == "" {
		return false
	}
	if here > 0 && b.chunks > 1 {
		return true
	}
	if err := remove(path, path+stateSuffix); err != nil {
		b.cache.log.Warn("empty partial blob is left behind", "digest", b.blob.Digest.String(), "error", err)
	}
	return false
}

func (f *fill) close() {
	if f.data != nil {
		f.data.Close()
	}
	if f.state != nil {
		f.state.Close()
	}
}
