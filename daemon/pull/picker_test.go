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

func TestAdmit(t *testing.T) {
	b := proto.Blob{Digest: proto.DigestOf(nil), Size: 100 * proto.MinChunk}
	at := func(chunk int) proto.Set {
		s := proto.NewSet(b.Chunks())
		s.Add(chunk)
		return s
	}
	for _, tc := range []struct {
		name    string
		first   int
		awaited proto.Set
		flights int
		nothing bool
		want    int
	}{
		{"a reader at the start", 0, at(0), 0, true, 32},
		{"a reader inside", 50, at(50), 0, true, firstChunks},
		{"no reader", 0, nil, 0, true, 32},
		{"no reader, more of it", 32, nil, 3, true, 32},
		{"the first chunk is awaited", 0, at(50), 1, true, 0},
		{"another reader awaits another", 20, at(20), 1, true, 32},
		{"the first chunk is in", 0, at(51), 1, false, 32},
		{"a jump", 50, at(50), 3, false, 32},
		{"a jump beside all others", 50, at(50), soloFetches, false, 32},
		{"too many jumps", 50, at(50), soloFetches + soloExtra, false, 0},
		{"enough", 50, at(3), soloFetches, false, 0},
	} {
		r := proto.Run{Blob: b, First: tc.first, Count: 32}
		if got := admit(r, tc.awaited, tc.flights, tc.nothing); got != tc.want {
			t.Errorf("%s: %d chunks, want %d", tc.name, got, tc.want)
		}
	}
}
