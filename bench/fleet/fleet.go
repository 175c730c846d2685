package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// Upstream is the name of the fleet's upstream registry.
const Upstream = "origin.test"

// convergeWithin is how long the nodes may take to find each other.
const convergeWithin = 30 * time.Second

// Options say what fleet to start.
type Options struct {
	// Nodes is the number of daemons.
	Nodes int
	// Scheduler adds a scheduler process.
	Scheduler bool
	// Origin is the URL of the registry that Upstream stands for.
	Origin string
	// Dir holds the nodes' data directories, made at need.
	Dir string
	// Configure, if set, changes the configuration of node i before it starts;
	// the scheduler is node -1.
	Configure func(i int, c *daemon.Config)
	// Log gets all nodes' logs. Nil is nowhere.
	Log *slog.Logger
}

// Fleet is a running fleet.
type Fleet struct {
	Nodes     []*Node
	Scheduler *Node // nil without one

	options Options
	secret  string
}

// Node is one member of a Fleet.
type Node struct {
	*daemon.Daemon
	// Config is what it was started with.
	Config daemon.Config

	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Start starts a fleet and returns when every node knows every other and is
// connected to all schedulers. The caller stops it.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	f := &Fleet{options: o, secret: filepath.Join(o.Dir, "secret")}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(f.secret, []byte("the secret of a test fleet"), 0o600); err != nil {
		return nil, err
	}
	var err error
	if o.Scheduler {
		if f.Scheduler, err = f.StartNode(-1); err != nil {
			return nil, errors.Join(err, f.Stop())
		}
	}
	for i := range o.Nodes {
		n, err := f.StartNode(i)
		if err != nil {
			return nil, errors.Join(err, f.Stop())
		}
		f.Nodes = append(f.Nodes, n)
	}
	if err := f.Converge(ctx); err != nil {
		return nil, errors.Join(err, f.Stop())
	}
	return f, nil
}

// StartNode starts node i of the options, -1 for the scheduler, joining those
// that run. It is for nodes that come later or come back; the caller puts it
// where it belongs.
func (f *Fleet) StartNode(i int) (*Node, error) {
	cfg := daemon.Default()
	cfg.Name = fmt.Sprintf("node-%d", i)
	if i < 0 {
		cfg = daemon.DefaultScheduler()
		cfg.Name = "scheduler"
	}
	cfg.Data = filepath.Join(f.options.Dir, cfg.Name)
	cfg.Drain = time.Second
	cfg.Peer.Listen, cfg.Gossip.Listen, cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", ""
	if i >= 0 {
		cfg.Mirror.Listen = "127.0.0.1:0"
	}
	cfg.Gossip.SecretFile = f.secret
	for _, n := range f.members() {
		cfg.Gossip.Join = append(cfg.Gossip.Join, n.GossipAddr())
		if len(cfg.Gossip.Join) == 2 {
			break
		}
	}
	cfg.Upstreams = map[string]daemon.Upstream{Upstream: {URL: f.options.Origin}}
	cfg.Mirror.Default = Upstream
	if f.options.Configure != nil {
		f.options.Configure(i, &cfg)
	}
	log := f.options.Log
	if log != nil {
		log = log.With("at", cfg.Name)
	}
	d, err := daemon.New(cfg, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{Daemon: d, Config: cfg, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(n.done)
		n.err = d.Run(ctx)
	}()
	return n, nil
}

// members returns the nodes that have been started, the scheduler first.
func (f *Fleet) members() []*Node {
	var out []*Node
	if f.Scheduler != nil {
		out = append(out, f.Scheduler)
	}
	return append(out, f.Nodes...)
}

// alive returns those of the members that run.
func (f *Fleet) alive() []*Node {
	var out []*Node
	for _, n := range f.members() {
		select {
		case <-n.done:
		default:
			out = append(out, n)
		}
	}
	return out
}

// Converge waits until the nodes that run know exactly each other and are
// ready.
func (f *Fleet) Converge(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, convergeWithin)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond) // as somebody outside would: by asking
	defer tick.Stop()
	for {
		err := f.apart()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fleet did not come together: %w", err)
		case <-tick.C:
		}
	}
}

// apart says what is missing until the fleet has come together.
func (f *Fleet) apart() error {
	alive := f.alive()
	for _, n := range alive {
		if err := n.Ready(); err != nil {
			return fmt.Errorf("%s is %w", n.Config.Name, err)
		}
		if got := len(n.Status().Members); got != len(alive) {
			return fmt.Errorf("%s knows %d members of %d", n.Config.Name, got, len(alive))
		}
	}
	return nil
}

// Owner returns the node that schedules a digest, as node 0 sees it.
func (f *Fleet) Owner(d proto.Digest) *Node {
	id := f.Nodes[0].Owner(d)
	for _, n := range f.members() {
		if n.Self().ID == id {
			return n
		}
	}
	return nil
}

// Stop stops the node as SIGTERM would and returns what its Run returned.
func (n *Node) Stop() error {
	n.cancel()
	<-n.done
	return n.err
}

// MirrorURL returns the URL of the node's mirror.
func (n *Node) MirrorURL() string { return "http://" + n.MirrorAddr() }

// Stop stops all nodes together.
func (f *Fleet) Stop() error {
	var wg sync.WaitGroup
	all := f.members()
	errs := make([]error, len(all))
	for i, n := range all {
		wg.Go(func() { errs[i] = n.Stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
