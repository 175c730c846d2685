package main

import (
	"slices"
	"strings"
)

// suggest returns what to say of a name that is not known: the nearest known
// one, or where all of them are listed.
func suggest(name string, known []string) string {
	best, least := "", len(name)/3+1
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= least && (best == "" || d < least) {
			best, least = k, d
		}
	}
	if best == "" {
		// Right name, wrong group: "listen" at the top, or "admin.join".
		last := "." + name[strings.LastIndexByte(name, '.')+1:]
		best = strings.Join(slices.DeleteFunc(slices.Clone(known), func(k string) bool {
			return !strings.HasSuffix(k, last)
		}), " or ")
	}
	if best == "" {
		return "`shoal config --example` lists all keys"
	}
	return "did you mean " + best + "?"
}

// distance returns how many characters are to be put in, taken out, replaced
// or swapped with their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
