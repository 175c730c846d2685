package main

import (
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

func TestSplit(t *testing.T) {
	t.Parallel()
	for _, total := range []int64{1 << 20, 192 << 20, 1<<20 + 1, 16<<30 - 1} {
		var sum int64
		for _, n := range split(total) {
			if n < 1 {
				t.Errorf("split(%d) has a layer of %d bytes", total, n)
			}
			sum += n
		}
		if sum != total {
			t.Errorf("split(%d) adds up to %d", total, sum)
		}
	}
}

// TestJudge: the demo fails unless both the registry's count and the members'
// own say that the image left the registry once.
func TestJudge(t *testing.T) {
	t.Parallel()
	img := registry.Image{Manifest: proto.Blob{Size: 1000}, Layers: []proto.Blob{{Size: 1_000_000}}}
	for _, tc := range []struct {
		left, a, b int64 // bytes: what left the registry, what two members got of it
		ok         bool
	}{
		{1_001_000, 1_001_000, 0, true},
		{1_001_000, 500_000, 501_000, true},
		{1_001_000, 1_001_000, 1_001_000, false},
		{2_002_000, 1_001_000, 1_001_000, false},
		{2_002_000, 1_001_000, 0, false},
		{0, 0, 0, false},
		{1_020_000, 1_020_000, 0, false},
	} {
		got := figures{nodes: []admin.Bytes{{Origin: tc.a}, {Origin: tc.b}}}
		got.origin.BlobBytes, got.origin.ManifestBytes = tc.left-1000, 1000
		if err := judge(got, img); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestScreenWithoutTerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := &screen{w: &out}
	bars := s.bars(t.Context(), 100)
	b := bars.add("node-1")
	for range 10 {
		b.Add(10)
	}
	b.done(true)
	bars.wait()
	if got := strings.Count(out.String(), "\n"); got != 4 {
		t.Errorf("a pull is told in %d lines, want 4:\n%s", got, out.String())
	}
	out.Reset()
	s.table([]string{"node", "seconds"}, []string{"scheduler", "-"}, []string{"a", "12.50"})
	const want = "  node        seconds\n  scheduler         -\n  a             12.50\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
