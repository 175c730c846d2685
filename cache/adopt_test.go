package cache

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containers "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/shoal-project/shoal/proto"
)

// A containerd is a content store that containerd's own code writes.
type containerd struct {
	dir   string
	store containers.Store
}

// quiet keeps containerd from saying what the file system of the test cannot do.
var quiet = sync.OnceFunc(func() { logrus.SetLevel(logrus.ErrorLevel) })

func newContainerd(t *testing.T) containerd {
	t.Helper()
	quiet()
	dir := filepath.Join(t.TempDir(), contentDir)
	s, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return containerd{dir, s}
}

func (c containerd) commit(t *testing.T, b proto.Blob, data []byte) {
	t.Helper()
	desc := ocispec.Descriptor{Digest: digest.Digest(b.Digest.String()), Size: b.Size}
	if err := containers.WriteBlob(t.Context(), c.store, b.Digest.String(), bytes.NewReader(data), desc); err != nil {
		t.Fatal(err)
	}
}

func (c containerd) delete(t *testing.T, b proto.Blob) {
	t.Helper()
	if err := c.store.Delete(t.Context(), digest.Digest(b.Digest.String())); err != nil {
		t.Fatal(err)
	}
}

func (c containerd) path(b proto.Blob) string {
	return filepath.Join(c.dir, "blobs", b.Digest.Algorithm(), b.Digest.Hex())
}

// told is what a cache has said to who owns it.
type told struct {
	whole, damaged chan proto.Blob
	evicted        chan proto.Digest
	log            *logged
}

func listen(o Options) (Options, told) {
	l := told{make(chan proto.Blob, 100), make(chan proto.Blob, 100), make(chan proto.Digest, 100), &logged{}}
	o.Whole = func(b proto.Blob) { l.whole <- b }
	o.Damaged = func(b proto.Blob) { l.damaged <- b }
	o.Evicted = func(d proto.Digest) { l.evicted <- d }
	o.Log = slog.New(slog.NewTextHandler(l.log, nil))
	return o, l
}

func openWith(t *testing.T, dir string, o Options) (*Cache, told) {
	t.Helper()
	o, l := listen(o)
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return unsynced(c), l
}

