package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

const (
	// alpn is the protocol that both ends of the data plane name in TLS.
	alpn = "http/1.1"
	// drainWithin is how long answers under way may go on when Run ends.
	drainWithin = time.Second
)

// Config says how a Host listens and what it serves.
type Config struct {
	// Listen is the host:port of the peer listener, such as ":7051"; port 0
	// takes a free one.
	Listen string
	// Advertise is the host, an IP address or a name, by which the others
	// reach this node. If it is empty, it is the address of Listen, or
	// 127.0.0.1 if that is every address of the machine.
	Advertise string
	// Dir is where the identity key is kept, in the file identity.key.
	Dir string
	// Insecure is peer.security: none. Chunks are then served and asked for in
	// plain HTTP, which sendfile can serve, to whoever has the IP address of a
	// member. That is weak: it trusts every program on a member's machine and
	// everybody who can take a member's address. Control streams are always
	// encrypted and their ends proven.
	Insecure bool
	// Congestion is TCP's congestion control for what this node sends to those that
	// connect to it: a name of the kernel's, CongestionAuto, which is better than
	// cubic for chunks, or CongestionSystem or "" for the system's.
	Congestion string
	// Cache is what is served.
	Cache *cache.Cache
	// StallTimeout is how long a Source waits for a byte; zero is
	// DefaultStallTimeout.
	StallTimeout time.Duration
	// Allowed reports whether a peer ID may be a member at all; nil lets in all
	// that SetMembers names. It is asked there.
	Allowed func(id string) bool
	// Name returns what peers call a blob and, if they hand it out only for a
	// capability, that; nil calls every blob by its digest. It is called for each
	// request of this node.
	Name func(d proto.Digest) (name proto.Digest, capability string)
	// Real returns the blob that a peer means by a name, or false if there is no
	// such blob for it: it is told the same as of a blob that is not here. asker
	// is the peer ID that it has proven, or empty with Insecure; capability is
	// what it sent. Nil: every name is the digest. It is called for each request
	// of a peer, and must not block.
	Real func(name proto.Digest, asker, capability string) (proto.Digest, bool)
	// Upload waits until some of the next want bytes may be sent to a peer, and
	// returns how many, at least 1. It fails when ctx ends. Nil is no limit.
	Upload func(ctx context.Context, want int64) (int64, error)
	// Log gets what happens; nil is nowhere.
	Log *slog.Logger
	// Registry gets the metrics; nil is nobody.
	Registry prometheus.Registerer
}

// A Host is this process among its peers: its identity, the chunks that it
// gives, the chunks that it asks for, and the control streams.
type Host struct {
	id        libp2ppeer.ID
	key       crypto.PrivKey
	identity  *libp2ptls.Identity
	addr      string
	insecure  bool
	stall     time.Duration
	log       *slog.Logger
	allows    func(id string) bool
	name      func(d proto.Digest) (proto.Digest, string)
	members   *members
	front     *front
	http      *http.Server
	control   *controlPlane
	transport *http.Transport
	lanes     lanes
	dialer    net.Dialer
	buffers   sync.Pool // of *[]byte, copyBuffer long

	ctx    context.Context // ends when the Host closes
	cancel context.CancelFunc
	tasks  sync.WaitGroup // dials

	mu sync.Mutex
	// mu protects the fields below.
	running bool
	closed  bool
}

// New loads or makes the identity and opens the listener. What connects waits
// until Run. A Host that is never run must be closed.
func New(cfg Config) (*Host, error) {
	if cfg.Cache == nil {
		return nil, errors.New("peer: no cache")
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	key, id, err := loadIdentity(cfg.Dir, log)
	if err != nil {
		return nil, err
	}
	identity, err := libp2ptls.NewIdentity(key)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", id, err)
	}
	h := &Host{
		id: id, key: key, identity: identity, insecure: cfg.Insecure, log: log,
		members: newMembers(),
		allows:  cfg.Allowed,
		name:    cfg.Name,
		stall:   cfg.StallTimeout,
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }},
	}
	if h.stall == 0 {
		h.stall = DefaultStallTimeout
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.transport = newTransport(h)
	h.lanes.of = make(map[string]*lane)
	ln, err := listen(cfg.Listen)
	if err != nil {
		h.cancel()
		return nil, err
	}
	if err := choose(ln, cfg.Congestion, log); err != nil {
		h.cancel()
		return nil, errors.Join(err, ln.Close())
	}
	h.front = newFront(ln, h.insecure, h.members, h.secure, log)
	if h.addr, err = advertised(cfg.Advertise, ln.Addr().(*net.TCPAddr), log); err == nil {
		if err = h.newServer(cfg); err == nil {
			h.control, err = newControlPlane(key, id, h.front, log)
		}
	}
	if err != nil {
		h.cancel()
		return nil, errors.Join(err, ln.Close())
	}
	return h, nil
}

