package scheduler

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/shoal-project/shoal/proto"
)

// councilSize is how many daemons schedule in a fleet that has no scheduler
// process. Every node keeps a stream to each possible owner, so with all
// daemons as owners a fleet of N would keep N² streams; 16 spread the load and
// survive 15 deaths.
const councilSize = 16

// Candidates returns the members that may own digests now: the schedulers
// where there are any, else up to 16 of the daemons, the same ones for
// everybody who knows the same members. It does not change members.
func Candidates(members []proto.Member) []proto.Member {
	var schedulers []proto.Member
	for _, m := range members {
		if m.Roles&proto.RoleScheduler != 0 {
			schedulers = append(schedulers, m)
		}
	}
	if len(schedulers) > 0 {
		return schedulers
	}
	return council(members)
}

// council returns the daemons that schedule where no scheduler does.
func council(members []proto.Member) []proto.Member {
	var daemons []proto.Member
	for _, m := range members {
		if m.Roles&proto.RoleScheduler == 0 && m.Roles&proto.RoleDaemon != 0 {
			daemons = append(daemons, m)
		}
	}
	slices.SortFunc(daemons, func(a, b proto.Member) int {
		return cmp.Or(cmp.Compare(weight("council", a.ID), weight("council", b.ID)), cmp.Compare(a.ID, b.ID))
	})
	return daemons[:min(len(daemons), councilSize)]
}

// Owner returns the member that schedules d, by rendezvous hashing (Thaler and
// Ravishankar, 1996) over the candidates for which dead reports false: of all
// candidates the one with the highest hash of digest and ID, so that a member
// that comes or goes moves only its own share of the digests. It returns false
// if there is none.
func Owner(d proto.Digest, candidates []proto.Member, dead func(id string) bool) (proto.Member, bool) {
	var best proto.Member
	var bestWeight uint64
	found := false
	for _, m := range candidates {
		if dead != nil && dead(m.ID) {
			continue
		}
		w := weight(d.String(), m.ID)
		if !found || w > bestWeight || w == bestWeight && m.ID < best.ID {
			best, bestWeight, found = m, w, true
		}
	}
	return best, found
}

func weight(a, b string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(a))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(b))
	// FNV's last bytes reach the high bits only weakly; finish as splitmix64
	// does, or members whose IDs differ at the end would own unequal shares.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
