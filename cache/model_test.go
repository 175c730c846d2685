package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/proto"
)

// A model is what a cache with one directory should have: for each of some
// blobs, which chunks are in and which of these are wrong, and whether it may
// be evicted. Not all of them fit into it.
type model struct {
	dir   string
	temp  func() string // a new empty directory
	clock *clock
	c     *Cache
	blobs []*modelBlob
}

// modelQuota leaves 64 KiB over, so that blocks of the disk do not matter.
const modelQuota = 5*chunk + 64<<10

type modelBlob struct {
	blob   proto.Blob
	data   []byte
	sums   []proto.Sum
	in     map[int]bool // true: the right bytes
	expect map[int]bool // true: the right sum
	held   *Blob        // open reference, or nil
	done   bool

	pinned  bool
	claimed bool  // it counts what it will have
	asked   int64 // when it was last asked for, by the clock
}

// counts is how many bytes it counts.
func (b *modelBlob) counts() (n int64) {
	if b.done || b.claimed {
		return b.blob.Size
	}
	for i := range b.in {
		n += b.blob.Chunk(i).Size
	}
	return n
}

// mayGo reports whether it may be evicted.
func (m *model) mayGo(b *modelBlob) bool {
	return b.held == nil && b.counts() > 0 && !b.pinned && m.clock.since.Load()-b.asked >= int64(defaultKeep)
}

func (m *model) used() (n int64) {
	for _, b := range m.blobs {
		n += b.counts()
	}
	return n
}

// evicted takes out of the model what has gone from the cache by an eviction
// that was to free need bytes, and checks that it might. If enough is set and
// all that may go is less, nothing is to go.
func (m *model) evicted(t *rapid.T, need int64, enough bool) {
	left := false
	if enough {
		free := int64(0)
		for _, b := range m.blobs {
			if m.mayGo(b) {
				free += b.counts()
			}
		}
		if free < need {
			need = 0
		}
	}
	if need <= 0 {
		for _, b := range m.blobs {
			if b.counts() > 0 && !m.has(b) {
				t.Fatalf("a blob of %d bytes has gone for nothing", b.blob.Size)
			}
		}
		return
	}
	for _, b := range m.blobs {
		may := m.mayGo(b)
		if m.has(b) {
			left = left || may
			continue
		}
		if b.counts() == 0 {
			continue
		}
		if !may {
			t.Fatalf("a blob of %d bytes has gone: pinned %v, held %v, asked for at %v of %v",
				b.blob.Size, b.pinned, b.held != nil, time.Duration(b.asked), time.Duration(m.clock.since.Load()))
		}
		need -= b.counts()
		clear(b.in)
		b.done = false
	}
	if left && need > 0 {
		t.Fatalf("%d bytes too few went", need)
	}
}

// has reports whether the cache has anything of a blob.
func (m *model) has(b *modelBlob) bool {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.here(b.blob.Digest) || m.c.open[b.blob.Digest] != nil
}

func (m *model) gc(t *rapid.T) {
	r, err := m.c.GC(context.Background(), GCOptions{DryRun: rapid.Bool().Draw(t, "dry")})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range m.blobs {
		if r.DryRun && !m.has(b) && b.counts() > 0 {
			t.Fatal("a dry run did something")
		}
	}
	if r.DryRun {
		return
	}
	for _, b := range m.blobs {
		if m.mayGo(b) && !b.done && m.clock.since.Load()-b.asked >= int64(staleAfter) {
			if m.has(b) {
				t.Fatal("a stale blob stays")
			}
			clear(b.in)
		}
	}
	m.evicted(t, m.used()-modelQuota*85/100, false)
}

func (m *model) pin(t *rapid.T) {
	b := m.some(t)
	if err := m.c.Pin(b.blob.Digest.String()); err != nil {
		t.Fatal(err)
	}
	b.pinned = true
}

func (m *model) unpin(t *rapid.T) {
	b := m.some(t)
	if err := m.c.Unpin(b.blob.Digest.String()); (err == nil) != b.pinned || err != nil && !errors.Is(err, ErrNotPinned) {
		t.Fatalf("Unpin of what is pinned %v: %v", b.pinned, err)
	}
	b.pinned = false
}

func (m *model) touch(t *rapid.T) {
	b := m.some(t)
	m.c.Touch(b.blob.Digest)
	m.asked(b)
}

func (m *model) asked(b *modelBlob) { b.asked = m.clock.since.Load() }

func (m *model) time(t *rapid.T) {
	m.clock.after(time.Duration(rapid.SampledFrom([]int{1, 5, 200}).Draw(t, "hours")) * time.Hour)
}

func (m *model) scrub(t *rapid.T) {
	r, err := m.c.Scrub(context.Background(), nil)
	if err != nil || len(r.Damaged) > 0 || r.Orphans > 0 || r.Chunks > 0 {
		t.Fatalf("scrub: %+v, %v", r, err)
	}
}

