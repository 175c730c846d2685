package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/door"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/mirror"
	"github.com/shoal-project/shoal/daemon/proxy"
	"github.com/shoal-project/shoal/proto"
)

// openJobs opens what brings images to nodes.
func (d *Daemon) openJobs() error {
	var rules []jobs.Rule
	for _, r := range d.cfg.Webhook.Rules {
		rules = append(rules, jobs.Rule(r))
	}
	var err error
	d.jobs, err = jobs.New(jobs.Config{
		Dir: filepath.Join(d.cfg.Data, "jobs"), Gate: d.gate, Puller: d.puller, Origin: d.origin, Cache: d.cache,
		SetTag: d.tags.Set, Default: d.cfg.Mirror.Default, Rules: rules, Self: d.self, Members: d.fleet,
		Open: d.host.OpenJob, Log: d.log,
	})
	if err != nil {
		return fmt.Errorf("jobs: %w", err)
	}
	d.host.HandleJobs(func(ctx context.Context, from string, s io.ReadWriteCloser) {
		if err := d.jobs.Serve(ctx, from, s); err != nil {
			d.log.Info("job of another node ended", "peer", from, "error", err)
		}
	})
	return nil
}

// fleet returns the members that are alive as far as this node knows.
func (d *Daemon) fleet() []proto.Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.members
}

// maxBody bounds in bytes what a client of the mirror can send with a request:
// nothing there takes any.
const maxBody = 64 << 10

// openDoors opens the doors that are configured.
func (d *Daemon) openDoors() error {
	d.mirror = mirror.New(mirror.Config{
		Gate: d.gate, Puller: d.puller, Origin: d.origin, Cache: d.cache,
		Default: d.cfg.Mirror.Default, Prefetch: d.cfg.Mirror.Prefetch,
		Through: d.through, Audit: d.record,
		Upstreams: d.upstreams(), MaxStale: orNot(d.cfg.Tags.MaxStale), Log: d.log, Registry: d.registry,
	})
	var err error
	if d.webhookToken, err = d.cfg.Webhook.Token(); err != nil {
		return err
	}
	m := d.cfg.Mirror
	if d.mirrorDoor, err = d.open(door.Config{
		Name: "mirror", Addr: m.Listen, TLS: m.TLS.door(""), MaxConns: m.MaxConnections, RequestsPerClient: m.MaxRequests,
		MaxBody: maxBody, Server: d.mirror.Server(),
	}, m.AllowFrom); err != nil {
		return err
	}
	if err := d.openProxy(); err != nil {
		return err
	}
	return d.openAdmin()
}

// openAdmin opens the door for operators.
func (d *Daemon) openAdmin() error {
	a := d.cfg.Admin
	ctx, cancel := context.WithCancel(context.Background())
	d.hurryAdmin = cancel
	var err error
	d.adminDoor, err = d.open(door.Config{
		Name: "admin", Addr: a.Listen, TLS: a.TLS.door(a.ClientCA),
		Server: &http.Server{
			Handler: d.adminHandler(), ReadHeaderTimeout: 10 * time.Second,
			BaseContext: func(net.Listener) context.Context { return ctx },
		},
	}, nil)
	return err
}

// openProxy opens the forward proxy, if there is one.
func (d *Daemon) openProxy() error {
	p := d.cfg.Proxy
	if p.Listen == "" {
		return nil
	}
	cert, key := p.files(d.cfg.Data)
	ca, err := proxy.LoadCA(cert, key)
	if err != nil {
		return fmt.Errorf("proxy.ca: %w", err)
	}
	transports, err := d.transports()
	if err != nil {
		return err
	}
	d.proxy, err = proxy.New(proxy.Config{
		CA: ca, Upstream: d.intercepted, Intercept: p.Intercept, Handler: d.mirror.Proxied,
		Transport: func(upstream string) http.RoundTripper { return transports[upstream] },
		Tunnel:    p.Tunnel, Ports: p.ports(), Log: d.log, Registry: d.registry,
	})
	if err != nil {
		return err
	}
	d.opened(d.proxy.Close)
	d.proxyDoor, err = d.open(door.Config{Name: "proxy", Addr: p.Listen, Server: d.proxy.Server()}, p.AllowFrom)
	return err
}

// intercepted returns the upstream that a host is of. One that is an upstream by
// "*" alone is only what proxy.intercept names: nobody said of all the others that
// their TLS may be opened.
func (d *Daemon) intercepted(host string) (upstream string, ok bool) {
	if name, ok := d.origin.Named(host); ok {
		return name, true
	}
	for _, pattern := range d.cfg.Proxy.Intercept {
		if below, wild := strings.CutPrefix(pattern, "*"); (wild && strings.HasSuffix(host, below) || host == pattern) && d.origin.Knows(host) {
			return host, true
		}
	}
	return "", false
}

