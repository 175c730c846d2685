package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/admin"
)

const (
	// upstream is the name that the registry has in the daemons' configuration.
	upstream = "registry.demo"
	// upWithin is how long all processes together may take to start.
	upWithin = 20 * time.Second
	// grace is how long a process may take to end.
	grace = 10 * time.Second
)

// A fleet is the demo's processes.
type fleet struct {
	registryd *process.Process
	origin    string          // URL of registryd
	scheduler *process.Node   // the seed
	daemons   []*process.Node // in order of their names
}

// nodes returns the members of the fleet, the scheduler last.
func (f *fleet) nodes() []*process.Node {
	if f.scheduler == nil {
		return f.daemons
	}
	return append(f.daemons[:len(f.daemons):len(f.daemons)], f.scheduler)
}

// start starts the registry, the scheduler and the daemons, with their content
// below dir, and returns when they are one fleet. What was started before an
// error is in the fleet that it returns; the caller stops it in any case.
func start(ctx context.Context, o options, dir string) (*fleet, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("it took longer than %s", upWithin))
	defer cancel()
	f := &fleet{}
	var log io.Writer
	if o.logs {
		log = &lockedWriter{w: os.Stderr}
	}
	if err := f.startRegistry(ctx, o, dir, log); err != nil {
		return f, err
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()), 0o600); err != nil {
		return f, err
	}
	node := func(command, name, join string) (*process.Node, error) {
		args := []string{
			"--data", filepath.Join(dir, name), "--gossip.secretFile", secret, "--drain", "2s",
			"--upstreams", fmt.Sprintf("{%s: {url: %q}}", upstream, f.origin), "--mirror.default", upstream,
		}
		if join != "" {
			args = append(args, "--gossip.join", join)
		}
		if o.logs {
			args = append(args, "--log.level", "debug")
		}
		return process.StartNode(ctx, process.NodeOptions{Name: name, Binary: o.shoal, Command: command, Args: args, Log: log})
	}
	var err error
	if f.scheduler, err = node("scheduler", "scheduler", ""); err != nil {
		return f, err
	}
	for i := range o.nodes {
		n, err := node("daemon", "node-"+strconv.Itoa(i+1), f.scheduler.Gossip)
		if err != nil {
			return f, err
		}
		f.daemons = append(f.daemons, n)
	}
	return f, process.Converge(ctx, f.nodes()...)
}

func (f *fleet) startRegistry(ctx context.Context, o options, dir string, log io.Writer) error {
	p, err := process.Start(process.Options{
		Name: "registry", Path: o.registryd, Log: log,
		Args: []string{"-listen", "127.0.0.1:0", "-dir", filepath.Join(dir, "registry"), "-rate", strconv.FormatInt(o.rate, 10)},
	})
	if err != nil {
		return err
	}
	f.registryd = p
	addr, err := p.Line(ctx, func(line string) bool { _, _, err := net.SplitHostPort(line); return err == nil })
	f.origin = "http://" + addr
	return err
}

// watch returns a context that ends when ctx does or when a process has died,
// with the reason as its cause.
func (f *fleet) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	for _, p := range f.processes() {
		wg.Go(func() {
			select {
			case <-p.Done():
				cancel(p.Died())
			case <-ctx.Done():
			}
		})
	}
	return ctx, func() {
		cancel(context.Canceled)
		wg.Wait()
	}
}

func (f *fleet) processes() []*process.Process {
	var ps []*process.Process
	for _, n := range f.nodes() {
		ps = append(ps, n.Process)
	}
	if f.registryd != nil {
		ps = append(ps, f.registryd)
	}
	return ps
}

// stop ends all processes. The error says which of them did not end as they
// should.
func (f *fleet) stop() error {
	ps := f.processes()
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() { errs[i] = p.Stop(grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// figures are what the registry and the members have counted.
type figures struct {
	origin registry.Counts
	nodes  []admin.Bytes // in the order of fleet.nodes
}

// figures asks the registry and the members.
func (f *fleet) figures(ctx context.Context) (figures, error) {
	var out figures
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.origin+"/count", nil)
	if err != nil {
		return out, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out.origin); err != nil {
		return out, fmt.Errorf("read the registry's count: %w", err)
	}
	for _, n := range f.nodes() {
		s, err := n.Status(ctx)
		if err != nil {
			return out, err
		}
		out.nodes = append(out.nodes, s.Bytes)
	}
	return out, nil
}

// since returns what has been counted since before.
func (f figures) since(before figures) figures {
	f.origin.BlobBytes -= before.origin.BlobBytes
	f.origin.ManifestBytes -= before.origin.ManifestBytes
	nodes := make([]admin.Bytes, len(f.nodes))
	for i, n := range f.nodes {
		nodes[i] = n.Minus(before.nodes[i])
	}
	f.nodes = nodes
	return f
}

// left is what has left the registry, in bytes.
func (f figures) left() int64 { return f.origin.BlobBytes + f.origin.ManifestBytes }

// sum adds up what the members say.
func (f figures) sum() admin.Bytes {
	var s admin.Bytes
	for _, n := range f.nodes {
		s = s.Plus(n)
	}
	return s
}

// A lockedWriter lets several processes write to one place.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
