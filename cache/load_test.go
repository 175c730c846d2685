package cache

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

// A partial blob goes on after a restart with the chunks that are still what
// they were, whatever happened to the rest of its files.
func TestResume(t *testing.T) {
	t.Parallel()
	const n = 6
	blob, data := content(1, (n-1)*chunk+50)
	edit := func(t *testing.T, path string, f func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[at] ^= 1
			return b
		}
	}
	tests := []struct {
		name        string
		put         []int
		data, state func([]byte) []byte
		want        []int
		corrupt     float64
	}{
		{name: "untouched", put: []int{4, 1, 0}, want: []int{0, 1, 4}},
		{name: "untouched but the first", put: []int{5, 2}, want: []int{2, 5}},
		{name: "flipped byte", put: []int{0, 1, 2, 4}, data: flip(chunk + 7), want: []int{0, 2, 4}, corrupt: 1},
		{name: "bytes lost", put: []int{0, 1, 4}, data: func(b []byte) []byte { return b[:chunk+9] }, want: []int{0}, corrupt: 2},
		{name: "bytes of nobody", put: []int{5, 1}, data: func(b []byte) []byte { return append(b, b...) }, want: []int{1, 5}},
		{name: "bytes zeroed", put: []int{0, 3}, data: func(b []byte) []byte { clear(b[:chunk]); return b }, want: []int{3}, corrupt: 1},
		{name: "flipped sum", put: []int{0, 3}, state: flip(int(recordOffset(3)) + 4), want: []int{0}, corrupt: 1},
		{name: "flipped mark", put: []int{0, 3}, state: flip(int(recordOffset(3))), want: []int{0}},
		{name: "mark of a chunk not in", put: []int{0, 3}, state: flip(int(recordOffset(2))), want: []int{0, 3}, corrupt: 1},
		{name: "state cut", put: []int{0, 1, 2}, state: func(b []byte) []byte { return b[:recordOffset(2)+20] }, want: []int{0, 1}},
		{name: "state too long", put: []int{0, 5}, state: func(b []byte) []byte { return append(b, b...) }},
		{name: "state empty", put: []int{0}, state: func(b []byte) []byte { return nil }},
		{name: "state garbage", put: []int{0}, state: func(b []byte) []byte { return bytes.Repeat([]byte("shoal"), 30) }},
		{name: "state of another version", put: []int{0}, state: flip(11)},
		{name: "state of another size", put: []int{0}, state: flip(18)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			unsynced(c)
			b, err := c.Blob(blob)
			if err != nil {
				t.Fatal(err)
			}
			put(t, b, data, tt.put...)
			b.Release()
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if tt.data != nil {
				edit(t, c.layout.partial(blob.Digest), tt.data)
			}
			if tt.state != nil {
				edit(t, c.layout.state(blob.Digest), tt.state)
			}

			c = open(t, dir)
			if b, err = c.Blob(blob); err != nil {
				t.Fatal(err)
			}
			want := proto.NewSet(n)
			for _, i := range tt.want {
				want.Add(i)
			}
			for i, sum := range sumsOf(blob, data) {
				if b.Has(i) != want.Has(i) {
					t.Errorf("chunk %d: %v", i, b.Has(i))
				}
				if want.Has(i) && b.Sum(i) != sum || !want.Has(i) && !b.Sum(i).IsZero() {
					t.Errorf("sum %d is %x", i, b.Sum(i))
				}
			}
			if got := testutil.ToFloat64(c.metrics.corrupt); got != tt.corrupt {
				t.Errorf("counted %v corrupt chunks, not %v", got, tt.corrupt)
			}
			for i := range n {
				if !want.Has(i) {
					put(t, b, data, i)
				}
			}
			wantContent(t, b, data)
			b.Release()
			b = get(t, c, blob)
			wantContent(t, b, data)
			if got := files(t, dir); len(got) != 2 {
				t.Errorf("files are %q", got)
			}
		})
	}
}

