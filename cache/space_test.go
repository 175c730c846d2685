package cache

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

// A clock is moved by the test.
type clock struct{ since atomic.Int64 }

var epoch = time.Now().Truncate(time.Hour).Add(-1000 * time.Hour)

func (k *clock) now() time.Time        { return epoch.Add(time.Duration(k.since.Load())) }
func (k *clock) after(d time.Duration) { k.since.Add(int64(d)) }

// openSpace opens a cache whose time is a clock's.
func openSpace(t testing.TB, dir string, o Options) (*Cache, *clock) {
	t.Helper()
	k := &clock{}
	return openAt(t, dir, o, k), k
}

func openAt(t testing.TB, dir string, o Options, k *clock) *Cache {
	t.Helper()
	o.now = k.now
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return unsynced(c)
}

// audit checks that the cache counts what is there.
func audit(t testing.TB, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var want int64
	for _, size := range c.whole {
		want += size
	}
	for d, counts := range c.space.arriving {
		want += counts
		if _, partial := c.partial[d]; !partial && c.open[d] == nil {
			t.Errorf("%s counts %d bytes, and is not here", d, counts)
		}
	}
	if c.space.used != want {
		t.Errorf("blobs count %d bytes, and the sum says %d", want, c.space.used)
	}
	for d := range c.partial {
		if c.space.arriving[d] == 0 {
			t.Errorf("partial blob %s counts nothing", d)
		}
	}
}

func wholes(c *Cache, blobs ...proto.Blob) (here []int) {
	for i, b := range blobs {
		if _, ok := c.Whole(b.Digest); ok {
			here = append(here, i)
		}
	}
	return here
}

// hourly stores n blobs of 2 chunks, an hour apart.
func hourly(t testing.TB, c *Cache, k *clock, n int) (blobs []proto.Blob) {
	t.Helper()
	for i := range n {
		b, data := content(uint64(100+i), 2*chunk)
		store(t, c, b, data)
		blobs = append(blobs, b)
		k.after(time.Hour)
	}
	return blobs
}

func TestPutEvicts(t *testing.T) {
	t.Parallel()
	var gone []proto.Digest
	c, k := openSpace(t, t.TempDir(), Options{
		Quota: Bytes(8 * chunk), Registry: prometheus.NewRegistry(),
		Evicted: func(d proto.Digest) { gone = append(gone, d) },
	})
	old := hourly(t, c, k, 4)
	audit(t, c)
	for range 3 { // it is used more often than others, and longer ago
		c.Touch(old[0].Digest)
		k.after(2 * time.Minute)
	}
	k.after(time.Hour)
	c.Touch(old[2].Digest)
	k.after(time.Hour)
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	wantContent(t, get(t, c, blob), data)
	if here := wholes(c, old...); !slices.Equal(here, []int{0, 2}) {
		t.Errorf("blobs %v are still here, want 0, the one used most, and 2, used last", here)
	}
	if want := []proto.Digest{old[1].Digest, old[3].Digest}; !slices.Equal(gone, want) {
		t.Errorf("told of %v, want %v", gone, want)
	}
	audit(t, c)
	if n := testutil.ToFloat64(c.metrics.space.evictions.WithLabelValues(forSpace)); n != 2 {
		t.Errorf("%v evictions", n)
	}
	if n := testutil.ToFloat64(c.metrics.space.evicted); n != 4*chunk {
		t.Errorf("%v bytes evicted", n)
	}
	u := c.Use()
	if u.Bytes != 7*chunk || u.Blobs != 3 || u.Quota != 8*chunk || u.Reserve != reserveBlobs || u.Free <= 0 {
		t.Errorf("use is %+v", u)
	}
	for _, name := range files(t, string(c.layout)) {
		if strings.Contains(name, gone[0].Hex()) || strings.Contains(name, gone[1].Hex()) {
			t.Errorf("%s is left", name)
		}
	}
}

