package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

var errReaderClosed = fmt.Errorf("reader is closed: %w", fs.ErrClosed)

// A Reader reads a blob for a client, and waits for the chunks that are still
// arriving. Read and Seek are for one goroutine at a time; Close may be called
// meanwhile and ends a Read that waits.
type Reader struct {
	// immutable
	ctx context.Context
	b   *Blob
	f   *fill // the try that the bytes read so far are of
	// fails is how often Fail had been called when the Reader was made.
	fails int
	quit  chan struct{}

	// of the goroutine that reads
	off      int64
	from, to int64 // what is known to be readable, in data
	data     *os.File

	// mu protects the fields below.
	mu      sync.Mutex
	closed  bool
	content *os.File // handed out by Content
	file    *os.File // handed out by File
}

// NewReader returns a Reader at the start of the blob, with a reference of its
// own that its Close gives back. When ctx ends, so does waiting in Read, with
// ctx's cause; what is here can still be read.
//
// A Reader stays with the chunks that are in or arriving now. If the whole
// turns out wrong, it fails with an error that wraps ErrDigest, though another
// try may be under way: its client already has some of the wrong bytes.
func (b *Blob) NewReader(ctx context.Context) *Reader {
	b.cache.mu.Lock()
	b.refs++
	b.cache.touch(b.blob.Digest)
	b.cache.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	return &Reader{ctx: ctx, b: b, f: b.fill, fails: b.fill.fails, quit: make(chan struct{})}
}

// Size returns the size of the blob in bytes.
func (r *Reader) Size() int64 { return r.b.blob.Size }

// Await waits, as Read does, until at least one byte can be read, and returns
// how many are here from r's position on without a gap: those can be had from
// File, too. It returns io.EOF at the end. All other errors are for Read to tell,
// which may still have bytes: those of a damaged blob that was set aside, as
// long as r is open.
func (r *Reader) Await() (int64, error) {
	if r.isClosed() {
		return 0, errReaderClosed
	}
	if r.off >= r.Size() {
		return 0, io.EOF
	}
	select {
	case <-r.b.cache.closing:
		return 0, fmt.Errorf("read blob %s: %w", r.b.blob.Digest, ErrClosed)
	default:
	}
	from, to, data, err := r.b.extent(r.ctx, r.quit, r.f, r.fails, r.off)
	if err != nil {
		return 0, err
	}
	r.from, r.to, r.data = from, to, data
	return to - r.off, nil
}

// File returns a file that is at r's position and has the bytes there of which
// Await has just said that they are here, for the kernel to send (sendfile). All
// others in it mean nothing, and what is taken from it moves r only by Seek. If
// it gives less than it should, Read says why. It is the same file each time, and
// r's: Close closes it.
//
// It fails if the blob was deleted, or if something else is under its name by
// now. Read still works then.
func (r *Reader) File() (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errReaderClosed
	}
	if r.file == nil {
		f, err := r.b.File()
		if err != nil {
			return nil, err
		}
		if !r.same(f) {
			f.Close()
			return nil, fmt.Errorf("open blob %s: another file is in its place: %w", r.b.blob.Digest, fs.ErrNotExist)
		}
		r.file = f
	}
	_, err := r.file.Seek(r.off, io.SeekStart)
	return r.file, err
}

// same reports whether f is the file of r's own try. Between the look at a name
// and the opening of it the blob can have been dropped, and another try begun.
func (r *Reader) same(f *os.File) bool {
	r.b.mu.Lock()
	data := r.f.data
	r.b.mu.Unlock()
	own, err := data.Stat() // fails if the try is over: then it is closed
	if err != nil {
		return false
	}
	info, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

// Read waits until at least one byte can be read. It returns io.EOF only after
// all of a blob whose digest was right. An error that is not io.EOF is of the
// waiting (ctx, Fail, Close, the cache's Close), wraps ErrDigest, or is the
// disk's.
func (r *Reader) Read(p []byte) (int, error) {
	if r.isClosed() {
		return 0, errReaderClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.off >= r.Size() {
		return 0, io.EOF
	}
	if r.off < r.from || r.off >= r.to {
		var err error
		if r.from, r.to, r.data, err = r.b.extent(r.ctx, r.quit, r.f, r.fails, r.off); err != nil {
			return 0, err
		}
	}
	n, err := r.data.ReadAt(p[:min(int64(len(p)), r.to-r.off)], r.off)
	r.off += int64(n)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, r.readError(err)
}

// readError says why bytes that were here could not be read.
func (r *Reader) readError(err error) error {
	r.b.mu.Lock()
	dropped := r.f.err
	r.b.mu.Unlock()
	select {
	case <-r.b.cache.closing:
		return fmt.Errorf("read blob %s: %w", r.b.blob.Digest, ErrClosed)
	default:
	}
	switch {
	case dropped != nil:
		return dropped
	case r.isClosed():
		return errReaderClosed
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF // somebody cut the file
	}
	if r.b.Whole() {
		r.b.cache.Doubt(r.b.blob.Digest)
	}
	return fmt.Errorf("read blob %s at %d: %w", r.b.blob.Digest, r.off, err)
}

// Seek sets where the next Read begins, as io.Seeker has it. It never waits.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	if r.isClosed() {
		return 0, errReaderClosed
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.Size()
	default:
		return 0, fmt.Errorf("seek in blob %s: whence %d", r.b.blob.Digest, whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek in blob %s: to %d, before its start", r.b.blob.Digest, offset)
	}
	r.off = offset
	return offset, nil
}

// Content returns what to hand to http.ServeContent: if the blob is whole now,
// its *os.File, at the position of r, so that the kernel sends it (sendfile);
// else r. The file is r's: Close closes it.
func (r *Reader) Content() io.ReadSeeker {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r
	}
	if r.content != nil {
		return r.content
	}
	r.b.mu.Lock()
	whole := r.f.whole
	r.b.mu.Unlock()
	if !whole {
		return r
	}
	f, err := r.b.File()
	if err != nil { // deleted: the descriptor that r shares still has the bytes
		return r
	}
	if _, err := f.Seek(r.off, io.SeekStart); err != nil {
		f.Close()
		return r
	}
	r.content = f
	return f
}

// Close ends a Read that waits, closes the files of Content and File and gives
// back the reference. Further calls do nothing.
func (r *Reader) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	files := [...]*os.File{r.content, r.file}
	close(r.quit)
	r.mu.Unlock()
	r.b.Release()
	var errs error
	for _, f := range files {
		if f != nil {
			errs = errors.Join(errs, f.Close())
		}
	}
	return errs
}

func (r *Reader) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}
