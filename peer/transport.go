package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// sharedTCP is libp2p's transport: it accepts from the shared port and dials
// plain TCP. libp2p's own transport would open a port for itself, and resets
// connections when it closes them, which can lose the last message.
type sharedTCP struct {
	up     transport.Upgrader
	in     net.Listener
	dialer net.Dialer
}

// Dial connects to raddr, where the peer id must answer.
func (t *sharedTCP) Dial(ctx context.Context, raddr ma.Multiaddr, id libp2ppeer.ID) (transport.CapableConn, error) {
	netw, addr, err := manet.DialArgs(raddr)
	if err != nil {
		return nil, err
	}
	conn, err := t.dialer.DialContext(ctx, netw, addr)
	if err != nil {
		return nil, err
	}
	wrapped, err := manet.WrapNetConn(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	scope := &network.NullScope{}
	return t.up.Upgrade(ctx, t, wrapped, network.DirOutbound, id, scope)
}

// Listen accepts from the shared port, whatever the address.
func (t *sharedTCP) Listen(ma.Multiaddr) (transport.Listener, error) {
	in, err := manet.WrapNetListener(t.in)
	if err != nil {
		return nil, err
	}
	return upgraded{t.up.UpgradeGatedMaListener(t, t.up.GateMaListener(in))}, nil
}

// upgraded is libp2p's listener over the shared port. It has one error, that
// it is closed, which libp2p does not always call by its name.
type upgraded struct{ transport.Listener }

// Accept waits for the next connection that has passed the handshakes.
func (u upgraded) Accept() (transport.CapableConn, error) {
	c, err := u.Listener.Accept()
	if err != nil {
		return nil, transport.ErrListenerClosed
	}
	return c, nil
}

// CanDial reports whether addr is one of IP and TCP.
func (t *sharedTCP) CanDial(addr ma.Multiaddr) bool {
	netw, _, err := manet.DialArgs(addr)
	return err == nil && strings.HasPrefix(netw, "tcp")
}

// Protocols returns TCP's code.
func (t *sharedTCP) Protocols() []int { return []int{ma.P_TCP} }

// Proxy returns false: connections are direct.
func (t *sharedTCP) Proxy() bool { return false }

// multiaddrs returns the addresses of host:port in libp2p's form, looking the
// host up if it is a name.
func multiaddrs(ctx context.Context, addr string) ([]ma.Multiaddr, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %q has no port number", addr)
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	var out []ma.Multiaddr
	for _, ip := range ips {
		m, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(port))))
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}
