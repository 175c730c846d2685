package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/proto"
)

// A model is what a cache with one directory should have: for each of some
// blobs, which chunks are in and which of these are wrong.
type model struct {
	dir   string
	temp  func() string // a new empty directory
	c     *Cache
	blobs []*modelBlob
}

type modelBlob struct {
	blob   proto.Blob
	data   []byte
	sums   []proto.Sum
	in     map[int]bool // true: the right bytes
	expect map[int]bool // true: the right sum
	held   *Blob        // open reference, or nil
	done   bool
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
		m.dir = m.temp()
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
	c, err := Open(m.dir, Options{})
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
	b.in[i] = right
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
	b.held = nil
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
	for _, sub := range []string{"blobs", "partial"} {
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
}

func (m *model) check(t *rapid.T) {
	wholes := 0
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
