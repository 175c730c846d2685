package daemon

import (
	"runtime/debug"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
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
		UptimeSeconds: time.Since(d.started).Seconds(),
		Members:       admin.Members(members),
		Bytes: admin.Bytes{
			Origin: bytes.Origin, Peers: bytes.Peers, Duplicate: bytes.Duplicate, Disk: d.mirror.DiskBytes(),
		},
		Scheduler: admin.Scheduler{Swarms: swarms, Nodes: nodes},
	}
	for _, p := range d.puller.Pulls() {
		st.Pulls = append(st.Pulls, admin.Pull{
			Digest: p.Blob.Digest, Size: p.Blob.Size, Have: p.Have,
			FromOrigin: p.FromOrigin, FromPeers: p.FromPeers,
			Origin: p.Origin.String(), Owner: d.client.Owner(p.Blob.Digest),
		})
	}
	return st
}

// Version returns the version of the binary: the module's, or "devel".
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
