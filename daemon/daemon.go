package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/mirror"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/gossip"
	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

// joinWithin is how long a node that has somebody to join may be alone before
// it counts as ready: pulls in that time would go to the origin on their own,
// but a node that cannot find its fleet must still serve its runtime.
const joinWithin = 5 * time.Second

// Daemon is one process of the fleet.
type Daemon struct {
	// immutable
	cfg      Config
	log      *slog.Logger
	started  time.Time
	registry *prometheus.Registry

	limits   *rate.Limits
	cache    *cache.Cache
	origin   *origin.Client
	host     *peer.Host
	gossip   *gossip.Gossip
	server   *scheduler.Server
	client   *scheduler.Client
	puller   *pull.Puller
	tags     *tags.Resolver
	gate     *policy.Gate
	jobs     *jobs.Jobs
	mirror   *mirror.Handler
	mirrorLn net.Listener // nil: no mirror
	adminLn  net.Listener // nil: no admin door
	self     proto.Member

	webhookToken string
	scrubbing    *rate.Limiter
	damaged      chan proto.Blob // set aside by the cache, to be fetched again

	closers []func() error // what New opened, in the order of opening
	streams sync.WaitGroup // control streams to the scheduler in this process

	// mu protects the fields below.
	mu       sync.Mutex
	members  []proto.Member
	classes  map[string]pull.Class // of the members, by ID
	joined   bool
	draining bool
}

