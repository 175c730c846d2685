package scheduler

import (
	"math/bits"

	"github.com/shoal-project/shoal/proto"
)

// tally counts something for each chunk; set are the chunks that it is not zero
// for, so that one look at a few words says what many parts have or miss.
type tally struct {
	n   []int32
	set proto.Set
}

func newTally(chunks int) tally { return tally{make([]int32, chunks), proto.NewSet(chunks)} }

func (t *tally) add(c int) {
	if t.n[c]++; t.n[c] == 1 {
		t.set[c>>6] |= 1 << (uint(c) & 63)
	}
}

func (t *tally) sub(c int) {
	if t.n[c]--; t.n[c] == 0 {
		t.set[c>>6] &^= 1 << (uint(c) & 63)
	}
}

// count adds all of set to t, or takes it away.
func (t *tally) count(set proto.Set, add bool) {
	for w, x := range set {
		t.word(w, x, add)
	}
}

// word is count for one word of a set.
func (t *tally) word(w int, x uint64, add bool) {
	for ; x != 0; x &= x - 1 {
		if c := w<<6 + bits.TrailingZeros64(x); add {
			t.add(c)
		} else {
			t.sub(c)
		}
	}
}