// What is open, was asked for just now, or is pinned is not evicted; and if the
// rest is not enough, none of it goes in vain.
func TestNotEvicted(t *testing.T) {
	t.Parallel()
	for name, protect := range map[string]func(t *testing.T, c *Cache, b proto.Blob){
		"open":        func(t *testing.T, c *Cache, b proto.Blob) { get(t, c, b) },
		"being read":  func(t *testing.T, c *Cache, b proto.Blob) { t.Cleanup(reader(t, c, b)) },
		"just asked":  func(t *testing.T, c *Cache, b proto.Blob) { c.Touch(b.Digest) },
		"read before": func(t *testing.T, c *Cache, b proto.Blob) { reader(t, c, b)() },
		"for a peer":  forPeer,
		"pinned": func(t *testing.T, c *Cache, b proto.Blob) {
			if err := c.Pin(b.Digest.String()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(8 * chunk)})
			old := hourly(t, c, k, 4)
			for _, b := range old[:3] {
				protect(t, c, b)
			}
			blob, data := content(1, 3*chunk)
			b := get(t, c, blob)
			err := b.Put(0, piece(blob, data, 0))
			if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "cache.quota") {
				t.Errorf("Put: %v", err)
			}
			if here := wholes(c, old...); len(here) != 4 {
				t.Errorf("only %v are still here, and nothing was won", here)
			}
			if b.Have().Count() != 0 || slices.ContainsFunc(files(t, string(c.layout)), func(f string) bool { return strings.HasPrefix(f, "partial") }) {
				t.Error("something of it is on the disk")
			}
			small, data := content(2, chunk+1)
			store(t, c, small, data)
			if here := wholes(c, old...); !slices.Equal(here, []int{0, 1, 2}) {
				t.Errorf("%v are still here", here)
			}
			if err := b.Put(0, nil); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Put of wrong bytes: %v", err)
			}
			audit(t, c)
		})
	}
}

func reader(t *testing.T, c *Cache, b proto.Blob) (done func()) {
	cb, ok := c.Known(b.Digest)
	if !ok {
		t.Fatal("it is not here")
	}
	r := cb.NewReader(t.Context())
	cb.Release()
	return func() { r.Close() }
}

func forPeer(t *testing.T, c *Cache, b proto.Blob) {
	cb, ok := c.Known(b.Digest)
	if !ok {
		t.Fatal("it is not here")
	}
	defer cb.Release()
	if err := cb.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// A quota smaller than a blob is said once, and nothing goes for it.
func TestQuotaTooSmall(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(4 * chunk), Log: slog.New(slog.NewTextHandler(&log, nil))})
	old := hourly(t, c, k, 2)
	blob, data := content(1, 5*chunk)
	b := get(t, c, blob)
	for i := range 2 {
		if err := b.Put(i, piece(blob, data, i)); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "larger than the quota of 1.0 MiB") {
			t.Errorf("Put: %v", err)
		}
	}
	if here := wholes(c, old...); len(here) != 2 {
		t.Errorf("only %v are here", here)
	}
	if n := strings.Count(log.String(), "larger than the quota"); n != 1 {
		t.Errorf("it is logged %d times:\n%s", n, &log)
	}
}

// Of two blobs that arrive and do not both fit, one comes in.
func TestClaims(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(8 * chunk)})
	first, data := content(1, 5*chunk)
	second, dataSecond := content(2, 5*chunk)
	b := get(t, c, second)
	a, err := c.Blob(first)
	if err != nil {
		t.Fatal(err)
	}
	put(t, a, data, 3)
	if err := b.Put(0, piece(second, dataSecond, 0)); !errors.Is(err, ErrFull) {
		t.Errorf("Put of the second: %v", err)
	}
	if u := c.Use(); u.Bytes != chunk || u.Promised != 4*chunk || u.Partials != 1 {
		t.Errorf("use is %+v", u)
	}
	put(t, a, data, 0, 1, 2, 4)
	a.Release()
	k.after(time.Hour)
	put(t, b, dataSecond, all(second)...)
	if _, ok := c.Whole(first.Digest); ok {
		t.Error("both are here")
	}
	audit(t, c)
}

// What is left of a blob that nobody fills any more counts what it has, goes
// like any other, and what stays can be gone on with.
func TestPartialEvicted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, k := openSpace(t, dir, Options{Quota: Bytes(8 * chunk)})
	var blobs []proto.Blob
	for i := range 2 {
		blob, data := content(uint64(i), 4*chunk)
		b, err := c.Blob(blob)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, data, 1, 2)
		b.Release()
		blobs = append(blobs, blob)
		k.after(time.Hour)
	}
	audit(t, c)
	if u := c.Use(); u.Bytes != 4*chunk || u.Promised != 0 || u.Partials != 2 {
		t.Errorf("use is %+v", u)
	}
	blob, data := content(9, 6*chunk)
	store(t, c, blob, data)
	audit(t, c)
	if _, ok := c.Known(blobs[0].Digest); ok {
		t.Error("the older one is here")
	}
	b := get(t, c, blobs[1])
	if b.Have().Count() != 2 {
		t.Errorf("of the newer one there is %v", b.Have())
	}
	k.after(time.Hour)
	_, data = content(1, 4*chunk)
	put(t, b, data, 0, 3)
	wantContent(t, b, data)
	audit(t, c)
	if names := files(t, dir); len(names) != 2 { // it, and its sums
		t.Errorf("files are %q", names)
	}
}

