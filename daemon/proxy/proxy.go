package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/elazarl/goproxy"
	"github.com/prometheus/client_golang/prometheus"
)

// Limits of a Proxy. See doc.go.
const (
	// headersWithin bounds how long a client may take for the headers of a
	// request and for its side of a TLS handshake.
	headersWithin = 10 * time.Second
	// dialWithin bounds a connect to a host, the look-up of its name included.
	dialWithin = 10 * time.Second
	// maxHeader is the most that the headers of a request may have, in bytes.
	maxHeader = 64 << 10
	// idleWithin is how long nothing may move through a tunnel in either
	// direction.
	idleWithin = 10 * time.Minute
	// patience is how long a client may not take what it is sent, or not send
	// what it has announced.
	patience = 2 * time.Minute
	// keepWithin is how long an intercepted connection is kept for the next
	// request.
	keepWithin = 2 * time.Minute
	// yieldAfter is how long a connection must have been idle to be closed in
	// favour of a new one when there are MaxTunnels.
	yieldAfter = time.Minute
	// drainIdle takes the place of idleWithin while the proxy is draining.
	drainIdle = 2 * time.Second
	// expirySoon is how long before its end a CA is warned of.
	expirySoon = 60 * 24 * time.Hour
)

// Config is what a Proxy needs. CA, Upstream and Handler must be set.
type Config struct {
	// CA signs the certificates that clients of intercepted hosts see.
	CA *CA
	// Upstream returns the name of the configured upstream that a host is of.
	// The host is a name or an address in lower case with its port, but for the
	// port 443, which is left out. It must not block.
	Upstream func(host string) (name string, ok bool)
	// Intercept are the patterns of the hosts, of those that Upstream knows,
	// that are intercepted: a host, or "*." and a domain for all hosts below it,
	// with a port or for every port. Default: all hosts that Upstream knows.
	// What is known and not intercepted is tunnelled, whatever its port and
	// address are.
	Intercept []string
	// Handler returns what answers the GET and HEAD requests for manifests and
	// blobs of an upstream, and for /v2/ when the registry does not. The URL of
	// a request is without a host. Handing a request and its writer to
	// untouched, before anything was written, sends it to the registry as it
	// came.
	Handler func(upstream string, untouched http.Handler) http.Handler
	// Transport returns how requests reach an upstream as they came: a Transport
	// of NewTransport with the upstream's own CAs. Default, also where it returns
	// nil: one with the system's.
	Transport func(upstream string) http.RoundTripper
	// Tunnel lets clients reach hosts that are not intercepted.
	Tunnel bool
	// Ports are those of such hosts that may be reached by CONNECT, beside 80
	// for plain http. Default: 443.
	Ports []int
	// Allow are networks that tunnels may lead to although they would be refused:
	// loopback, link-local, this machine's own addresses and such.
	Allow []netip.Prefix
	// MaxTunnels is how many connections there can be after their CONNECT,
	// intercepted ones included. Default: 512.
	MaxTunnels int
	// PerClient is how many of them one client can have. Default: 256.
	PerClient int
	// Log gets a line at debug level per connection. Nil is silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

// A Proxy is the door for clients that use the node as their HTTP(S) proxy. It
// is an http.Handler for the listener that they connect to. Serve must run
// beside it.
type Proxy struct {
	// immutable
	cfg     Config
	front   *goproxy.ProxyHttpServer // CONNECT
	leaves  *leaves
	tls     *tls.Config
	inner   *http.Server // what is inside of intercepted connections
	handed  *handover    // its listener
	guard   guard
	direct  *http.Transport // to upstreams, with the system's CAs
	guarded *http.Transport // to all other hosts
	lines   *lines
	metrics *metrics
	log     *slog.Logger

	ctx  context.Context // ends with Close; of what outlives the request that began it
	stop context.CancelFunc

	serving sync.WaitGroup
	// mu protects the fields below.
	mu     sync.Mutex
	closed bool
}

// New returns a Proxy. It panics if Registry has a proxy's metrics already.
func New(cfg Config) (*Proxy, error) {
	if cfg.CA == nil || cfg.Upstream == nil || cfg.Handler == nil {
		return nil, errors.New("proxy: CA, Upstream and Handler must be set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Ports) == 0 {
		cfg.Ports = []int{443}
	}
	if cfg.MaxTunnels == 0 {
		cfg.MaxTunnels = 512
	}
	if cfg.PerClient == 0 {
		cfg.PerClient = 256
	}
	cfg.Intercept = slices.Clone(cfg.Intercept)
	for i, pattern := range cfg.Intercept {
		if err := CheckPattern(pattern); err != nil {
			return nil, fmt.Errorf("intercept: %w", err)
		}
		cfg.Intercept[i] = strings.ToLower(pattern)
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log, metrics: newMetrics(cfg.Registry, cfg.CA), handed: newHandover(),
		leaves: newLeaves(cfg.CA), lines: newLines(cfg.MaxTunnels, cfg.PerClient), guard: guard{allow: cfg.Allow},
		direct: NewTransport(nil),
	}
	p.metrics.open(cfg.Registry, p.lines)
	p.guarded = newTransport(nil, p.guard.dialer())
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.tls = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Not h2: a blob that is cut would not look so to every client.
		NextProtos:     []string{"http/1.1"},
		GetCertificate: p.certificate,
	}
	p.inner = p.innerServer()
	p.front = p.newFront()
	p.warn()
	return p, nil
}

// warn says what is wrong with the CA, as far as it can be known now.
func (p *Proxy) warn() {
	for _, problem := range p.cfg.CA.Problems(time.Now()) {
		p.log.Warn("the proxy's CA needs attention", "problem", problem)
	}
	for _, pattern := range p.cfg.Intercept {
		host := strings.Replace(pattern, "*.", "any.", 1)
		if t, err := parseTarget(host, 443); err == nil && p.cfg.CA.covers(t.host) != nil {
			p.log.Warn("the proxy's CA was not made for a host that is to be intercepted, so connections to it are refused; make a new one with `shoal ca init --force`", "host", pattern)
		}
	}
}

// Server returns a server for the proxy with the limits that suit it. The
// caller gives it a listener and shuts it down.
func (p *Proxy) Server() *http.Server {
	return &http.Server{
		Handler:           p,
		ReadHeaderTimeout: headersWithin,
		IdleTimeout:       keepWithin,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
}

// Serve answers what is inside of intercepted connections until Shutdown or
// Close. It returns nil then.
func (p *Proxy) Serve() error {
	if err := p.inner.Serve(p.handed); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown refuses new connections, waits for the requests in intercepted ones
// and lets tunnels end once nothing has moved through them for 2 s. It returns
// the error of ctx if that ends before. Close has to be called after it.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.lines.drain()
	if err := p.inner.Shutdown(ctx); err != nil {
		return err
	}
	return p.lines.wait(ctx)
}

// Close ends all connections and waits until nothing of the proxy runs any
// more, but for Serve, which returns.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	err := p.inner.Close() // before its listener, or Serve would fail
	_ = p.handed.Close()   // which cannot fail; for deliver, if Serve has never run
	p.lines.closeAll()
	p.serving.Wait()
	p.direct.CloseIdleConnections()
	p.guarded.CloseIdleConnections()
	return err
}

// enter counts a request that Close waits for. It reports false if the proxy
// is closed.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.serving.Add(1)
	return true
}

