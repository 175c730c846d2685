package rollout

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/report"
)

const (
	// upstream is the name that the registry has in the configurations.
	upstream = "registry.bench"

	// Ports, the same in every namespace.
	originPort = 5000
	mirrorPort = 7050
	peerPort   = 7051
	gossipPort = 7052
	adminPort  = 7053

	// upWithin is how long all processes together may take to be one fleet; a
	// hundred of them on a small machine take most of it.
	upWithin = 2 * time.Minute
	// answerWithin is how long one process may take to say what it is doing. A
	// stopped one never does.
	answerWithin = 2 * time.Second
	// startAtOnce is how many processes start at a time: each takes a core.
	startAtOnce = 4
)

// A lab is a bed of processes, each in a network namespace.
type lab struct {
	// immutable
	o       Options
	net     *netns.Lab
	host    *netns.Host // of the origin
	program string      // of the registry
	content string      // the registry's folder
	origin  *originServer
	idle    func() // ends the proxy's idle connections
	secret  string // file
	places  []place
	nodes   []*node // the daemons, and the scheduler last if there is one

	// mu protects the field below.
	mu       sync.Mutex
	registry *process.Process
}

// startLab makes the network and starts everything in it. What was made before
// an error is gone when it returns.
func startLab(ctx context.Context, o Options, dir string, img *image) (_ *lab, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("it took longer than %s", upWithin))
	defer cancel()
	l := &lab{o: o, places: o.places(), secret: filepath.Join(dir, "secret"), idle: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.net, err = netns.New(netns.Options{Zones: max(o.Zones, 1), CrossZoneRate: o.CrossZoneRate, Delay: o.Delay, Congestion: o.Congestion, Log: o.Log}); err != nil {
		return nil, err
	}
	if err := l.startOrigin(ctx, dir, img); err != nil {
		return nil, fmt.Errorf("start the origin: %w", err)
	}
	if o.Mode == report.ModeDirect {
		return l, errors.Join(l.makeHosts(), l.reach(ctx))
	}
	if err := os.WriteFile(l.secret, []byte(rand.Text()), 0o600); err != nil {
		return nil, err
	}
	if err := l.makeNodes(dir); err != nil {
		return nil, err
	}
	if err := l.startNodes(ctx); err != nil {
		return nil, err
	}
	return l, l.reach(ctx)
}

// reach returns once every host has reached the origin. The kernel takes up to
// a second until a new port of a bridge passes packets, and what is lost
// meanwhile is sent again after a second more.
func (l *lab) reach(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range l.nodes {
		g.Go(func() error {
			c, err := n.host.Dial(ctx, "tcp", l.at(l.host, originPort))
			if err != nil {
				return fmt.Errorf("%s does not reach the origin: %w", n.is, err)
			}
			return c.Close()
		})
	}
	return g.Wait()
}

// startOrigin starts the registry and, on its link, the proxy that counts.
func (l *lab) startOrigin(ctx context.Context, dir string, img *image) (err error) {
	if l.program, err = findRegistry(l.o.Registry); err != nil {
		return err
	}
	l.content = filepath.Join(dir, "registry")
	if l.host, err = l.net.Host("origin", 0, netns.Link{Up: l.o.OriginRate, Down: l.o.OriginRate}); err != nil {
		return err
	}
	if err := l.startRegistry(ctx); err != nil {
		return err
	}
	t := newTransport(l.host.Dial)
	defer t.CloseIdleConnections()
	if err := img.push(ctx, &http.Client{Transport: t}, "http://"+registryAt); err != nil {
		return err
	}
	ln, err := l.host.Listen(ctx, "tcp", l.at(l.host, originPort))
	if err != nil {
		return err
	}
	var proxy http.Handler
	proxy, l.idle = newProxy(l.host.Dial, l.o.Log)
	l.origin = serve(ln, proxy, img, nil, l.o.Log)
	return nil
}

func (l *lab) startRegistry(ctx context.Context) error {
	p, err := startRegistry(ctx, l.program, l.content, l.host.Start)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.registry = p
	return nil
}

// at returns a host's address with a port.
func (l *lab) at(h *netns.Host, port uint16) string {
	return netip.AddrPortFrom(h.Addr(), port).String()
}

// makeHosts makes a host for each node, without a process.
func (l *lab) makeHosts() error {
	for _, p := range l.places {
		h, err := l.net.Host(p.name, p.zone, netns.Link{Up: p.rate, Down: p.rate})
		if err != nil {
			return err
		}
		l.nodes = append(l.nodes, &node{is: p.name, host: h})
	}
	return nil
}

