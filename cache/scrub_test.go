package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

// Whatever happened to a blob's file, the scrub finds it, and nothing else.
func TestScrub(t *testing.T) {
	t.Parallel()
	for name, damage := range damages {
		for _, size := range []int{1000, 3*chunk + 1} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				c, l := openWith(t, dir, Options{})
				one, data1 := content(1, size)
				two, data2 := content512(2, 2*chunk)
				store(t, c, one, data1)
				store(t, c, two, data2)
				report, err := c.Scrub(t.Context(), nil)
				if err != nil || report.Blobs != 2 || report.Bytes != one.Size+two.Size || report.Damaged != nil || report.Orphans != 0 {
					t.Errorf("scrub of what is right: %+v, %v", report, err)
				}
				if err := damage(c.layout.blob(one.Digest)); err != nil {
					t.Fatal(err)
				}
				report, err = c.Scrub(t.Context(), nil)
				if err != nil || report.Blobs != 2 || !slices.Equal(report.Damaged, []proto.Digest{one.Digest}) || report.Orphans != 0 {
					t.Errorf("scrub: %+v, %v", report, err)
				}
				wantSetAside(t, c, l, one, data1, foundScrub, name)
				wantContent(t, get(t, c, two), data2)
				if n := testutil.ToFloat64(c.metrics.care.scrubbed); n < float64(one.Size+2*two.Size) {
					t.Errorf("counted %v bytes", n)
				}
			})
		}
	}
}

// An adopted blob that has changed without a trace is found by the scrub or by
// doubt, and ignored from then on. It is containerd's, so nobody fetches it.
func TestScrubAdopted(t *testing.T) {
	t.Parallel()
	for _, found := range []string{foundScrub, foundRead} {
		t.Run(found, func(t *testing.T) {
			t.Parallel()
			dir, cd := t.TempDir(), newContainerd(t)
			served, data := content(1, 3*chunk)
			never, dataNever := content(2, 2*chunk)
			cd.commit(t, served, data)
			cd.commit(t, never, dataNever)
			c, l := openWith(t, dir, Options{Adopt: []string{cd.dir}})
			wantContent(t, get(t, c, served), data)
			report, err := c.Scrub(t.Context(), nil)
			if err != nil || report.Blobs != 1 || report.Bytes != served.Size || report.Orphans != 0 {
				t.Errorf("scrub of what is right: %+v, %v", report, err)
			}
			info, err := os.Stat(cd.path(served))
			if err != nil {
				t.Fatal(err)
			}
			wrong := bytes.Clone(data)
			wrong[chunk+3] ^= 8
			writeOver(t, cd.path(served), wrong)
			if err := os.Chtimes(cd.path(served), info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
			if found == foundRead {
				c.Doubt(served.Digest)
			} else if report, err := c.Scrub(t.Context(), nil); err != nil || !slices.Equal(report.Damaged, []proto.Digest{served.Digest}) {
				t.Errorf("scrub: %+v, %v", report, err)
			}
			next(t, l.evicted, served.Digest)
			if n := testutil.ToFloat64(c.metrics.care.damaged.WithLabelValues(found)); n != 1 {
				t.Errorf("counted %v", n)
			}
			if _, ok := c.Known(served.Digest); ok {
				t.Error("it is known")
			}
			if _, err := os.Stat(cd.path(served)); err != nil {
				t.Error(err)
			}
			nothing(t, l.damaged)
			if got := quarantined(t, c); len(got) > 0 {
				t.Errorf("in quarantine: %q", got)
			}
		})
	}
}

// The damaged chunks of a partial blob are dropped, and the rest goes on.
func TestScrubPartial(t *testing.T) {
	t.Parallel()
	blob, data := content(1, 6*chunk)
	tests := []struct {
		name   string
		damage func(data, state string) error
		chunks int
		have   []int
	}{
		{"nothing", func(string, string) error { return nil }, 0, []int{0, 2, 3}},
		{"a flipped bit", func(data, _ string) error {
			return rewrite(data, func(b []byte) []byte { b[2*chunk+9] ^= 1; return b })
		}, 1, []int{0, 3}},
		{"cut", func(data, _ string) error { return os.Truncate(data, 3*chunk-1) }, 2, []int{0}},
		{"a flipped sum", func(_, state string) error {
			return rewrite(state, func(b []byte) []byte { b[recordOffset(0)+5] ^= 1; return b })
		}, 1, []int{2, 3}},
		{"no state", func(_, state string) error { return os.Remove(state) }, 0, nil},
		{"state is nonsense", func(_, state string) error { return os.WriteFile(state, []byte("x"), 0o600) }, 0, nil},
		{"no data", func(data, _ string) error { return os.Remove(data) }, 0, nil},
		{"data is a directory", func(data, _ string) error { return damages["directory"](data) }, 3, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c, l := openWith(t, dir, Options{})
			b, err := c.Blob(blob)
			if err != nil {
				t.Fatal(err)
			}
			put(t, b, data, 0, 2, 3)
			b.Release()
			if err := tt.damage(c.layout.partial(blob.Digest), c.layout.state(blob.Digest)); err != nil {
				t.Fatal(err)
			}
			report, err := c.Scrub(t.Context(), nil)
			if err != nil || report.Chunks != tt.chunks || report.Blobs != 1 || report.Orphans != 0 {
				t.Errorf("scrub: %+v, %v", report, err)
			}
			again, err := c.Scrub(t.Context(), nil)
			if err != nil || again.Chunks != 0 || again.Orphans != 0 {
				t.Errorf("another scrub: %+v, %v", again, err)
			}
			if tt.have == nil {
				if got := files(t, dir); len(got) > 0 {
					t.Errorf("files are %q", got)
				}
			}
			b = get(t, c, blob)
			for i := range blob.Chunks() {
				if b.Has(i) != slices.Contains(tt.have, i) {
					t.Errorf("chunk %d: %v", i, b.Has(i))
				}
			}
			put(t, b, data, all(blob)...)
			wantContent(t, b, data)
			nothing(t, l.damaged)
		})
	}
}

