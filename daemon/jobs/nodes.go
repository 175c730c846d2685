package jobs

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/proto"
)

// A choice is a Spec.Nodes that was understood.
type choice struct {
	self  bool
	zone  string  // "": any
	share float64 // of the daemons, over 0 to 1
}

// parseNodes reads a Spec.Nodes.
func parseNodes(s string) (choice, error) {
	if s == "" {
		return choice{self: true}, nil
	}
	if s == "all" {
		return choice{share: 1}, nil
	}
	if zone, ok := strings.CutPrefix(s, "zone:"); ok && strings.Trim(zone, "/") != "" {
		return choice{zone: strings.Trim(zone, "/"), share: 1}, nil
	}
	if text, ok := strings.CutSuffix(s, "%"); ok {
		if n, err := strconv.ParseFloat(text, 64); err == nil && n > 0 && n <= 100 {
			return choice{share: n / 100}, nil
		}
	}
	return choice{}, fmt.Errorf("nodes %.100q: write all, zone:<zone> such as zone:eu/berlin, a share such as 25%%, or nothing for this node", s)
}

// among returns the members that c means, in the order of their names, and an
// error that says why there are none. Of a share, those that come first in an
// order which depends on key and the members' IDs: the same for everybody, and
// a larger share of the same key has all nodes of a smaller one.
func (c choice) among(members []proto.Member, self proto.Member, key string) ([]proto.Member, error) {
	if c.self {
		return []proto.Member{self}, nil
	}
	var found []proto.Member
	zones := map[string]bool{}
	for _, m := range members {
		if m.Roles&proto.RoleDaemon == 0 {
			continue // it serves no runtime
		}
		zones[m.Zone] = true
		if c.zone == "" || m.Zone == c.zone || strings.HasPrefix(m.Zone, c.zone+"/") {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return nil, c.nobody(zones)
	}
	if c.share < 1 {
		slices.SortFunc(found, func(a, b proto.Member) int {
			return cmp.Or(cmp.Compare(rank(key, a.ID), rank(key, b.ID)), cmp.Compare(a.ID, b.ID))
		})
		found = found[:int(math.Ceil(c.share*float64(len(found))))]
	}
	slices.SortFunc(found, func(a, b proto.Member) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return found, nil
}

// nobody says that no daemon is meant.
func (c choice) nobody(zones map[string]bool) error {
	if c.zone == "" || len(zones) == 0 {
		return errors.New("there is no daemon in the fleet")
	}
	const most = 20
	var known []string
	for z := range zones {
		known = append(known, strconv.Quote(z))
	}
	slices.Sort(known)
	if len(known) > most {
		known = append(known[:most], "…")
	}
	return fmt.Errorf("there is no daemon in zone %q or below it; the zones are %s", c.zone, strings.Join(known, ", "))
}

func rank(key, id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write([]byte(id))
	// FNV's high bits hardly change with the last bytes; mix them (the finalizer
	// of MurmurHash3).
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