// ServeHTTP answers what a client sends to its proxy.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		refuse(http.StatusServiceUnavailable, "the proxy is shutting down").answer(w)
		return
	}
	defer p.serving.Done()
	r.Header.Del("Proxy-Authorization") // nobody is asked for it, and it is not for the registry
	switch {
	case r.Method != http.MethodConnect:
		p.plain(w, r)
	case r.ProtoMajor != 1:
		refuse(http.StatusNotImplemented, "CONNECT is answered over HTTP/1.1 only").answer(w)
	default:
		p.front.ServeHTTP(&hijackable{ResponseWriter: w, lines: p.lines}, r)
	}
}

// plain answers a request that is not a CONNECT: one in plain http, with a whole
// URL.
func (p *Proxy) plain(w http.ResponseWriter, r *http.Request) {
	if !r.URL.IsAbs() || r.URL.Host == "" {
		refuse(http.StatusBadRequest, "this is a forward proxy: set it as HTTPS_PROXY, and address requests to the registry").answer(w)
		return
	}
	if r.URL.Scheme != "http" {
		refuse(http.StatusBadRequest, "the proxy takes requests for %.20q URLs by CONNECT only", r.URL.Scheme).answer(w)
		return
	}
	t, err := parseTarget(r.URL.Host, 80)
	if err != nil {
		refuse(http.StatusBadRequest, "%v", err).answer(w)
		return
	}
	to := p.route(t)
	to.scheme, to.own = "http", localAddr(r)
	if no := p.admit(to, 80); no != nil {
		p.metrics.connects.WithLabelValues(resultRefused).Inc()
		no.answer(w)
		return
	}
	p.answer(w, r, to)
}

// A route is where requests lead.
type route struct {
	target      target
	scheme      string // http or https
	upstream    string // that the target is of, or ""
	intercepted bool
	own         netip.AddrPort // that the client has reached the proxy at

	// A request to the registry that fails before there is an answer goes to
	// fallback, if not nil, as original.
	fallback http.Handler
	original *http.Request
}

// route says where a target leads.
func (p *Proxy) route(t target) route {
	to := route{target: t, scheme: "https"}
	var known bool
	if to.upstream, known = p.cfg.Upstream(t.name()); !known {
		to.upstream = ""
		return to
	}
	to.intercepted = len(p.cfg.Intercept) == 0 || slices.ContainsFunc(p.cfg.Intercept, t.matches)
	return to
}

// admit returns why nobody may go there, or nil. extra is a port that may be
// reached beside the configured ones.
func (p *Proxy) admit(to route, extra int) *refusal {
	switch {
	case to.intercepted:
		return nil
	case !p.cfg.Tunnel:
		return refuse(http.StatusForbidden, "%s is not a registry that this proxy serves, and it passes on nothing else (proxy.tunnel is off)", to.target)
	case to.upstream != "":
		return nil
	case !slices.Contains(p.cfg.Ports, int(to.target.port)) && int(to.target.port) != extra:
		return refuse(http.StatusForbidden, "the proxy does not connect to port %d (proxy.ports lists those that it does)", to.target.port)
	}
	if addr, err := netip.ParseAddr(to.target.host); err == nil {
		return p.guard.check(netip.AddrPortFrom(addr, to.target.port))
	}
	return nil
}

// localAddr returns the address that the client of a request has connected to,
// or the zero value if it has none, such as a socket of the file system.
func localAddr(r *http.Request) netip.AddrPort {
	a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return addrPort(a)
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
