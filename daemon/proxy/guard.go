package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// A guard says which addresses tunnels may lead to.
type guard struct {
	allow []netip.Prefix
}

// metadata are addresses beside the link-local ones at which clouds tell a
// machine its credentials: Alibaba, Azure, AWS over IPv6, Oracle.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("168.63.129.16"),
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("192.0.0.192"),
}

// nat64 is the prefix below which IPv6 has all of IPv4 (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// check returns why no tunnel may lead to an address, or nil.
func (g guard) check(ap netip.AddrPort) *refusal {
	addr := ap.Addr().Unmap()
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	if slices.ContainsFunc(g.allow, func(n netip.Prefix) bool { return n.Contains(addr) }) {
		return nil
	}
	what := ""
	switch {
	case addr.IsUnspecified(), addr.IsLoopback(), isOwn(addr):
		what = "this machine itself"
	case addr.IsLinkLocalUnicast(), slices.Contains(metadata, addr):
		what = "a link-local or metadata address"
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		what = "a multicast address"
	default:
		return nil
	}
	return refuse(http.StatusForbidden, "the proxy does not connect to %s: it is %s, and no configured upstream", ap, what)
}

// isOwn reports whether addr is one of this machine's.
func isOwn(addr netip.Addr) bool {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == addr
	})
}

// dialFunc connects to host:port.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer returns a dialFunc for hosts that are no upstreams. The address is
// checked when the name is resolved and nothing can change it any more.
func (g guard) dialer() dialFunc {
	return dialThrough(func(_ context.Context, ap netip.AddrPort) error {
		if no := g.check(ap); no != nil {
			return no
		}
		return nil
	})
}

type ownKey struct{}

// withOwn keeps in a context where the client has reached the proxy, for
// loopDialer.
func withOwn(ctx context.Context, own netip.AddrPort) context.Context {
	return context.WithValue(ctx, ownKey{}, own)
}

// loopDialer returns a dialFunc for upstreams, which may be anywhere but at the
// proxy itself.
func loopDialer() dialFunc {
	return dialThrough(func(ctx context.Context, ap netip.AddrPort) error {
		own, _ := ctx.Value(ownKey{}).(netip.AddrPort)
		addr := ap.Addr().Unmap()
		if ap.Port() == own.Port() && (addr == own.Addr() || addr.IsLoopback() || addr.IsUnspecified() || isOwn(addr)) {
			return refuse(http.StatusForbidden, "%s is this proxy itself: the upstream's url must be that of the registry", ap)
		}
		return nil
	})
}

func dialThrough(check func(context.Context, netip.AddrPort) error) dialFunc {
	d := &net.Dialer{
		Timeout: dialWithin,
		ControlContext: func(ctx context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %.300q: %w", address, err)
			}
			return check(ctx, ap)
		},
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &patientConn{Conn: conn}, nil
	}
}

// A patientConn is a connection to a registry that fails when nothing has moved
// in either direction for idleWithin: while a body is sent for hours, the answer
// may take as long.
type patientConn struct {
	net.Conn
	early   []byte       // that was read before; of the one reader
	renewed atomic.Int64 // when the deadline was set, in ns
}

func (c *patientConn) renew() {
	now := time.Now()
	if last := c.renewed.Load(); now.UnixNano()-last > int64(time.Second) && c.renewed.CompareAndSwap(last, now.UnixNano()) {
		_ = c.Conn.SetDeadline(now.Add(idleWithin)) // fails on a closed connection, as what follows does
	}
}

// Read is part of net.Conn.
func (c *patientConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	c.renew()
	return c.Conn.Read(p)
}

// Write is part of net.Conn.
func (c *patientConn) Write(p []byte) (int, error) {
	c.renew()
	return c.Conn.Write(p)
}

// CloseWrite ends one direction.
func (c *patientConn) CloseWrite() error { return closeWrite(c.Conn) }
