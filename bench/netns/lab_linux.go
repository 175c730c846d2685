package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// hubName is the name of the namespace that has the bridges. No host can
	// have it.
	hubName = "+hub"
	// coreName and zoneName name the bridges in it, uplinkName and coreportName
	// the two ends of what joins them, portName the end of a host's link.
	coreName, zoneName, uplinkName, coreportName, portName = "core", "zone", "uplink", "coreport", "port"
	// nic is the name of a host's end of its link.
	nic = "eth0"
)

// subnet has the addresses of all hosts, the first one's first.
var subnet = netip.MustParsePrefix("10.77.0.0/16")

// A Lab is a network of hosts, each a network namespace, joined by bridges in
// one more. Its methods and those of its hosts may be called at any time from
// any goroutine.
type Lab struct {
	// immutable
	o      Options
	prefix string // of the names of its namespaces
	hub    *namespace
	nl     *netlink.Handle // in the hub
	zones  []netlink.Link  // the bridge of each
	delay  *delayer        // nil: none

	// mu is held while a host is made, so that none is while Close runs. It
	// protects the fields below.
	mu     sync.Mutex
	hosts  []*Host
	closed bool
	err    error // of Close
}

// New makes a network without hosts. The caller closes it. An error says what
// is missing on this machine; Check does so without a network.
func New(o Options) (_ *Lab, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{o: o}
	if l.hub, l.prefix, err = makeHub(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if o.Delay > 0 {
		if l.delay, err = newDelayer(o.Delay, o.Log); err != nil {
			return nil, err
		}
	}
	if l.nl, err = l.hub.configure(""); err != nil {
		return nil, err
	}
	if err := l.makeBridges(); err != nil {
		return nil, err
	}
	o.Log.Debug("made a network", "namespace", l.hub.name, "zones", len(l.zones))
	return l, nil
}

// makeHub makes the first namespace of a lab and returns the prefix of all of
// its names: the first one of this process that is free.
func makeHub() (*namespace, string, error) {
	me, err := thisProcess()
	if err != nil {
		return nil, "", err
	}
	for lab := 1; ; lab++ {
		prefix := me.prefix(lab)
		hub, err := makeNamespace(prefix + hubName)
		if !errors.Is(err, fs.ErrExist) {
			return hub, prefix, err
		}
	}
}

// configure sets up what every namespace needs, and returns a netlink socket
// in it for more. congestion is Options.Congestion.
func (n *namespace) configure(congestion string) (nl *netlink.Handle, err error) {
	err = n.do(func() error {
		// IPv6's neighbour discovery and multicast would be traffic that nobody
		// asked for, and the firewall of bridges has no rules and costs time.
		for file, value := range map[string]string{
			"/proc/sys/net/ipv6/conf/default/disable_ipv6":  "1",
			"/proc/sys/net/bridge/bridge-nf-call-iptables":  "0",
			"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "0",
			"/proc/sys/net/bridge/bridge-nf-call-arptables": "0",
		} {
			if err := os.WriteFile(file, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := setCongestion(congestion); err != nil {
			return err
		}
		if nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return setUp(nl, "lo")
	})
	if err != nil {
		if nl != nil {
			nl.Close()
		}
		return nil, fmt.Errorf("set up network namespace %s: %w", n.name, err)
	}
	return nl, nil
}

// setCongestion sets TCP's congestion control for the namespace that the thread
// is in; "" leaves it.
func setCongestion(name string) error {
	if name == "" {
		return nil
	}
	err := os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(name), 0)
	if errors.Is(err, fs.ErrNotExist) {
		has, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control") // empty: it does not say
		return fmt.Errorf("this kernel has no congestion control called %q; it has %s", name, strings.TrimSpace(string(has)))
	}
	return err
}

// makeBridges makes a bridge for each zone and, if there are several, the core
// that joins them.
func (l *Lab) makeBridges() error {
	zones := max(l.o.Zones, 1)
	var core netlink.Link
	if zones > 1 {
		var err error
		if core, err = l.makeBridge(coreName); err != nil {
			return err
		}
	}
	for i := range zones {
		n := strconv.Itoa(i)
		zone, err := l.makeBridge(zoneName + n)
		if err != nil {
			return err
		}
		l.zones = append(l.zones, zone)
		if core == nil {
			continue
		}
		if err := l.join(uplinkName+n, zone, coreportName+n, core); err != nil {
			return fmt.Errorf("join zone %d to the others: %w", i, err)
		}
	}
	return nil
}

// makeBridge makes a bridge that is up.
func (l *Lab) makeBridge(name string) (netlink.Link, error) {
	snoop := false
	b := &netlink.Bridge{LinkAttrs: attributes(name), MulticastSnooping: &snoop}
	err := l.nl.LinkAdd(b)
	if err == nil {
		err = setUp(l.nl, name)
	}
	if err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	return l.nl.LinkByName(name)
}

// join connects two bridges with a link of the rate between zones.
func (l *Lab) join(name string, zone netlink.Link, coreport string, core netlink.Link) error {
	a := attributes(name)
	a.MasterIndex = zone.Attrs().Index
	if err := l.nl.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: coreport}); err != nil {
		return err
	}
	for _, n := range []string{name, coreport} {
		if err := shape(l.nl, n, l.o.CrossZoneRate, netlink.HANDLE_ROOT); err != nil {
			return err
		}
	}
	peer, err := l.nl.LinkByName(coreport)
	if err != nil {
		return err
	}
	if err := l.nl.LinkSetMaster(peer, core); err != nil {
		return err
	}
	return bringUp(end{l.hub, l.nl, name}, end{l.hub, l.nl, coreport})
}

// attributes are those of a new link.
func attributes(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// Close removes everything that the lab made. Processes that were started in
// it should have ended; connections and listeners in it should be closed: they
// keep their namespace alive, without a name and a link, until they are. The
// first call does it, the others return the same.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.err
	}
	l.closed = true
	errs := []error{l.delay.close()}
	for _, h := range l.hosts {
		errs = append(errs, h.close())
	}
	if l.nl != nil {
		l.nl.Close()
	}
	errs = append(errs, l.hub.close())
	l.err = errors.Join(errs...)
	l.o.Log.Debug("removed a network", "namespace", l.hub.name, "hosts", len(l.hosts), "error", l.err)
	return l.err
}
