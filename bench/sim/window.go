package sim

import "time"

// TCP's windows, for the options that ask for them. A sender may have a window's
// bytes under way, so that its rate is at most a window per round trip. A new
// connection begins with firstWindow, and each byte that is acknowledged makes it a
// byte larger while that is what holds the sender back (RFC 5681, slow start); one
// that was idle has half as much for each time-out that has gone by (RFC 2861, Linux's
// tcp_slow_start_after_idle). A window that fills the thinnest link of its way grows
// no further. Losses, queues and slow start's early end are not in it.

const (
	// firstWindow is ten segments (RFC 6928) in Ethernet frames of 1514 bytes.
	firstWindow = 10 * 1448
	// leastTimeout is what Linux adds to a round trip before it counts as too long.
	leastTimeout = 200 * time.Millisecond
)

// A connection is one that a host has to a source, as far as what comes from there
// is concerned.
type connection struct {
	busy   bool
	window float64       // bytes
	used   time.Duration // when the last transfer ended
}

// A growing is a transfer whose first byte was acknowledged a moment ago, or which
// has had a round trip since.
type growing struct {
	at    time.Duration
	flow  *flow
	order uint64 // of the flow, whose memory may be another's by then
}

// connect gives f a connection that is idle, that which was used last, or a new one,
// and reports whether it is new. Like a client of HTTP/1.1 a host sends no request over
// one that is busy.
func (s *sim) connect(f *flow) bool {
	if f.dst.connections == nil {
		f.dst.connections = make(map[*host][]*connection)
	}
	for _, c := range f.dst.connections[f.src] {
		if !c.busy && (f.connection == nil || c.used > f.connection.used) {
			f.connection = c
		}
	}
	if c := f.connection; c != nil {
		c.busy = true
		return false
	}
	f.connection = &connection{busy: true, window: firstWindow}
	f.dst.connections[f.src] = append(f.dst.connections[f.src], f.connection)
	s.connected++
	return true
}

// disconnect gives the connection of f back, if it has one.
func (s *sim) disconnect(f *flow) {
	if c := f.connection; c != nil {
		c.busy, c.used = false, s.now
	}
}

// open sets the limit of f, which is about to be put on the wire: its window, which
// has shrunk while the connection was idle.
func (s *sim) open(f *flow) {
	c := f.connection
	if c == nil {
		return
	}
	timeout := leastTimeout + s.o.RTT
	for idle := s.now - c.used - timeout; c.used > 0 && idle > 0 && c.window > firstWindow; idle -= timeout {
		c.window = max(c.window/2, firstWindow)
	}
	f.limit = s.limitOf(f)
}

// expectGrowth has f, which is on the wire, looked at after a round trip, if its window
// holds it back.
func (s *sim) expectGrowth(f *flow) {
	if f.limit > 0 {
		s.growths.put(growing{s.now + s.o.RTT, f, f.order})
	}
}

// limitOf returns what the window of f lets through, 0 if a link of its way lets no
// more through.
func (s *sim) limitOf(f *flow) float64 {
	limit := f.connection.window / s.o.RTT.Seconds()
	for i := range f.hops {
		if f.links[i].rate <= limit {
			f.connection.window = f.links[i].rate * s.o.RTT.Seconds()
			return 0
		}
	}
	return limit
}

// grow widens the window of a transfer that it held back for a round trip.
func (s *sim) grow(g growing) {
	f := g.flow
	if f.order != g.order {
		return
	}
	if f.rate >= f.limit/2 {
		f.connection.window += f.rate * s.o.RTT.Seconds()
		s.net.widen(f, s.limitOf(f))
	}
	s.expectGrowth(f)
}