// listen opens the peer listener.
func listen(addr string) (*net.TCPListener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("peer.listen: port %s is in use: end the process that has it, or choose another port: %w", port, err)
	case err != nil:
		return nil, fmt.Errorf("peer.listen: %w", err)
	}
	return ln.(*net.TCPListener), nil
}

// advertised returns the host:port that others reach the listener by.
func advertised(host string, ln *net.TCPAddr, log *slog.Logger) (string, error) {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return "", fmt.Errorf("advertise: %q must be a host without a port", host)
	}
	if host == "" {
		host = ln.IP.String()
		if ln.IP.IsUnspecified() {
			host = "127.0.0.1"
			log.Warn("no address to advertise is given: only peers on this machine can reach this node", "advertise", host)
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(ln.Port)), nil
}

// newServer makes the server of the data plane and the metrics.
func (h *Host) newServer(cfg Config) error {
	s := &server{
		cache: cfg.Cache, log: h.log, allowed: h.allowed, within: sendWithin, upload: cfg.Upload, real: cfg.Real,
		served: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_peer_served_bytes_total",
			Help: "Bytes of blobs that this node has sent to its peers.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_peer_requests_total",
			Help: "Requests of peers for chunks, by the status code of the answer.",
		}, []string{"code"}),
	}
	collectors := []prometheus.Collector{s.served, s.requests,
		h.gauge("data", kindTLS, kindPlain), h.gauge("control", kindControl)}
	for i, c := range collectors {
		if cfg.Registry == nil {
			break
		}
		if err := cfg.Registry.Register(c); err != nil {
			for _, done := range collectors[:i] {
				cfg.Registry.Unregister(done)
			}
			return fmt.Errorf("peer metrics: %w", err)
		}
	}
	h.http = &http.Server{
		Handler:           s,
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: headerWithin, // of the TLS handshake too
		IdleTimeout:       serverIdle,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return h.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, guestKey{}, h.front.guest(c.RemoteAddr()))
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if g := h.front.guest(c.RemoteAddr()); state == http.StateClosed && g != nil {
				h.front.leave(g)
			}
		},
	}
	return nil
}

// guestKey is where a request's context has its *guest.
type guestKey struct{}

func (h *Host) gauge(name string, kinds ...kind) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "shoal_peer_connections",
		Help:        "Connections that peers have opened to this node, by what they carry.",
		ConstLabels: prometheus.Labels{"kind": name},
	}, func() float64 { return float64(h.front.open(kinds...)) })
}

// secure returns the TLS end of g's connection: the other end must prove to be
// a member before it can say anything else.
func (h *Host) secure(g *guest) net.Conn {
	config, keys := h.identity.ConfigForPeer("")
	config.NextProtos = []string{alpn}
	proves := config.VerifyPeerCertificate
	config.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		if err := proves(raw, chains); err != nil {
			return err
		}
		id, err := libp2ppeer.IDFromPublicKey(<-keys)
		if err != nil {
			return err
		}
		if !h.members.admit(h.ctx, id) {
			h.log.Info("a stranger asked for chunks", "peer", id, "address", g.addr)
			return fmt.Errorf("%s is not a member", id)
		}
		g.id, g.asker = id, id.String()
		if !h.front.proven(g, g.asker, h.front.most) {
			h.log.Warn("a connection was refused", "peer", id, "error", errTooMany)
			return errTooMany
		}
		return nil
	}
	return tls.Server(g.conn, config)
}

