package pull

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/proto"
)

func TestPick(t *testing.T) {
	b := proto.Blob{Digest: proto.DigestOf(nil), Size: 100*proto.MinChunk + 1}
	n := b.Chunks()
	full := proto.FullSet(n)
	hole := full.Clone()
	hole.Remove(70)
	for _, tc := range []struct {
		name           string
		taken, awaited proto.Set
		first, count   int
	}{
		{"nothing here", nil, nil, 0, 32},
		{"a reader further on", nil, proto.Set{0, 1 << 6}, 70, 31},
		{"what the reader wants is on its way", proto.Set{0, 1 << 6}, proto.Set{0, 1 << 6}, 0, 32},
		{"a run ends at what is taken", proto.Set{0b10000}, nil, 0, 4},
		{"the last hole", hole, nil, 70, 1},
		{"all taken", full, proto.Set{1}, -1, 0},
	} {
		r, ok := pick(b, tc.taken, tc.awaited)
		if ok != (tc.first >= 0) || ok && (r.First != tc.first || r.Count != tc.count) {
			t.Errorf("%s: %d+%d, %v, want %d+%d", tc.name, r.First, r.Count, ok, tc.first, tc.count)
		}
	}
}

// TestPickCoversOnce: picking until nothing is left covers every chunk once.
func TestPickCoversOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := proto.Blob{Digest: proto.DigestOf(nil), Size: rapid.Int64Range(1, 1<<30).Draw(t, "size")}
		taken := proto.NewSet(b.Chunks())
		for {
			awaited := proto.NewSet(b.Chunks())
			awaited.Add(rapid.IntRange(0, b.Chunks()-1).Draw(t, "awaited"))
			r, ok := pick(b, taken, awaited)
			if !ok {
				break
			}
			if err := r.Validate(); err != nil {
				t.Fatal(err)
			}
			for c := r.First; c < r.First+r.Count; c++ {
				if taken.Has(c) {
					t.Fatalf("chunk %d picked twice", c)
				}
				taken.Add(c)
			}
		}
		if taken.Count() != b.Chunks() {
			t.Fatalf("%d of %d chunks picked", taken.Count(), b.Chunks())
		}
	})
}

// BenchmarkPick picks from a blob of 3 GiB, the first half of which is here and
// full of holes, with a reader in the middle.
func BenchmarkPick(b *testing.B) {
	blob := proto.Blob{Digest: proto.DigestOf(nil), Size: 3 << 30}
	n := blob.Chunks()
	taken, awaited := proto.NewSet(n), proto.NewSet(n)
	for c := 0; c < n/2; c++ {
		if c%7 != 6 {
			taken.Add(c)
		}
	}
	awaited.Add(n / 2)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := pick(blob, taken, awaited); !ok {
			b.Fatal("nothing to fetch")
		}
		if _, ok := pick(blob, taken, nil); !ok {
			b.Fatal("nothing to fetch")
		}
	}
}
