// Package pulltest holds the contract suite that every pull.Source passes.
package pulltest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

// Content returns size pseudo-random bytes that depend on seed only, and the
// blob that they are.
func Content(seed uint64, size int) ([]byte, proto.Blob) {
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rng.Read(data)
	return data, proto.Blob{Digest: proto.DigestOf(data), Size: int64(size)}
}

// Suite checks the contract of a Source. serve makes the content available and
// returns the Source that serves it; what it starts ends with t.
func Suite(t *testing.T, serve func(t *testing.T, b proto.Blob, content []byte) pull.Source) {
	t.Run("runs", func(t *testing.T) { testRuns(t, serve) })
	t.Run("one chunk", func(t *testing.T) {
		content, b := Content(2, 1000)
		src := serve(t, b, content)
		var got bytes.Buffer
		if err := src.Fetch(t.Context(), b.Run(), &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), content) {
			t.Fatal("wrong bytes")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		content, b := Content(3, 3*proto.MinChunk)
		src := serve(t, b, content)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := src.Fetch(ctx, b.Run(), &bytes.Buffer{})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Fetch with a context that has ended = %v, want context.Canceled", err)
		}
	})
	t.Run("cancelled midway", func(t *testing.T) {
		content, b := Content(4, 8*proto.MinChunk)
		src := serve(t, b, content)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := src.Fetch(ctx, b.Run(), writerFunc(func(p []byte) (int, error) {
			cancel()
			<-ctx.Done()
			return 0, ctx.Err()
		}))
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Fetch cancelled midway = %v, want context.Canceled", err)
		}
	})
	t.Run("writer fails", func(t *testing.T) {
		content, b := Content(5, 8*proto.MinChunk)
		src := serve(t, b, content)
		full := errors.New("disk full")
		calls := 0
		err := src.Fetch(t.Context(), b.Run(), writerFunc(func(p []byte) (int, error) {
			calls++
			return 0, full
		}))
		if !errors.Is(err, full) || calls != 1 {
			t.Fatalf("Fetch into a failing writer = %v after %d writes, want its error after 1", err, calls)
		}
	})
	t.Run("absent", func(t *testing.T) {
		content, b := Content(6, 1000)
		src := serve(t, b, content)
		_, other := Content(7, 1000)
		var got bytes.Buffer
		if err := src.Fetch(t.Context(), other.Run(), &got); err == nil || got.Len() != 0 {
			t.Fatalf("Fetch of a blob that is not there = %v and %d bytes, want an error and none", err, got.Len())
		}
	})
}

func testRuns(t *testing.T, serve func(*testing.T, proto.Blob, []byte) pull.Source) {
	content, b := Content(1, 5*proto.MinChunk+12345)
	src := serve(t, b, content)
	n := b.Chunks()
	runs := []proto.Run{
		b.Run(),
		{Blob: b, First: 0, Count: 1},
		{Blob: b, First: 2, Count: 3},
		{Blob: b, First: n - 1, Count: 1},
	}
	var wg sync.WaitGroup
	for _, r := range runs {
		for range 3 { // several at once
			wg.Go(func() {
				var got bytes.Buffer
				if err := src.Fetch(t.Context(), r, &got); err != nil {
					t.Errorf("Fetch(%d+%d): %v", r.First, r.Count, err)
					return
				}
				want := content[r.Offset() : r.Offset()+r.Size()]
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("Fetch(%d+%d) gave %d bytes, want %d others", r.First, r.Count, got.Len(), len(want))
				}
			})
		}
	}
	wg.Wait()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
