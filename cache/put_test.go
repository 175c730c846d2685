package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

func TestPutCorrupt(t *testing.T) {
	t.Parallel()
	several, data := content(1, 3*chunk+5)
	one, dataOne := content(2, 1000)
	tests := []struct {
		name   string
		blob   proto.Blob
		right  []byte
		chunk  int
		bytes  []byte
		expect bool
	}{
		{name: "too short", blob: several, right: data, chunk: 1, bytes: data[:chunk-1]},
		{name: "too long", blob: several, right: data, chunk: 3, bytes: data[:6]},
		{name: "empty", blob: several, right: data, chunk: 0, bytes: nil},
		{name: "wrong sum", blob: several, right: data, chunk: 1, bytes: data[:chunk], expect: true},
		{name: "wrong digest of the only chunk", blob: one, right: dataOne, chunk: 0, bytes: data[:1000]},
		{name: "wrong length of the only chunk", blob: one, right: dataOne, chunk: 0, bytes: data[:999]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := open(t, dir)
			b, err := c.Blob(tt.blob)
			if err != nil {
				t.Fatal(err)
			}
			if tt.expect {
				b.Expect(0, sumsOf(tt.blob, tt.right))
			}
			if err := b.Put(tt.chunk, tt.bytes); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("Put: %v", err)
			}
			if b.Has(tt.chunk) || b.Have().Count() != 0 {
				t.Error("the chunk is in")
			}
			if got := files(t, dir); len(got) != 0 {
				t.Errorf("files are %q", got)
			}
			if got := testutil.ToFloat64(c.metrics.corrupt); got != 1 {
				t.Errorf("counted %v corrupt chunks", got)
			}
			put(t, b, tt.right, all(tt.blob)...)
			wantContent(t, b, tt.right)
			b.Release()
		})
	}
	c := open(t, t.TempDir())
	b := get(t, c, several)
	for _, i := range []int{-1, 4} {
		if err := b.Put(i, nil); err == nil {
			t.Errorf("Put(%d): no error", i)
		}
		if b.Has(i) || !b.Sum(i).IsZero() || b.Wait(context.Background(), i) == nil {
			t.Errorf("chunk %d is in", i)
		}
	}
}

// A chunk that was refused leaves nothing that a restart would take for it.
func TestCorruptLeavesNothing(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0)
	b.Expect(0, sumsOf(blob, data))
	if err := b.Put(1, piece(blob, data, 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	b.Release()
	b = get(t, c, blob)
	if b.Have().Count() != 1 || !b.Has(0) {
		t.Errorf("have %v", b.Have())
	}
}

// While one Put hashes, another stores its chunk and goes; the first one takes
// up what has come in meanwhile.
func TestBaton(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 4*chunk)
	b := get(t, c, blob)
	put(t, b, data, 0)
	b.mu.Lock()
	f := b.fill
	f.hashing = true // somebody is about to hash chunk 1
	b.mu.Unlock()
	put(t, b, data, 3, 1, 2)
	if b.Whole() || f.hashed != 1 {
		t.Fatalf("%d chunks were hashed without the baton", f.hashed)
	}
	b.mu.Lock()
	f.hashing = false
	b.mu.Unlock()
	if err := b.advance(f, -1, nil); err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, data)
}

func TestExpect(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 4*chunk)
	sums := sumsOf(blob, data)
	wrong := proto.Sum{1}
	b := get(t, c, blob)
	put(t, b, data, 0)
	b.Expect(0, []proto.Sum{wrong, wrong, wrong})
	b.Expect(1, []proto.Sum{{}, sums[2]}) // zero says nothing, the newer word counts
	b.Expect(-1, []proto.Sum{wrong})
	b.Expect(3, []proto.Sum{{}, wrong, wrong})
	for i, want := range []proto.Sum{sums[0], wrong, sums[2], {}} {
		if b.Sum(i) != want {
			t.Errorf("sum %d is %x, not %x", i, b.Sum(i), want)
		}
	}
	if got := b.Sums(); got[0] != sums[0] || !got[1].IsZero() || !got[2].IsZero() {
		t.Errorf("sums of chunks that are not in: %x", got)
	}
	if err := b.Put(1, piece(blob, data, 1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("against a sum that is wrong: %v", err)
	}
	b.Expect(1, sums[1:2])
	put(t, b, data, 0, 1, 2, 3)
	wantContent(t, b, data)
}

func TestWrongWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	blob, data := content(1, 4*chunk)
	_, other := content(2, 4*chunk)
	b := get(t, c, blob)
	done := b.Done()
	b.Expect(0, []proto.Sum{blake3.Sum256(piece(blob, other, 0))})

	// A reader that is in the middle, one that waits for the withheld chunk and
	// one that has read nothing yet.
	ctx := context.Background()
	middle, waiting, idle := b.NewReader(ctx), b.NewReader(ctx), b.NewReader(ctx)
	for _, r := range []*Reader{middle, waiting, idle} {
		defer r.Close()
	}
	put(t, b, other, 0)
	put(t, b, data, 3, 2)
	if _, err := io.ReadFull(middle, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := waiting.Seek(-1, io.SeekEnd)
		if err == nil {
			_, err = waiting.Read(make([]byte, 1))
		}
		waited <- err
	}()
	if err := b.Put(1, piece(blob, data, 1)); !errors.Is(err, ErrDigest) {
		t.Fatalf("Put of the last chunk: %v", err)
	}
	if err := <-waited; !errors.Is(err, ErrDigest) {
		t.Errorf("a reader that waits: %v", err)
	}
	for range 2 { // also once it was filled again
		for name, r := range map[string]*Reader{"middle": middle, "idle": idle} {
			if _, err := io.ReadAll(r); !errors.Is(err, ErrDigest) {
				t.Errorf("reader %s: %v", name, err)
			}
		}
		if !b.Whole() {
			if b.Have().Count() != 0 || !b.Sum(0).IsZero() || !b.Sum(2).IsZero() {
				t.Error("chunks or sums are left")
			}
			if got := files(t, dir); len(got) != 0 {
				t.Errorf("files are %q", got)
			}
			put(t, b, data, 3, 1, 0, 2)
		}
	}
	wantContent(t, b, data)
	select {
	case <-done:
		t.Error("Done of the wrong one was closed")
	case <-b.Done():
	}
}

// Of those that bring other bytes for one chunk at once, with no sum known, one
// wins whole: the file never has some of each, or the sum of the other.
func TestSameChunkAtOnce(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, _ := content(1, 3*chunk)
	b := get(t, c, blob)
	_, first := content(11, chunk)
	_, second := content(12, chunk)
	sum := proto.Sum(blake3.Sum256(first))
	f, err := b.reserve(1, sum) // the first is about to write
	if err != nil {
		t.Fatal(err)
	}
	put := make(chan error, 1)
	go func() { put <- b.Put(1, second) }()
	for range 1000 { // it would be done by then if it did not wait
		runtime.Gosched()
		if len(put) > 0 {
			t.Fatalf("Put of a chunk that another is writing returned %v", <-put)
		}
	}
	err = b.write(f, 1, first, sum)
	b.stored(f, 1, sum, err)
	if err := errors.Join(err, <-put); err != nil {
		t.Fatal(err)
	}
	data, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	got := make([]byte, chunk)
	if _, err := data.ReadAt(got, chunk); err != nil || !bytes.Equal(got, first) || b.Sum(1) != sum {
		t.Errorf("the chunk is not the first one's: %v", err)
	}
}

