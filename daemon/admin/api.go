package admin

import (
	"slices"
	"strings"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// Mode is what can be switched at run time.
type Mode struct {
	// Offline: no origin is contacted.
	Offline bool `json:"offline"`
}

// Pattern is the body of a request about a pin.
type Pattern struct {
	Pattern string `json:"pattern"`
}

// Collection says how the cache is cleaned up.
type Collection struct {
	// DryRun says what would go, and removes nothing.
	DryRun bool `json:"dryRun,omitempty"`
}

// Failure is the body of every answer under /v1/ that is not a success.
type Failure struct {
	// Error is for a person.
	Error string `json:"error"`
}

// Status is what a node says of itself at one moment.
type Status struct {
	// Version of the binary.
	Version string `json:"version"`
	// Name and Zone are those of the configuration, ID is the peer ID.
	Name string `json:"name"`
	ID   string `json:"id"`
	Zone string `json:"zone,omitempty"`
	// Roles as text: daemon, scheduler, or both with a plus sign between.
	Roles string `json:"roles"`
	// Mirror is the host:port of its door for runtimes; empty without one.
	Mirror string `json:"mirror,omitempty"`
	// UptimeSeconds is the time since the start.
	UptimeSeconds float64 `json:"uptimeSeconds"`
	// Ready is what /readyz says, Reason why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Members of the fleet that are alive as far as this node knows, itself
	// included.
	Members []Member `json:"members"`
	// Pulls that are going on here.
	Pulls []Pull `json:"pulls"`
	// Bytes that came in or went out since the start.
	Bytes Bytes `json:"bytes"`
	// Scheduler is what this node schedules for others.
	Scheduler Scheduler `json:"scheduler"`
}

// Member is one member of the fleet.
type Member struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Zone  string `json:"zone,omitempty"`
	Roles string `json:"roles"`
	// Addr is the host:port of its peer listener.
	Addr string `json:"addr"`
}

// Members returns ms as the API tells them, sorted by name and ID so that two
// answers can be compared.
func Members(ms []proto.Member) []Member {
	out := make([]Member, 0, len(ms))
	for _, m := range ms {
		out = append(out, Member{ID: m.ID, Name: m.Name, Zone: m.Zone, Roles: m.Roles.String(), Addr: m.Addr})
	}
	slices.SortFunc(out, func(a, b Member) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Pull is one blob on its way to this node. Have counts bytes that are here and
// verified, FromOrigin and FromPeers those that came in.
type Pull struct {
	Digest     proto.Digest `json:"digest"`
	Size       int64        `json:"size"`
	Have       int64        `json:"have"`
	FromOrigin int64        `json:"fromOrigin"`
	FromPeers  int64        `json:"fromPeers"`
	// Origin is where the blob is from: upstream/repository.
	Origin string `json:"origin"`
	// Owner is the ID of the member that schedules the blob; empty while
	// there is none.
	Owner string `json:"owner,omitempty"`
}

// Bytes counts since the start of the process, by where bytes came from.
type Bytes struct {
	// Origin is what came in from registries.
	Origin int64 `json:"origin"`
	// Seed is what came in from scheduler processes, Zone from daemons in this
	// node's zone, Far from those in other zones.
	Seed int64 `json:"seed"`
	Zone int64 `json:"zone"`
	Far  int64 `json:"far"`
	// Disk is what clients were served that had been here before they asked.
	Disk int64 `json:"disk"`
	// Duplicate is what of all that came in was for nothing: chunks that were
	// here, and pieces of chunks whose rest did not come.
	Duplicate int64 `json:"duplicate"`
}

// Peers is what came in from members of the fleet.
func (b Bytes) Peers() int64 { return b.Seed + b.Zone + b.Far }

// Plus returns the sum of b and c.
func (b Bytes) Plus(c Bytes) Bytes {
	return Bytes{
		Origin: b.Origin + c.Origin, Seed: b.Seed + c.Seed, Zone: b.Zone + c.Zone, Far: b.Far + c.Far,
		Disk: b.Disk + c.Disk, Duplicate: b.Duplicate + c.Duplicate,
	}
}

// Minus returns what has been counted since c was.
func (b Bytes) Minus(c Bytes) Bytes {
	return b.Plus(Bytes{-c.Origin, -c.Seed, -c.Zone, -c.Far, -c.Disk, -c.Duplicate})
}

// Scheduler is the part of a node that schedules digests which it owns.
type Scheduler struct {
	// Swarms is the number of blobs that it schedules now, Nodes that of the
	// members which report to it.
	Swarms int `json:"swarms"`
	Nodes  int `json:"nodes"`
}

// Scrubbing says how far a scrub is.
type Scrubbing struct {
	// Running says that one is running; the rest is of that one.
	Running bool `json:"running"`
	cache.ScrubProgress
}
