package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/blocklist"
	"github.com/shoal-project/shoal/daemon/door"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/mirror"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/proxy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/daemon/veil"
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

	limits *rate.Limits
	cache  *cache.Cache
	origin *origin.Client
	host   *peer.Host
	gossip *gossip.Gossip
	server *scheduler.Server
	client *scheduler.Client
	puller *pull.Puller
	tags   *tags.Resolver
	gate   *policy.Gate
	jobs   *jobs.Jobs
	veil   *veil.Veil
	mirror *mirror.Handler
	proxy  *proxy.Proxy // nil: no proxy
	self   proto.Member

	blocklist *blocklist.List
	audit     *audit.Log // nil: none
	trust     atomic.Pointer[trust]

	// Nil are doors that there are not.
	mirrorDoor, proxyDoor, adminDoor *door.Door
	hurryAdmin                       context.CancelFunc

	webhookToken string
	scrubbing    *rate.Limiter
	damaged      chan proto.Blob // set aside by the cache, to be fetched again

	closers []func() error // what New opened, in the order of opening
	streams sync.WaitGroup // control streams to the scheduler in this process

	// mu protects the fields below.
	mu       sync.Mutex
	members  []proto.Member
	classes  map[string]pull.Class // of the members, by ID
	brought  map[proto.Digest]proto.Origin
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
	d := &Daemon{cfg: cfg, log: log, started: time.Now(), registry: prometheus.NewRegistry(), brought: make(map[proto.Digest]proto.Origin)}
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
		upstreams[name] = origin.Upstream{
			URLs: u.Addresses(), Auth: u.Auth, Username: u.Username, PasswordFile: u.PasswordFile,
			CredentialsFile: u.CredentialsFile, Realms: u.Realms, CA: u.CA, Basic: u.Basic,
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
		g.Go(door.Serve)
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
	g.Go(func() error { return d.blocklist.Run(broken) })
	g.Go(func() error { return d.keepTrust(broken) })
	if d.proxy != nil {
		g.Go(d.proxy.Serve)
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			d.drain(doors)
		case <-broken.Done():
			closeAll(doors)
		}
		if d.proxy != nil {
			_ = d.proxy.Close() // ends its Serve; the error of connections that are gone is nobody's concern
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
		"mirror", d.mirrorURL(), "proxy", d.ProxyAddr(), "admin", d.AdminAddr(), "peers", d.self.Addr, "gossip", d.gossip.Addr(),
		"data", d.cfg.Data, "took", time.Since(d.started).Round(time.Millisecond))
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
func (d *Daemon) MirrorAddr() string { return addr(d.mirrorDoor) }

// mirrorURL returns MirrorAddr, with https:// before it if it wants TLS.
func (d *Daemon) mirrorURL() string {
	if d.mirrorDoor != nil && d.cfg.Mirror.TLS.on() {
		return "https://" + d.MirrorAddr()
	}
	return d.MirrorAddr()
}

// ProxyAddr returns the host:port of the forward proxy, or "" if there is none.
func (d *Daemon) ProxyAddr() string { return addr(d.proxyDoor) }

// AdminAddr returns the host:port of the admin door, or "" if there is none.
func (d *Daemon) AdminAddr() string { return addr(d.adminDoor) }

// GossipAddr returns the host:port that others can join at.
func (d *Daemon) GossipAddr() string { return d.gossip.Addr() }

// Self returns this node as the fleet knows it.
func (d *Daemon) Self() proto.Member { return d.self }

func addr(o *door.Door) string {
	if o == nil {
		return ""
	}
	return o.Addr()
}
