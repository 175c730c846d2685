package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"

	"github.com/shoal-project/shoal/proto"
)

const (
	// ControlProtocol is the libp2p protocol of the control streams. What is
	// said on them is proto's matter, which settles a version of its own.
	ControlProtocol = "/shoal/schedule/1"
	// JobProtocol is the libp2p protocol of the streams on which one node asks
	// another to bring images. What is said on them is package jobs's matter.
	JobProtocol = "/shoal/job/1"

	// negotiateWithin bounds agreeing on the protocol of a new stream.
	negotiateWithin = 3 * time.Second
	// openTries is how often a stream is tried to open while connections turn
	// out to be dead.
	openTries = 3
	// lingerWithin is how long a stream that is closed here waits for the
	// other end's close, which says that the last bytes have arrived.
	lingerWithin = time.Second
	// maxStreams bounds the streams that one connection brings in. A node
	// keeps one stream to a scheduler.
	maxStreams = 32
	// streamWindow is a stream's receive window at most, in bytes. It holds a
	// full report of a node; libp2p's 16 MiB are for bulk data.
	streamWindow = 1 << 20
)

// A handler does what is asked on a stream that came in.
type handler func(ctx context.Context, from string, s io.ReadWriteCloser)

// controlPlane is the libp2p half of a Host: the streams between nodes and
// schedulers, and those of jobs, over the shared port.
type controlPlane struct {
	log      *slog.Logger
	members  *members
	front    *front
	swarm    *swarm.Swarm
	store    peerstore.Peerstore
	mux      *mss.MultistreamMuxer[protocol.ID]
	handlers map[protocol.ID]handler // by protocol; not changed once it runs
	within   time.Duration           // negotiateWithin

	ctx    context.Context // of the handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines; none begins once state is closed

	mu sync.Mutex
	// mu protects the fields below.
	state   planeState
	streams map[*stream]struct{}  // that have not come to their end
	opening map[libp2ppeer.ID]int // streams that are being opened
	drained chan struct{}         // closed when stopping and no stream is left
}

// A planeState is how far a controlPlane's life has gone.
type planeState uint8

const (
	planeOpen     planeState = iota
	planeStopping            // streams come to their end, none begins
	planeClosed
)

func newControlPlane(key crypto.PrivKey, id libp2ppeer.ID, f *front, log *slog.Logger) (*controlPlane, error) {
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	c := &controlPlane{
		log: log, members: f.members, front: f, store: store,
		within:   negotiateWithin,
		mux:      mss.NewMultistreamMuxer[protocol.ID](),
		handlers: make(map[protocol.ID]handler),
		streams:  make(map[*stream]struct{}),
		opening:  make(map[libp2ppeer.ID]int),
		drained:  make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	err = c.build(key, id)
	if err != nil {
		c.cancel()
		return nil, errors.Join(err, store.Close())
	}
	return c, nil
}

// build puts together the parts of libp2p that are used: a swarm over TCP with
// TLS and yamux.
func (c *controlPlane) build(key crypto.PrivKey, id libp2ppeer.ID) error {
	if err := errors.Join(c.store.AddPrivKey(id, key), c.store.AddPubKey(id, key.GetPublic())); err != nil {
		return err
	}
	muxer := *yamux.DefaultTransport
	muxer.MaxIncomingStreams = maxStreams
	muxer.MaxStreamWindowSize = streamWindow
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &muxer}}
	security, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	if err != nil {
		return err
	}
	gate := &gater{c}
	// Without a resource manager nothing is limited here, in particular not to
	// 8 connections from one address, as by default: front and maxStreams are
	// the limits.
	up, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, nil, gate)
	if err != nil {
		return err
	}
	c.swarm, err = swarm.NewSwarm(id, c.store, eventbus.NewBus(),
		swarm.WithConnectionGater(gate),
		swarm.WithDialTimeout(dialWithin),
		swarm.WithDialRanker(swarm.NoDelayDialRanker),
		swarm.WithIPv6BlackHoleSuccessCounter(nil),
		swarm.WithUDPBlackHoleSuccessCounter(nil))
	if err != nil {
		return err
	}
	c.swarm.SetStreamHandler(c.serve)
	return c.swarm.AddTransport(&sharedTCP{up: up, in: c.front.control})
}

// listen lets libp2p accept from the shared port.
func (c *controlPlane) listen() error {
	addr, err := manet.FromNetAddr(c.front.ln.Addr())
	if err != nil {
		return err
	}
	return c.swarm.Listen(addr)
}