// New opens what the configuration says: the data directory, which is locked,
// the identity, and all listeners. Nothing is served before Run. If New fails,
// nothing is left open.
func New(cfg Config, log *slog.Logger) (*Daemon, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg, err := cfg.Resolve(context.Background())
	if err = errors.Join(err, cfg.Validate()); err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, log: log, started: time.Now(), registry: prometheus.NewRegistry()}
	d.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	for _, open := range []func() error{d.openLimits, d.openStore, d.openOrigin, d.openFleet, d.openGate, d.openJobs, d.openDoors} {
		if err := open(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

// opened registers what Close closes.
func (d *Daemon) opened(closeIt func() error) { d.closers = append(d.closers, closeIt) }

// Close frees what New opened. It is called instead of Run or after it.
func (d *Daemon) Close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *Daemon) openOrigin() error {
	upstreams := make(map[string]origin.Upstream, len(d.cfg.Upstreams))
	for name, u := range d.cfg.Upstreams {
		password, err := u.Password()
		if err != nil {
			return fmt.Errorf("upstreams: %s: %w", name, err)
		}
		upstreams[name] = origin.Upstream{
			URLs: u.Addresses(), Auth: u.Auth, Username: u.Username, Password: password,
			CredentialsFile: u.CredentialsFile, Realms: u.Realms, CA: u.CA,
		}
	}
	c, err := origin.New(origin.Config{Upstreams: upstreams, Log: d.log, Registry: d.registry})
	if err != nil {
		return err
	}
	c.SetOffline(d.cfg.Offline)
	d.origin = c
	d.opened(func() error { c.Close(); return nil })
	return nil
}

// openFleet opens the identity, the peer and gossip listeners, and puts the
// rooms between them and the cache together.
func (d *Daemon) openFleet() error {
	secret, err := d.cfg.Gossip.Secret()
	if err != nil {
		return err
	}
	d.host, err = peer.New(peer.Config{
		Listen: d.cfg.Peer.Listen, Advertise: d.cfg.Advertise, Dir: d.cfg.Data,
		Insecure: d.cfg.Peer.Security == "none", Cache: d.cache, Upload: d.limits.Upload.Wait,
		Log: d.log, Registry: d.registry,
	})
	if err != nil {
		return err
	}
	d.opened(d.host.Close)
	d.self = proto.Member{
		ID: d.host.ID(), Name: d.cfg.Name, Zone: d.cfg.Zone, Roles: d.cfg.Role, Addr: d.host.Addr(),
	}
	d.gossip, err = gossip.New(gossip.Config{
		Listen: d.cfg.Gossip.Listen, Advertise: d.cfg.Advertise, Join: d.cfg.Gossip.Join,
		Secret: secret, Self: d.self, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.opened(d.gossip.Close)
	d.server = scheduler.NewServer(scheduler.ServerConfig{Log: d.log, Registry: d.registry})
	d.client = scheduler.NewClient(scheduler.ClientConfig{
		Self: d.self, Dial: d.dial, Holds: d.cache.Blobs, Sums: d.sums, Log: d.log,
		Call: func(b proto.Blob, o proto.Origin) error {
			if !d.origin.Knows(o.Upstream) {
				return fmt.Errorf("upstream %s is not configured here", o.Upstream)
			}
			return d.puller.Seed(b, o)
		},
	})
	d.puller = pull.New(pull.Config{
		Cache:  d.cache,
		Origin: func(o proto.Origin) pull.Source { return d.origin.Source(o) },
		Peer:   func(id, addr string) pull.Source { return d.host.Source(id, addr) },
		Class:  d.class,
		Join: func(dg proto.Digest, state func() *proto.Join) pull.Swarm {
			return d.client.Join(dg, state)
		},
		Abandon:  !d.cfg.Cache.Finish,
		Limit:    d.limits.Receive,
		Cause:    cause,
		Log:      d.log,
		Registry: d.registry,
	})
	d.host.HandleControl(func(ctx context.Context, from string, s io.ReadWriteCloser) {
		if err := d.server.Serve(ctx, from, s); err != nil {
			d.log.Info("control stream ended", "peer", from, "error", err)
		}
	})
	return nil
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

// sums returns the sums of a blob's chunks that are here.
func (d *Daemon) sums(dg proto.Digest) []proto.Sum {
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

// Run serves until ctx ends, then drains: new pulls are refused, requests that
// run may come to an end within the configured time, the node leaves the
// fleet. It returns nil after a clean stop, or what broke. It frees what New
// opened.
func (d *Daemon) Run(ctx context.Context) error {
	core, stopCore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCore()
	g, broken := errgroup.WithContext(core)
	doors := d.doors()
	for _, door := range doors {
		g.Go(door.serve)
	}
	g.Go(func() error { return d.host.Run(broken) })
	g.Go(func() error { return d.server.Run(broken) })
	g.Go(func() error { return d.client.Run(broken) })
	g.Go(func() error { return d.puller.Run(broken) })
	g.Go(func() error { return d.tags.Run(broken) })
	g.Go(func() error { return d.jobs.Run(broken) })
	g.Go(func() error { return d.cache.Run(broken) })
	g.Go(func() error { return d.cache.Watch(broken) })
	g.Go(func() error { return d.upkeep(broken) })
	g.Go(func() error { d.mend(broken); return nil })
	g.Go(func() error { return d.gossip.Run(broken) })
	g.Go(func() error { return d.limits.Run(broken) })
	g.Go(func() error { d.follow(broken); return nil })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			d.drain(doors)
		case <-broken.Done():
			closeAll(doors)
		}
		stopCore()
		return nil
	})
	d.announce()
	err := g.Wait()
	d.streams.Wait()
	return errors.Join(err, d.Close())
}

// announce says on the log where the doors are.
func (d *Daemon) announce() {
	d.log.Info("shoal is up", "role", d.cfg.Role.String(), "node", d.cfg.Name, "peer", d.self.ID,
		"mirror", d.MirrorAddr(), "admin", d.AdminAddr(), "peers", d.self.Addr, "gossip", d.gossip.Addr(),
		"data", d.cfg.Data, "took", time.Since(d.started).Round(time.Millisecond))
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

// Ready returns nil if the node can do its work, else why not.
func (d *Daemon) Ready() error {
	scheduled := d.client.Ready()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.draining:
		return errors.New("draining")
	case len(d.members) == 0:
		return errors.New("starting")
	case len(d.cfg.Gossip.Join) > 0 && !d.joined && time.Since(d.started) < joinWithin:
		return errors.New("joining the fleet")
	case !scheduled:
		return errors.New("connecting to a scheduler")
	}
	return nil
}

// MirrorAddr returns the host:port of the mirror, or "" if there is none.
func (d *Daemon) MirrorAddr() string { return addr(d.mirrorLn) }

// AdminAddr returns the host:port of the admin door, or "" if there is none.
func (d *Daemon) AdminAddr() string { return addr(d.adminLn) }

// GossipAddr returns the host:port that others can join at.
func (d *Daemon) GossipAddr() string { return d.gossip.Addr() }

// Self returns this node as the fleet knows it.
func (d *Daemon) Self() proto.Member { return d.self }

func addr(ln net.Listener) string {
	if ln == nil {
		return ""
	}
	return ln.Addr().String()
}

// Owner returns the ID of the member that schedules a digest, or "".
func (d *Daemon) Owner(dg proto.Digest) string { return d.client.Owner(dg) }
