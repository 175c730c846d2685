package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// load makes the Blob of d from what is on the disk: whole, of wholeSize
// bytes, partial, or nothing. It runs alone on d's files. size is what the
// caller says, or anySize.
func (c *Cache) load(d proto.Digest, size, wholeSize int64, whole, partial bool) (*Blob, error) {
	if whole {
		b, err := c.loadWhole(proto.Blob{Digest: d, Size: wholeSize})
		if err == nil || !spoilt(err) {
			return b, err
		}
		c.setAside(proto.Blob{Digest: d, Size: wholeSize}, nil, foundOpen, err)
	}
	if b, err := c.loadAdopted(d, size, partial); b != nil || err != nil {
		return b, err
	}
	if partial {
		b, err := c.loadPartial(d, size)
		if err == nil || !spoilt(err) {
			return b, err
		}
		c.log.Warn("partial blob is given up", "digest", d.String(), "error", err)
		if err := c.discard(c.layout.partial(d), c.layout.state(d)); err != nil {
			return nil, fmt.Errorf("remove partial blob %s: %w", d, err)
		}
		c.mu.Lock()
		delete(c.partial, d)
		c.count(d, 0)
		c.mu.Unlock()
	}
	if size == anySize {
		return nil, errAbsent
	}
	return c.loadNew(proto.Blob{Digest: d, Size: size})
}

// errDamaged says that files cannot be what they should be, and that it is not
// for want of permission or memory.
var errDamaged = errors.New("files are damaged")

// loadNew makes the Blob of one of which nothing is here. One without bytes is
// whole at once.
func (c *Cache) loadNew(blob proto.Blob) (*Blob, error) {
	b := newBlob(c, blob)
	if b.chunks > 0 {
		return b, nil
	}
	if !blob.Digest.Matches(b.fill.hash) {
		return nil, fmt.Errorf("blob %s of no bytes: %w", blob.Digest, ErrDigest)
	}
	data, _, err := b.createFiles()
	if err != nil {
		return nil, fmt.Errorf("keep blob %s: %w", blob.Digest, err)
	}
	b.fill.data = data
	if err := b.complete(b.fill); err != nil {
		b.shut()
		return nil, err
	}
	return b, nil
}

// loadWhole opens a whole blob.
func (c *Cache) loadWhole(blob proto.Blob) (*Blob, error) {
	b := newBlob(c, blob)
	b.path = c.layout.blob(blob.Digest)
	data, err := os.Open(b.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", blob.Digest, err)
	}
	f := b.fill
	f.data = data
	if err := b.checkWhole(f); err != nil {
		data.Close()
		return nil, err
	}
	b.allIn(f)
	return b, nil
}

// allIn makes f, whose data is open, that of a whole blob.
func (b *Blob) allIn(f *fill) {
	f.have = proto.FullSet(b.chunks)
	f.hashing, f.hashed = true, b.chunks
	f.placed, f.whole = true, true
	close(f.done)
	close(f.settled)
}

// checkWhole checks the size of a whole blob's file and gets its sums: from
// their file, or if that does not have them, from the bytes.
func (b *Blob) checkWhole(f *fill) error {
	info, err := f.data.Stat()
	if err != nil {
		return fmt.Errorf("open blob %s: %w", b.blob.Digest, err)
	}
	if info.Size() != b.blob.Size {
		return fmt.Errorf("%w: %d bytes instead of %d", errDamaged, info.Size(), b.blob.Size)
	}
	if b.chunks <= 1 {
		return nil
	}
	path := b.cache.layout.sums(b.blob.Digest)
	raw, err := readSide(path)
	if err == nil {
		f.sums, err = parseSums(raw, b.blob.Size)
	}
	if err == nil {
		return nil
	}
	b.cache.log.Info("sums of a blob are made again", "digest", b.blob.Digest.String(), "error", err)
	if f.sums, err = b.cache.verify(b.blob, f.data, nil); err != nil {
		return err
	}
	if err := os.WriteFile(path, encodeSums(b.blob.Size, f.sums), fileMode); err != nil {
		b.cache.log.Warn("sums of a blob are not kept", "digest", b.blob.Digest.String(), "error", err)
	}
	return nil
}