// Run brings the cache to the low watermark as soon as it is over the high one.
func TestRun(t *testing.T) {
	t.Parallel()
	gone := make(chan proto.Digest, 10)
	c, k := openSpace(t, t.TempDir(), Options{
		Quota: Bytes(20 * chunk), High: .9, Low: .5,
		Evicted: func(d proto.Digest) { gone <- d },
	})
	run(t, c)
	old := hourly(t, c, k, 9) // 18 of 20: not over
	select {
	case d := <-gone:
		t.Fatalf("%s has gone", d)
	default:
	}
	blob, data := content(1, chunk)
	store(t, c, blob, data)
	for i := range 5 { // from 19 to 9 of 20
		if d := <-gone; d != old[i].Digest {
			t.Errorf("%d: %s has gone", i, d)
		}
	}
	c.evict(func(limits, int64, int64) int64 { return 0 }, false) // waits for Run's
	if here := wholes(c, old...); !slices.Equal(here, []int{5, 6, 7, 8}) {
		t.Errorf("%v are here", here)
	}
}

// run runs the cache until the end of the test.
func run(t testing.TB, c *Cache) {
	done := make(chan error)
	go func() { done <- c.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A lower quota than what is here is reached when the cache is run.
func TestQuotaLowered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, k := openSpace(t, dir, Options{})
	old := hourly(t, c, k, 4)
	c.Touch(old[0].Digest)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan proto.Digest, 10)
	k.after(time.Hour)
	c = openAt(t, dir, Options{Low: .5, High: .5}, k)
	c.space.quota = Bytes(8 * chunk)
	c.onEvict = func(d proto.Digest) { gone <- d }
	run(t, c)
	if first, second := <-gone, <-gone; first != old[1].Digest || second != old[2].Digest {
		t.Errorf("%s and %s have gone", first, second)
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]Options{
		"cache.low is 90 %":   {Low: .9, High: .8},
		"cache.high is 110 %": {High: 1.1},
		"cache.low is -10 %":  {Low: -.1},
		"cache.keep":          {Keep: -time.Second},
		"cache.pins: pin":     {Pins: []string{"alpine"}},
	} {
		c, err := Open(t.TempDir(), o)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open: %v, want %q", err, want)
		}
	}
}

// The order in which blobs go is that of their use before a restart, whether
// the cache was closed or only Run had its minute.
func TestUsesSurvive(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c, k := openSpace(t, dir, Options{})
			old := hourly(t, c, k, 4)
			for range 3 {
				c.Touch(old[1].Digest)
				k.after(time.Hour)
			}
			c.Touch(old[0].Digest)
			if crash {
				if err := c.flushUses(); err != nil {
					t.Fatal(err)
				}
				c.Touch(old[2].Digest) // is lost
				dir = crashed(t, dir)
			} else if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			k.after(time.Hour)
			c = openAt(t, dir, Options{Quota: Bytes(8 * chunk)}, k)
			blob, data := content(1, 4*chunk)
			store(t, c, blob, data)
			if here := wholes(c, old...); !slices.Equal(here, []int{0, 1}) {
				t.Errorf("%v are here", here)
			}
		})
	}
}

// crashed copies the directory of a cache as it is while the cache is open.
func crashed(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "cache")
	if err := copyTree(dir, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// A clock that was wrong for a while protects nothing for long.
func TestUseInFuture(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(8 * chunk)})
	k.after(1e6 * time.Hour)
	old := hourly(t, c, k, 4)
	k.after(-1e6 * time.Hour)
	blob, data := content(1, 4*chunk)
	store(t, c, blob, data)
	if here := wholes(c, old...); len(here) != 2 {
		t.Errorf("%v are here", here)
	}
}