// logged is what was logged, as text.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// next waits for what comes next from c, which must be want.
func next[T comparable](t *testing.T, c <-chan T, want T) {
	t.Helper()
	select {
	case got := <-c:
		if got != want {
			t.Fatalf("told of %v, not %v", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("never told of %v", want)
	}
}

func nothing[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case got := <-c:
		t.Errorf("told of %v", got)
	default:
	}
}

// What containerd has is whole here and served from containerd's own file,
// without a copy.
func TestAdopt(t *testing.T) {
	t.Parallel()
	dir, cd := t.TempDir(), newContainerd(t)
	one, data1 := content(1, 700)
	two, data2 := content(2, 3*chunk+5)
	three, data3 := content512(3, 2*chunk)
	cd.commit(t, one, data1)
	cd.commit(t, two, data2)
	if err := os.Mkdir(filepath.Dir(cd.path(three)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cd.path(three), data3, 0o444); err != nil {
		t.Fatal(err)
	}
	strange, _ := content(4, 10)
	if err := os.Mkdir(cd.path(strange), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cd.dir, "blobs", "sha256", "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	c, l := openWith(t, dir, Options{Adopt: []string{cd.dir, cd.dir + "/"}})
	datas := map[proto.Blob][]byte{one: data1, two: data2, three: data3}
	if got := c.Blobs(); len(got) != len(datas) {
		t.Errorf("%d blobs, want %d", len(got), len(datas))
	}
	for blob, data := range datas {
		if !slices.Contains(c.Blobs(), blob) {
			t.Errorf("%v is not among the blobs", blob)
		}
		if got, ok := c.Whole(blob.Digest); !ok || got != blob {
			t.Errorf("Whole = %v, %v", got, ok)
		}
		wrongSize := proto.Blob{Digest: blob.Digest, Size: blob.Size + 1}
		if _, err := c.Blob(wrongSize); !errors.Is(err, ErrSize) {
			t.Errorf("Blob with another size: %v", err)
		}
		known, ok := c.Known(blob.Digest)
		if !ok || !known.Whole() {
			t.Fatal("blob is not known")
		}
		wantServedFrom(t, known, cd.path(blob), data)
		known.Release()
		b := get(t, c, blob)
		wantContent(t, b, data)
		if blob.Chunks() > 1 && !slices.Equal(b.Sums(), sumsOf(blob, data)) {
			t.Error("sums are not those of the chunks")
		}
		if err := b.Put(0, piece(blob, data, 0)); err != nil {
			t.Errorf("Put of what is in: %v", err)
		}
		if err := c.Delete(blob.Digest); err != nil {
			t.Error(err)
		}
		wantServedFrom(t, b, cd.path(blob), data)
	}
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("copies were made: %q", got)
	}
	if got := testutil.ToFloat64(c.metrics.care.adoptedBlobs); got != 3 {
		t.Errorf("%v adopted blobs are counted", got)
	}
	if got := testutil.ToFloat64(c.metrics.care.adoptedBytes); got != float64(one.Size+two.Size+three.Size) {
		t.Errorf("%v adopted bytes are counted", got)
	}
	nothing(t, l.evicted)
	nothing(t, l.whole)
}

// wantServedFrom checks that b is served by its *os.File, and from the one at
// path.
func wantServedFrom(t *testing.T, b *Blob, path string, data []byte) {
	t.Helper()
	r := b.NewReader(t.Context())
	defer r.Close()
	f, ok := r.Content().(*os.File)
	if !ok {
		t.Fatal("not served from a file")
	}
	mine, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(mine, theirs) {
		t.Errorf("served from %s and not from %s", f.Name(), path)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("served other bytes, %v", err)
	}
}

// A blob that is still arriving and that containerd has by now is served from
// there when it is next opened, and what was here of it is removed.
func TestAdoptBesidePartial(t *testing.T) {
	t.Parallel()
	dir, cd := t.TempDir(), newContainerd(t)
	c, l := openWith(t, dir, Options{Adopt: []string{cd.dir}})
	watch(t, c)
	blob, data := content(1, 3*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 1)
	cd.commit(t, blob, data)
	next(t, l.whole, blob)
	put(t, b, data, 0) // who fills it is not disturbed
	b.Release()
	b = get(t, c, blob)
	wantServedFrom(t, b, cd.path(blob), data)
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("files are left: %q", got)
	}
}

// Bytes that are not what their name says are never served. That is found when
// they are first asked for, said once, and the file stays as it is.
func TestAdoptWrong(t *testing.T) {
	t.Parallel()
	damages := map[string]func(data []byte) []byte{
		"flipped": func(data []byte) []byte { data[len(data)/2] ^= 4; return data },
		"cut":     func(data []byte) []byte { return data[:len(data)-1] },
		"longer":  func(data []byte) []byte { return append(data, 0) },
		"empty":   func([]byte) []byte { return nil },
	}
	for name, damage := range damages {
		for _, size := range []int{900, 2*chunk + 7} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dir, cd := t.TempDir(), newContainerd(t)
				blob, data := content(1, size)
				cd.commit(t, blob, data)
				writeOver(t, cd.path(blob), damage(bytes.Clone(data)))
				c, l := openWith(t, dir, Options{Adopt: []string{cd.dir}})
				if known, ok := c.Known(blob.Digest); ok {
					t.Errorf("it is known, whole: %v", known.Whole())
					known.Release()
				}
				next(t, l.evicted, blob.Digest)
				b := get(t, c, blob)
				if b.Whole() || b.Have().Count() > 0 {
					t.Error("wrong bytes are in")
				}
				w := newWatcher(c)
				defer w.close()
				w.follow() // it does not come back
				if _, ok := c.Whole(blob.Digest); ok || len(c.Blobs()) > 0 {
					t.Error("it is whole")
				}
				put(t, b, data, all(blob)...)
				wantContent(t, b, data)
				if n := l.log.count("adopted blob is wrong"); n != 1 {
					t.Errorf("said %d times", n)
				}
				if n := testutil.ToFloat64(c.metrics.care.damaged.WithLabelValues(foundOpen)); n != 1 {
					t.Errorf("counted %v times", n)
				}
				if _, err := os.Stat(cd.path(blob)); err != nil {
					t.Errorf("containerd's file: %v", err)
				}
				nothing(t, l.damaged)
			})
		}
	}
}

