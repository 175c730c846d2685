package peer

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
)

const (
	// firstByteWithin is how long a connection may be silent at first. In all
	// three protocols the side that dialled speaks first, at once.
	firstByteWithin = 5 * time.Second
	// maxUnproven bounds the connections whose other end has not proven to be
	// a member yet. One more, and the oldest is closed: a member proves itself
	// in milliseconds, so the oldest is the least likely to be one.
	maxUnproven = 1024
	// maxConns bounds all connections. A node talks to a few dozen peers at a
	// time, a scheduler has one control connection for each node.
	maxConns = 16384
	// maxPerPeer bounds the connections of one peer ID, so that no member can
	// take all of them, and with them its requests at a time, since a connection
	// has one. Leases need a handful, the pool of an asker keeps idlePerPeer.
	maxPerPeer = 256
	// maxPerAddress is the same with security none, where the address is all
	// that is known of the other end, and many members may share it.
	maxPerAddress = maxConns / 2
)

var errTooMany = errors.New("this peer has too many connections already")

// A kind is what a connection carries.
type kind uint8

const (
	kindUnknown kind = iota // nothing has been said yet
	kindTLS                 // the data plane, HTTPS
	kindPlain               // the data plane, HTTP
	kindControl             // libp2p
	kinds
)

// kindOf tells the kind of a connection from its first byte: 0x16 is the type
// of a TLS record with a handshake (RFC 8446, section 5.1), 0x13 the length of
// "/multistream/1.0.0\n", and HTTP methods are capital letters.
func kindOf(b byte) kind {
	switch {
	case b == 0x16:
		return kindTLS
	case b == 0x13:
		return kindControl
	case b >= 'A' && b <= 'Z':
		return kindPlain
	}
	return kindUnknown
}

// A guest is one accepted connection.
type guest struct {
	conn *net.TCPConn
	addr netip.AddrPort // of the other end

	// id is who the other end has proven to be. It is written by the goroutine
	// that does the TLS handshake and read later by the same one.
	// The same is true of asker, its text form; empty if it has proven nothing.
	id    libp2ppeer.ID
	asker string

	// Protected by front.mu.
	kind     kind
	unproven *list.Element // nil once proven
	who      string        // what perPeer counts it under
}

// A front accepts the connections of the one port and hands them on by kind.
// It never blocks on a silent connection, and the conns it hands on are bare.
type front struct {
	ln       *net.TCPListener
	log      *slog.Logger
	insecure bool
	members  *members
	secure   func(*guest) net.Conn // wraps a connection of kindTLS
	data     *sorted               // of kindTLS and, if insecure, kindPlain
	control  *sorted
	most     int // maxPerPeer

	wg sync.WaitGroup // one for each connection that is being sorted

	mu sync.Mutex
	// mu protects the fields below.
	guests   map[netip.AddrPort]*guest
	unproven *list.List     // of *guest, oldest first
	perPeer  map[string]int // proven guests, by peer ID or IP address
	count    [kinds]int
}

func newFront(ln *net.TCPListener, insecure bool, m *members, secure func(*guest) net.Conn, log *slog.Logger) *front {
	return &front{
		ln: ln, log: log, insecure: insecure, members: m, secure: secure,
		data:     newSorted(ln.Addr()),
		control:  newSorted(ln.Addr()),
		guests:   make(map[netip.AddrPort]*guest),
		unproven: list.New(),
		perPeer:  make(map[string]int),
		most:     maxPerPeer,
	}
}

// run accepts until the listener is closed, and waits for what it started.
func (f *front) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer f.wg.Wait()
	defer cancel()
	const most = time.Second
	pause := time.Duration(0)
	for {
		conn, err := f.ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of file descriptors, most likely
			pause = min(max(2*pause, 5*time.Millisecond), most)
			f.log.Warn("accepting a connection failed", "error", err, "retry", pause)
			if !wait(ctx, pause) {
				return nil
			}
			continue
		}
		pause = 0
		if g := f.enter(conn); g != nil {
			f.wg.Go(func() { f.sort(ctx, g) })
		}
	}
}

// wait waits for d and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// enter registers a connection. It returns nil, having closed it, if there are
// too many.
func (f *front) enter(conn *net.TCPConn) *guest {
	g := &guest{conn: conn, addr: addrPort(conn.RemoteAddr())}
	var victim *guest
	f.mu.Lock()
	switch {
	case len(f.guests) >= maxConns:
		victim, g = g, nil
	case f.unproven.Len() >= maxUnproven:
		victim = f.unproven.Front().Value.(*guest)
		f.prove(victim) // its owner sees it closed and takes it off the books
		fallthrough
	default:
		f.drop(f.guests[g.addr])
		f.guests[g.addr] = g
		g.unproven = f.unproven.PushBack(g)
		f.count[kindUnknown]++
	}
	f.mu.Unlock()
	if victim != nil {
		_ = victim.conn.Close()
		f.log.Debug("too many connections, one was closed", "peer", victim.addr)
	}
	return g
}