// A write that the disk refuses is tried again once there is room.
func TestWriteRoom(t *testing.T) {
	t.Parallel()
	for _, refused := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		c, k := openSpace(t, t.TempDir(), Options{})
		old := hourly(t, c, k, 2)
		tries := 0
		write := func() error {
			if tries++; tries == 1 {
				return &os.PathError{Op: "write", Path: "x", Err: refused}
			}
			return nil
		}
		if err := c.writeRoom(chunk, write); err != nil {
			t.Error(err)
		}
		if here := wholes(c, old...); !slices.Equal(here, []int{1}) {
			t.Errorf("%v are here", here)
		}
		always := func() error { return refused }
		if err := c.writeRoom(10*chunk, always); !errors.Is(err, ErrFull) || !errors.Is(err, refused) {
			t.Errorf("writeRoom: %v", err)
		}
		if here := wholes(c, old...); !slices.Equal(here, []int{1}) {
			t.Errorf("%v are here", here)
		}
		if err := c.writeRoom(1, func() error { return syscall.EIO }); errors.Is(err, ErrFull) || !errors.Is(err, syscall.EIO) {
			t.Errorf("writeRoom: %v", err)
		}
		if n := c.space.writing.Load(); n != 0 {
			t.Errorf("%d bytes are being written", n)
		}
	}
}

// A blob whose files cannot be removed stays, and another one goes.
func TestEvictFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, k := openSpace(t, dir, Options{Quota: Bytes(8 * chunk)})
	old := hourly(t, c, k, 4)
	thaw := freeze(t, filepath.Dir(c.layout.blob(old[0].Digest)))
	blob, data := content(1, 2*chunk)
	store(t, c, blob, data)
	if here := wholes(c, old...); !slices.Equal(here, []int{0, 2, 3}) {
		t.Errorf("%v are here", here)
	}
	audit(t, c)
	thaw()
	_, data = content(100, 2*chunk)
	wantContent(t, get(t, c, old[0]), data)
}

