package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"
)

// sendable reads from File what Await says is here.
func sendable(t *testing.T, r *Reader) []byte {
	t.Helper()
	n, err := r.Await()
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.File()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(f, p); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Seek(n, io.SeekCurrent); err != nil {
		t.Fatal(err)
	}
	return p
}

// What a Reader gives to be sent from its file is what it would read, at
// whatever position, and no more of it: gaps and the last chunk hold it up. All
// of that from one file, over the moment in which the blob becomes whole.
func TestReaderFile(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 5*chunk+10)
	b := get(t, c, blob)
	put(t, b, data, 0, 1, 3, 5)
	r := b.NewReader(context.Background())
	defer r.Close()
	from := func(off int64, want []byte) {
		t.Helper()
		if _, err := r.Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got := sendable(t, r); !bytes.Equal(got, want) {
			t.Errorf("from %d: %d bytes, want %d", off, len(got), len(want))
		}
	}
	from(100, data[100:2*chunk])
	file := r.file
	from(3*chunk+7, data[3*chunk+7:4*chunk])
	from(chunk-1, data[chunk-1:2*chunk])
	for i, key := range map[int]int{2: 2, 5: b.chunks} {
		if _, err := r.Seek(int64(i)*chunk, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		stopped := errors.New("stopped")
		errs := make(chan error)
		go func() {
			_, err := r.Await()
			errs <- err
		}()
		waitForWaiter(b, key)
		b.Fail(stopped)
		if err := <-errs; !errors.Is(err, stopped) {
			t.Errorf("Await of chunk %d: %v", i, err)
		}
		r.fails++ // it is as one that has come later
	}
	put(t, b, data, 4, 2)
	from(2*chunk-1, data[2*chunk-1:])
	if _, err := r.Await(); err != io.EOF {
		t.Errorf("Await at the end: %v", err)
	}
	if r.file != file {
		t.Error("it has opened another file")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := file.Stat(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("the file of a closed reader: %v", err)
	}
	if _, err := r.Await(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Await after Close: %v", err)
	}
	if _, err := r.File(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("File after Close: %v", err)
	}
}

// A Reader never gives the file of another try than its own: neither after the
// blob was found wrong and begun anew, nor one that has come under its name.
func TestReaderFileOfItsOwnTry(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	b := get(t, c, blob)
	wrong := bytes.Repeat([]byte("w"), len(data))
	put(t, b, wrong, 0, 1)
	first := b.NewReader(context.Background())
	defer first.Close()
	late := b.NewReader(context.Background()) // opens its file when there is another one
	defer late.Close()
	if got := sendable(t, first); !bytes.Equal(got, wrong[:2*chunk]) {
		t.Errorf("%d bytes of the first try", len(got))
	}
	if _, err := late.Await(); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(2, piece(blob, wrong, 2)); !errors.Is(err, ErrDigest) {
		t.Fatalf("Put of the last wrong chunk: %v", err)
	}
	put(t, b, data, 0, 1)
	for _, r := range []*Reader{first, late} {
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Await(); !errors.Is(err, ErrDigest) {
			t.Errorf("Await of the first try: %d, %v", n, err)
		}
	}
	if f, err := late.File(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first try's reader has the file of the second: %v, %v", f, err)
	}
	r := b.NewReader(context.Background())
	defer r.Close()
	if got := sendable(t, r); !bytes.Equal(got, data[:2*chunk]) {
		t.Errorf("%d bytes of the second try", len(got))
	}

	swapped := b.NewReader(context.Background())
	defer swapped.Close()
	if err := os.Rename(c.layout.partial(blob.Digest), c.layout.partial(blob.Digest)+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.layout.partial(blob.Digest), wrong, fileMode); err != nil {
		t.Fatal(err)
	}
	if _, err := swapped.Await(); err != nil {
		t.Fatal(err)
	}
	if _, err := swapped.File(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("File of another file under its name: %v", err)
	}
	got := make([]byte, 2*chunk)
	if _, err := io.ReadFull(swapped, got); err != nil || !bytes.Equal(got, data[:2*chunk]) {
		t.Errorf("Read instead of it: %v", err)
	}
}

// Once the cache is closed nothing more is to be sent from a file.
func TestReaderFileOfAClosedCache(t *testing.T) {
	t.Parallel()
	c, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	blob, data := content(1, 3*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	put(t, b, data, 0, 1)
	r := b.NewReader(context.Background())
	defer r.Close()
	if _, err := r.Await(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Await(); !errors.Is(err, ErrClosed) {
		t.Errorf("Await = %v", err)
	}
}

// A file that gives less than it should: Read says so, and the cache is told.
func TestReaderFileCutBehindItsBack(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	b := get(t, c, blob)
	r := b.NewReader(context.Background())
	defer r.Close()
	if err := os.Truncate(c.layout.blob(blob.Digest), chunk); err != nil {
		t.Fatal(err)
	}
	n, err := r.Await()
	if err != nil || n != 3*chunk {
		t.Fatalf("Await = %d, %v", n, err)
	}
	f, err := r.File()
	if err != nil {
		t.Fatal(err)
	}
	if n, err = io.Copy(io.Discard, f); n != chunk || err != nil {
		t.Errorf("the file has %d bytes, %v", n, err)
	}
	if _, err := r.Seek(n, io.SeekCurrent); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Read = %d, %v", n, err)
	}
	next(t, l.damaged, blob)
}

// One whose file has gone: Read goes on with the one that is open, though the
// blob is set aside.
func TestReaderFileGone(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	r := get(t, c, blob).NewReader(context.Background())
	defer r.Close()
	if err := os.Remove(c.layout.blob(blob.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Await(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.File(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("File = %v", err)
	}
	next(t, l.damaged, blob)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
