package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// Put stores chunk i, of which data is all the bytes, and wakes who waits for
// it. It keeps nothing of data. A chunk that is in already is left as it is,
// and nil returned.
//
// The error wraps ErrCorrupt, and nothing is stored, if data is not as long as
// the chunk or does not have the sum that is expected of it; a blob of one
// chunk is checked against its digest. Without an expected sum the bytes are
// taken at their word until all are in.
//
// One of the Puts that run at a time also brings the digest of the whole up to
// the chunks that are in, in order, so any Put may be the one that completes
// the blob. That one returns an error that wraps ErrDigest if the whole is
// wrong: everything of the blob is then dropped, open Readers fail, and it can
// be filled again. If the whole is right, readers may have all of it at once;
// Put then syncs and moves the files, and returns after that. An error of the
// disk at that point leaves a blob that can be read whole and is completed
// again when it is next opened.
//
// The first Put of a blob sees to it that there is room for all of it, and
// evicts others if need be. The error wraps ErrFull if there is none: most often
// at that first Put, and later only if others have filled the disk meanwhile.
//
// Errors of the disk are wrapped; the chunk is then not in, all else is as it
// was.
func (b *Blob) Put(i int, data []byte) error { return b.PutFunc(i, data, func() {}) }

// PutFunc is Put, and calls in as soon as the chunk is in, if it was this call
// that stored it: before the digest is brought up to it and the files are
// synced, which may take long. Others may have read the chunk by then. in must
// not block. That the whole turns out wrong, and the chunk with it, is still
// possible.
func (b *Blob) PutFunc(i int, data []byte, in func()) error {
	if i < 0 || i >= b.chunks {
		return b.corrupt(i, "the blob has %d chunks", b.chunks)
	}
	if want := b.blob.Chunk(i).Size; int64(len(data)) != want {
		return b.corrupt(i, "%d bytes instead of %d", len(data), want)
	}
	if err := b.cache.enter(b); err != nil {
		return fmt.Errorf("put chunk %d of blob %s: %w", i, b.blob.Digest, err)
	}
	defer b.cache.leave(b)
	if b.Has(i) {
		return nil
	}
	var sum proto.Sum
	if b.chunks > 1 {
		sum = blake3.Sum256(data)
	} else if err := b.checkOnly(data); err != nil {
		return err
	}
	if err := b.admit(i, sum); err != nil {
		return err
	}
	f, err := b.reserve(i, sum)
	if err != nil || f == nil {
		return err
	}
	err = b.cache.writeRoom(int64(len(data)), func() error { return b.write(f, i, data, sum) })
	b.stored(f, i, sum, err)
	if err != nil {
		return fmt.Errorf("put chunk %d of blob %s: %w", i, b.blob.Digest, err)
	}
	in()
	if b.chunks == 1 {
		return b.complete(f)
	}
	return b.advance(f, i, data)
}

func (b *Blob) corrupt(i int, why string, args ...any) error {
	b.cache.metrics.corrupt.Inc()
	return fmt.Errorf("put chunk %d of blob %s: %w: %s", i, b.blob.Digest, ErrCorrupt, fmt.Sprintf(why, args...))
}

// checkOnly checks the only chunk of a blob against the digest.
func (b *Blob) checkOnly(data []byte) error {
	h := b.blob.Digest.NewHash()
	h.Write(data)
	if !b.blob.Digest.Matches(h) {
		return b.corrupt(0, "they do not match the digest")
	}
	return nil
}

// admit sees to it that there is room for b, if chunk i is not refused anyway.
func (b *Blob) admit(i int, sum proto.Sum) error {
	if b.claimed.Load() {
		return nil
	}
	if want := b.Sum(i); !want.IsZero() && want != sum {
		return nil
	}
	if err := b.claim(); err != nil {
		return fmt.Errorf("put chunk %d of blob %s: %w", i, b.blob.Digest, err)
	}
	return nil
}

