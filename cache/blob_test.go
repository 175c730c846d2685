package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

func TestWaitAndFail(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 4*chunk)
	b := get(t, c, blob)
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	wait := func(ctx context.Context, i int) {
		go func() { errs <- b.Wait(ctx, i) }()
	}

	wait(ctx, 3)
	put(t, b, data, 3) // the last chunk is not withheld from peers
	if err := <-errs; err != nil {
		t.Error(err)
	}
	wait(ctx, 2)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
	gone := errors.New("no source is left")
	ctx = context.Background()
	wait(ctx, 1)
	read := b.NewReader(ctx)
	defer read.Close()
	go func() {
		_, err := read.Read(make([]byte, 1))
		errs <- err
	}()
	waitFor(t, b, 0)
	waitForWaiter(b, 1)
	b.Fail(gone)
	for range 2 {
		if err := <-errs; !errors.Is(err, gone) {
			t.Errorf("after Fail: %v", err)
		}
	}
	put(t, b, data, 0) // who comes later waits anew
	if _, err := read.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// waitForWaiter waits until somebody waits for chunk i, be it not a Reader.
func waitForWaiter(b *Blob, i int) {
	for {
		b.mu.Lock()
		w := b.fill.waiters[i]
		b.mu.Unlock()
		if w != nil {
			return
		}
		runtime.Gosched()
	}
}

// waitFor waits until exactly the chunks are awaited.
func waitFor(t testing.TB, b *Blob, chunks ...int) {
	t.Helper()
	for {
		var got []int
		for s, i := b.Awaited(), -1; ; {
			if i = s.Next(i + 1); i < 0 {
				break
			}
			got = append(got, i)
		}
		if slices.Equal(got, chunks) {
			return
		}
		select {
		case <-b.AwaitChanged():
		case <-t.Context().Done():
			t.Fatalf("%v are awaited, not %v", got, chunks)
		}
	}
}

func TestAwaited(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 5*chunk)
	b := get(t, c, blob)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	readAt := func(ctx context.Context, off int64) *Reader {
		r := b.NewReader(ctx)
		if _, err := r.Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { r.Read(make([]byte, 1)) })
		return r
	}
	waitFor(t, b)
	r0 := readAt(context.Background(), 5)
	waitFor(t, b, 0)
	r2 := readAt(ctx, 2*chunk)
	r4 := readAt(context.Background(), 5*chunk-1)
	waitFor(t, b, 0, 2, 4)
	cancel()
	waitFor(t, b, 0, 4)
	put(t, b, data, 4) // still withheld from its reader, but nobody needs to bring it
	waitFor(t, b, 0)
	put(t, b, data, 0)
	waitFor(t, b)
	put(t, b, data, 3, 1, 2)
	for _, r := range []*Reader{r0, r2, r4} {
		r.Close()
	}
}

// Many put and read in random order; every reader has the right bytes.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 24*chunk+1234)
	sums := sumsOf(blob, data)
	var wg sync.WaitGroup
	for k := range 6 {
		wg.Go(func() {
			b, err := c.Blob(blob)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Release()
			for _, i := range rand.Perm(blob.Chunks()) {
				switch {
				case k == 0:
					b.Expect(i, sums[i:i+1])
				case k == 1 && !b.Sum(i).IsZero():
					if err := b.Put(i, data[:blob.Chunk(i).Size]); err != nil && !errors.Is(err, ErrCorrupt) {
						t.Error(err)
					}
				case k > 1:
					if err := b.Put(i, piece(blob, data, i)); err != nil {
						t.Error(err)
					}
				}
				b.Have()
				b.Awaited()
			}
		})
	}
	for k := range 8 {
		wg.Go(func() {
			b, err := c.Blob(blob)
			if err != nil {
				t.Error(err)
				return
			}
			r := b.NewReader(context.Background())
			defer r.Close()
			b.Release()
			off, n := rand.Int64N(blob.Size), rand.Int64N(3*chunk)
			if k%2 == 0 {
				off, n = 0, blob.Size
			}
			n = min(n, blob.Size-off)
			got := make([]byte, n)
			if _, err := r.Seek(off, io.SeekStart); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(r, got); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got, data[off:off+n]) {
				t.Errorf("%d bytes at %d are wrong", n, off)
			}
		})
	}
	wg.Wait()
	if _, ok := c.Whole(blob.Digest); !ok {
		t.Error("not whole")
	}
	if len(c.open) != 0 || len(c.busy) != 0 {
		t.Errorf("%d blobs are open, %d busy", len(c.open), len(c.busy))
	}
}

// Many blobs are opened, filled, read, deleted and let go of at once.
func TestConcurrentBlobs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	const n = 5
	var blobs [n]proto.Blob
	var datas [n][]byte
	for k := range n {
		blobs[k], datas[k] = content(uint64(k), []int{0, 100, 2 * chunk, 3*chunk + 1, chunk}[k])
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 40 {
				k := rand.IntN(n)
				b, err := c.Blob(blobs[k])
				if err != nil {
					t.Error(err)
					return
				}
				for _, i := range rand.Perm(blobs[k].Chunks())[:rand.IntN(blobs[k].Chunks()+1)] {
					if err := b.Put(i, piece(blobs[k], datas[k], i)); err != nil {
						t.Error(err)
					}
				}
				if b.Whole() {
					wantContent(t, b, datas[k])
				}
				b.Release()
				if rand.IntN(4) == 0 {
					c.Delete(blobs[k].Digest)
				}
				c.Whole(blobs[k].Digest)
			}
		})
	}
	wg.Wait()
	for k := range n {
		store(t, c, blobs[k], datas[k])
	}
	if got, want := testutil.ToFloat64(c.metrics.bytes), float64(100+6*chunk+1); got != want {
		t.Errorf("%v bytes, not %v", got, want)
	}
}
