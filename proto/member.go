package proto

import "strings"

// Roles of a member, a bit each.
const (
	// RoleDaemon is a node that serves runtimes.
	RoleDaemon Role = 1 << iota
	// RoleScheduler is a process that was started to schedule and to seed: the
	// preferred owner of every digest.
	RoleScheduler
)

// Role says what a member was started as; a set of the Role constants.
type Role uint8

// String returns the roles' names, joined by a plus sign.
func (r Role) String() string {
	var names []string
	if r&RoleDaemon != 0 {
		names = append(names, "daemon")
	}
	if r&RoleScheduler != 0 {
		names = append(names, "scheduler")
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, "+")
}

// A Member is one process of the fleet, as the gossip and the scheduler know
// it. ID is its libp2p peer ID in text form and tells members apart; Name is
// for people. Addr is the host:port of its peer listener, which carries the
// data plane and the control streams.
type Member struct {
	ID    string
	Name  string
	Zone  string
	Roles Role
	Addr  string
}

// An Origin says where a blob can be fetched from when nobody in the fleet has
// it: the upstream's key in the configuration (a registry host such as
// "docker.io"), the repository there, and whether it is a manifest, since
// registries serve manifests and blobs under different paths.
type Origin struct {
	Upstream   string
	Repository string
	Manifest   bool
}

// IsZero reports whether o names no origin.
func (o Origin) IsZero() bool { return o == Origin{} }

// String returns the origin as a person would write it, upstream/repository.
func (o Origin) String() string { return o.Upstream + "/" + o.Repository }