// loadPartial opens a partial blob and checks the chunks that its state claims
// to be in. If these turn out to be all, the blob is whole when it returns, or
// was dropped. The error wraps errDamaged if nothing is left.
func (c *Cache) loadPartial(d proto.Digest, size int64) (*Blob, error) {
	raw, err := readSide(c.layout.state(d))
	if err != nil {
		return nil, fmt.Errorf("open partial blob %s: %w", d, damagedIfAbsent(err))
	}
	known, claimed, sums, err := parseState(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if size != anySize && size != known {
		return nil, fmt.Errorf("%w: it is of %d bytes and now said to have %d", errDamaged, known, size)
	}
	b := newBlob(c, proto.Blob{Digest: d, Size: known})
	f := b.fill
	if f.data, err = os.OpenFile(b.path, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open partial blob %s: %w", d, damagedIfAbsent(err))
	}
	f.state, err = os.OpenFile(c.layout.state(d), os.O_RDWR, 0)
	if err == nil {
		err = trim(f.data, known)
	}
	if err == nil {
		err = b.resume(f, claimed, sums)
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("open partial blob %s: %w", d, err)
	}
	if b.Have().Count() == 0 {
		f.close()
		return nil, fmt.Errorf("%w: no chunk of it is right", errDamaged)
	}
	return b, nil
}

func damagedIfAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

// trim cuts off what a file has beyond size: it would be in the whole file.
func trim(f *os.File, size int64) error {
	info, err := f.Stat()
	if err == nil && info.Size() > size {
		err = f.Truncate(size)
	}
	return err
}

// maxCheckers bounds how many chunks of one blob are checked at a time: more
// would take the disk and the processors from pulls that are running.
const maxCheckers = 4

// resume counts the claimed chunks that have their sum as in, as if they had
// just been Put. The error is the cache's being closed.
func (b *Blob) resume(f *fill, claimed proto.Set, sums []proto.Sum) error {
	var todo []int
	for i := claimed.Next(0); i >= 0; i = claimed.Next(i + 1) {
		todo = append(todo, i)
	}
	var (
		next   atomic.Int64
		closed atomic.Bool
		wg     sync.WaitGroup
	)
	for range min(maxCheckers, runtime.GOMAXPROCS(0), len(todo)) {
		wg.Go(func() {
			h := blake3.New()
			for k := int(next.Add(1)) - 1; k < len(todo); k = int(next.Add(1)) - 1 {
				if err := b.recheck(f, todo[k], sums[todo[k]], h); err != nil {
					closed.Store(true)
					return
				}
			}
		})
	}
	wg.Wait()
	if closed.Load() {
		return ErrClosed
	}
	return nil
}

// recheck counts a chunk that is on the disk as in if it has its sum.
func (b *Blob) recheck(f *fill, i int, want proto.Sum, h *blake3.Hasher) error {
	h.Reset()
	err := b.feed(f.data, i, h)
	if errors.Is(err, ErrClosed) {
		return err
	}
	var sum proto.Sum
	h.Sum(sum[:0])
	if err != nil || sum != want {
		b.cache.metrics.corrupt.Inc()
		b.cache.log.Info("chunk on the disk is dropped", "digest", b.blob.Digest.String(), "chunk", i, "error", err)
		return nil
	}
	b.mu.Lock()
	b.arrived(f, i, sum)
	b.mu.Unlock()
	err = b.advance(f, -1, nil)
	if err != nil && !errors.Is(err, ErrClosed) {
		b.cache.log.Warn("partial blob could not be completed", "digest", b.blob.Digest.String(), "error", err)
		return nil
	}
	return err
}

// feedBuffer is the piece, in bytes, in which chunks are read to be hashed:
// small enough to stay in the processor's cache between the two.
const feedBuffer = 256 << 10

// feed reads chunk i of b from data and writes it to w, a hash.
func (b *Blob) feed(data *os.File, i int, w io.Writer) error {
	return b.cache.pour(data, b.blob.Chunk(i), w, nil)
}

// pour reads a chunk from data and writes it to w, a hash. wait, if not nil, is
// called before each piece is read, with its length in bytes.
func (c *Cache) pour(data *os.File, chunk proto.Chunk, w io.Writer, wait func(n int64) error) error {
	buf, ok := c.buffers.Get().(*[feedBuffer]byte)
	if !ok {
		buf = new([feedBuffer]byte)
	}
	defer c.buffers.Put(buf)
	for off, end := chunk.Offset, chunk.Offset+chunk.Size; off < end; {
		select {
		case <-c.closing:
			return ErrClosed
		default:
		}
		piece := buf[:min(int64(len(buf)), end-off)]
		if wait != nil {
			if err := wait(int64(len(piece))); err != nil {
				return err
			}
		}
		n, err := data.ReadAt(piece, off)
		w.Write(piece[:n])
		off += int64(n)
		if err != nil && off < end {
			return fmt.Errorf("read chunk %d: %w", chunk.Index, err)
		}
	}
	return nil
}