func (m *modelBlob) whole() bool { return m.done }

// wrong is what a wrong chunk i has.
func (m *modelBlob) wrong(i int) []byte {
	p := bytes.Clone(piece(m.blob, m.data, i))
	p[len(p)/2] ^= 0xff
	return p
}

// TestModel makes random sequences of what can happen to a cache, crashes
// included, and compares it to the model.
func TestModel(t *testing.T) {
	t.Parallel()
	var datas [3]struct {
		blob proto.Blob
		data []byte
		sums []proto.Sum
	}
	for k, size := range []int{700, 2*chunk + 3, 4 * chunk} {
		datas[k].blob, datas[k].data = content(uint64(k), size)
		datas[k].sums = sumsOf(datas[k].blob, datas[k].data)
	}
	root := memoryDir(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &model{temp: func() string {
			dir, err := os.MkdirTemp(root, "")
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}}
		m.dir, m.clock = m.temp(), &clock{}
		m.clock.after(time.Since(epoch)) // what the disk says is of now
		for _, d := range datas {
			m.blobs = append(m.blobs, &modelBlob{blob: d.blob, data: d.data, sums: d.sums, in: map[int]bool{}, expect: map[int]bool{}})
		}
		m.open(t)
		defer func() {
			m.letGo(t)
			if err := m.c.Close(); err != nil {
				t.Error(err)
			}
			os.RemoveAll(m.dir)
		}()
		t.Repeat(map[string]func(*rapid.T){
			"put":     m.put,
			"expect":  m.expect,
			"read":    m.read,
			"release": func(t *rapid.T) { m.release(t, m.some(t)) },
			"delete":  m.delete,
			"restart": m.restart,
			"gc":      m.gc,
			"pin":     m.pin,
			"unpin":   m.unpin,
			"touch":   m.touch,
			"time":    m.time,
			"scrub":   m.scrub,
			"":        m.check,
		})
	})
}

// memoryDir returns a directory in memory where there is one: badger's syncs
// would be most of the time of the test.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "shoal-cache-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (m *model) open(t *rapid.T) {
	c, err := Open(m.dir, Options{Quota: Bytes(modelQuota), now: m.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	m.c = unsynced(c)
}

func (m *model) some(t *rapid.T) *modelBlob {
	return m.blobs[rapid.IntRange(0, len(m.blobs)-1).Draw(t, "blob")]
}

// hold opens a blob, and does to the model what that may do to it.
func (m *model) hold(t *rapid.T, b *modelBlob) *Blob {
	if b.held == nil {
		held, err := m.c.Blob(b.blob)
		if err != nil {
			t.Fatal(err)
		}
		b.held = held
		m.asked(b)
	}
	return b.held
}

// filled is called when a chunk was put: all in are whole, or nothing.
func (b *modelBlob) filled() (wrong bool) {
	if len(b.in) < b.blob.Chunks() {
		return false
	}
	for _, right := range b.in {
		wrong = wrong || !right
	}
	b.done = !wrong
	if wrong {
		clear(b.in)
		clear(b.expect)
	}
	return wrong
}

func (m *model) put(t *rapid.T) {
	b := m.some(t)
	held := m.hold(t, b)
	i := rapid.IntRange(0, b.blob.Chunks()-1).Draw(t, "chunk")
	right := rapid.IntRange(0, 5).Draw(t, "right") > 0
	data := piece(b.blob, b.data, i)
	if !right {
		data = b.wrong(i)
	}
	err := held.Put(i, data)
	_, in := b.in[i]
	expect, known := b.expect[i]
	missing := m.used() - b.counts() + b.blob.Size - modelQuota
	switch {
	case in:
		if err != nil {
			t.Fatalf("Put of a chunk that is in: %v", err)
		}
		return
	case known && expect != right, b.blob.Chunks() == 1 && !right:
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("Put of a corrupt chunk: %v", err)
		}
		return
	}
	if !b.claimed {
		m.evicted(t, missing, true)
		if missing = m.used() - b.counts() + b.blob.Size - modelQuota; missing > 0 {
			if !errors.Is(err, ErrFull) {
				t.Fatalf("Put with %d bytes too few: %v", missing, err)
			}
			return
		}
		b.claimed = true
	}
	b.in[i] = right
	defer func() {
		if b.done {
			m.asked(b)
		}
	}()
	switch wrong := b.filled(); {
	case wrong && !errors.Is(err, ErrDigest):
		t.Fatalf("Put that completes a wrong blob: %v", err)
	case !wrong && err != nil:
		t.Fatalf("Put: %v", err)
	}
}

