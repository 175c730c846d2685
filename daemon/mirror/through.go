package mirror

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

// errSentWrong is content that was passed on and is not what its digest says.
var errSentWrong = fmt.Errorf("what was passed on: %w", cache.ErrDigest)

// noRoom reports whether err says that this node could not keep the content of
// a blob, or not read what it had kept, so that it has to pass it on.
func noRoom(err error) bool {
	return (errors.Is(err, cache.ErrFull) || errors.Is(err, pull.ErrStore)) && !errors.Is(err, cache.ErrClosed)
}

// A through is the content of a blob that the cache can't hold all of. What is
// here is read from the cache, the rest comes from the origin and is kept
// nowhere. All of it is read from the first byte on, whatever is wanted of it,
// since only that can be compared with the digest.
//
// One goroutine uses it at a time. close waits for what it has under way.
type through struct {
	// immutable
	ctx    context.Context
	cancel context.CancelFunc
	blob   proto.Blob
	source pull.Source

	kept   *cache.Blob   // what is here; nil: nothing, or nothing that can be read
	reader *cache.Reader // of kept

	hash  hash.Hash // of the first pos bytes
	pos   int64
	want  int64 // where the next Read is to begin
	right bool  // all was read and is what the digest says
	err   error // ends all reads

	fetch *passage // under way; nil if none is
	skip  int64    // bytes of it that come before pos
}

// A passage is a fetch from the origin that is read while it comes.
type passage struct {
	r     *io.PipeReader
	until int64         // where in the blob it ends
	done  chan struct{} // closed when nothing of it is left
}

// newThrough returns the content of b. kept, which may be nil, is b's place in
// the cache; the through takes its reference and gives it back in close. What
// it reads from the cache never waits for a pull.
func newThrough(ctx context.Context, b proto.Blob, kept *cache.Blob, source pull.Source) *through {
	t := &through{blob: b, source: source, kept: kept, hash: b.Digest.NewHash()}
	t.ctx, t.cancel = context.WithCancel(ctx)
	if kept != nil {
		over, end := context.WithCancel(context.Background())
		end()
		t.reader = kept.NewReader(over)
	}
	return t
}

// seek sets where the next Read begins. Back to what was passed already costs
// reading all of it once more, after the rest, without which nothing would be
// known of the content that was sent.
func (t *through) seek(offset int64) error {
	if offset < t.pos {
		if err := t.verify(); err != nil {
			return err
		}
		t.hash.Reset()
		t.pos, t.right = 0, false
	}
	t.want = offset
	return nil
}

// Read is part of io.Reader. It returns io.EOF at the end of a blob that is
// what its digest says.
func (t *through) Read(p []byte) (int, error) {
	var skipped []byte
	for t.pos < t.want && t.pos < t.blob.Size {
		if skipped == nil {
			skipped = make([]byte, aheadSize)
		}
		if _, err := t.next(skipped[:min(t.want-t.pos, aheadSize)]); err != nil {
			return 0, err
		}
	}
	n, err := t.next(p)
	t.want = t.pos
	return n, err
}

// verify reads what is left and reports whether the whole is what its digest
// says.
func (t *through) verify() error {
	buf := make([]byte, aheadSize)
	for !t.right {
		if _, err := t.next(buf); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// next reads and hashes the bytes at pos.
func (t *through) next(p []byte) (n int, err error) {
	switch {
	case t.err != nil:
		return 0, t.err
	case t.pos == t.blob.Size:
		if !t.blob.Digest.Matches(t.hash) {
			t.err = fmt.Errorf("blob %s: %w", t.blob.Digest, errSentWrong)
			return 0, t.err
		}
		t.right = true
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), t.blob.Size-t.pos)]
	if t.fetch == nil {
		if n = t.here(p); n == 0 {
			t.begin()
		}
	}
	if n == 0 {
		n, err = t.passed(p)
	}
	t.hash.Write(p[:n])
	t.pos += int64(n)
	t.err = err
	return n, err
}

// here reads what the cache has at pos, if anything. After the first failure it
// is not asked again: the rest comes from the origin.
func (t *through) here(p []byte) int {
	if !t.has(int(t.pos / t.blob.ChunkSize())) {
		return 0
	}
	n, err := 0, error(nil)
	if _, err = t.reader.Seek(t.pos, io.SeekStart); err == nil {
		n, err = t.reader.Read(p)
	}
	if err != nil {
		t.letGo()
		return 0
	}
	return n
}

// has reports whether chunk i can be read from the cache. The last one can only if
// the whole is here and right: a cache.Reader holds it back.
func (t *through) has(i int) bool {
	return t.kept != nil && t.kept.Has(i) && (i < t.blob.Chunks()-1 || t.kept.Whole())
}

func (t *through) letGo() {
	if t.kept == nil {
		return
	}
	_ = t.reader.Close() // nothing was written
	t.kept.Release()
	t.kept, t.reader = nil, nil
}

// begin fetches from the chunk at pos to the next one that is here.
func (t *through) begin() {
	size := t.blob.ChunkSize()
	run := proto.Run{Blob: t.blob, First: int(t.pos / size), Count: 1}
	for i := run.First + 1; i < t.blob.Chunks() && !t.has(i); i++ {
		run.Count++
	}
	r, w := io.Pipe()
	t.fetch = &passage{r: r, until: run.Offset() + run.Size(), done: make(chan struct{})}
	t.skip = t.pos - run.Offset()
	go func(done chan<- struct{}) {
		defer close(done)
		err := t.source.Fetch(t.ctx, run, w)
		if err == nil {
			err = io.ErrUnexpectedEOF // to who wants more than the run has
		}
		w.CloseWithError(err)
	}(t.fetch.done)
}

// passed reads from the fetch that is under way.
func (t *through) passed(p []byte) (int, error) {
	f := t.fetch
	if t.skip > 0 {
		if _, err := io.CopyN(io.Discard, f.r, t.skip); err != nil {
			return 0, err
		}
		t.skip = 0
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.until-t.pos)])
	if t.pos+int64(n) == f.until {
		t.end()
		err = nil
	}
	return n, err
}

// end waits for the fetch that is under way.
func (t *through) end() {
	if t.fetch == nil {
		return
	}
	t.fetch.r.Close()
	<-t.fetch.done
	t.fetch = nil
}

// close ends everything. Reads fail from then on.
func (t *through) close() {
	t.cancel()
	t.end()
	t.letGo()
	if t.err == nil {
		t.err = io.ErrClosedPipe
	}
}