// stop ends the handlers, gives the streams a moment to close, and takes
// libp2p down. It waits for all of them.
func (c *controlPlane) stop() error {
	c.mu.Lock()
	c.state = planeStopping
	for s := range c.streams {
		if s.served {
			_ = s.s.SetReadDeadline(longAgo()) // ends a Read that waits
		}
	}
	c.checkDrained()
	c.mu.Unlock()
	c.cancel()
	timer := time.NewTimer(lingerWithin)
	defer timer.Stop()
	select {
	case <-c.drained:
	case <-timer.C:
	}
	c.mu.Lock()
	c.state = planeClosed
	c.mu.Unlock()
	err := errors.Join(c.swarm.Close(), c.store.Close())
	c.tasks.Wait()
	return err
}

// checkDrained closes drained when that is due; mu is held.
func (c *controlPlane) checkDrained() {
	if c.state == planeStopping && len(c.streams) == 0 {
		select {
		case <-c.drained:
		default:
			close(c.drained)
		}
	}
}

// begin counts one more goroutine, unless the plane is closed.
func (c *controlPlane) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == planeClosed {
		return false
	}
	c.tasks.Add(1)
	return true
}

// enter takes a stream on, unless the plane stops.
func (c *controlPlane) enter(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != planeOpen {
		return false
	}
	c.streams[s] = struct{}{}
	return true
}

// leave notes that a stream has come to its end.
func (c *controlPlane) leave(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, s)
	c.checkDrained()
}

// handle sets the handler of streams of a protocol that come in.
func (c *controlPlane) handle(p protocol.ID, f handler) {
	c.handlers[p] = f
	c.mux.AddHandler(p, nil)
}

// serve runs the handler on a stream that came in. libp2p calls it in a
// goroutine of its own.
func (c *controlPlane) serve(in network.Stream) {
	if !c.begin() {
		_ = in.Reset()
		return
	}
	defer c.tasks.Done()
	from := in.Conn().RemotePeer()
	_ = in.SetDeadline(time.Now().Add(c.within))
	what, _, err := c.mux.Negotiate(in)
	_ = in.SetDeadline(time.Time{}) // before enter, after which stop may set one
	s := &stream{s: in, plane: c, served: true}
	if err == nil && !c.enter(s) {
		err = errClosed
	}
	if err != nil {
		c.log.Debug("control stream refused", "peer", from, "error", err)
		_ = in.Reset()
		return
	}
	defer s.Close()
	c.handlers[what](c.ctx, from.String(), s)
}

// part closes the connections of those who are not members any more.
func (c *controlPlane) part() {
	for _, conn := range c.swarm.Conns() {
		if id := conn.RemotePeer(); !c.members.has(id) && c.begin() {
			go func() {
				defer c.tasks.Done()
				c.log.Info("closing the control connection of a former member", "peer", id)
				_ = conn.Close()
			}()
		}
	}
}

// open opens a stream of a protocol to the peer id at addr.
func (c *controlPlane) open(ctx context.Context, what protocol.ID, id libp2ppeer.ID, addr string) (*stream, error) {
	addrs, err := multiaddrs(ctx, addr)
	if err != nil {
		return nil, err
	}
	c.settle(id, addrs)
	c.hold(id, 1)
	defer c.hold(id, -1)
	start := time.Now()
	var s network.Stream
	for range openTries {
		var conn network.Conn
		s, conn, err = c.try(ctx, what, id)
		if err == nil || ctx.Err() != nil || !dead(conn, err) {
			break
		}
		if stat := conn.Stat(); stat.Direction == network.DirOutbound && stat.Opened.After(start) {
			if conn.IsClosed() {
				err = fmt.Errorf("closed at once, perhaps it has not heard of this node as a member: %w", err)
			}
			break
		}
		// A connection that was there is of no use, though nobody had noticed,
		// or the other end has just closed it for want of streams.
		c.log.Debug("control connection is dead, dialling again", "peer", id, "error", err)
		_ = conn.Close()
	}
	if err != nil {
		return nil, err
	}
	out := &stream{s: s, plane: c}
	if !c.enter(out) {
		return nil, errors.Join(errClosed, s.Reset())
	}
	return out, nil
}

// settle makes addrs the addresses of id, in a way that it is never without
// one.
func (c *controlPlane) settle(id libp2ppeer.ID, addrs []ma.Multiaddr) {
	c.store.AddAddrs(id, addrs, peerstore.TempAddrTTL)
	for _, old := range c.store.Addrs(id) {
		if !ma.Contains(addrs, old) {
			c.store.SetAddr(id, old, 0)
		}
	}
}

// hold counts a stream to id that is being opened, or one less: connections to
// id are not closed meanwhile.
func (c *controlPlane) hold(id libp2ppeer.ID, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening[id] += n
	if c.opening[id] == 0 {
		delete(c.opening, id)
	}
}