// Many at once fill a cache that is far too small for all, and read what they
// filled: nothing wrong comes out, and the sums are right at the end.
func TestSpaceParallel(t *testing.T) {
	t.Parallel()
	const workers, quota = 6, 20 * chunk
	c, k := openSpace(t, memoryDir(t), Options{Quota: Bytes(quota), Keep: time.Nanosecond})
	run(t, c)
	pin, _ := content(0, 2*chunk)
	if err := c.Pin(pin.Digest.String()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var full, filled atomic.Int64
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for range 60 {
				k.after(time.Minute)
				blob, data := content(uint64(rnd.IntN(12)), (1+rnd.IntN(3))*2*chunk)
				b, err := c.Blob(blob)
				if err != nil {
					t.Error(err)
					return
				}
				for _, i := range rnd.Perm(blob.Chunks())[:1+rnd.IntN(blob.Chunks())] {
					if err = b.Put(i, piece(blob, data, i)); err != nil {
						break
					}
				}
				switch {
				case errors.Is(err, ErrFull):
					full.Add(1)
				case err != nil:
					t.Error(err)
				case b.Whole():
					filled.Add(1)
					wantContent(t, b, data)
				}
				b.Release()
				if rnd.IntN(20) == 0 {
					if _, err := c.GC(t.Context(), GCOptions{DryRun: rnd.IntN(2) == 0}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	audit(t, c)
	if filled.Load() == 0 {
		t.Error("no blob was filled")
	}
	if u := c.Use(); u.Bytes > quota || u.Promised != 0 {
		t.Errorf("use is %+v", u)
	}
	t.Logf("%d filled, %d times full", filled.Load(), full.Load())
}

// On a small file system that is really full, what is here is served, Put makes
// room by evicting or says ErrFull, and once there is space it works again.
func TestReallyFull(t *testing.T) {
	t.Parallel()
	dir, isIt := inOwnProcess(t, func() string { return tmpfs(t, fmt.Sprintf("size=%d", reserveBlobs+16<<20)) })
	if !isIt {
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	k := &clock{}
	c, err := Open(dir, Options{now: k.now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	var blobs []proto.Blob
	var datas [][]byte
	fillCache := func() (err error) { // until there is no room, all within Keep
		for err == nil {
			blob, data := content(uint64(len(blobs)), 4*chunk-9)
			var b *Blob
			if b, err = c.Blob(blob); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < blob.Chunks() && err == nil; i++ {
				err = b.Put(i, piece(blob, data, i))
			}
			b.Release()
			if err == nil {
				blobs, datas = append(blobs, blob), append(datas, data)
			}
			k.after(time.Second)
		}
		return err
	}
	served := func(when string) (n int) {
		t.Helper()
		for i, blob := range blobs {
			if _, ok := c.Whole(blob.Digest); ok {
				b, err := c.Blob(blob)
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				wantContent(t, b, datas[i])
				b.Release()
				n++
			}
		}
		return n
	}
	if err := fillCache(); !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Put on a full disk: %v", err)
	}
	count := len(blobs)
	if n := served("full"); n != count || n < 4 {
		t.Fatalf("%d of %d are served", n, count)
	}
	free, _, _ := c.volume.stat()
	if free < reserveBlobs {
		t.Errorf("%d bytes of the file system are free, %d are reserved", free, reserveBlobs)
	}

	k.after(time.Hour) // what is here may go
	more, data := content(1000, 4*chunk)
	store(t, c, more, data)
	if n := served("after an eviction"); n != count-1 {
		t.Errorf("%d of %d are left after one was to go", n, count)
	}

	filler := filepath.Join(dir, "filler")
	fillUp(t, filler)
	k.after(time.Hour)
	other, data := content(2000, 4*chunk)
	b, err := c.Blob(other)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if err := b.Put(0, piece(other, data, 0)); !errors.Is(err, ErrFull) {
		t.Errorf("Put after others have filled the disk: %v", err)
	}
	if n := served("filled by others"); n != count-1 {
		t.Errorf("%d are served, want %d: nothing was won by evicting", n, count-1)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	k.after(time.Hour)
	put(t, b, data, all(other)...)
	wantContent(t, b, data)

	// Others take just as much as makes the cache give way, and it does.
	k.after(time.Hour)
	free, _, _ = c.volume.stat()
	if err := os.WriteFile(filler, bytes.Repeat([]byte{1}, int(free-reserveBlobs)+2*chunk), 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(c.Blobs())
	c.relax(t.Context(), false)
	if n := len(c.Blobs()); n >= before || n == 0 {
		t.Errorf("of %d blobs %d are left", before, n)
	}
	if free, _, _ = c.volume.stat(); free < reserveBlobs {
		t.Errorf("%d bytes are free, %d are reserved", free, reserveBlobs)
	}
	audit(t, c)
}

// The metrics of space have their names, and say what Use does.
func TestSpaceMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewPedanticRegistry()
	c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(16 * chunk), Registry: r})
	old := hourly(t, c, k, 3)
	if err := c.Pin(old[1].Digest.String()); err != nil {
		t.Fatal(err)
	}
	c.GC(t.Context(), GCOptions{})
	want := fmt.Sprintf(`
# HELP shoal_cache_evicted_bytes_total Bytes of the blobs that were evicted.
# TYPE shoal_cache_evicted_bytes_total counter
shoal_cache_evicted_bytes_total 0
# HELP shoal_cache_evictions_total Blobs that were evicted: for space, or partial ones that went stale.
# TYPE shoal_cache_evictions_total counter
shoal_cache_evictions_total{reason="space"} 0
shoal_cache_evictions_total{reason="stale"} 0
# HELP shoal_cache_pinned_bytes Bytes of the blobs in the cache that are pinned.
# TYPE shoal_cache_pinned_bytes gauge
shoal_cache_pinned_bytes %d
# HELP shoal_cache_quota_bytes Bytes that the blobs of the cache may take; 0 if there is no quota.
# TYPE shoal_cache_quota_bytes gauge
shoal_cache_quota_bytes %d
# HELP shoal_cache_used_bytes Bytes that the blobs of the cache take on the disk, whole and partial.
# TYPE shoal_cache_used_bytes gauge
shoal_cache_used_bytes %d
`, 2*chunk, 16*chunk, 6*chunk)
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "shoal_cache_evicted_bytes_total", "shoal_cache_evictions_total",
		"shoal_cache_pinned_bytes", "shoal_cache_quota_bytes", "shoal_cache_used_bytes"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(r, "shoal_cache_free_bytes"); n != 1 || err != nil {
		t.Errorf("%d of shoal_cache_free_bytes: %v", n, err)
	}
}

// choose takes the least worth first, and no more than it has to.
func TestChoose(t *testing.T) {
	t.Parallel()
	now := epoch
	c := func(name byte, size int64, ago time.Duration, count float64) candidate {
		return candidate{digest: proto.DigestOf([]byte{name}), size: size, use: use{last: now.Add(-ago), count: count}}
	}
	const mb = 1 << 20
	protected := c('p', 100*mb, 100*time.Hour, 1)
	protected.pinned = true
	held := c('h', 100*mb, 100*time.Hour, 1)
	held.held = true
	all := []candidate{
		c('a', 10*mb, 3*time.Hour, 1),
		c('b', 10*mb, 20*time.Hour, 1),
		c('c', 10*mb, 30*time.Hour, 2),          // twice as often: 48 hours longer
		c('d', 2<<10, 200*time.Hour, 1),         // costs nothing to keep
		c('e', 100*mb, defaultKeep-1, 1),        // just asked for
		c('f', 100*mb, -defaultKeep+1, 1),       // by a clock that is a little wrong
		c('g', 10*mb, -defaultKeep-1, 1),        // or very wrong
		c('i', 10*mb, 30*time.Hour, 0),          // of which nothing is known
		c('j', 0, 1000*time.Hour, 1), protected, // frees nothing
		held,
	}
	for _, tt := range []struct {
		need   int64
		want   string
		enough bool
	}{
		{0, "", true},
		{-5, "", true},
		{1, "i", true},
		{10 * mb, "i", true},
		{10*mb + 1, "ib", true},
		{40 * mb, "ibag", true},
		{50 * mb, "ibagc", true},
		{51 * mb, "ibagcd", false},
	} {
		got, enough := choose(all, tt.need, now, defaultKeep, use.worth)
		var want []proto.Digest
		for _, n := range []byte(tt.want) {
			want = append(want, proto.DigestOf([]byte{n}))
		}
		var have []proto.Digest
		for _, v := range got {
			have = append(have, v.digest)
		}
		slices.SortFunc(have, func(a, b proto.Digest) int { return slices.Index(want, a) - slices.Index(want, b) })
		if !slices.Equal(have, want) || enough != tt.enough {
			t.Errorf("%d: %d victims, enough %v; want %q, %v", tt.need, len(have), enough, tt.want, tt.enough)
		}
	}
}

// Uses within a minute are one; a use loses half of its weight in two days.
func TestUseAgain(t *testing.T) {
	t.Parallel()
	at := epoch.Truncate(time.Minute)
	u := use{}.again(at)
	for range 20 {
		u = u.again(at.Add(30 * time.Second))
	}
	if u.count != 1 || !u.last.Equal(at.Add(30*time.Second)) {
		t.Errorf("21 uses in a minute are %+v", u)
	}
	if u = u.again(u.last.Add(halfLife)); u.count != 1.5 {
		t.Errorf("two uses two days apart count %v", u.count)
	}
	if u = u.again(at.Add(-time.Hour)); u.count != 2.5 {
		t.Errorf("a use before the last one makes it %v", u.count)
	}
}

// What was asked for, opened or pinned after it was chosen does not go.
func TestChosenAndThenUsed(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{})
	old := hourly(t, c, k, 3)
	c.mu.Lock()
	all := c.candidates(nil)
	c.mu.Unlock()
	c.Touch(old[0].Digest)
	b, ok := c.Known(old[1].Digest)
	if !ok {
		t.Fatal("it is not here")
	}
	defer b.Release()
	for _, v := range all {
		if gone := c.remove(v, forSpace); gone != (v.digest == old[2].Digest) {
			t.Errorf("%s: %v", v.digest, gone)
		}
	}
	if here := wholes(c, old...); !slices.Equal(here, []int{0, 1}) {
		t.Errorf("%v are here", here)
	}
	audit(t, c)

	// A pin that comes between two victims holds the second one.
	old = hourly(t, c, k, 3)
	k.after(time.Hour)
	kept := 0
	c.onEvict = func(d proto.Digest) {
		c.onEvict = nil
		if d == old[0].Digest {
			kept = 2
		}
		if err := c.Pin(old[kept].Digest.String()); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.evict(func(_ limits, used, _ int64) int64 { return used }, false); err != nil {
		t.Fatal(err)
	}
	if here := wholes(c, old...); !slices.Contains(here, kept) || len(here) != 2 {
		t.Errorf("%v are here: 1 is open, and %d pinned", here, kept)
	}
}