// transports returns how what the proxy passes on reaches each upstream.
func (d *Daemon) transports() (map[string]http.RoundTripper, error) {
	transports := make(map[string]http.RoundTripper, len(d.cfg.Upstreams))
	for name, u := range d.cfg.Upstreams {
		var roots *x509.CertPool
		if u.CA != "" {
			pem, err := os.ReadFile(u.CA)
			if err != nil {
				return nil, fmt.Errorf("upstreams.%s.ca: %w", name, err)
			}
			if roots, err = x509.SystemCertPool(); err != nil {
				roots = x509.NewCertPool() // a container image without certificates
			}
			roots.AppendCertsFromPEM(pem)
		}
		t := proxy.NewTransport(roots)
		d.opened(func() error { t.CloseIdleConnections(); return nil })
		transports[name] = t
	}
	return transports, nil
}

// open opens a door; without an address there is none.
func (d *Daemon) open(cfg door.Config, allowFrom []string) (*door.Door, error) {
	if cfg.Addr == "" {
		return nil, nil
	}
	var err error
	if cfg.AllowFrom, err = prefixes(cfg.Name+".allowFrom", allowFrom); err != nil {
		return nil, err
	}
	cfg.Log, cfg.Registry = d.log, d.registry
	o, err := door.Listen(cfg)
	if err != nil {
		return nil, err
	}
	d.opened(o.Close)
	return o, nil
}

// door returns it as package door has it, nil for plain http.
func (t TLSConfig) door(clientCA string) *door.TLS {
	if !t.on() {
		return nil
	}
	return &door.TLS{Cert: t.Cert, Key: t.Key, ClientCA: clientCA}
}

// An entrance is a door while the daemon runs.
type entrance struct {
	*door.Door
	// hurry ends what its requests wait for, when all that is left is to stop.
	hurry func()
}

// doors returns the doors, in the order in which they are closed.
func (d *Daemon) doors() []entrance {
	var doors []entrance
	for _, o := range []entrance{{d.mirrorDoor, func() {}}, {d.proxyDoor, func() {}}, {d.adminDoor, d.hurryAdmin}} {
		if o.Door != nil {
			doors = append(doors, o)
		}
	}
	return doors
}

func (d *Daemon) adminHandler() http.Handler {
	return admin.New(admin.Config{
		Status: d.Status, Ready: d.Ready, Gatherer: d.registry,
		StartJob: d.jobs.Start, Job: d.jobs.Get, Jobs: d.jobs.List, WatchJob: d.jobs.Watch, CancelJob: d.jobs.Cancel,
		Webhook: d.jobs.Notify, WebhookToken: d.webhookToken,
		Cache: d.cache.Use, GC: d.cache.GC, Scrub: d.scrub, ScrubProgress: d.cache.ScrubProgress,
		Pins: d.cache.Pins, Pin: d.cache.Pin, Unpin: d.cache.Unpin,
		PutBlob: d.jobs.PutBlob, PutImage: d.jobs.PutImage,
		Checks:  d.sharedChecks(),
		Offline: d.origin.Offline, SetOffline: d.setOffline,
		Access: admin.Access{
			Local: admin.Role(d.cfg.Admin.LocalRole), Tokens: d.tokens,
			Certificates: d.cfg.Admin.certificates(), OpenMetrics: d.cfg.Admin.OpenMetrics,
		},
		Blocklist: admin.Blocklist{List: d.blocklist.List, Block: d.blocklist.BlockImage, Unblock: d.blocklist.UnblockImage},
		Log:       d.log,
	})
}

// setOffline says whether origins may be contacted, until the next start.
func (d *Daemon) setOffline(offline bool) {
	d.origin.SetOffline(offline)
	d.log.Info("told whether origins may be contacted", "offline", offline)
}

// drain refuses new pulls and waits for the requests that run. The admin door
// stays open meanwhile and tells that the node is not ready; who waits there for
// something to end is let go after that.
func (d *Daemon) drain(doors []entrance) {
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	d.log.Info("draining", "within", d.cfg.Drain)
	d.mirror.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.Drain)
	defer cancel()
	for _, o := range doors {
		o.hurry()
		if err := o.Shutdown(ctx); err != nil {
			d.log.Warn("requests were cut off: they took longer than drain allows", "addr", o.Addr())
		}
	}
	if d.proxy != nil {
		if err := d.proxy.Shutdown(ctx); err != nil {
			d.log.Warn("connections through the proxy were cut off: they took longer than drain allows", "addr", d.ProxyAddr())
		}
	}
	closeAll(doors)
}

func closeAll(doors []entrance) {
	for _, o := range doors {
		o.hurry()
		_ = o.Close() // the listener's error is nobody's concern now
	}
}
