package proto

import "math/bits"

// A Set is a set of chunk indexes, a bit each, lowest bit of the first word
// first. The nil Set is empty. A Set grows when a larger index is added.
type Set []uint64

// NewSet returns an empty set with room for the indexes 0 to n-1.
func NewSet(n int) Set { return make(Set, (n+63)/64) }

// FullSet returns the set of the indexes 0 to n-1.
func FullSet(n int) Set {
	s := NewSet(n)
	for i := range s {
		s[i] = ^uint64(0)
	}
	if rest := n % 64; rest != 0 {
		s[len(s)-1] = 1<<rest - 1
	}
	return s
}

// Has reports whether i is in s.
func (s Set) Has(i int) bool {
	w := i >> 6
	return i >= 0 && w < len(s) && s[w]&(1<<(uint(i)&63)) != 0
}

// Add puts i, which must not be negative, into s.
func (s *Set) Add(i int) {
	for i>>6 >= len(*s) {
		*s = append(*s, 0)
	}
	(*s)[i>>6] |= 1 << (uint(i) & 63)
}

// Remove takes i out of s.
func (s Set) Remove(i int) {
	if w := i >> 6; i >= 0 && w < len(s) {
		s[w] &^= 1 << (uint(i) & 63)
	}
}

// Count returns how many indexes are in s.
func (s Set) Count() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Clone returns a copy of s.
func (s Set) Clone() Set { return append(Set(nil), s...) }

// Next returns the smallest index in s that is at least from, or -1.
func (s Set) Next(from int) int {
	from = max(from, 0)
	for w := from >> 6; w < len(s); w++ {
		word := s[w]
		if w == from>>6 {
			word &= ^uint64(0) << (uint(from) & 63)
		}
		if word != 0 {
			return w<<6 + bits.TrailingZeros64(word)
		}
	}
	return -1
}

// NextMissing returns the smallest index from from to n-1 that is not in s, or
// -1 if all are.
func (s Set) NextMissing(from, n int) int {
	from = max(from, 0)
	for from < n {
		w := from >> 6
		if w >= len(s) {
			return from
		}
		if word := ^s[w] & (^uint64(0) << (uint(from) & 63)); word != 0 {
			if i := w<<6 + bits.TrailingZeros64(word); i < n {
				return i
			}
			return -1
		}
		from = (w + 1) << 6
	}
	return -1
}
