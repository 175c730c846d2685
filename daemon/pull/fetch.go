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

// storeError is a failure of this node's own disk.
type storeError struct{ err error }

func (e *storeError) Error() string { return "storing a chunk: " + e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

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
	defer a.release()
	if !f.origin {
		stop := r.watchDeadline(f, l, a)
		defer stop()
		return a.verdict(ctx, r.puller.cfg.Peer(l.Source, l.Addr).Fetch(ctx, f.run, a))
	}
	var failed []error
	for _, o := range r.originList() {
		rest := proto.Run{Blob: r.b, First: a.next, Count: f.run.First + f.run.Count - a.next}
		err := a.verdict(ctx, r.puller.cfg.Origin(o).Fetch(ctx, rest, a))
		var disk *storeError
		if err == nil || ctx.Err() != nil || errors.As(err, &disk) || errors.Is(err, cache.ErrDigest) {
			return err
		}
		failed = append(failed, err)
		a.reset()
	}
	return errors.Join(failed...)
}

// watchDeadline ends a flight at its lease's deadline, unless half of the run
// has come by then, which gets the same time once more.
func (r *pull) watchDeadline(f *flight, l *proto.Lease, a *assembler) (stop func()) {
	if l.Within <= 0 {
		return func() {}
	}
	var extended atomic.Bool
	var t *time.Timer
	ready := make(chan struct{}) // t is set
	t = time.AfterFunc(l.Within, func() {
		<-ready
		if 2*a.received.Load() >= f.run.Size() && extended.CompareAndSwap(false, true) {
			t.Reset(l.Within)
			return
		}
		f.cancel(errStalled)
	})
	close(ready)
	return func() { t.Stop() }
}

// assembler cuts what a source writes into chunks and puts them into the
// cache.
type assembler struct {
	pull     *pull
	lease    *proto.Lease
	run      proto.Run
	next     int // the chunk that is being filled
	buf      *[]byte
	filled   int64
	since    time.Time // when the chunk began
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
		n += m
		p = p[m:]
		if a.err != nil {
			return n, a.err
		}
	}
	return n, nil
}

// put stores a chunk and reports it. The chunk is counted first: storing the
// last one of a blob takes until the blob is on the disk, and by then its
// readers have long gone on.
func (a *assembler) put(c proto.Chunk, data []byte) error {
	r := a.pull
	took := time.Since(a.since)
	a.count(c)
	if r.blob.Has(c.Index) {
		r.puller.metrics.duplicate.Add(c.Size)
	} else if err := a.store(c, data); err != nil {
		return err
	}
	a.since = time.Now()
	a.next++
	r.report(&proto.Done{Digest: c.Blob, Lease: a.lease.ID, Index: c.Index, Took: took, Sum: r.blob.Sum(c.Index)})
	return nil
}

func (a *assembler) count(c proto.Chunk) {
	r := a.pull
	if a.lease.FromOrigin() {
		r.puller.metrics.origin.Add(c.Size)
		r.fromOrigin.Add(c.Size)
	} else {
		r.puller.metrics.peers.Add(c.Size)
		r.fromPeers.Add(c.Size)
	}
}

func (a *assembler) store(c proto.Chunk, data []byte) error {
	b := a.pull.blob
	if !a.lease.FromOrigin() && a.run.Blob.Chunks() > 1 && b.Sum(c.Index).IsZero() {
		return fmt.Errorf("%w: there is no sum to check chunk %d from a peer by", cache.ErrCorrupt, c.Index)
	}
	err := b.Put(c.Index, data)
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
	case err != nil && errors.Is(context.Cause(ctx), errStalled):
		return fmt.Errorf("%w: %w", errStalled, err)
	case err == nil && a.next < a.run.First+a.run.Count:
		return fmt.Errorf("source sent %d of %d bytes and called it done", a.received.Load(), a.run.Size())
	}
	return err
}

// reset makes the assembler ready for another source, at the start of the
// chunk that is not complete.
func (a *assembler) reset() {
	a.filled, a.err, a.since = 0, nil, time.Now()
}

func (a *assembler) release() {
	if a.buf != nil {
		a.pull.puller.buffers.put(a.buf)
	}
}