// The sums of a blob's chunks, lost or damaged, are made again.
func TestScrubMendsSums(t *testing.T) {
	t.Parallel()
	c, _ := openWith(t, t.TempDir(), Options{})
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	path := c.layout.sums(blob.Digest)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range damages {
		if err := damage(path); err != nil {
			t.Fatal(name, err)
		}
		report, err := c.Scrub(t.Context(), nil)
		if err != nil || report.Damaged != nil {
			t.Errorf("%s: scrub: %+v, %v", name, report, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the sums are not what they were, %v", name, err)
		}
	}
}

// What belongs to no blob is removed; what is not the cache's own is not.
func TestScrubOrphans(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := openWith(t, dir, Options{})
	whole, data := content(1, 2*chunk)
	small, dataSmall := content(2, 20)
	partial, dataPartial := content(3, 3*chunk)
	filling, dataFilling := content(4, 3*chunk)
	nobody, _ := content(5, 3*chunk)
	store(t, c, whole, data)
	store(t, c, small, dataSmall)
	for _, b := range []struct {
		blob proto.Blob
		data []byte
	}{{partial, dataPartial}, {filling, dataFilling}} {
		held, err := c.Blob(b.blob)
		if err != nil {
			t.Fatal(err)
		}
		put(t, held, b.data, 1)
		if b.blob == filling {
			defer held.Release()
			continue
		}
		held.Release()
	}
	before := files(t, dir)
	l, d := c.layout, nobody.Digest
	orphans := []string{
		l.blob(d), l.sums(d), l.partial(d), l.state(d), l.verdict(d), l.verdict(whole.Digest),
		l.sums(small.Digest), l.state(whole.Digest), l.partial(small.Digest),
	}
	foreign := []string{
		filepath.Join(l.blobs(), "sha256", "ab", "notes.txt"), filepath.Join(l.partials(), "sha256", "x.state"),
		filepath.Join(dir, "node.key"),
	}
	for _, path := range append(orphans, foreign...) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("left behind"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := content(6, 1)
	strange := l.partial(other.Digest) // a directory in the way of a blob
	if err := os.MkdirAll(filepath.Join(strange, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	report, err := c.Scrub(t.Context(), nil)
	if err != nil || report.Orphans != len(orphans)+1 || report.Damaged != nil || report.Chunks != 0 {
		t.Errorf("scrub: %+v, %v", report, err)
	}
	for _, path := range append(orphans, strange) {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range foreign {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if got := files(t, dir); !slices.Equal(got, before) {
		t.Errorf("files are %q, were %q", got, before)
	}
}

// However a process was killed, after a scrub there is no file that is not part
// of a blob, and no blob that is wrong.
func TestScrubAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 4 {
		kill(t, dir, rnd.Uint64(), 1+rnd.IntN(150))
		c, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		report, err := c.Scrub(t.Context(), nil)
		if err != nil || report.Damaged != nil {
			t.Errorf("scrub: %+v, %v", report, err)
		}
		belongs := map[string]bool{}
		for k := range victimBlobs {
			blob, _ := victimBlob(k)
			b, ok := c.Known(blob.Digest)
			if !ok {
				continue
			}
			paths := []string{c.layout.partial(blob.Digest), c.layout.state(blob.Digest)}
			if b.Whole() {
				paths = []string{c.layout.blob(blob.Digest), c.layout.sums(blob.Digest)}
			}
			for _, path := range paths {
				belongs[strings.TrimPrefix(path, dir+"/")] = true
			}
			b.Release()
		}
		for _, name := range files(t, dir) {
			if !belongs[name] {
				t.Errorf("%s is left over", name)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The scrub asks before each piece that it reads, can be stopped there, says how
// far it is, and is the only one.
func TestScrubRate(t *testing.T) {
	t.Parallel()
	c, _ := openWith(t, t.TempDir(), Options{})
	one, data1 := content(1, 3*chunk+1)
	two, data2 := content(2, 77)
	store(t, c, one, data1)
	store(t, c, two, data2)
	if _, running := c.ScrubProgress(); running {
		t.Error("a scrub is running")
	}
	var asked int64
	report, err := c.Scrub(t.Context(), func(ctx context.Context, n int64) error {
		p, running := c.ScrubProgress()
		if !running || p.BytesDone != asked || p.Bytes != one.Size+two.Size || p.Blobs != 2 || p.BlobsDone > 1 || p.Started.IsZero() {
			t.Errorf("progress is %+v, %v", p, running)
		}
		if n <= 0 || n > 256<<10 {
			t.Errorf("asked for %d bytes at once", n)
		}
		asked += n
		if _, err := c.Scrub(ctx, nil); !errors.Is(err, ErrScrubbing) {
			t.Errorf("another scrub: %v", err)
		}
		return nil
	})
	if err != nil || asked != report.Bytes || asked != one.Size+two.Size {
		t.Errorf("scrub asked for %d bytes: %+v, %v", asked, report, err)
	}
	enough := errors.New("enough")
	report, err = c.Scrub(t.Context(), func(context.Context, int64) error { return enough })
	if !errors.Is(err, enough) || report.Damaged != nil {
		t.Errorf("scrub that is stopped: %+v, %v", report, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if report, err = c.Scrub(ctx, nil); !errors.Is(err, enough) || report.Bytes != 0 {
		t.Errorf("scrub after its context: %+v, %v", report, err)
	}
	if report, err = c.Scrub(t.Context(), nil); err != nil || report.Blobs != 2 {
		t.Errorf("scrub after others: %+v, %v", report, err)
	}
}

// Scrubs while blobs come and go find nothing damaged and remove nothing that
// is in use.
func TestScrubMeanwhile(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	c, l := openWith(t, dir, Options{})
	var done sync.WaitGroup
	stop := make(chan struct{})
	for k := range 3 {
		done.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(k), 7))
			for range 40 {
				blob, data := victimBlob(rnd.IntN(5))
				b, err := c.Blob(blob)
				if err != nil {
					t.Error(err)
					return
				}
				for _, i := range rnd.Perm(blob.Chunks())[rnd.IntN(2):] {
					if err := b.Put(i, piece(blob, data, i)); err != nil {
						t.Error(err)
					}
				}
				b.Release()
				if rnd.IntN(2) == 0 {
					_ = c.Delete(blob.Digest) // another has it open, or not
				}
			}
		})
	}
	var scrubs sync.WaitGroup
	scrubs.Go(func() {
		for {
			report, err := c.Scrub(context.Background(), nil)
			if err != nil || report.Damaged != nil || report.Orphans > 0 || report.Chunks > 0 {
				t.Errorf("scrub: %+v, %v", report, err)
			}
			for range len(l.whole) {
				<-l.whole
			}
			for range len(l.evicted) {
				<-l.evicted
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	done.Wait()
	close(stop)
	scrubs.Wait()
	nothing(t, l.damaged)
}

// Close ends a scrub and the checks of doubted blobs.
func TestScrubClose(t *testing.T) {
	t.Parallel()
	o, _ := listen(Options{})
	c, err := Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	blob, data := content(1, 8*chunk)
	store(t, unsynced(c), blob, data)
	closed := make(chan error)
	_, err = c.Scrub(t.Context(), func(context.Context, int64) error {
		go func() { closed <- c.Close() }()
		<-c.closing
		return nil
	})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("scrub: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	c.Doubt(blob.Digest)
	if _, err := c.Scrub(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("scrub of a closed cache: %v", err)
	}
}

// A blob that is being moved to its place is not taken for one whose file has
// gone, nor waited for.
func TestScrubWhilePlaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, l := openWith(t, dir, Options{})
	begun, goOn := make(chan struct{}, 10), make(chan struct{})
	c.fsync = func(*os.File) error {
		begun <- struct{}{}
		<-goOn
		return nil
	}
	blob, data := content(1, 2*chunk)
	var puts sync.WaitGroup
	puts.Go(func() { store(t, c, blob, data) })
	<-begun
	next(t, l.whole, blob)
	report, err := c.Scrub(t.Context(), nil)
	if err != nil || report.Damaged != nil || report.Orphans > 0 {
		t.Errorf("scrub: %+v, %v", report, err)
	}
	close(goOn)
	puts.Wait()
	if report, err := c.Scrub(t.Context(), nil); err != nil || report.Damaged != nil || report.Orphans > 0 || report.Bytes != blob.Size {
		t.Errorf("scrub: %+v, %v", report, err)
	}
	wantContent(t, get(t, c, blob), data)
}
