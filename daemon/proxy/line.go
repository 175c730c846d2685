package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A line is the connection of a client after its CONNECT.
type line struct {
	net.Conn
	route route
	lines *lines

	early []byte       // that came together with the CONNECT; of the one reader
	used  atomic.Int64 // when something moved last, in ns
	relay atomic.Pointer[relay]
	once  sync.Once
}

// Read is part of net.Conn.
func (l *line) Read(p []byte) (int, error) {
	if len(l.early) > 0 {
		n := copy(p, l.early)
		l.early = l.early[n:]
		return n, nil
	}
	n, err := l.Conn.Read(p)
	l.touch()
	return n, err
}

// Write is part of net.Conn.
func (l *line) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.touch()
	return n, err
}

func (l *line) touch() { l.used.Store(time.Now().UnixNano()) }

// CloseWrite ends one direction.
func (l *line) CloseWrite() error { return closeWrite(l.Conn) }

// Close is part of net.Conn.
func (l *line) Close() error {
	err := l.Conn.Close()
	l.once.Do(func() { l.lines.remove(l) })
	return err
}

// errNoHalf says that a connection can be closed only as a whole.
var errNoHalf = errors.New("connection has no directions of its own")

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errNoHalf
}

var errDraining = errors.New("the proxy is shutting down")

// lines are the connections that there are.
type lines struct {
	most, perClient int // immutable

	// mu protects the fields below.
	mu       sync.Mutex
	open     map[*line]struct{}
	by       map[string]int // how many are open, by client; never has a zero
	draining bool
	empty    chan struct{} // closed when draining and nothing is open
}

func newLines(most, perClient int) *lines {
	return &lines{most: most, perClient: perClient, by: make(map[string]int), open: make(map[*line]struct{}), empty: make(chan struct{})}
}

// add takes a connection in. If there are too many, the one that has been idle
// for longest is closed, if that was for long.
func (s *lines) add(l *line) error {
	l.touch()
	yields, err := s.insert(l)
	if yields != nil {
		_ = yields.Close() // nobody waits for what it says
	}
	return err
}

func (s *lines) insert(l *line) (yields *line, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	client := clientOf(l)
	switch {
	case s.draining:
		return nil, errDraining
	case s.by[client] >= s.perClient:
		return nil, fmt.Errorf("%s has %d connections through the proxy, which is as many as one client may have: try again later", client, s.perClient)
	case len(s.open) >= s.most:
		if yields = s.longestIdle(); yields == nil {
			return nil, fmt.Errorf("the proxy has %d connections, which is as many as it may have: try again later", s.most)
		}
		s.take(yields)
	}
	s.open[l] = struct{}{}
	s.by[client]++
	return yields, nil
}

// clientOf returns who a connection is of: an address without its port.
func clientOf(c net.Conn) string {
	addr := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// take takes a connection out, if it is in. mu is held.
func (s *lines) take(l *line) {
	if _, here := s.open[l]; !here {
		return
	}
	delete(s.open, l)
	client := clientOf(l)
	if s.by[client]--; s.by[client] == 0 {
		delete(s.by, client)
	}
}

// longestIdle returns the connection that yields to another, or nil.
func (s *lines) longestIdle() *line {
	least, yields := time.Now().Add(-yieldAfter).UnixNano(), (*line)(nil)
	for l := range s.open {
		if used := l.used.Load(); used <= least {
			least, yields = used, l
		}
	}
	return yields
}

func (s *lines) remove(l *line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(l)
	s.ended()
}

// ended closes empty if it is time. mu is held.
func (s *lines) ended() {
	if !s.draining || len(s.open) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// count returns how many there are.
func (s *lines) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// drain refuses new connections, and lets tunnels end soon.
func (s *lines) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for l := range s.open {
		if r := l.relay.Load(); r != nil {
			r.hurry()
		}
	}
	s.ended()
}

// wait returns when draining has come to its end, or with the error of ctx.
func (s *lines) wait(ctx context.Context) error {
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closeAll closes all connections and refuses new ones.
func (s *lines) closeAll() {
	s.mu.Lock()
	s.draining = true
	all := make([]*line, 0, len(s.open))
	for l := range s.open {
		all = append(all, l)
	}
	s.ended()
	s.mu.Unlock()
	for _, l := range all {
		_ = l.Close()
	}
}

// A relay moves bytes between a client and a host.
type relay struct {
	client  *line
	remote  net.Conn
	idle    atomic.Int64 // how long nothing may move, in ns
	renewed atomic.Int64 // when the deadlines were set, in ns
}

// relay moves bytes both ways until both ends have said that they are done, or
// one has failed, or nothing has moved for too long. The connections are closed
// by the caller.
func (p *Proxy) relay(l *line, remote net.Conn) {
	if c, ok := remote.(*patientConn); ok {
		remote = c.Conn // the relay has deadlines of its own
	}
	r := &relay{client: l, remote: remote}
	r.idle.Store(int64(idleWithin))
	r.renew()
	l.relay.Store(r)
	if p.lines.isDraining() {
		r.hurry() // drain may have come before it could see the relay
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.metrics.sent.Add(float64(r.move(remote, l))) })
	wg.Go(func() { p.metrics.received.Add(float64(r.move(l, remote))) })
	wg.Wait()
}

func (s *lines) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// moveSize is the size of a relay's buffers: MaxTunnels times two of them must
// not be much.
const moveSize = 16 << 10

// move copies from src to dst until src ends, and then ends dst's direction. On
// a failure it ends both connections, so that the other direction ends too.
func (r *relay) move(dst, src net.Conn) (moved int64) {
	buf := new([moveSize]byte)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			r.renew()
			m, werr := dst.Write(buf[:n])
			moved += int64(m)
			if werr != nil {
				err = werr
			} else {
				r.renew()
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) || closeWrite(dst) != nil {
			_ = r.client.Conn.Close()
			_ = r.remote.Close()
		}
		return moved
	}
}

// renew moves the deadlines on, once a second at most.
func (r *relay) renew() {
	now, last := time.Now(), r.renewed.Load()
	if now.UnixNano()-last < int64(time.Second) || !r.renewed.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	idle := r.idle.Load()
	r.deadline(now.Add(time.Duration(idle)))
	if now := r.idle.Load(); now != idle { // hurry came in between
		r.hurry()
	}
}

// deadline ends both connections at a time.
func (r *relay) deadline(at time.Time) {
	_ = r.client.SetDeadline(at) // fails on a closed connection, which has ended
	_ = r.remote.SetDeadline(at)
}

// hurry lets the relay end when nothing has moved for drainIdle.
func (r *relay) hurry() {
	r.idle.Store(int64(drainIdle))
	r.deadline(time.Now().Add(drainIdle))
}
