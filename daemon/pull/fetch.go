package pull

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// ErrStore is wrapped by what readers get of a pull that ended because this
// node's disk did not take a chunk: it is full (cache.ErrFull is wrapped then as
// well) or broken. The source may be well.
var ErrStore = errors.New("storing a chunk")

// storeError is a failure of this node's own disk.
type storeError struct{ err error }

func (e *storeError) Error() string   { return ErrStore.Error() + ": " + e.err.Error() }
func (e *storeError) Unwrap() []error { return []error{ErrStore, e.err} }

// buffers are chunk buffers by the logarithm of their size, since a chunk's
// size is a power of two.
type buffers [32]sync.Pool

func logSize(size int64) int { return bits.Len64(uint64(max(size, 1) - 1)) }

// get returns a buffer of at least size bytes.
func (bs *buffers) get(size int64) *[]byte {
	k := logSize(size)
	if b, ok := bs[k].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<k)
	return &b
}

func (bs *buffers) put(b *[]byte) { bs[logSize(int64(cap(*b)))].Put(b) }

// fetch brings the chunks of a flight here. An error is the source's, or a
// storeError, or wraps cache.ErrCorrupt or cache.ErrDigest.
func (r *pull) fetch(ctx context.Context, f *flight, l *proto.Lease) error {
	a := &assembler{pull: r, lease: l, run: f.run, next: f.run.First, since: time.Now()}
	if !f.origin {
		a.class = r.puller.cfg.Class(l.Source)
	}
	defer a.release()
	if !f.origin {
		stop := r.watchDeadline(f, l, a)
		defer stop()
		return a.verdict(ctx, r.puller.cfg.Peer(l.Source, l.Addr).Fetch(ctx, f.run, a.limited(ctx, f.run.Size())))
	}
	var failed []error
	for _, o := range r.originList() {
		rest := proto.Run{Blob: r.b, First: a.next, Count: f.run.First + f.run.Count - a.next}
		err := a.verdict(ctx, r.puller.cfg.Origin(o).Fetch(ctx, rest, a.limited(ctx, rest.Size())))
		var disk *storeError
		if err == nil || ctx.Err() != nil || errors.As(err, &disk) || errors.Is(err, cache.ErrDigest) {
			return err
		}
		failed = append(failed, err)
		a.reset()
	}
	return errors.Join(failed...)
}

// watchDeadline ends a flight at its lease's deadline. The source gets more time
// as deadline.passed says.
func (r *pull) watchDeadline(f *flight, l *proto.Lease, a *assembler) (stop func()) {
	if l.Within <= 0 {
		return func() {}
	}
	d := deadline{within: l.Within, at: time.Now().Add(l.Within)}
	var t *time.Timer
	ready := make(chan struct{}) // t is set
	t = time.AfterFunc(l.Within, func() {
		<-ready
		if more := d.passed(time.Now(), a.pauses.sum(), 2*a.received.Load() >= f.run.Size()); more > 0 {
			t.Reset(more)
			return
		}
		f.cancel(errStalled)
	})
	close(ready)
	return func() { t.Stop() }
}

// starved is how late a timer rings in a process that has to wait for a CPU. One
// that has one is late by a millisecond.
const starved = 100 * time.Millisecond

// deadline is when a flight is to be over.
type deadline struct {
	within   time.Duration // of the lease
	at       time.Time
	paused   time.Duration // what has been given for pauses
	extended bool          // the time for half has been given
}

// passed returns how much more time a flight gets at its deadline: 0 for none.
// Waits for this node's own limit do not count, nor does the time for which this
// process had no CPU, since what the source has sent is in the socket then. One
// of which half has come gets the same time once more.
func (d *deadline) passed(now time.Time, paused time.Duration, half bool) (more time.Duration) {
	late := now.Sub(d.at)
	switch {
	case paused > d.paused:
		more = paused - d.paused
		d.paused = paused
	case late >= starved:
		more = min(late, d.within)
	case half && !d.extended:
		d.extended = true
		more = d.within
	}
	d.at = now.Add(more)
	return more
}

// assembler cuts what a source writes into chunks and puts them into the
// cache.
type assembler struct {
	pull     *pull
	lease    *proto.Lease
	class    Class // of the source
	pauses   pauses
	run      proto.Run
	next     int // the chunk that is being filled
	buf      *[]byte
	filled   int64
	since    time.Time // when the chunk began
	began    time.Time // when the first bytes came
	near     bool      // the scheduler knows that the lease is about to end
	received atomic.Int64
	err      error // what Put said; later writes fail alike
}

