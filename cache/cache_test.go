package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

func TestStoreAndRead(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		size int
		of   func(uint64, int) (proto.Blob, []byte)
	}{
		{"empty", 0, content},
		{"empty sha512", 0, content512},
		{"one byte", 1, content},
		{"under a chunk", chunk - 1, content},
		{"one chunk", chunk, content},
		{"one chunk sha512", 1000, content512},
		{"a byte over", chunk + 1, content},
		{"several", 5*chunk + 77, content},
		{"several sha512", 3 * chunk, content512},
		{"larger chunks", 130 * chunk, content},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			blob, data := tt.of(1, tt.size)
			var whole []proto.Blob
			c, err := Open(dir, Options{Whole: func(b proto.Blob) { whole = append(whole, b) }})
			if err != nil {
				t.Fatal(err)
			}
			unsynced(c)
			store(t, c, blob, data)
			if len(whole) != 1 || whole[0] != blob {
				t.Errorf("Whole was called with %v", whole)
			}
			for range 2 { // as stored, and after a restart
				if got, ok := c.Whole(blob.Digest); !ok || got != blob {
					t.Errorf("Whole = %v, %v", got, ok)
				}
				if got := c.Blobs(); len(got) != 1 || got[0] != blob {
					t.Errorf("Blobs = %v", got)
				}
				b, ok := c.Known(blob.Digest)
				if !ok {
					t.Fatal("not known")
				}
				wantContent(t, b, data)
				if blob.Chunks() > 1 {
					for i, sum := range sumsOf(blob, data) {
						if b.Sum(i) != sum || b.Sums()[i] != sum {
							t.Errorf("sum %d is wrong", i)
						}
					}
				}
				b.Release()
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				if c, err = Open(dir, Options{}); err != nil {
					t.Fatal(err)
				}
			}
			want := 1
			if blob.Chunks() > 1 {
				want = 2
			}
			if got := files(t, dir); len(got) != want {
				t.Errorf("files are %q", got)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	good, _ := content(1, 10)
	for name, b := range map[string]proto.Blob{
		"no digest":     {Size: 1},
		"negative size": {Digest: good.Digest, Size: -1},
		"too large":     {Digest: good.Digest, Size: proto.MaxBlob + 1},
	} {
		if _, err := c.Blob(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := c.Blob(proto.Blob{Digest: good.Digest}); !errors.Is(err, ErrDigest) {
		t.Errorf("blob of no bytes with the digest of some: %v", err)
	}
	if _, ok := c.Known(good.Digest); ok {
		t.Error("a blob is known that was never put")
	}
	if _, ok := c.Known(proto.Digest{}); ok {
		t.Error("the zero digest is known")
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	other := proto.Blob{Digest: blob.Digest, Size: 2 * chunk}
	if _, err := c.Blob(other); !errors.Is(err, ErrSize) {
		t.Errorf("a blob in use with another size: %v", err)
	}
	put(t, b, data, 1)
	b.Release()

	// What was said first of a partial blob's size may have been a lie.
	b, err = c.Blob(other)
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Have().Count(); n != 0 {
		t.Errorf("%d chunks are left of the blob with the other size", n)
	}
	b.Release()
	store(t, c, blob, data)
	if _, err := c.Blob(other); !errors.Is(err, ErrSize) {
		t.Errorf("a whole blob with another size: %v", err)
	}
}

func TestSameBlob(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	a, b := get(t, c, blob), get(t, c, blob)
	if a != b {
		t.Error("two callers have two Blobs")
	}
	put(t, a, data, 2)
	if k, ok := c.Known(blob.Digest); !ok || k != a {
		t.Error("an arriving blob is not known")
	} else {
		k.Release()
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	blob, data := content(1, 3*chunk)

	if err := c.Delete(blob.Digest); err != nil {
		t.Errorf("of a blob that is not here: %v", err)
	}
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0)
	if err := c.Delete(blob.Digest); err == nil {
		t.Error("a blob that is arriving and in use was deleted")
	}
	b.Release()
	if err := c.Delete(blob.Digest); err != nil {
		t.Errorf("of a partial blob: %v", err)
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("files are %q", got)
	}

	store(t, c, blob, data)
	b = get(t, c, blob)
	r := b.NewReader(context.Background())
	defer r.Close()
	f := b.NewReader(context.Background())
	defer f.Close()
	if _, ok := f.Content().(*os.File); !ok {
		t.Fatal("content of a whole blob is not its file")
	}
	if err := c.Delete(blob.Digest); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Whole(blob.Digest); ok {
		t.Error("a deleted blob is whole")
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("files are %q", got)
	}
	for _, r := range []io.Reader{r, f.Content(), r.Content()} {
		if got, err := io.ReadAll(r); err != nil || (r != io.Reader(f) && len(got) > 0 && !bytes.Equal(got, data)) {
			t.Errorf("reader of a deleted blob: %d bytes, %v", len(got), err)
		}
	}
	if _, err := b.File(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("File of a deleted blob: %v", err)
	}
	store(t, c, blob, data) // beside the one that readers still have
	wantContent(t, get(t, c, blob), data)
	wantContent(t, b, data)
}

func TestClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	unsynced(c)
	blob, data := content(1, 4*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0)
	r := b.NewReader(context.Background())
	errs := make(chan error)
	go func() {
		_, err := io.ReadAll(r)
		errs <- err
	}()
	go func() { errs <- b.Wait(context.Background(), 3) }()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("waiting ended with %v", err)
		}
	}
	if err := b.Put(1, piece(blob, data, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Put: %v", err)
	}
	if _, err := c.Blob(blob); !errors.Is(err, ErrClosed) {
		t.Errorf("Blob: %v", err)
	}
	if err := c.Delete(blob.Digest); !errors.Is(err, ErrClosed) {
		t.Errorf("Delete: %v", err)
	}
	if err := c.Index().SetLinks("u", "r", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("SetLinks: %v", err)
	}
	if _, _, err := c.Index().Link("u", "r", blob.Digest); !errors.Is(err, ErrClosed) {
		t.Errorf("Link: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	c = open(t, dir) // the directory is free, with readers of the old cache still about
	r.Close()
	b.Release()
	if got := get(t, c, blob).Have(); got.Count() != 1 || !got.Has(0) {
		t.Errorf("have %v after reopening", got)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, Options{})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another daemon is running") {
		t.Errorf("second Open: %v", err)
	}
	// A process that is being started has the descriptor for a moment.
	fd, err := syscall.Dup(int(c.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestUnusableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(file, "data")
	_, err := Open(dir, Options{})
	if !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "make it a directory") {
		t.Errorf("below a file: %v", err)
	}
	if _, err := Open(file, Options{}); err == nil {
		t.Error("a file: no error")
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.layout.lock()); err != nil {
		t.Fatal(err)
	}
	freeze(t, dir)
	_, err = Open(dir, Options{})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "make it a directory that user") {
		t.Errorf("Open: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "sub"), Options{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Open of one below it: %v", err)
	}
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	unsynced(c)
	whole, data := content(1, 2*chunk)
	store(t, c, whole, data)
	part, data := content(2, 2*chunk)
	b, err := c.Blob(part)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 1)
	b.Release()
	empty, _ := content(3, 2*chunk)
	b, err = c.Blob(empty) // leaves nothing
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := files(t, dir)
	if len(want) != 4 {
		t.Fatalf("files are %q", want)
	}

	l := layout(dir)
	a, _ := content(4, 1)
	e, _ := content(5, 1)
	f, _ := content(6, 1)
	if err := os.MkdirAll(filepath.Dir(l.blob(f.Digest)), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.partial(a.Digest), l.state(e.Digest), l.sums(f.Digest), l.state(whole.Digest)} {
		if err := os.WriteFile(path, []byte("left behind"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stranger := filepath.Join(dir, "partial", "sha256", "README")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if _, err := os.Stat(stranger); err != nil {
		t.Errorf("a file that is not the cache's was removed: %v", err)
	}
	os.Remove(stranger)
	if got := files(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("files are %q, not %q", got, want)
	}
	if _, ok := c.Known(a.Digest); ok {
		t.Error("an orphan is known")
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	dir, reg := t.TempDir(), prometheus.NewRegistry()
	c, err := Open(dir, Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	unsynced(c)
	one, data1 := content(1, 1000)
	two, data2 := content(2, 2*chunk)
	store(t, c, one, data1)
	store(t, c, two, data2)
	three, data3 := content(3, 2*chunk)
	b := get(t, c, three)
	put(t, b, data3, 0)
	if err := b.Put(1, data3[:7]); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
			"shoal_cache_blobs", "shoal_cache_bytes", "shoal_cache_corrupt_chunks_total"); err != nil {
			t.Error(err)
		}
	}
	check(metricsText("525288", "2", "1"))
	if err := c.Delete(one.Digest); err != nil {
		t.Fatal(err)
	}
	check(metricsText("524288", "1", "1"))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = Open(dir, Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	check(metricsText("524288", "1", "0"))
	if _, err := Open(t.TempDir(), Options{Registry: reg}); err == nil {
		t.Error("two caches with one registry: no error")
	}
	check(metricsText("524288", "1", "0"))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func metricsText(size, blobs, corrupt string) string {
	return `# HELP shoal_cache_blobs Whole blobs in the cache.
# TYPE shoal_cache_blobs gauge
shoal_cache_blobs ` + blobs + `
# HELP shoal_cache_bytes Bytes of the whole blobs in the cache.
# TYPE shoal_cache_bytes gauge
shoal_cache_bytes ` + size + `
# HELP shoal_cache_corrupt_chunks_total Chunks whose bytes were not what they should be, as they arrived or on the disk.
# TYPE shoal_cache_corrupt_chunks_total counter
shoal_cache_corrupt_chunks_total ` + corrupt + `
`
}
