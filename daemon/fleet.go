package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/veil"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/gossip"
	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

// openFleet opens the identity, the peer and gossip listeners, and puts the
// rooms between them and the cache together. What is private goes through the
// veil on its way to others and back.
func (d *Daemon) openFleet() error {
	if err := d.openTrust(); err != nil {
		return err
	}
	var err error
	d.host, err = peer.New(peer.Config{
		Listen: d.cfg.Peer.Listen, Advertise: d.cfg.Advertise, Dir: d.cfg.Data,
		Insecure: d.cfg.Peer.Security == "none", Congestion: d.cfg.Peer.Congestion,
		Cache: d.cache, Upload: d.limits.Upload.Wait,
		Allowed: d.allowed, Name: d.ask, Real: d.give,
		Log: d.log, Registry: d.registry,
	})
	if err != nil {
		return err
	}
	d.opened(d.host.Close)
	if !d.allowed(d.host.ID()) {
		return fmt.Errorf("gossip.allowFile: %s does not list this node itself: add its peer ID there and on the other members: %s", d.cfg.Gossip.AllowFile, d.host.ID())
	}
	d.self = proto.Member{
		ID: d.host.ID(), Name: d.cfg.Name, Zone: d.cfg.Zone, Roles: d.cfg.Role, Addr: d.host.Addr(),
	}
	d.veil = veil.New(veil.Config{Secrets: d.secrets, Self: d.self.ID, Private: func(dg proto.Digest) bool { return d.gate.Private(dg) }})
	d.gossip, err = gossip.New(gossip.Config{
		Listen: d.cfg.Gossip.Listen, Advertise: d.cfg.Advertise, Join: d.cfg.Gossip.Join,
		Secrets: d.secrets(), Self: d.self, Sign: d.host.Sign, Allowed: d.allowed,
		Note: func(note []byte) { d.blocklist.Note(note) }, State: func() []byte { return d.blocklist.State() },
		Merge: func(state []byte) { d.blocklist.Merge(state) },
		Log:   d.log,
	})
	if err != nil {
		return err
	}
	d.opened(d.gossip.Close)
	d.server = scheduler.NewServer(scheduler.ServerConfig{Log: d.log, Registry: d.registry})
	d.client = scheduler.NewClient(scheduler.ClientConfig{
		Self: d.self, Dial: d.dial, Log: d.log, Call: d.called,
		Holds: func() []proto.Blob { return d.veil.Held(d.cache.Blobs()...) }, Sums: d.sums,
	})
	d.puller = pull.New(d.pulling())
	d.host.HandleControl(func(ctx context.Context, from string, s io.ReadWriteCloser) {
		if err := d.server.Serve(ctx, from, s); err != nil {
			d.log.Info("control stream ended", "peer", from, "error", err)
		}
	})
	return nil
}

// pulling is the configuration of the puller.
func (d *Daemon) pulling() pull.Config {
	return pull.Config{
		Cache:    d.cache,
		Origin:   func(o proto.Origin) pull.Source { return d.origin.Source(o) },
		Peer:     func(id, addr string) pull.Source { return d.host.Source(id, addr) },
		Class:    d.class,
		Join:     d.join,
		Abandon:  !d.cfg.Cache.Finish,
		Limit:    d.limits.Receive,
		Cause:    cause,
		Log:      d.log,
		Registry: d.registry,
	}
}

// join enters the pull of a blob into its swarm, under the name that the fleet
// has for it.
func (d *Daemon) join(dg proto.Digest, state func() *proto.Join) pull.Swarm {
	// What nodes fetch with their own login a seed may fetch with its own too.
	// What a caller's token brings, no seed can.
	sealed := func(o proto.Origin) bool { return d.origin.Auth(o.Upstream) == origin.AuthNode }
	return d.veil.Join(dg, state, sealed, func(name proto.Digest, state func() *proto.Join) veil.Swarm {
		return d.client.Join(name, state)
	})
}

// called brings a blob from its origin for others, if this node may have it.
func (d *Daemon) called(name proto.Blob, sealed proto.Origin) error {
	b, o, err := d.veil.Open(name, sealed)
	if err != nil {
		return err
	}
	if !d.origin.Knows(o.Upstream) {
		return fmt.Errorf("upstream %s is not configured here", o.Upstream)
	}
	if o == sealed && (d.origin.Auth(o.Upstream) != origin.AuthAnonymous || d.hidden(b.Digest)) {
		// Told in the clear by somebody whose configuration is another one.
		return fmt.Errorf("upstream %s is not for everybody here", o.Upstream)
	}
	ref := origin.Ref{Upstream: o.Upstream, Repository: o.Repository, Digest: b.Digest, Manifest: o.Manifest}
	if err := d.gate.MayBring(ref); err != nil {
		return err
	}
	if err := d.gate.Check(context.Background(), ref, policy.Caller{Door: policy.DoorJob}); err != nil {
		return err
	}
	undo := func() {}
	if o == sealed {
		undo = d.veil.Clear(b.Digest)
	}
	if err := d.puller.Seed(b, o); err != nil {
		undo()
		return err
	}
	if o == sealed {
		d.brings(b.Digest, o)
	}
	return nil
}