// prove takes g off the list of unproven guests; f.mu is held.
func (f *front) prove(g *guest) {
	if g.unproven != nil {
		f.unproven.Remove(g.unproven)
		g.unproven = nil
	}
}

// proven notes that the other end of g is the member who, a peer ID or, if that
// is all that is known, an IP address. It reports whether that one may have
// another connection.
func (f *front) proven(g *guest, who string, most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.guests[g.addr] != g { // closed meanwhile
		return true
	}
	if g.who == "" {
		if f.perPeer[who] >= most {
			return false
		}
		g.who = who
		f.perPeer[who]++
	}
	f.prove(g)
	return true
}

// leave notes that the connection of g is closed. It can be called again.
func (f *front) leave(g *guest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(g)
}

// drop takes g off the books if it is on them; f.mu is held.
func (f *front) drop(g *guest) {
	if g == nil || f.guests[g.addr] != g {
		return
	}
	delete(f.guests, g.addr)
	f.prove(g)
	f.count[g.kind]--
	if g.who == "" {
		return
	}
	if f.perPeer[g.who]--; f.perPeer[g.who] == 0 {
		delete(f.perPeer, g.who)
	}
}

// guest returns the guest whose connection comes from addr, or nil.
func (f *front) guest(addr net.Addr) *guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests[addrPort(addr)]
}

// addrPort returns a TCP address in the one form that guests are known by.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(plainIP(ap.Addr()), ap.Port())
}

// open returns how many connections of the given kinds are open.
func (f *front) open(ks ...kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, k := range ks {
		n += f.count[k]
	}
	return n
}

// sort waits for g's first byte and hands g's connection on.
func (f *front) sort(ctx context.Context, g *guest) {
	if err := f.handOn(ctx, g); err != nil {
		_ = g.conn.Close()
		f.leave(g)
		f.log.Debug("connection refused", "peer", g.addr, "error", err)
	}
}

func (f *front) handOn(ctx context.Context, g *guest) error {
	stop := context.AfterFunc(ctx, func() { _ = g.conn.SetReadDeadline(longAgo()) })
	defer stop()
	if err := g.conn.SetReadDeadline(time.Now().Add(firstByteWithin)); err != nil {
		return err
	}
	first, err := peek(g.conn)
	if err != nil {
		return fmt.Errorf("waiting for the first byte: %w", err)
	}
	k := kindOf(first)
	f.mu.Lock()
	f.count[g.kind]--
	f.count[k]++
	g.kind = k
	f.mu.Unlock()
	if !stop() {
		return ctx.Err()
	}
	if err := g.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	switch {
	case k == kindControl:
		return f.control.put(ctx, &controlConn{TCPConn: g.conn, closed: func() { f.leave(g) }})
	case k == kindTLS:
		return f.data.put(ctx, f.secure(g))
	case k == kindPlain && f.insecure:
		if !f.members.admitIP(ctx, g.addr.Addr()) {
			return errors.New("no member has this address")
		}
		if !f.proven(g, g.addr.Addr().String(), maxPerAddress) {
			return errTooMany
		}
		return f.data.put(ctx, g.conn)
	case k == kindPlain:
		return errors.New("plain HTTP, but peer.security is tls here")
	}
	return fmt.Errorf("first byte %#02x belongs to no protocol of this port", first)
}

// peek waits for the first byte of c and leaves it there to be read again, so
// that c needs no wrapper and keeps its ReadFrom, which is sendfile.
func peek(c *net.TCPConn) (byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var buf [1]byte
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, failed = syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK)
			if failed != syscall.EINTR {
				return failed != syscall.EAGAIN
			}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, errors.New("closed without a byte")
	}
	return buf[0], nil
}

// A controlConn tells when libp2p closes it.
type controlConn struct {
	*net.TCPConn
	closed func()
}

// Close closes the connection.
func (c *controlConn) Close() error {
	defer c.closed()
	return c.TCPConn.Close()
}

// sorted is the net.Listener of the connections of one protocol.
type sorted struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newSorted(addr net.Addr) *sorted {
	return &sorted{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// put hands c to whoever accepts.
func (s *sorted) put(ctx context.Context, c net.Conn) error {
	select {
	case s.conns <- c:
		return nil
	case <-s.done:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Accept waits for the next connection, or fails with net.ErrClosed.
func (s *sorted) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. The port stays open for the other protocols.
func (s *sorted) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Addr returns the address of the port.
func (s *sorted) Addr() net.Addr { return s.addr }