// reserve makes the caller the one who writes chunk i, or returns nil if the
// chunk is in. It waits for another Put of the same chunk: were both to write
// at once, the file could have some of each.
func (b *Blob) reserve(i int, sum proto.Sum) (*fill, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		f := b.fill
		switch {
		case f.have.Has(i):
			return nil, nil
		case b.chunks > 1 && !f.sums[i].IsZero() && f.sums[i] != sum:
			return nil, b.corrupt(i, "their sum is not the expected one")
		case b.dropping || f.opening || f.busy.Has(i):
			b.turn.Wait()
		case f.data == nil:
			if err := b.create(f); err != nil {
				return nil, fmt.Errorf("put chunk %d of blob %s: %w", i, b.blob.Digest, outOfSpace(err))
			}
		default:
			f.busy.Add(i)
			return f, nil
		}
	}
}

// create makes the files of a new fill. The caller holds b.mu, which is let go
// meanwhile.
func (b *Blob) create(f *fill) error {
	f.opening = true
	b.mu.Unlock()
	data, state, err := b.createFiles()
	b.mu.Lock()
	f.opening, f.data, f.state = false, data, state
	b.turn.Broadcast()
	return err
}

func (b *Blob) createFiles() (data, state *os.File, err error) {
	l, d := b.cache.layout, b.blob.Digest
	if err := os.MkdirAll(filepath.Dir(l.partial(d)), dirMode); err != nil {
		return nil, nil, err
	}
	if err := b.cache.makeWay(l.partial(d), l.state(d)); err != nil {
		return nil, nil, err
	}
	data, err = os.OpenFile(l.partial(d), os.O_CREATE|os.O_RDWR|os.O_TRUNC, fileMode)
	if err != nil || b.chunks <= 1 {
		return data, nil, err
	}
	state, err = os.OpenFile(l.state(d), os.O_CREATE|os.O_RDWR|os.O_TRUNC, fileMode)
	if err == nil {
		_, err = state.WriteAt(appendHeader(nil, stateMagic, b.blob.Size), 0)
	}
	if err != nil {
		(&fill{data: data, state: state}).close()
		return nil, nil, errors.Join(err, remove(l.partial(d), l.state(d)))
	}
	return data, state, nil
}

// write writes a chunk and then its record, so that after a crash a record
// without its bytes is the exception; the sum in it finds that out.
func (b *Blob) write(f *fill, i int, data []byte, sum proto.Sum) error {
	if _, err := f.data.WriteAt(data, b.blob.Chunk(i).Offset); err != nil {
		return err
	}
	if f.state == nil {
		return nil
	}
	var rec [recordSize]byte
	_, err := f.state.WriteAt(record(&rec, sum), recordOffset(i))
	return err
}

// stored ends what reserve began.
func (b *Blob) stored(f *fill, i int, sum proto.Sum, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.busy.Remove(i)
	b.turn.Broadcast()
	if err != nil {
		return
	}
	b.arrived(f, i, sum)
}

// arrived counts chunk i as in. The caller holds b.mu.
func (b *Blob) arrived(f *fill, i int, sum proto.Sum) {
	f.have.Add(i)
	if b.chunks > 1 {
		f.sums[i] = sum
	}
	b.wake(f, i, nil)
}

// advance takes the hashing baton if it is free, and feeds the digest of the
// whole with the chunks that are in and next in order. data is the bytes of
// chunk i, to spare reading them back; i is -1 if there are none. Whoever
// feeds the last chunk completes the blob.
func (b *Blob) advance(f *fill, i int, data []byte) error {
	b.mu.Lock()
	if f.hashing {
		b.mu.Unlock()
		return nil // its holder looks at f.have again before it lets go
	}
	f.hashing = true
	var err error
	for err == nil && f.have.Has(f.hashed) {
		k := f.hashed
		b.mu.Unlock()
		if k == i {
			f.hash.Write(data)
		} else {
			err = b.feed(f.data, k, f.hash)
		}
		b.mu.Lock()
		f.hashed++
		if err != nil {
			b.lose(f, k, err)
		}
	}
	all := f.hashed == b.chunks
	f.hashing = all // nobody else is to complete it
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read back chunk of blob %s: %w", b.blob.Digest, err)
	}
	if !all {
		return nil
	}
	if !b.blob.Digest.Matches(f.hash) {
		return b.drop(f)
	}
	return b.complete(f)
}