// Write implements io.Writer for a Source.
func (a *assembler) Write(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	n := 0
	for len(p) > 0 {
		if a.next >= a.run.First+a.run.Count {
			a.err = fmt.Errorf("source sends more than the %d bytes asked for", a.run.Size())
			return n, a.err
		}
		c := a.run.Blob.Chunk(a.next)
		m := 0
		if a.filled == 0 && int64(len(p)) >= c.Size {
			m = int(c.Size) // a chunk in one piece needs no copy
			a.err = a.put(c, p[:m])
		} else {
			if a.buf == nil {
				a.buf = a.pull.puller.buffers.get(min(a.run.Blob.ChunkSize(), a.run.Blob.Size))
			}
			m = copy((*a.buf)[a.filled:c.Size], p)
			a.filled += int64(m)
			if a.filled == c.Size {
				a.filled = 0
				a.err = a.put(c, (*a.buf)[:c.Size])
			}
		}
		a.received.Add(int64(m))
		a.nearing()
		n += m
		p = p[m:]
		if a.err != nil {
			return n, a.err
		}
	}
	return n, nil
}

// nearing tells the scheduler, once, that the lease is about to end: as long
// before, at the rate so far, as it asked for, but not before half has come.
// How long the source took to answer is left out of it: one that is at its limit
// would be brought more leases for being slow, and be slower for it.
func (a *assembler) nearing() {
	if a.near || a.lease.ID == 0 || a.run.Blob.Chunks() == 1 {
		return
	}
	if a.began.IsZero() {
		a.began = time.Now()
		return
	}
	received := a.received.Load()
	left := a.run.Size() - received
	if left > received {
		return
	}
	if took := time.Since(a.began); float64(left)*float64(took) <= float64(received)*float64(a.lease.Early) {
		a.near = true
		a.pull.report(&proto.Near{Digest: a.run.Blob.Digest, Lease: a.lease.ID})
	}
}

// put stores a chunk. It is reported as soon as it is in, and counted before
// that: a chunk may take until the whole blob is on the disk, while its readers
// have long gone on, and others could have it from here.
func (a *assembler) put(c proto.Chunk, data []byte) error {
	r := a.pull
	took, stored := time.Since(a.since), false
	a.count(c.Size)
	done := func() {
		r.report(&proto.Done{Digest: c.Blob, Lease: a.lease.ID, Index: c.Index, Took: took, Sum: r.blob.Sum(c.Index)})
	}
	if err := a.store(c, data, func() { stored = true; done() }); err != nil {
		return err
	}
	if !stored { // it was here, or another source's came first
		r.puller.metrics.duplicate.Add(c.Size)
		done()
	}
	a.since = time.Now()
	a.next++
	return nil
}

// count counts bytes that came in.
func (a *assembler) count(n int64) {
	r := a.pull
	r.puller.metrics.from[a.class].Add(n)
	if a.class == ClassOrigin {
		r.fromOrigin.Add(n)
	} else {
		r.fromPeers.Add(n)
	}
}

// discard counts the piece of a chunk whose rest did not come.
func (a *assembler) discard() {
	a.count(a.filled)
	a.pull.puller.metrics.duplicate.Add(a.filled)
	a.filled = 0
}

// store puts a chunk into the cache, which calls in if it was not there.
func (a *assembler) store(c proto.Chunk, data []byte, in func()) error {
	b := a.pull.blob
	if !a.lease.FromOrigin() && a.run.Blob.Chunks() > 1 && b.Sum(c.Index).IsZero() && !b.Has(c.Index) {
		return fmt.Errorf("%w: there is no sum to check chunk %d from a peer by", cache.ErrCorrupt, c.Index)
	}
	err := b.PutFunc(c.Index, data, in)
	if err == nil || errors.Is(err, cache.ErrCorrupt) || errors.Is(err, cache.ErrDigest) {
		return err
	}
	return &storeError{err}
}

// verdict is what became of a Fetch: the assembler's own error goes before the
// source's, which is only about a writer that failed.
func (a *assembler) verdict(ctx context.Context, err error) error {
	switch {
	case a.err != nil:
		return a.err
	case a.next == a.run.First+a.run.Count:
		return nil // all is in and reported; the lease may have run out since
	case err != nil && errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("%w: %w", errStalled, err)
	case err == nil:
		return fmt.Errorf("source sent %d of %d bytes and called it done", a.received.Load(), a.run.Size())
	}
	return err
}

// reset makes the assembler ready for another source, at the start of the
// chunk that is not complete.
func (a *assembler) reset() {
	a.discard()
	a.err, a.since = nil, time.Now()
}

func (a *assembler) release() {
	a.discard()
	if a.buf != nil {
		a.pull.puller.buffers.put(a.buf)
	}
}