// The same, left to chance and for the making of the files too.
func TestSameChunkRace(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, _ := content(1, 2*chunk)
	for range 10 {
		b, err := c.Blob(blob)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for k := range 4 {
			_, other := content(uint64(10+k), chunk)
			wg.Go(func() {
				if err := b.Put(1, other); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := make([]byte, chunk)
		if _, err := b.fill.data.ReadAt(got, chunk); err != nil {
			t.Fatal(err)
		}
		if b.Sum(1) != proto.Sum(blake3.Sum256(got)) {
			t.Fatal("the sum is not the one of the bytes in the file")
		}
		b.Release()
		if err := c.Delete(blob.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

// Readers have the blob before the sync, and its name is there only after it;
// no lock is held meanwhile.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, 3 * chunk} {
		dir := t.TempDir()
		c := open(t, dir)
		blob, data := content(1, size)
		b := get(t, c, blob)
		r := b.NewReader(context.Background())
		defer r.Close()
		final := c.layout.blob(blob.Digest)
		var synced []string
		c.fsync = func(f *os.File) error {
			_, err := os.Stat(final)
			switch f.Name() {
			case c.layout.partial(blob.Digest):
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the blob has its final name before it is synced: %v", err)
				}
				synced = append(synced, "file")
			case filepath.Dir(final):
				if err != nil {
					t.Errorf("the directory is synced before the name is in it: %v", err)
				}
				synced = append(synced, "directory")
				return nil
			default:
				return nil
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("a reader during the sync: %d bytes, %v", len(got), err)
			}
			if again, err := c.Blob(blob); err != nil || again != b || !again.Whole() || again.Have().Count() != blob.Chunks() {
				t.Errorf("the blob during the sync: %v, %v", again, err)
			} else {
				again.Release()
			}
			if w, ok := c.Whole(blob.Digest); !ok || w != blob {
				t.Error("the blob is not whole during the sync")
			}
			f2, err := b.File()
			if err != nil {
				t.Errorf("File during the sync: %v", err)
			} else {
				f2.Close()
			}
			return nil
		}
		put(t, b, data, rand.Perm(blob.Chunks())...)
		if strings.Join(synced, " ") != "file directory" {
			t.Errorf("synced were %v", synced)
		}
	}
}

// Delete waits for a completion that is under way, or the two would pull the
// files from under each other.
func TestDeleteDuringCompletion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	blob, data := content(1, 2*chunk)
	b := get(t, c, blob)
	deleted := make(chan error, 1)
	c.fsync = func(f *os.File) error {
		if f.Name() != c.layout.partial(blob.Digest) {
			return nil
		}
		go func() { deleted <- c.Delete(blob.Digest) }()
		for range 1000 { // it would be done by then if it did not wait
			runtime.Gosched()
			if len(deleted) > 0 {
				break
			}
		}
		return nil
	}
	put(t, b, data, 1, 0)
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if _, ok := c.Whole(blob.Digest); ok || len(files(t, dir)) != 0 {
		t.Errorf("it is still here: %v, %q", ok, files(t, dir))
	}
	wantContent(t, b, data)
}

func TestSyncFails(t *testing.T) {
	t.Parallel()
	for _, fails := range []int{1, 2, 3, 4} { // blobs/sha256/xx: its parents are synced too
		dir := t.TempDir()
		c := open(t, dir)
		blob, data := content(1, 3*chunk)
		b, err := c.Blob(blob)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, data, 0, 1)
		n := 0
		c.fsync = func(*os.File) error {
			if n++; n == fails {
				return syscall.EIO
			}
			return nil
		}
		if err := b.Put(2, piece(blob, data, 2)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync %d fails: Put: %v", fails, err)
		}
		wantContent(t, b, data)
		if _, err := os.Stat(c.layout.blob(blob.Digest)); (err == nil) != (fails == 4) {
			t.Errorf("sync %d fails: the final name: %v", fails, err)
		}
		if _, ok := c.Whole(blob.Digest); ok != (fails == 4) {
			t.Errorf("sync %d fails: Whole is %v", fails, ok)
		}
		b.Release()
		unsynced(c)
		b, ok := c.Known(blob.Digest) // goes on where it failed
		if !ok {
			t.Fatal("the blob is lost")
		}
		wantContent(t, b, data)
		b.Release()
		if _, ok := c.Whole(blob.Digest); !ok {
			t.Errorf("sync %d failed: the blob was not completed", fails)
		}
	}
}

func TestDiskErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	blob, data := content(1, 3*chunk)
	b := get(t, c, blob)
	in := filepath.Join(dir, "partial", "sha256")
	block := func(path string) func() {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	fails := func(i int, want error, path string) {
		t.Helper()
		err := b.Put(i, piece(blob, data, i))
		if !errors.Is(err, want) || !strings.Contains(err.Error(), blob.Digest.String()) || !strings.Contains(err.Error(), path) {
			t.Errorf("Put: %v", err)
		}
	}

	unblock := block(in)
	fails(0, syscall.ENOTDIR, in)
	unblock()
	state := c.layout.state(blob.Digest) // cannot be opened
	if err := errors.Join(os.MkdirAll(in, 0o700), os.Symlink(state, state)); err != nil {
		t.Fatal(err)
	}
	fails(0, syscall.ELOOP, in)
	os.Remove(c.layout.state(blob.Digest))
	if b.Have().Count() != 0 || len(files(t, dir)) != 0 {
		t.Errorf("something is left: %v, %q", b.Have(), files(t, dir))
	}
	put(t, b, data, 0, 1)

	unblock = block(filepath.Join(dir, "blobs", "sha256"))
	fails(2, syscall.ENOTDIR, "blobs")
	unblock()
	if !b.Whole() {
		t.Error("what cannot be moved is not whole, and no reader gets it")
	}
	wantContent(t, b, data)
}

// A chunk that the disk does not give back is given up, so that it is brought
// again, and the digest comes out right.
func TestReadBackFails(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 4*chunk)
	b := get(t, c, blob)
	put(t, b, data, 2, 1)
	if err := os.Truncate(c.layout.partial(blob.Digest), 2*chunk+9); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(0, piece(blob, data, 0)); !errors.Is(err, io.EOF) {
		t.Errorf("Put that reads back: %v", err)
	}
	if !b.Has(0) || !b.Has(1) || b.Has(2) || !b.Sum(2).IsZero() {
		t.Errorf("have %v", b.Have())
	}
	put(t, b, data, 3, 2)
	wantContent(t, b, data)
}
