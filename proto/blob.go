package proto

import (
	"fmt"
	"math/bits"
)

// Sizes, in bytes.
const (
	// MinChunk is the smallest chunk size. Below it the cost of a lease and a
	// request outweighs what a finer cut saves.
	MinChunk = 256 << 10
	// MaxChunk is the largest chunk size: a node holds two or three chunks in
	// memory, and at 100 Mbit/s one takes under a second.
	MaxChunk = 8 << 20
	// MaxBlob is the largest blob that Shoal handles. It bounds what a message
	// can make a scheduler allocate: 131,072 chunks.
	MaxBlob = 1 << 40
)

// A Blob names content and says how long it is, in bytes: a layer, a config,
// or a manifest by digest. Layers, configs and manifests are all blobs here.
type Blob struct {
	Digest Digest
	Size   int64
}

// A Chunk is one contiguous piece of a blob. Offset and Size are in bytes.
type Chunk struct {
	Blob         Digest
	Index        int
	Offset, Size int64
}

// A Run is Count chunks of a blob from index First on, contiguous bytes.
type Run struct {
	Blob         Blob
	First, Count int
}

// ChunkSize returns the size in bytes of all chunks but the last of a blob of
// the given size. It is a pure function of the size, so that all nodes cut a
// blob at the same places without a word: a power of two that makes about 64
// to 128 chunks, but never under MinChunk or over MaxChunk. With 64 chunks or
// more the logarithmic term of the binomial pipeline (Ganesan and Seshadri,
// K - 1 + log2(N+1) chunk times) stays small.
func ChunkSize(size int64) int64 {
	n := max(size/128, 1)
	pow := int64(1) << bits.Len64(uint64(n-1))
	return min(max(pow, MinChunk), MaxChunk)
}

// Validate reports whether b can be a blob: named, and from 0 to MaxBlob long.
func (b Blob) Validate() error {
	if b.Digest.IsZero() {
		return fmt.Errorf("blob without a digest")
	}
	if b.Size < 0 || b.Size > MaxBlob {
		return fmt.Errorf("blob %s has a size of %d bytes, outside 0 to %d", b.Digest, b.Size, int64(MaxBlob))
	}
	return nil
}

// ChunkSize returns the size of all chunks of b but the last.
func (b Blob) ChunkSize() int64 { return ChunkSize(b.Size) }

// Chunks returns how many chunks b has: none if it is empty.
func (b Blob) Chunks() int {
	cs := b.ChunkSize()
	return int((b.Size + cs - 1) / cs)
}

// Chunk returns chunk i of b. It panics if b has no such chunk.
func (b Blob) Chunk(i int) Chunk {
	if i < 0 || i >= b.Chunks() {
		panic(fmt.Sprintf("proto: chunk %d of a blob of %d", i, b.Chunks()))
	}
	cs := b.ChunkSize()
	off := int64(i) * cs
	return Chunk{Blob: b.Digest, Index: i, Offset: off, Size: min(cs, b.Size-off)}
}

// Run returns the run of all of b.
func (b Blob) Run() Run { return Run{Blob: b, First: 0, Count: b.Chunks()} }

// Validate reports whether r lies inside its blob and has at least one chunk.
func (r Run) Validate() error {
	if err := r.Blob.Validate(); err != nil {
		return err
	}
	n := r.Blob.Chunks()
	if r.First < 0 || r.Count < 1 || r.First >= n || r.Count > n-r.First {
		return fmt.Errorf("run of %d chunks from %d on is outside blob %s of %d chunks", r.Count, r.First, r.Blob.Digest, n)
	}
	return nil
}

// Offset returns where r starts in its blob, in bytes.
func (r Run) Offset() int64 { return int64(r.First) * r.Blob.ChunkSize() }

// Size returns how many bytes r has.
func (r Run) Size() int64 {
	cs := r.Blob.ChunkSize()
	return min(int64(r.First+r.Count)*cs, r.Blob.Size) - r.Offset()
}