// lose gives up chunk k, which the disk does not give back, and begins the
// digest again, which has some of its bytes. The caller holds b.mu and the
// baton.
func (b *Blob) lose(f *fill, k int, err error) {
	f.hash.Reset()
	f.hashed = 0
	if errors.Is(err, ErrClosed) {
		return
	}
	f.have.Remove(k)
	f.sums[k] = proto.Sum{}
}

// drop gives up f: all its chunks are in and they are not the blob.
func (b *Blob) drop(f *fill) error {
	l, d := b.cache.layout, b.blob.Digest
	err := fmt.Errorf("blob %s of %d bytes: %w, its %d chunks are dropped", d, b.blob.Size, ErrDigest, b.chunks)
	b.mu.Lock()
	f.err = err
	b.wakeAll(f, err)
	b.fill = b.newFill()
	b.dropping = true
	b.mu.Unlock()
	f.close()
	rmErr := remove(l.partial(d), l.state(d))
	b.mu.Lock()
	b.dropping = false
	b.turn.Broadcast()
	b.mu.Unlock()
	if rmErr != nil {
		b.cache.log.Warn("wrong blob is left behind", "digest", d.String(), "error", rmErr)
	}
	return err
}

// complete makes b whole, once its digest was found right.
func (b *Blob) complete(f *fill) error {
	b.cache.remember(b.blob)
	b.mu.Lock()
	f.whole = true
	b.wakeAll(f, nil)
	close(f.done)
	b.mu.Unlock()
	if b.cache.onWhole != nil {
		b.cache.onWhole(b.blob)
	}
	defer close(f.settled)
	err := b.place(f)
	if err == nil {
		return nil
	}
	if !f.placed {
		b.cache.mu.Lock()
		b.cache.forget(b.blob.Digest)
		b.cache.count(b.blob.Digest, b.blob.Size)
		b.cache.mu.Unlock()
	}
	return fmt.Errorf("keep blob %s: %w", b.blob.Digest, err)
}

// place moves the bytes of a blob that was found right to where whole blobs
// are. The name appears there only after the bytes are on the disk, and place
// returns after the name is. The sums are not synced: if a power loss takes
// them, they are made again from the bytes.
func (b *Blob) place(f *fill) error {
	c, l, d := b.cache, b.cache.layout, b.blob.Digest
	to := l.blob(d)
	if err := c.fsync(f.data); err != nil {
		return err
	}
	if err := errors.Join(c.shard(filepath.Dir(to)), c.makeWay(to, l.sums(d))); err != nil {
		return err
	}
	if b.chunks > 1 {
		if err := os.WriteFile(l.sums(d), encodeSums(b.blob.Size, f.sums), fileMode); err != nil {
			return errors.Join(err, remove(l.sums(d)))
		}
	}
	if err := os.Rename(l.partial(d), to); err != nil {
		return err
	}
	b.mu.Lock()
	b.path, f.placed = to, true
	b.mu.Unlock()
	if err := c.fsyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	return c.note(f, b.blob)
}

// note does what is left once a whole blob is in its place.
func (c *Cache) note(f *fill, b proto.Blob) error {
	info, err := f.data.Stat()
	if err != nil {
		return err
	}
	if err := c.index.setBlob(b.Digest, stay{size: b.Size, added: info.ModTime()}); err != nil {
		c.log.Warn("index does not have a blob", "digest", b.Digest.String(), "error", err)
	}
	if f.state == nil {
		return nil
	}
	return remove(c.layout.state(b.Digest))
}

// shard makes a directory for whole blobs and syncs the one that it is in.
func (c *Cache) shard(dir string) error {
	err := os.Mkdir(dir, dirMode)
	switch {
	case err == nil:
		return c.fsyncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := c.shard(filepath.Dir(dir)); err != nil {
			return err
		}
		return c.shard(dir)
	}
	return err
}

func (c *Cache) fsyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.fsync(f)
}