// makeNodes makes a host for each member and says how it is started.
func (l *lab) makeNodes(dir string) error {
	if err := l.makeHosts(); err != nil {
		return err
	}
	join := l.nodes[0]
	if l.o.Mode == report.ModeShoal {
		h, err := l.net.Host(targetScheduler, 0, netns.Link{Up: l.o.SeedRate, Down: l.o.SeedRate})
		if err != nil {
			return err
		}
		join = &node{is: targetScheduler, host: h}
		l.nodes = append(l.nodes, join)
	}
	for i, n := range l.nodes {
		log, err := l.log(n.is)
		if err != nil {
			return err
		}
		n.options = process.NodeOptions{
			Name: n.is, Binary: l.o.Binary, Command: "daemon", Start: n.host.Start, Dial: n.host.Dial,
			Args: l.args(n, filepath.Join(dir, n.is)),
		}
		if log != nil { // an interface with a nil in it is not nil
			n.log, n.options.Log = log, log
		}
		zone := 0
		if i < len(l.places) {
			zone = l.places[i].zone
			n.options.Args = append(n.options.Args, "--mirror.listen", "127.0.0.1:"+strconv.Itoa(mirrorPort))
		} else {
			n.options.Command = "scheduler"
		}
		if z := l.o.zoneName(zone); z != "" {
			n.options.Args = append(n.options.Args, "--zone", z)
		}
		if n != join {
			n.options.Args = append(n.options.Args, "--gossip.join", l.at(join.host, gossipPort))
		}
	}
	return nil
}

// args are the flags that all members have.
func (l *lab) args(n *node, data string) []string {
	return []string{
		"--data", data, "--drain", "1s", "--log.level", l.o.LogLevel,
		"--peer.listen", l.at(n.host, peerPort), "--gossip.listen", l.at(n.host, gossipPort),
		"--admin.listen", "127.0.0.1:" + strconv.Itoa(adminPort),
		"--peer.security", l.o.Security, "--peer.congestion", l.o.members, "--gossip.secretFile", l.secret,
		"--upstreams", fmt.Sprintf("{%s: {url: %q}}", upstream, "http://"+l.at(l.host, originPort)),
		"--mirror.default", upstream,
	}
}

// log opens the file that gets what a process prints; nil if none is kept.
func (l *lab) log(name string) (*os.File, error) {
	if l.o.Logs == "" {
		return nil, nil
	}
	if err := os.MkdirAll(l.o.Logs, 0o755); err != nil {
		return nil, fmt.Errorf("--logs: %w", err)
	}
	f, err := os.Create(filepath.Join(l.o.Logs, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("--logs: %w", err)
	}
	return f, nil
}

// startNodes starts all members and returns when they are one fleet. The one
// that the others join is started first.
func (l *lab) startNodes(ctx context.Context) error {
	first := l.nodes[len(l.nodes)-1]
	if l.o.Mode != report.ModeShoal {
		first = l.nodes[0]
	}
	if err := first.start(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(startAtOnce)
	for _, n := range l.nodes {
		if n != first {
			g.Go(func() error { return n.start(gctx) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var ps []*process.Node
	for _, n := range l.nodes {
		ps = append(ps, n.process)
	}
	return process.Converge(ctx, ps...)
}

func (l *lab) client(i int) (string, dialer) {
	n := l.nodes[i]
	if l.o.Mode == report.ModeDirect {
		return "http://" + l.at(l.host, originPort), n.host.Dial
	}
	return "http://127.0.0.1:" + strconv.Itoa(mirrorPort), n.host.Dial
}

func (l *lab) members() []member {
	if l.o.Mode == report.ModeDirect {
		return nil
	}
	out := make([]member, len(l.nodes))
	for i, n := range l.nodes {
		out[i] = n
	}
	return out
}

func (l *lab) sent() int64 { return l.origin.sent.Load() }

func (l *lab) inject(ctx context.Context, f Fault, final bool) error {
	if f.Target == targetOrigin {
		return l.injectOrigin(ctx, f)
	}
	n, err := l.target(ctx, f)
	if err != nil {
		return err
	}
	return n.inject(ctx, f, final)
}

// target returns the member that a fault is for.
func (l *lab) target(ctx context.Context, f Fault) (*node, error) {
	if i, ok := f.node(); ok {
		return l.nodes[i], nil
	}
	if f.Target == targetScheduler {
		return l.nodes[len(l.nodes)-1], nil
	}
	return l.owner(ctx)
}

// owner returns the member that schedules a layer which is being pulled.
func (l *lab) owner(ctx context.Context) (*node, error) {
	for _, n := range l.nodes {
		s, err := n.status(ctx)
		if err != nil {
			continue // the next one may know
		}
		for _, p := range s.Pulls {
			for _, m := range s.Members {
				if m.ID != p.Owner {
					continue
				}
				for _, o := range l.nodes {
					if o.is == m.Name {
						return o, nil
					}
				}
			}
		}
	}
	return nil, errors.New("nothing is being pulled that has an owner")
}

func (l *lab) injectOrigin(ctx context.Context, f Fault) error {
	l.mu.Lock()
	registry := l.registry
	l.mu.Unlock()
	switch f.Action {
	case "cut":
		return l.host.Cut()
	case "heal":
		return l.host.Heal()
	case "stop":
		return registry.Signal(syscall.SIGSTOP)
	case "cont":
		return registry.Signal(syscall.SIGCONT)
	}
	registry.Kill()
	if f.Action == "restart" {
		return l.startRegistry(ctx)
	}
	return nil
}

// close ends all processes, with SIGKILL since their data goes too, and removes
// the network.
func (l *lab) close() error {
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.close())
	}
	if l.origin != nil {
		errs = append(errs, l.origin.close())
	}
	l.idle()
	if l.registry != nil {
		l.registry.Kill()
	}
	if l.net != nil {
		errs = append(errs, l.net.Close())
	}
	return errors.Join(errs...)
}