// closeIdle closes a connection that this side has dialled and that carries no
// stream any more: it is of no use and costs tens of kilobytes.
func (c *controlPlane) closeIdle(conn network.Conn) {
	c.mu.Lock()
	stat := conn.Stat()
	idle := stat.Direction == network.DirOutbound && stat.NumStreams == 0 && c.opening[conn.RemotePeer()] == 0
	c.mu.Unlock()
	if idle {
		_ = conn.Close()
	}
}

// dead reports whether err, of try, says that conn is dead: it is closed, or
// answers nothing.
func dead(conn network.Conn, err error) bool {
	var timeout net.Error
	return conn != nil && (conn.IsClosed() || errors.As(err, &timeout) && timeout.Timeout())
}

// try opens a stream once. On an error it returns the connection, if there was
// one.
func (c *controlPlane) try(ctx context.Context, what protocol.ID, id libp2ppeer.ID) (network.Stream, network.Conn, error) {
	// libp2p refuses to dial for 5 s after a failed attempt. The caller decides
	// when to try again.
	c.swarm.Backoff().Clear(id)
	s, err := c.swarm.NewStream(ctx, id)
	if err != nil {
		return nil, nil, oneLine(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	_ = s.SetDeadline(time.Now().Add(c.within))
	err = mss.SelectProtoOrFail(what, s)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Reset()
		return nil, s.Conn(), fmt.Errorf("agreeing on %s: %w", what, errors.Join(err, ctx.Err()))
	}
	_ = s.SetDeadline(time.Time{})
	return s, s.Conn(), nil
}

// oneLine gives libp2p's report of a failed dial, a list over several lines,
// as one line.
func oneLine(err error) error {
	var dial *swarm.DialError
	if !errors.As(err, &dial) || len(dial.DialErrors) == 0 {
		return err
	}
	var said []string
	for _, e := range dial.DialErrors {
		said = append(said, fmt.Sprintf("%s: %v", e.Address, explainIdentity(e.Cause)))
	}
	return &dialError{strings.Join(said, "; "), err}
}

type dialError struct {
	text string
	err  error
}

func (e *dialError) Error() string { return e.text }
func (e *dialError) Unwrap() error { return e.err }

// A gater lets members in and nobody else. Outgoing connections need no gate:
// whom this node dials has been chosen by ID, and must prove that ID.
type gater struct{ c *controlPlane }

func (g *gater) InterceptPeerDial(libp2ppeer.ID) bool               { return true }
func (g *gater) InterceptAddrDial(libp2ppeer.ID, ma.Multiaddr) bool { return true }
func (g *gater) InterceptAccept(network.ConnMultiaddrs) bool        { return true }
func (g *gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) {
	return true, 0
}

// InterceptSecured is called when the other end has proven its ID.
func (g *gater) InterceptSecured(dir network.Direction, id libp2ppeer.ID, addrs network.ConnMultiaddrs) bool {
	if dir == network.DirOutbound {
		return true
	}
	if !g.c.members.admit(g.c.ctx, id) {
		g.c.log.Info("a stranger asked for a control connection", "peer", id, "address", addrs.RemoteMultiaddr())
		return false
	}
	if addr, err := manet.ToNetAddr(addrs.RemoteMultiaddr()); err == nil {
		if guest := g.c.front.guest(addr); guest != nil {
			if !g.c.front.proven(guest, id.String(), g.c.front.most) {
				g.c.log.Warn("a control connection was refused", "peer", id, "error", errTooMany)
				return false
			}
		}
	}
	return true
}

// OpenControl opens a control stream to m, over the connection to it that is
// there or a new one. ctx bounds the opening only. The other end gets this
// node's peer ID, proven, and refuses it if it is not a member there.
func (h *Host) OpenControl(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
	return h.open(ctx, ControlProtocol, "control", m)
}

// OpenJob opens a stream to m on which it can be asked to bring images, as
// OpenControl opens one for scheduling.
func (h *Host) OpenJob(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
	return h.open(ctx, JobProtocol, "job", m)
}

func (h *Host) open(ctx context.Context, what protocol.ID, name string, m proto.Member) (io.ReadWriteCloser, error) {
	fail := func(err error) error { return fmt.Errorf("%s stream to %s at %s: %w", name, m.ID, m.Addr, err) }
	id, err := libp2ppeer.Decode(m.ID)
	if err != nil {
		return nil, fail(fmt.Errorf("not a peer ID: %w", err))
	}
	if !h.begin() {
		return nil, fail(errClosed)
	}
	defer h.tasks.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	s, err := h.control.open(ctx, what, id, m.Addr)
	if err != nil {
		return nil, fail(err)
	}
	return s, nil
}
