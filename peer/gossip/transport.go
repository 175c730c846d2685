package gossip

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxInbound bounds the connections that others have opened, and
	// maxUnread the bytes taken from all of them together: memberlist reads
	// up to 20 MB from anybody before it looks whether they know the secret.
	// The state of 5,000 members is about 1.5 MB.
	maxInbound = 128
	maxUnread  = 32 << 20
)

// closedEarly is what a connection that ends before its proofs may mean.
const closedEarly = "no proof of who answers there: it may be of another version, or not let this node in"

var errTooMuch = errors.New("too much is being read from others at once")

// A netTransport is memberlist's own, but its connections end when it does,
// and those of strangers are bounded.
type netTransport struct {
	*memberlist.NetTransport
	door   door
	log    *slog.Logger
	port   int
	ctx    context.Context
	cancel context.CancelFunc
	dialer net.Dialer
	in     chan net.Conn
	ready  chan struct{} // closed when memberlist has its own member on its list
	tasks  sync.WaitGroup
	unread atomic.Int64 // bytes of inbound connections that are open

	mu sync.Mutex
	// mu protects the fields below.
	conns   map[*conn]struct{} // nil when shut down
	inbound *list.List         // of *conn, oldest first
}

// listen opens the gossip's ports, the same number for TCP and UDP.
func listen(addr *net.TCPAddr, d door, to *slog.Logger, logger *log.Logger) (*netTransport, error) {
	var nt *memberlist.NetTransport
	var err error
	for range 10 { // a free TCP port may be taken for UDP
		nt, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{addr.IP.String()},
			BindPort:  addr.Port,
			Logger:    logger,
		})
		if err == nil || addr.Port != 0 {
			break
		}
	}
	if err != nil {
		if strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) { // not wrapped
			return nil, fmt.Errorf("gossip.listen: port %d is in use: end the process that has it, or choose another port: %w", addr.Port, err)
		}
		return nil, fmt.Errorf("gossip.listen: %w", err)
	}
	t := &netTransport{
		NetTransport: nt,
		door:         d,
		log:          to,
		port:         nt.GetAutoBindPort(),
		in:           make(chan net.Conn),
		ready:        make(chan struct{}),
		conns:        make(map[*conn]struct{}),
		inbound:      list.New(),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.tasks.Go(t.accept)
	return t, nil
}

// accept hands inbound connections on, once memberlist is ready: while it
// starts, it would tell who joins it that the fleet has no members.
func (t *netTransport) accept() {
	select {
	case <-t.ready:
	case <-t.ctx.Done():
		return
	}
	for {
		select {
		case c := <-t.NetTransport.StreamCh():
			if tracked := t.track(c, true); tracked != nil {
				t.tasks.Go(func() { t.handOn(tracked) })
			}
		case <-t.ctx.Done():
			return
		}
	}
}

// handOn hands an inbound connection on once both ends have proven who they
// are, or closes it.
func (t *netTransport) handOn(c *conn) {
	stop := context.AfterFunc(t.ctx, func() { _ = c.Conn.Close() })
	_ = c.SetDeadline(time.Now().Add(helloWithin))
	id, err := t.door.answer(c)
	_ = c.SetDeadline(time.Time{})
	if !stop() && err == nil {
		err = t.ctx.Err()
	}
	if err != nil {
		_ = c.Close()
		t.log.Debug("a gossip connection was refused", "peer", id, "address", c.RemoteAddr(), "error", err)
		return
	}
	select {
	case t.in <- c:
	case <-t.ctx.Done():
		_ = c.Close()
	}
}

// StreamCh returns the inbound connections.
func (t *netTransport) StreamCh() <-chan net.Conn { return t.in }

// DialTimeout connects to addr.
func (t *netTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	c, err := t.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tracked := t.track(c, false)
	if tracked == nil {
		return nil, net.ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	id, err := t.door.call(tracked)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = tracked.Close()
		if id == "" {
			return nil, fmt.Errorf("%w: "+closedEarly, err)
		}
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	return tracked, nil
}

// DialAddressTimeout connects to a.
func (t *netTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown closes everything and waits. memberlist calls it; it can be called
// without memberlist too, and again.
func (t *netTransport) Shutdown() error {
	t.cancel()
	// NetTransport waits until what it has received is taken.
	done := make(chan struct{})
	var drain sync.WaitGroup
	drain.Go(func() {
		for {
			select {
			case c := <-t.NetTransport.StreamCh():
				_ = c.Close()
			case <-t.NetTransport.PacketCh():
			case <-done:
				return
			}
		}
	})
	err := t.NetTransport.Shutdown()
	close(done)
	drain.Wait()
	t.tasks.Wait()
	t.mu.Lock()
	conns := t.conns
	t.conns = nil
	t.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	return err
}

// track registers a connection. It returns nil, having closed it, if the
// transport is shut down. If there are too many inbound ones, the oldest is
// closed: an exchange of members takes milliseconds.
func (t *netTransport) track(c net.Conn, inbound bool) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		_ = c.Close()
		return nil
	}
	tracked := &conn{Conn: c, t: t}
	t.conns[tracked] = struct{}{}
	if inbound {
		if t.inbound.Len() == maxInbound {
			oldest := t.inbound.Remove(t.inbound.Front()).(*conn)
			oldest.inbound = nil
			_ = oldest.Conn.Close() // its user sees that, and forgets it
		}
		tracked.limited = true
		tracked.inbound = t.inbound.PushBack(tracked)
	}
	return tracked
}

func (t *netTransport) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	if c.inbound != nil {
		t.inbound.Remove(c.inbound)
		c.inbound = nil
	}
}

// A conn is a connection that its transport knows of.
type conn struct {
	net.Conn
	t       *netTransport
	limited bool          // what is read counts
	inbound *list.Element // protected by t.mu
	read    atomic.Int64
	once    sync.Once
}

// Read reads from the other end.
func (c *conn) Read(p []byte) (int, error) {
	if !c.limited {
		return c.Conn.Read(p)
	}
	if c.t.unread.Load() > maxUnread {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	c.t.unread.Add(int64(n))
	return n, err
}

// Close closes the connection.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.t.unread.Add(-c.read.Load())
		c.t.forget(c)
	})
	return c.Conn.Close()
}