func (m *model) expect(t *rapid.T) {
	b := m.some(t)
	held := m.hold(t, b)
	i := rapid.IntRange(0, b.blob.Chunks()-1).Draw(t, "chunk")
	right := rapid.Bool().Draw(t, "right")
	sum := b.sums[i]
	if !right {
		sum = blake3.Sum256(b.wrong(i))
	}
	held.Expect(i, []proto.Sum{sum})
	if _, in := b.in[i]; !in && b.blob.Chunks() > 1 {
		b.expect[i] = right
	}
}

// read reads what can be read without waiting.
func (m *model) read(t *rapid.T) {
	b := m.some(t)
	held := m.hold(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := held.NewReader(ctx)
	m.asked(b)
	defer r.Close()
	off := rapid.Int64Range(0, b.blob.Size).Draw(t, "off")
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	want, wantErr := b.readable(off)
	if !bytes.Equal(got, want) || !errors.Is(err, wantErr) {
		t.Fatalf("read %d bytes at %d and %v, want %d and %v", len(got), off, err, len(want), wantErr)
	}
}

func (b *modelBlob) readable(off int64) (want []byte, err error) {
	if b.whole() || off == b.blob.Size {
		return b.data[off:], nil
	}
	for i := int(off / b.blob.ChunkSize()); i < b.blob.Chunks()-1; i++ {
		right, in := b.in[i]
		if !in {
			break
		}
		p := piece(b.blob, b.data, i)
		if !right {
			p = b.wrong(i)
		}
		want = append(want, p[max(0, off-b.blob.Chunk(i).Offset):]...)
	}
	return want, context.Canceled
}

func (m *model) release(t *rapid.T, b *modelBlob) {
	if b.held == nil {
		return
	}
	b.held.Release()
	b.held, b.claimed = nil, false
	clear(b.expect)
}

func (m *model) letGo(t *rapid.T) {
	for _, b := range m.blobs {
		m.release(t, b)
	}
}

func (m *model) delete(t *rapid.T) {
	b := m.some(t)
	err := m.c.Delete(b.blob.Digest)
	if b.held != nil && !b.whole() {
		if err == nil {
			t.Fatal("Delete of a blob that is arriving")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m.release(t, b) // it is detached: a new one is another Blob
	clear(b.in)
	b.done = false
}

func (m *model) restart(t *rapid.T) {
	if rapid.Bool().Draw(t, "crash") {
		m.crash(t)
		return
	}
	m.letGo(t)
	if err := m.c.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
}

// crash goes on with a copy of the directory as it is while all is open. Of the
// index it has nothing: badger's own way with crashes is for TestKilled.
func (m *model) crash(t *rapid.T) {
	old, oldDir := m.c, m.dir
	m.dir = m.temp()
	for _, sub := range []string{"blobs", "partial", "pins.json"} {
		if err := copyTree(filepath.Join(oldDir, sub), filepath.Join(m.dir, sub)); err != nil {
			t.Fatal(err)
		}
	}
	m.letGo(t)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(oldDir)
	m.open(t)
	for _, b := range m.blobs {
		b.asked = int64(time.Since(epoch)) // when its file was written
	}
}

func (m *model) check(t *rapid.T) {
	wholes, pinned := 0, 0
	for _, b := range m.blobs {
		if b.pinned && b.counts() > 0 {
			pinned++
		}
	}
	if u := m.c.Use(); u.Pinned != pinned || u.Bytes+u.Promised < m.used() || u.Bytes+u.Promised > m.used()+4*4096 || u.Bytes > modelQuota {
		t.Fatalf("use is %+v, want %d pinned and %d bytes", u, pinned, m.used())
	}
	for _, b := range m.blobs {
		got, ok := m.c.Whole(b.blob.Digest)
		if ok != b.whole() || ok && got != b.blob {
			t.Fatalf("Whole = %v, %v, want %v", got, ok, b.whole())
		}
		if b.whole() {
			wholes++
		}
		if known, ok := m.c.Known(b.blob.Digest); ok != (b.held != nil || len(b.in) > 0) {
			t.Fatalf("Known = %v with %d chunks", ok, len(b.in))
		} else if ok {
			b.check(t, known)
			known.Release()
		}
	}
	if n := len(m.c.Blobs()); n != wholes {
		t.Fatalf("%d blobs, want %d", n, wholes)
	}
}

func (b *modelBlob) check(t *rapid.T, got *Blob) {
	if got.Whole() != b.whole() || got.Blob() != b.blob || got.Have().Count() != len(b.in) {
		t.Fatalf("blob is %v with %d chunks, want %d", got.Whole(), got.Have().Count(), len(b.in))
	}
	for i, sum := range got.Sums() {
		right, in := b.in[i]
		if got.Has(i) != in || sum.IsZero() != (!in || b.blob.Chunks() == 1) {
			t.Fatalf("chunk %d: %v", i, got.Has(i))
		}
		if in && b.blob.Chunks() > 1 && (sum == b.sums[i]) != right {
			t.Fatalf("sum %d is %x", i, sum)
		}
	}
}
