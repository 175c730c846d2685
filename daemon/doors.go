package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/mirror"
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

func (d *Daemon) openDoors() error {
	d.mirror = mirror.New(mirror.Config{
		Gate: d.gate, Puller: d.puller, Origin: d.origin, Cache: d.cache,
		Default: d.cfg.Mirror.Default, Prefetch: d.cfg.Mirror.Prefetch,
		Through:   d.through,
		Upstreams: d.upstreams(), MaxStale: orNot(d.cfg.Tags.MaxStale), Log: d.log, Registry: d.registry,
	})
	var err error
	if d.webhookToken, err = d.cfg.Webhook.Token(); err != nil {
		return err
	}
	if d.mirrorLn, err = d.listen("mirror.listen", d.cfg.Mirror.Listen); err != nil {
		return err
	}
	d.adminLn, err = d.listen("admin.listen", d.cfg.Admin.Listen)
	return err
}

// listen opens a door; without an address there is none.
func (d *Daemon) listen(key, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use by another process: stop it, or set %s to another port: %w", key, addr, key, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	d.opened(func() error {
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return ln, nil
}

// door is a listener with its server.
type door struct {
	server *http.Server
	ln     net.Listener
	// hurry ends what its requests wait for, when all that is left is to stop.
	hurry context.CancelFunc
}

func (o door) serve() error {
	if err := o.server.Serve(o.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// doors returns the doors, in the order in which they are closed.
func (d *Daemon) doors() []door {
	var doors []door
	if d.mirrorLn != nil {
		doors = append(doors, door{d.mirror.Server(), d.mirrorLn, func() {}})
	}
	if d.adminLn != nil {
		ctx, cancel := context.WithCancel(context.Background())
		doors = append(doors, door{&http.Server{
			Handler: d.adminHandler(), ReadHeaderTimeout: 10 * time.Second,
			BaseContext: func(net.Listener) context.Context { return ctx },
		}, d.adminLn, cancel})
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
		Offline: d.origin.Offline, SetOffline: d.setOffline,
		Log: d.log,
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
func (d *Daemon) drain(doors []door) {
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	d.log.Info("draining", "within", d.cfg.Drain)
	d.mirror.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.Drain)
	defer cancel()
	for _, o := range doors {
		o.hurry()
		if err := o.server.Shutdown(ctx); err != nil {
			d.log.Warn("requests were cut off: they took longer than drain allows", "addr", o.ln.Addr().String())
		}
	}
	closeAll(doors)
}

func closeAll(doors []door) {
	for _, o := range doors {
		o.hurry()
		_ = o.server.Close() // the listener's error is nobody's concern now
	}
}
