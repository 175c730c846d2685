package scheduler

import (
	"strings"

	"github.com/shoal-project/shoal/proto"
)

// zoneCount counts the copies of a swarm's chunks in one zone, those on their
// way there included. has are the chunks of which there is one.
type zoneCount struct {
	copies []int32
	has    proto.Set
	// total is the sum of copies, parts how many nodes of the zone are in the
	// swarm.
	total, parts int
	// What those in free have to give, as in swarm.
	spare      tally
	spareWhole int
}

func (z *zoneCount) add(c int) {
	z.total++
	if z.copies[c]++; z.copies[c] == 1 {
		z.has.Add(c)
	}
}

func (z *zoneCount) count(c int, more bool) {
	if more {
		z.add(c)
	} else {
		z.sub(c)
	}
}

func (z *zoneCount) sub(c int) {
	z.total--
	if z.copies[c]--; z.copies[c] == 0 {
		z.has.Remove(c)
	}
}

// ahead reports whether the zone with that number has no less of s than the
// zones have on average. What a zone gets from the origin, it gives to the
// others; a zone that is behind would fall further behind for it, and finish
// last while the uplinks of the others are idle.
func (s *swarm) ahead(number int) bool {
	total, parts := 0, 0
	for _, z := range s.zones {
		if z != nil {
			total, parts = total+z.total, parts+z.parts
		}
	}
	z := s.zone(number)
	return z.total*parts >= total*z.parts
}

// zone returns the count of the zone with that number.
func (s *swarm) zone(number int) *zoneCount {
	for number >= len(s.zones) {
		s.zones = append(s.zones, nil)
	}
	if s.zones[number] == nil {
		s.zones[number] = &zoneCount{
			copies: make([]int32, s.chunks()), has: proto.NewSet(s.chunks()), spare: newTally(s.chunks()),
		}
	}
	return s.zones[number]
}

// distance returns how many levels of the longer of two zones lie below what
// they have in common: 0 for the same zone, 1 for two racks of one site, and
// so on. Zones are paths such as "eu/berlin/r12".
func distance(a, b string) int {
	if a == b {
		return 0
	}
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	common := 0
	for common < min(len(x), len(y)) && x[common] == y[common] {
		common++
	}
	return max(len(x), len(y)) - common
}