// maxBrought bounds the blobs whose origin is remembered while they come.
const maxBrought = 4096

// brings remembers where a blob comes from that others have called for: nothing
// else here will say that it may be known to everybody.
func (d *Daemon) brings(dg proto.Digest, o proto.Origin) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.brought) >= maxBrought {
		clear(d.brought) // of pulls that failed, mostly; the rest is announced by aliases after a restart
	}
	d.brought[dg] = o
}

// linkBrought writes down where a blob came from that others had called for.
func (d *Daemon) linkBrought(b proto.Blob) {
	d.mu.Lock()
	o, ok := d.brought[b.Digest]
	delete(d.brought, b.Digest)
	d.mu.Unlock()
	if !ok || o.Manifest { // of a manifest, nobody has said which type it has
		return
	}
	if err := d.gate.Link(o.Upstream, o.Repository, origin.Descriptor{Blob: b, MediaType: "application/octet-stream"}); err != nil {
		d.log.Warn("link of a blob that was brought for others not written", "digest", b.Digest, "error", err)
	}
}

// hidden reports whether something private of a digest is here.
func (d *Daemon) hidden(dg proto.Digest) bool {
	b, ok := d.cache.Known(dg)
	if !ok {
		return false
	}
	b.Release()
	return d.gate.Private(dg)
}

// held tells the fleet that a blob is whole here.
func (d *Daemon) held(b proto.Blob) {
	d.linkBrought(b)
	for _, name := range d.veil.Held(b) {
		d.client.Hold(name)
	}
}

// gone tells the fleet that nothing of a blob is here any more.
func (d *Daemon) gone(dg proto.Digest) {
	for _, name := range d.veil.Aliases(dg) {
		d.client.Gone(name)
	}
	d.veil.Forget(dg)
}

// published tells the fleet in the clear of what was private until now.
func (d *Daemon) published(dg proto.Digest) {
	d.veil.Published(dg)
	if b, ok := d.cache.Whole(dg); ok {
		d.client.Hold(b)
	}
}

func (d *Daemon) ask(dg proto.Digest) (name proto.Digest, capability string) { return d.veil.Ask(dg) }

func (d *Daemon) give(name proto.Digest, asker, capability string) (proto.Digest, bool) {
	return d.veil.Give(name, asker, capability)
}

// cause says what a Source's error means for the scheduler.
func cause(err error) proto.Cause {
	switch {
	case errors.Is(err, origin.ErrDenied), errors.Is(err, origin.ErrUnknownUpstream), errors.Is(err, origin.ErrOffline):
		return proto.CauseDenied
	case errors.Is(err, origin.ErrNotFound), errors.Is(err, peer.ErrAbsent):
		return proto.CauseAbsent
	case errors.Is(err, peer.ErrStalled):
		return proto.CauseStalled
	}
	return proto.CauseBroken
}

// sums returns the sums of the chunks that are here of the blob that the fleet
// calls so.
func (d *Daemon) sums(name proto.Digest) []proto.Sum {
	dg, ok := d.veil.Real(name)
	if !ok {
		return nil
	}
	b, ok := d.cache.Known(dg)
	if !ok {
		return nil
	}
	defer b.Release()
	return b.Sums()
}

// dial opens a control stream to a member, which may be this one.
func (d *Daemon) dial(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
	if m.ID != d.self.ID {
		return d.host.OpenControl(ctx, m)
	}
	near, far := net.Pipe()
	d.streams.Go(func() {
		// The other end closes the pipe when it is done.
		if err := d.server.Serve(context.Background(), d.self.ID, far); err != nil {
			d.log.Debug("control stream to itself ended", "error", err)
		}
	})
	return near, nil
}

// follow passes the gossip's views on until ctx ends.
func (d *Daemon) follow(ctx context.Context) {
	known := make(map[string]bool)
	for {
		select {
		case <-ctx.Done():
			return
		case view := <-d.gossip.Watch():
			d.host.SetMembers(view)
			if d.client.SetMembers(view) {
				d.server.CandidatesChanged()
			}
			alive := make(map[string]bool, len(view))
			for _, m := range view {
				alive[m.ID] = true
			}
			for id := range known {
				if !alive[id] {
					d.server.Drop(id)
				}
			}
			known = alive
			d.mu.Lock()
			d.members, d.classes = view, classify(d.self, view)
			d.joined = d.joined || len(view) > 1
			d.mu.Unlock()
			d.jobs.MembersChanged()
		}
	}
}

// Owner returns the ID of the member that schedules a digest, or "".
func (d *Daemon) Owner(dg proto.Digest) string { return d.client.Owner(d.veil.Name(dg)) }