// All chunks were in when the daemon stopped, and nothing had been moved: the
// blob is whole, or was wrong, by the time it is opened.
func TestResumeAllIn(t *testing.T) {
	t.Parallel()
	blob, data := content(1, 4*chunk)
	for _, right := range []bool{true, false} {
		dir := t.TempDir()
		c, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		unsynced(c)
		b, err := c.Blob(blob)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, data, 0, 1, 2)
		last := bytes.Clone(piece(blob, data, 3))
		if !right {
			last[0] ^= 1
		}
		f, err := b.reserve(3, sumsOf(proto.Blob{Size: 4 * chunk}, append(data[:3*chunk:3*chunk], last...))[3])
		if err != nil {
			t.Fatal(err)
		}
		if err := b.write(f, 3, last, sumsOf(blob, append(data[:3*chunk:3*chunk], last...))[3]); err != nil {
			t.Fatal(err)
		}
		b.Release()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}

		var whole int
		c, err = Open(dir, Options{Whole: func(proto.Blob) { whole++ }})
		if err != nil {
			t.Fatal(err)
		}
		unsynced(c)
		if b, ok := c.Known(blob.Digest); ok != right {
			t.Fatalf("right: %v, known: %v", right, ok)
		} else if ok {
			b.Release()
		}
		if b, err = c.Blob(blob); err != nil {
			t.Fatal(err)
		}
		if right {
			if !b.Whole() || whole != 1 {
				t.Errorf("whole: %v, told %d times", b.Whole(), whole)
			}
			wantContent(t, b, data)
		} else {
			if b.Whole() || whole != 0 || b.Have().Count() != 0 {
				t.Errorf("whole: %v, told %d times, %d chunks", b.Whole(), whole, b.Have().Count())
			}
			if got := files(t, dir); len(got) != 0 {
				t.Errorf("files are %q", got)
			}
		}
		b.Release()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedWhole(t *testing.T) {
	t.Parallel()
	blob, data := content(1, 3*chunk)
	one, dataOne := content(2, 1000)
	l := func(c *Cache) string { return c.layout.blob(blob.Digest) }
	sums := func(c *Cache) string { return c.layout.sums(blob.Digest) }
	cut := func(path func(*Cache) string, at int64) func(*testing.T, *Cache) {
		return func(t *testing.T, c *Cache) {
			if err := os.Truncate(path(c), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(path func(*Cache) string, at int) func(*testing.T, *Cache) {
		return func(t *testing.T, c *Cache) {
			b, err := os.ReadFile(path(c))
			if err != nil {
				t.Fatal(err)
			}
			b[at] ^= 1
			if err := os.WriteFile(path(c), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name   string
		damage []func(*testing.T, *Cache)
		lost   bool
	}{
		{name: "none"},
		{name: "sums cut", damage: []func(*testing.T, *Cache){cut(sums, 50)}},
		{name: "sums empty", damage: []func(*testing.T, *Cache){cut(sums, 0)}},
		{name: "sum flipped", damage: []func(*testing.T, *Cache){flip(sums, headerSize+40)}},
		{name: "sums gone", damage: []func(*testing.T, *Cache){func(t *testing.T, c *Cache) { os.Remove(sums(c)) }}},
		{name: "cut", damage: []func(*testing.T, *Cache){cut(l, chunk)}, lost: true},
		{name: "gone", damage: []func(*testing.T, *Cache){func(t *testing.T, c *Cache) { os.Remove(l(c)) }}, lost: true},
		{name: "flipped and sums gone", damage: []func(*testing.T, *Cache){flip(l, 5), cut(sums, 0)}, lost: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := open(t, dir)
			store(t, c, blob, data)
			store(t, c, one, dataOne)
			for _, damage := range tt.damage {
				damage(t, c)
			}
			for range 2 {
				b, ok := c.Known(blob.Digest)
				if ok == tt.lost {
					t.Fatalf("known: %v", ok)
				}
				if _, whole := c.Whole(blob.Digest); whole == tt.lost {
					t.Errorf("whole: %v", whole)
				}
				if ok {
					wantContent(t, b, data)
					for i, sum := range sumsOf(blob, data) {
						if b.Sum(i) != sum {
							t.Errorf("sum %d is wrong", i)
						}
					}
					b.Release()
				}
			}
			if raw, err := os.ReadFile(sums(c)); !tt.lost {
				if _, perr := parseSums(raw, blob.Size); err != nil || perr != nil {
					t.Errorf("sums were not made again: %v, %v", err, perr)
				}
			} else if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("sums of a lost blob: %v", err)
			}
			store(t, c, blob, data)
			wantContent(t, get(t, c, blob), data)
			wantContent(t, get(t, c, one), dataOne)
		})
	}
}

// A partial blob is checked when it is opened, once, by whoever is first; the
// others wait for it and get the same.
func TestResumeOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, dir)
	blob, data := content(1, 8*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0, 2, 3, 6, 7)
	b.Release()
	got := make(chan *Blob)
	for range 5 {
		go func() {
			b, _ := c.Known(blob.Digest)
			got <- b
		}()
	}
	first := <-got
	for range 4 {
		if b := <-got; b != first || b.Have().Count() != 5 {
			t.Errorf("got another, or one with %d chunks", b.Have().Count())
		}
	}
	for range 5 {
		first.Release()
	}
}