// allowed reports whether the sender of r is still a member.
func (h *Host) allowed(r *http.Request) bool {
	g, _ := r.Context().Value(guestKey{}).(*guest)
	switch {
	case g == nil:
		return false
	case r.TLS != nil:
		return h.members.has(g.id)
	}
	return h.insecure && h.members.hasIP(g.addr.Addr())
}

// Sign signs b with the identity key, so that others can check by the peer ID
// alone that it is this node's word. What is signed should begin with what it is
// for.
func (h *Host) Sign(b []byte) ([]byte, error) { return h.key.Sign(b) }

// ID returns this node's peer ID in text form.
func (h *Host) ID() string { return h.id.String() }

// Addr returns the host:port by which others reach this node.
func (h *Host) Addr() string { return h.addr }

// SetMembers says who may come in from now on, of those that Config.Allowed
// lets in. The control connections of those who have gone are closed, and their
// next requests refused. It does not block.
func (h *Host) SetMembers(ms []proto.Member) {
	if h.allows != nil {
		ms = slices.DeleteFunc(slices.Clone(ms), func(m proto.Member) bool { return !h.allows(m.ID) })
	}
	for _, m := range h.members.set(ms, h.insecure) {
		h.log.Warn("a member can't be let in: its ID must be a peer ID, "+
			"and with peer.security none its address an IP address", "peer", m.ID, "name", m.Name, "address", m.Addr)
	}
	h.control.part()
}

// HandleControl sets what is done with control streams that others open; call
// it before Run. f gets the other end's proven peer ID. It is called in a
// goroutine of its own for each stream, which is closed when f returns. When
// Run ends, ctx ends and reads fail; f can still write for a second and must
// return.
func (h *Host) HandleControl(f func(ctx context.Context, from string, s io.ReadWriteCloser)) {
	h.control.handle(ControlProtocol, f)
}

// HandleJobs sets what is done with job streams that others open, as
// HandleControl does for control streams; call it before Run.
func (h *Host) HandleJobs(f func(ctx context.Context, from string, s io.ReadWriteCloser)) {
	h.control.handle(JobProtocol, f)
}

// begin counts one more task, unless the Host is closed.
func (h *Host) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.tasks.Add(1)
	}
	return !h.closed
}

// Run serves until ctx ends, then gives answers under way and control streams
// a second to end, closes the Host and returns nil. It returns an error if the
// listener can't be used. A Host runs once.
func (h *Host) Run(ctx context.Context) error {
	h.mu.Lock()
	usable := !h.running && !h.closed
	h.running = true
	h.mu.Unlock()
	if !usable {
		return errors.New("peer: a Host runs once")
	}
	if err := h.control.listen(); err != nil {
		return errors.Join(fmt.Errorf("peer: %w", err), h.shut())
	}
	ended := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() { ended <- h.front.run(h.ctx) })
	serving.Go(func() { ended <- h.http.Serve(h.front.data) })
	var err error
	select {
	case <-ctx.Done():
	case <-h.ctx.Done():
	case err = <-ended:
		err = fmt.Errorf("peer: the listener ended: %w", err)
	}
	err = errors.Join(err, h.shut())
	serving.Wait()
	return err
}

// Close releases what New has opened. It is for a Host that is never run; one
// that runs ends when its context does.
func (h *Host) Close() error {
	h.mu.Lock()
	running := h.running
	h.running = true
	h.mu.Unlock()
	if running {
		h.cancel()
		return nil
	}
	return h.shut()
}

// shut takes everything down and waits for it.
func (h *Host) shut() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	err := h.front.ln.Close()
	drain, cancel := context.WithTimeout(context.Background(), drainWithin)
	defer cancel()
	var stopping sync.WaitGroup
	var controlErr error
	stopping.Go(func() { controlErr = h.control.stop() })
	stopping.Go(func() {
		if h.http.Shutdown(drain) != nil {
			_ = h.http.Close()
		}
	})
	stopping.Wait()
	h.transport.CloseIdleConnections()
	h.tasks.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, controlErr)
}
