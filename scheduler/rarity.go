package scheduler

import (
	"math/rand/v2"

	"github.com/shoal-project/shoal/proto"
)

// rarity counts the copies of each chunk and keeps the chunks in the order of
// their counts, so that the rarest is found without looking at all: a count
// moves by one at a time, which is one swap at the border between two counts.
type rarity struct {
	copies []int32
	order  []int32 // chunks, those with the fewest copies first
	pos    []int32 // where a chunk stands in order
	// start holds, for each count, where in order the chunks with at least that
	// many copies begin; all counts that occur, and one more, are in it.
	start []int32
	has   proto.Set // the chunks with copies
}

func newRarity(chunks int) rarity {
	r := rarity{
		copies: make([]int32, chunks), order: make([]int32, chunks), pos: make([]int32, chunks),
		start: []int32{0, int32(chunks)}, has: proto.NewSet(chunks),
	}
	for c := range r.order {
		r.order[c], r.pos[c] = int32(c), int32(c)
	}
	return r
}

// swap moves chunk c to place i of the order.
func (r *rarity) swap(c int, i int32) {
	j, other := r.pos[c], r.order[i]
	r.order[i], r.order[j] = int32(c), other
	r.pos[c], r.pos[other] = i, j
}

func (r *rarity) add(c int) {
	n := r.copies[c]
	if int(n)+2 == len(r.start) {
		r.start = append(r.start, int32(len(r.order)))
	}
	r.start[n+1]--
	r.swap(c, r.start[n+1])
	if r.copies[c] = n + 1; n == 0 {
		r.has.Add(c)
	}
}

func (r *rarity) remove(c int) {
	n := r.copies[c]
	r.swap(c, r.start[n])
	r.start[n]++
	if r.copies[c] = n - 1; n == 1 {
		r.has.Remove(c)
	}
}

func (r *rarity) count(c int, more bool) {
	if more {
		r.add(c)
	} else {
		r.remove(c)
	}
}

// rarest calls try with the chunks in among, the rarest first and equals in random
// order, until it returns true.
func (r *rarity) rarest(rng *rand.Rand, among proto.Set, try func(c int) bool) {
	for lo := int32(0); int(lo) < len(r.order); {
		hi := r.start[r.copies[r.order[lo]]+1]
		i := lo + rng.Int32N(hi-lo)
		for range hi - lo {
			if c := int(r.order[i]); among.Has(c) && try(c) {
				return
			}
			if i++; i == hi {
				i = lo
			}
		}
		lo = hi
	}
}
