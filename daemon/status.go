package daemon

import (
	"runtime/debug"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

// Status returns what the node is doing, for the admin door.
func (d *Daemon) Status() admin.Status {
	d.mu.Lock()
	members := d.members
	d.mu.Unlock()
	bytes := d.puller.Bytes()
	swarms, nodes := d.server.Load()
	st := admin.Status{
		Version:       Version(),
		Name:          d.cfg.Name,
		ID:            d.self.ID,
		Zone:          d.cfg.Zone,
		Roles:         d.cfg.Role.String(),
		Mirror:        d.mirrorURL(),
		UptimeSeconds: time.Since(d.started).Seconds(),
		Members:       admin.Members(members),
		Bytes: admin.Bytes{
			Origin: bytes.Origin, Seed: bytes.Seed, Zone: bytes.Zone, Far: bytes.Far,
			Duplicate: bytes.Duplicate, Disk: d.mirror.DiskBytes(),
		},
		Scheduler: admin.Scheduler{Swarms: swarms, Nodes: nodes},
	}
	for _, p := range d.puller.Pulls() {
		st.Pulls = append(st.Pulls, admin.Pull{
			Digest: p.Blob.Digest, Size: p.Blob.Size, Have: p.Have,
			FromOrigin: p.FromOrigin, FromPeers: p.FromPeers,
			Origin: p.Origin.String(), Owner: d.Owner(p.Blob.Digest),
		})
	}
	return st
}

// class says how the member with an ID is to this node. One that the gossip has
// lost since it was asked for chunks counts as far.
func (d *Daemon) class(id string) pull.Class {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, ok := d.classes[id]; ok {
		return c
	}
	return pull.ClassFar
}

// classify says how each member is to self.
func classify(self proto.Member, members []proto.Member) map[string]pull.Class {
	classes := make(map[string]pull.Class, len(members))
	for _, m := range members {
		switch {
		case m.Roles&proto.RoleScheduler != 0:
			classes[m.ID] = pull.ClassSeed
		case m.Zone == self.Zone:
			classes[m.ID] = pull.ClassZone
		default:
			classes[m.ID] = pull.ClassFar
		}
	}
	return classes
}

// Version returns the version of the binary: the module's, or "devel".
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