// writeOver replaces what is in a file that containerd has made read-only, in
// place.
func writeOver(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Without Watch, a blob that has vanished is found out when it is asked for.
func TestAdoptVanished(t *testing.T) {
	t.Parallel()
	cd := newContainerd(t)
	one, data1 := content(1, 2*chunk)
	two, data2 := content(2, 3*chunk)
	cd.commit(t, one, data1)
	cd.commit(t, two, data2)
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
	cd.delete(t, one)
	if b := get(t, c, one); b.Whole() {
		t.Error("a blob that vanished is whole")
	}
	next(t, l.evicted, one.Digest)

	b := get(t, c, two) // open when it vanishes
	cd.delete(t, two)
	if _, err := b.File(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("File: %v", err)
	}
	next(t, l.evicted, two.Digest)
	wantContent(t, b, data2)
	if n := l.log.count("wrong"); n != 0 {
		t.Errorf("%d blobs were said to be wrong", n)
	}
}

// That an adopted blob was found right is remembered across restarts, as long
// as the file is the same.
func TestVerdict(t *testing.T) {
	t.Parallel()
	dir, cd := t.TempDir(), newContainerd(t)
	blob, data := content(1, 2*chunk)
	cd.commit(t, blob, data)
	o, _ := listen(Options{Adopt: []string{cd.dir}})
	served := func() bool {
		t.Helper()
		c, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b, err := c.Blob(blob)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Release()
		return b.Whole()
	}
	if !served() {
		t.Fatal("not adopted")
	}
	// A change that leaves no trace shows that it is not read again.
	info, err := os.Stat(cd.path(blob))
	if err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(data)
	wrong[0]++
	writeOver(t, cd.path(blob), wrong)
	if err := os.Chtimes(cd.path(blob), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if !served() {
		t.Error("it was read again after a restart")
	}
	if err := os.Chtimes(cd.path(blob), time.Time{}, info.ModTime().Add(1)); err != nil {
		t.Fatal(err)
	}
	if served() {
		t.Error("a file that has changed was not read again")
	}
	if _, err := os.Stat(layout(dir).verdict(blob.Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("note on a wrong blob: %v", err)
	}
}

func TestParseVerdict(t *testing.T) {
	t.Parallel()
	blob, data := content(1, 2*chunk)
	sums := sumsOf(blob, data)
	at := proto.Sum{1, 2, 3}
	right := encodeVerdict(at, blob.Size, sums)
	if got, err := parseVerdict(right, at, blob.Size); err != nil || !slices.Equal(got, sums) {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range right {
		wrong := bytes.Clone(right)
		wrong[i]++
		if _, err := parseVerdict(wrong, at, blob.Size); err == nil {
			t.Errorf("byte %d changed: no error", i)
		}
		if _, err := parseVerdict(right[:i], at, blob.Size); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
	}
}

func TestAdoptBadPath(t *testing.T) {
	t.Parallel()
	root, data := t.TempDir(), t.TempDir()
	cd := filepath.Join(root, "containerd")
	for _, dir := range []string{
		"empty", "with/bin", "oci/blobs", "ingesting/ingest", "new/" + contentDir,
		"containerd/" + contentDir + "/blobs/sha256",
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := layout(data).make(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(data, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path string
		want []string // in the error; none if there is none
	}{
		{filepath.Join(root, "absent"), []string{"is not there", "/var/lib/containerd/" + contentDir}},
		{file, []string{"is not a directory", "/var/lib/containerd/" + contentDir}},
		{filepath.Join(file, "below"), []string{"cannot be read", "not a directory"}},
		{filepath.Join(root, "empty"), []string{"is not a content store", "blobs/sha256", "/var/lib/containerd/" + contentDir}},
		{filepath.Join(root, "with"), []string{"is not a content store"}},
		{filepath.Join(root, "oci"), []string{"is not a content store"}},
		{cd, []string{"is not a content store", "did you mean " + filepath.Join(cd, contentDir) + "?"}},
		{data, []string{"is shoal's own data directory"}},
		{filepath.Join(cd, contentDir), nil},
		{filepath.Join(root, "ingesting"), nil},
		{filepath.Join(root, "new", contentDir), nil},
	}
	for _, tt := range tests {
		c, err := Open(data, Options{Adopt: []string{tt.path}})
		if err == nil {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if tt.want != nil {
				t.Errorf("adopt %s: no error", tt.path)
			}
			continue
		}
		for _, want := range append(tt.want, "cache.adopt: "+tt.path+" ") {
			if tt.want == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("adopt %s: %v, want %q", tt.path, err, want)
			}
		}
	}
}
