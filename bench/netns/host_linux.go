package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/exec"
	"strconv"

	"github.com/vishvananda/netlink"
)

// errClosed is what a lab that is closed says.
var errClosed = errors.New("the network is closed")

// A Host is a network namespace with one link, and loopback.
type Host struct {
	// immutable
	name string
	lab  *Lab
	ns   *namespace
	nl   *netlink.Handle // in ns
	addr netip.Addr
	mac  net.HardwareAddr
	nic  int    // index of its link
	port string // the hub's end of it
}

// Host makes a host in a zone (the first is 0). Names are the caller's, each
// can be used once.
func (l *Lab) Host(name string, zone int, link Link) (_ *Host, err error) {
	if err := l.o.checkHost(name, zone, link); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	number := len(l.hosts) + 1
	addr := address(number)
	if !addr.IsValid() {
		return nil, fmt.Errorf("host %s: %s has no more addresses", name, subnet)
	}
	ns, err := makeNamespace(l.prefix + name)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("there is a host called %s already", name)
	}
	if err != nil {
		return nil, err
	}
	a := addr.As4()
	h := &Host{
		name: name, lab: l, ns: ns, addr: addr,
		mac:  append(net.HardwareAddr{2, 0}, a[:]...), // 2: locally administered
		port: portName + strconv.Itoa(number),
	}
	if err := h.connect(l.zones[zone], link); err != nil {
		return nil, errors.Join(fmt.Errorf("connect host %s: %w", name, err), h.close())
	}
	for _, o := range l.hosts {
		if err := errors.Join(h.meet(o), o.meet(h)); err != nil {
			return nil, errors.Join(fmt.Errorf("introduce hosts %s and %s to each other: %w", name, o.name, err), h.close())
		}
	}
	l.hosts = append(l.hosts, h)
	l.o.Log.Debug("made a host", "host", name, "zone", zone, "address", addr, "up", link.Up, "down", link.Down)
	return h, nil
}

// address returns that of the n-th host, from 1; an invalid one if there are
// no more.
func address(n int) netip.Addr {
	if n < 1 || n >= 1<<16-1 { // the last one is the broadcast address
		return netip.Addr{}
	}
	a := subnet.Addr().As4()
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(a)
}

// connect gives the host its link. Each end is shaped before it is up.
func (h *Host) connect(zone netlink.Link, link Link) (err error) {
	if h.nl, err = h.ns.configure(h.lab.o.Congestion); err != nil {
		return err
	}
	hub := h.lab.nl
	a := attributes(h.port)
	a.MasterIndex = zone.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: a, PeerName: nic, PeerHardwareAddr: h.mac, PeerNamespace: netlink.NsFd(h.ns.file.Fd())}
	if err := hub.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link: %w", err)
	}
	if err := shape(hub, h.port, link.Down, netlink.HANDLE_ROOT); err != nil {
		return err
	}
	if err := h.shapeUp(link.Up); err != nil {
		return err
	}
	inner, err := h.nl.LinkByName(nic)
	if err != nil {
		return err
	}
	h.nic = inner.Attrs().Index
	mask := net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())
	if err := h.nl.AddrAdd(inner, &netlink.Addr{IPNet: &net.IPNet{IP: h.addr.AsSlice(), Mask: mask}}); err != nil {
		return fmt.Errorf("give it the address %s: %w", h.addr, err)
	}
	return h.bringUp()
}

// bringUp returns when packets go through the host's link.
func (h *Host) bringUp() error {
	return bringUp(end{h.lab.hub, h.lab.nl, h.port}, end{h.ns, h.nl, nic})
}

// shapeUp shapes what the host sends, and delays what it sends or receives.
func (h *Host) shapeUp(up float64) (err error) {
	parent := uint32(netlink.HANDLE_ROOT)
	if d := h.lab.delay; d != nil {
		if parent, err = d.add(h); err != nil {
			return err
		}
	}
	return shape(h.nl, nic, up, parent)
}

