package admin

import (
	"slices"
	"strings"

	"github.com/shoal-project/shoal/proto"
)

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

// Pull is one blob on its way to this node. All figures but Size count bytes
// that are here and verified.
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

// Bytes counts since the start of the process.
type Bytes struct {
	// Origin and Peers are what came in from each, Disk is what clients were
	// served that had been here before they asked.
	Origin int64 `json:"origin"`
	Peers  int64 `json:"peers"`
	Disk   int64 `json:"disk"`
	// Duplicate is what came in although it was here.
	Duplicate int64 `json:"duplicate"`
}

// Scheduler is the part of a node that schedules digests which it owns.
type Scheduler struct {
	// Swarms is the number of blobs that it schedules now, Nodes that of the
	// members which report to it.
	Swarms int `json:"swarms"`
	Nodes  int `json:"nodes"`
}
