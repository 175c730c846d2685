package door

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
)

// A crowd is all connections of a door. At most so many are in it, and those
// without a request give way.
type crowd struct {
	most int // immutable

	mu   sync.Mutex // protects the fields below, and conn.place and conn.since
	all  map[*conn]struct{}
	idle map[string]*list.List // *conn on which no request runs, by client, the oldest first; no list is empty
	last uint64                // that was given to a conn as since
}

func newCrowd(most int) *crowd {
	return &crowd{most: most, all: make(map[*conn]struct{}), idle: make(map[string]*list.List)}
}

// enter adds c, and returns the connection that has to go for it. It returns
// false if there is no room.
func (w *crowd) enter(c *conn) (gone *conn, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) >= w.most {
		if gone = w.first(); gone == nil {
			return nil, false
		}
		w.remove(gone)
	}
	w.all[c] = struct{}{}
	w.rest(c)
	return gone, true
}

// first returns who gives way: of the client that has the most of them, the
// connection that has been idle for longest. w.mu is held.
func (w *crowd) first() (first *conn) {
	most := 0
	for _, of := range w.idle {
		oldest := of.Front().Value.(*conn)
		if n := of.Len(); n > most || n == most && oldest.since < first.since {
			most, first = n, oldest
		}
	}
	return first
}

// rest puts c with those that are idle, stir takes it away from them. w.mu is
// held.
func (w *crowd) rest(c *conn) {
	if c.place != nil {
		return
	}
	if w.idle[c.client] == nil {
		w.idle[c.client] = list.New()
	}
	w.last++
	c.place, c.since = w.idle[c.client].PushBack(c), w.last
}

func (w *crowd) stir(c *conn) {
	if c.place == nil {
		return
	}
	of := w.idle[c.client]
	if of.Remove(c.place); of.Len() == 0 {
		delete(w.idle, c.client)
	}
	c.place = nil
}

// note follows what net/http says of a connection.
func (w *crowd) note(nc net.Conn, state http.ConnState) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, in := w.all[c]; !in {
		return
	}
	switch state {
	case http.StateIdle:
		w.rest(c)
	case http.StateActive, http.StateHijacked:
		w.stir(c)
	}
}

func (w *crowd) leave(c *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(c)
}

// remove removes c, if it is there. w.mu is held.
func (w *crowd) remove(c *conn) {
	delete(w.all, c)
	w.stir(c)
}

// close closes everything that is left.
func (w *crowd) close() {
	w.mu.Lock()
	var all []*conn
	for c := range w.all {
		all = append(all, c)
	}
	w.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // it was for a client that is cut off
	}
}

func (w *crowd) count() (all, idle int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, of := range w.idle {
		idle += of.Len()
	}
	return len(w.all), idle
}

// A turnstile is the listener: who may not come in, or has no room, is closed.
type turnstile struct {
	net.Listener
	door *Door
}

// Accept is part of net.Listener.
func (t *turnstile) Accept() (net.Conn, error) {
	d := t.door
	for {
		nc, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if !d.allowed(nc.RemoteAddr()) {
			d.metrics.refusedConn(reasonNetwork)
			d.metrics.warn(reasonNetwork, d.log, "connection refused: its address is not in allowFrom", "client", nc.RemoteAddr().String())
			_ = nc.Close() // nothing was said
			continue
		}
		c := &conn{Conn: nc, client: clientAt(nc.RemoteAddr().String()), crowd: d.crowd, patience: d.waiting}
		gone, ok := d.crowd.enter(c)
		if gone != nil {
			d.metrics.evicted.Inc()
			_ = gone.Conn.Close() // it was idle
		}
		if !ok {
			d.metrics.refusedConn(reasonFull)
			d.metrics.warn(reasonFull, d.log, "connection refused: all have a request", "connections", d.crowd.most, "client", nc.RemoteAddr().String())
			_ = nc.Close() // nothing was said
			continue
		}
		d.metrics.accepted.Inc()
		return c, nil
	}
}

// allowed reports whether a client at addr may come in.
func (d *Door) allowed(addr net.Addr) bool {
	if len(d.cfg.AllowFrom) == 0 {
		return true
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return true // the socket's permissions have decided
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	return slices.ContainsFunc(d.cfg.AllowFrom, func(p netip.Prefix) bool { return p.Contains(ip) })
}