// meet tells the host the hardware address of another one, for good. Asking for
// it (ARP) would fill the kernel's table, which all namespaces share and which
// has room for a thousand: 32 hosts that all know each other.
func (h *Host) meet(o *Host) error {
	return h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: h.nic, State: netlink.NUD_PERMANENT, IP: o.addr.AsSlice(), HardwareAddr: o.mac,
	})
}

// close removes the host.
func (h *Host) close() error {
	if h.nl != nil {
		h.nl.Close()
	}
	return h.ns.close()
}

// Name returns the name that it was made with.
func (h *Host) Name() string { return h.name }

// Addr returns the address of its link.
func (h *Host) Addr() netip.Addr { return h.addr }

// Start starts a program in the host's namespace; otherwise it is cmd.Start.
// The thread that does so goes back to what it was, so SysProcAttr.Pdeathsig
// works as it does elsewhere: when the harness ends. Like `nsenter --net` it
// leaves /sys alone, where the links of the machine are to be seen.
func (h *Host) Start(cmd *exec.Cmd) error {
	_, err := inside(h, func() (struct{}, error) { return struct{}{}, cmd.Start() }, func(struct{}) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return err
}

// Dial connects from the host. addr is an IP address and a port: names are not
// looked up. The connection can be used anywhere; a thread is held until it is
// there.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := literal(addr); err != nil {
		return nil, fmt.Errorf("dial from host %s: %w", h.name, err)
	}
	dial := func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, addr) }
	return inside(h, dial, func(c net.Conn) { _ = c.Close() })
}

// Listen listens on the host. addr is an IP address of the host, or loopback,
// and a port.
func (h *Host) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if err := literal(addr); err != nil {
		return nil, fmt.Errorf("listen on host %s: %w", h.name, err)
	}
	listen := func() (net.Listener, error) { return (&net.ListenConfig{}).Listen(ctx, network, addr) }
	return inside(h, listen, func(ln net.Listener) { _ = ln.Close() })
}

// inside returns what f makes in the host's namespace. If the way back out of
// it fails, undo gets that instead.
func inside[T any](h *Host, f func() (T, error), undo func(T)) (T, error) {
	var made T
	ok := false
	err := h.ns.do(func() (err error) {
		made, err = f()
		ok = err == nil
		return err
	})
	if err != nil {
		if ok {
			undo(made)
		}
		var none T
		return none, err
	}
	return made, nil
}

// literal returns an error if addr is not an IP address with a port. A name
// would be looked up by another goroutine, so on another network.
func literal(addr string) error {
	_, err := netip.ParseAddrPort(addr)
	return err
}

// Cut pulls the cable: packets to and from the host are lost and nobody is
// told, as it is when a switch fails. Loopback works on.
func (h *Host) Cut() error {
	err := h.lab.use(func(nl *netlink.Handle) error {
		port, err := nl.LinkByName(h.port)
		if err != nil {
			return err
		}
		return nl.LinkSetDown(port)
	})
	if err != nil {
		return fmt.Errorf("cut the link of host %s: %w", h.name, err)
	}
	return nil
}

// Heal plugs it in again, and returns when packets go through.
func (h *Host) Heal() error {
	if err := h.lab.use(func(*netlink.Handle) error { return h.bringUp() }); err != nil {
		return fmt.Errorf("heal the link of host %s: %w", h.name, err)
	}
	return nil
}

// Traffic returns how many bytes have gone over the host's link, with the
// headers of Ethernet, IP and TCP. Packets that were lost by a cut are not in
// it. A large packet that stays whole (GSO) counts its headers once.
func (h *Host) Traffic() (sent, received int64, err error) {
	err = h.lab.use(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(h.port)
		if err != nil {
			return err
		}
		// The hub receives what the host sends.
		s := link.Attrs().Statistics
		sent, received = int64(s.RxBytes), int64(s.TxBytes)
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read the counters of host %s: %w", h.name, err)
	}
	return sent, received, nil
}

// use calls f with the hub's netlink socket, which is open meanwhile.
func (l *Lab) use(f func(*netlink.Handle) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	return f(l.nl)
}
