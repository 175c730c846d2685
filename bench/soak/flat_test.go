package soak

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A figure is something that must not grow, with what it may grow all the same:
// by that share of what it was and by that much. The Go runtime gives memory
// back as it sees fit, and a count of goroutines depends on the moment.
type figure struct {
	name         string
	share, slack float64
}

// flat compares the median of the last fifth of the samples with that of the
// second fifth. It needs ten samples at least.
func (f figure) flat(samples []float64) (before, after float64, ok bool) {
	fifth := len(samples) / 5
	before = median(samples[fifth : 2*fifth])
	after = median(samples[len(samples)-fifth:])
	return before, after, after <= before*(1+f.share)+f.slack
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func TestFlat(t *testing.T) {
	t.Parallel()
	f := figure{"goroutines", 0.15, 16}
	for _, tc := range []struct {
		name string
		at   func(i int) float64
		ok   bool
	}{
		{"level", func(int) float64 { return 100 }, true},
		{"up at first", func(i int) float64 { return min(float64(10*i), 100) }, true},
		{"noise", func(int) float64 { return 80 + 40*rand.Float64() }, true},
		{"a peak at the end", func(i int) float64 { return map[bool]float64{true: 1000, false: 100}[i > 95] }, true},
		{"down", func(i int) float64 { return float64(200 - i) }, true},
		{"a leak of one a sample", func(i int) float64 { return 100 + float64(i) }, false},
		{"a step", func(i int) float64 { return map[bool]float64{true: 150, false: 100}[i > 60] }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			samples := make([]float64, 100)
			for i := range samples {
				samples[i] = tc.at(i)
			}
			if before, after, ok := f.flat(samples); ok != tc.ok {
				t.Errorf("from %g to %g: flat %t, want %t", before, after, ok, tc.ok)
			}
		})
	}
}
