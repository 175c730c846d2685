package soak

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// optimum returns how many of the requests of a trace a cache that holds so many
// items can have at most (Belady, 1966): it keeps those that are asked for again
// the soonest, and need not keep the one that it was just asked for.
func optimum(trace []int, capacity int) (hits int) {
	next := make([]int, len(trace)) // when the item is asked for again
	seen := make(map[int]int)
	for i := len(trace) - 1; i >= 0; i-- {
		again, ok := seen[trace[i]]
		if !ok {
			again = len(trace)
		}
		next[i], seen[trace[i]] = again, i
	}
	kept := make(map[int]int) // when each is asked for again
	for i, item := range trace {
		if _, ok := kept[item]; ok {
			hits++
		}
		kept[item] = next[i]
		if len(kept) > capacity {
			delete(kept, farthest(kept))
		}
	}
	return hits
}

// farthest returns the item that is asked for the latest.
func farthest(kept map[int]int) (item int) {
	at := -1
	for k, when := range kept {
		if when > at {
			item, at = k, when
		}
	}
	return item
}

// recent returns how many of the requests of a trace are hits in a cache that
// keeps those items which were asked for last (LRU).
func recent(trace []int, capacity int) (hits int) {
	var kept []int // the last one first
	for _, item := range trace {
		if i := slices.Index(kept, item); i >= 0 {
			hits++
			kept = slices.Delete(kept, i, i+1)
		}
		kept = slices.Insert(kept, 0, item)
		kept = kept[:min(len(kept), capacity)]
	}
	return hits
}

func TestRecent(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		trace []int
		want  int
	}{
		{[]int{1, 2, 3, 1, 2, 3}, 0},
		{[]int{1, 2, 1, 3, 1, 2}, 2},
		{[]int{1, 1, 1}, 2},
	} {
		if got := recent(tc.trace, 2); got != tc.want {
			t.Errorf("%v with room for two: %d hits, want %d", tc.trace, got, tc.want)
		}
	}
}

// TestOptimum compares optimum with trying everything.
func TestOptimum(t *testing.T) {
	t.Parallel()
	if got := optimum([]int{1, 2, 3, 1, 2, 3}, 2); got != 2 {
		t.Errorf("a loop over three with room for two: %d hits, want 2", got)
	}
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		trace := make([]int, 1+rnd.IntN(12))
		for i := range trace {
			trace[i] = rnd.IntN(5)
		}
		capacity := rnd.IntN(4)
		if got, want := optimum(trace, capacity), exhaustive(trace, capacity, 0); got != want {
			t.Fatalf("%v with room for %d: %d hits, want %d", trace, capacity, got, want)
		}
	}
}

// exhaustive tries all ways to go on with a set of kept items.
func exhaustive(trace []int, capacity int, kept uint) (most int) {
	if len(trace) == 0 {
		return 0
	}
	item, rest := uint(1)<<trace[0], trace[1:]
	if kept&item != 0 {
		return 1 + exhaustive(rest, capacity, kept)
	}
	most = exhaustive(rest, capacity, kept)
	if bits.OnesCount(kept) < capacity {
		return max(most, exhaustive(rest, capacity, kept|item))
	}
	for gone := kept; gone != 0; gone &= gone - 1 {
		most = max(most, exhaustive(rest, capacity, kept&^(gone&-gone)|item))
	}
	return most
}
