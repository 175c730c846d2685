package cache

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
)

// benchSize makes 128 chunks of 512 KiB.
const benchSize = 64 << 20

// BenchmarkPut is a Put of 512 KiB, the sync of whole blobs aside; the floor is
// what it cannot do without: BLAKE3, SHA-256 and pwrite of the same bytes.
func BenchmarkPut(b *testing.B) {
	blob, data := content(1, benchSize)
	size := blob.ChunkSize()
	b.Run("floor", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		b.SetBytes(size)
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			if n == 0 {
				b.StopTimer()
				f.Truncate(0)
				b.StartTimer()
			}
			p := piece(blob, data, n)
			blake3.Sum256(p)
			h.Write(p)
			if _, err := f.WriteAt(p, blob.Chunk(n).Offset); err != nil {
				b.Fatal(err)
			}
			n = (n + 1) % blob.Chunks()
		}
	})
	for _, putters := range []int{1, 4} {
		for _, order := range []string{"in order", "shuffled"} {
			b.Run(fmt.Sprintf("%s/%d", order, putters), func(b *testing.B) {
				c := open(b, b.TempDir())
				b.SetBytes(size)
				b.ReportAllocs()
				b.ResetTimer()
				for left := b.N; left > 0; left -= blob.Chunks() {
					b.StopTimer()
					if err := c.Delete(blob.Digest); err != nil {
						b.Fatal(err)
					}
					cb, err := c.Blob(blob)
					if err != nil {
						b.Fatal(err)
					}
					indexes := all(blob)
					if order == "shuffled" {
						indexes = rand.Perm(blob.Chunks())
					}
					indexes = indexes[:min(left, len(indexes))]
					b.StartTimer()
					putAll(b, cb, data, indexes, putters)
					b.StopTimer()
					cb.Release()
				}
			})
		}
	}
}

func putAll(b *testing.B, cb *Blob, data []byte, indexes []int, putters int) {
	todo := make(chan int, len(indexes))
	for _, i := range indexes {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range putters {
		wg.Go(func() {
			for i := range todo {
				if err := cb.Put(i, piece(cb.Blob(), data, i)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkReader reads a blob in pieces of 32 KiB, as io.Copy does: through a
// Reader of one that is whole, of one whose last chunk is still missing, and
// straight from a file.
func BenchmarkReader(b *testing.B) {
	blob, data := content(1, benchSize)
	c := open(b, b.TempDir())
	store(b, c, blob, data)
	part, data := content(2, benchSize)
	pb := get(b, c, part)
	put(b, pb, data, all(part)[:part.Chunks()-1]...)
	wb := get(b, c, blob)
	size := int64(benchSize) - blob.ChunkSize()
	buf := make([]byte, 32<<10)
	run := func(r io.ReadSeeker) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				for left := size; left > 0; {
					n, err := r.Read(buf)
					if err != nil {
						b.Fatal(err)
					}
					left -= int64(n)
				}
			}
		}
	}
	f, err := wb.File()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	wr, pr := wb.NewReader(b.Context()), pb.NewReader(b.Context())
	defer wr.Close()
	defer pr.Close()
	b.Run("file", run(f))
	b.Run("whole", run(wr))
	b.Run("partial", run(pr))
}

// BenchmarkWarm is what a request for a whole blob costs before its bytes.
func BenchmarkWarm(b *testing.B) {
	blob, data := content(1, benchSize)
	c := open(b, b.TempDir())
	store(b, c, blob, data)
	b.ReportAllocs()
	for b.Loop() {
		cb, err := c.Blob(blob)
		if err != nil {
			b.Fatal(err)
		}
		r := cb.NewReader(b.Context())
		cb.Release()
		if _, ok := r.Content().(*os.File); !ok {
			b.Fatal("not a file")
		}
		r.Close()
	}
}

// BenchmarkOpen opens a cache of 5,000 blobs, with its index and without.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for i := range 5000 {
		blob, data := content(uint64(i), 100)
		l := layout(dir)
		if err := os.MkdirAll(filepath.Dir(l.blob(blob.Digest)), dirMode); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(l.blob(blob.Digest), data, fileMode); err != nil {
			b.Fatal(err)
		}
	}
	for _, indexed := range []bool{true, false} {
		b.Run(fmt.Sprintf("indexed=%v", indexed), func(b *testing.B) {
			for b.Loop() {
				if !indexed {
					b.StopTimer()
					os.RemoveAll(filepath.Join(dir, "index"))
					b.StartTimer()
				}
				c, err := Open(dir, Options{})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if got := len(c.Blobs()); got != 5000 {
					b.Fatalf("%d blobs", got)
				}
				c.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkResume opens a partial blob of which all chunks but the last are in:
// each is checked, and the digest brought up to them.
func BenchmarkResume(b *testing.B) {
	c := open(b, b.TempDir())
	blob, data := content(1, benchSize)
	cb, err := c.Blob(blob)
	if err != nil {
		b.Fatal(err)
	}
	put(b, cb, data, all(blob)[:blob.Chunks()-1]...)
	cb.Release()
	b.SetBytes(benchSize - blob.ChunkSize())
	for b.Loop() {
		cb, err := c.Blob(blob)
		if err != nil {
			b.Fatal(err)
		}
		if cb.Have().Count() != blob.Chunks()-1 {
			b.Fatal("chunks are missing")
		}
		b.StopTimer()
		cb.Release()
		b.StartTimer()
	}
}
