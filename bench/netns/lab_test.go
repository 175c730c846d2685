//go:build linux

package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	fast = 12.5e6 // bytes/s, 100 Mbit/s
	slow = 2.5e6
	// patience is how long something may take that takes no time.
	patience = time.Minute
)

// makeLab makes a lab that ends with the test.
func makeLab(t *testing.T, o Options) *Lab {
	t.Helper()
	need(t)
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// makeHost makes a host.
func makeHost(t *testing.T, l *Lab, name string, zone int, link Link) *Host {
	t.Helper()
	h, err := l.Host(name, zone, link)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// at returns an address of the host, with a port that the kernel chooses.
func at(h *Host) string { return netip.AddrPortFrom(h.Addr(), 0).String() }

// connect returns both ends of a connection, a's first.
func connect(t *testing.T, a, b *Host) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := b.Listen(t.Context(), "tcp", at(b))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return connectTo(t, a, ln)
}

// connectTo connects a host with a listener.
func connectTo(t *testing.T, a *Host, ln net.Listener) (net.Conn, net.Conn) {
	t.Helper()
	out, err := a.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close(); in.Close() })
	return out, in
}

// A route is which host sends to which.
type route struct{ from, to *Host }

// transfer sends n bytes along each route at once, and returns how long all of
// it took.
func transfer(t *testing.T, n int64, routes ...route) time.Duration {
	t.Helper()
	var g errgroup.Group
	outs, ins := make([]net.Conn, len(routes)), make([]net.Conn, len(routes))
	for i, r := range routes {
		outs[i], ins[i] = connect(t, r.from, r.to)
	}
	start := time.Now()
	for i := range routes {
		g.Go(func() error {
			_, err := outs[i].Write(make([]byte, n))
			return err
		})
		g.Go(func() error {
			_, err := io.CopyN(io.Discard, ins[i], n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// least is how long n bytes take at a rate, if a shaper was idle before.
func least(n int64, rate float64) time.Duration {
	return time.Duration((float64(n) - 1.01*burst(rate)) / rate * float64(time.Second))
}

func TestTransferTakesAsLongAsItsLink(t *testing.T) {
	t.Parallel()
	const n = 4 << 20
	for name, links := range map[string][2]Link{
		"upload":   {{Up: fast}, {}},
		"download": {{}, {Down: fast}},
		"both":     {{fast, fast}, {fast, fast}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := makeLab(t, Options{})
			a, b := makeHost(t, l, "a", 0, links[0]), makeHost(t, l, "b", 0, links[1])
			took := transfer(t, n, route{a, b})
			t.Logf("%.1f %% of the rate", 100*n/took.Seconds()/fast)
			if least := least(n, fast); took < least {
				t.Errorf("it took %s, and the rate allows %s", took, least)
			}
			_, received, err := b.Traffic()
			if err != nil {
				t.Fatal(err)
			}
			sent, _, err := a.Traffic()
			if err != nil {
				t.Fatal(err)
			}
			if received < n || sent < received {
				t.Errorf("of %d bytes %d were sent and %d received", n, sent, received)
			}
		})
	}
}

func TestConnectionsShareALink(t *testing.T) {
	t.Parallel()
	const n = 2 << 20
	l := makeLab(t, Options{})
	narrow, a, b := makeHost(t, l, "narrow", 0, Link{fast, fast}), makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{})
	for name, routes := range map[string][]route{
		"upload":   {{narrow, a}, {narrow, b}},
		"download": {{a, narrow}, {b, narrow}},
	} {
		if took, least := transfer(t, n, routes...), least(2*n, fast); took < least {
			t.Errorf("%s: it took %s, and the rate allows %s", name, took, least)
		}
	}
}

func TestZonesReachEachOtherAtTheirRate(t *testing.T) {
	t.Parallel()
	const n = 1 << 20
	l := makeLab(t, Options{Zones: 3, CrossZoneRate: slow})
	hosts := make([][]*Host, 3) // two in each zone
	for zone := range hosts {
		for i := range 2 {
			hosts[zone] = append(hosts[zone], makeHost(t, l, fmt.Sprintf("host-%d-%d", zone, i), zone, Link{}))
		}
	}
	for _, a := range slices.Concat(hosts...) {
		for _, b := range slices.Concat(hosts...) {
			connect(t, a, b)
		}
	}
	for name, routes := range map[string][]route{
		"out of one": {{hosts[0][0], hosts[1][0]}, {hosts[0][1], hosts[2][0]}},
		"into one":   {{hosts[1][0], hosts[0][0]}, {hosts[2][0], hosts[0][1]}},
	} {
		if took, least := transfer(t, n, routes...), least(2*n, slow); took < least {
			t.Errorf("%s: it took %s, and the rate between zones allows %s", name, took, least)
		}
	}
	before := uplinks(t, l)
	transfer(t, n, route{hosts[2][0], hosts[2][1]})
	if after := uplinks(t, l); after-before >= n {
		t.Errorf("%d bytes left their zone when one host sent %d to another in it", after-before, n)
	}
}

// uplinks returns how many bytes all zones have received and sent.
func uplinks(t *testing.T, l *Lab) uint64 {
	t.Helper()
	var sum uint64
	for i := range l.zones {
		link, err := l.nl.LinkByName(fmt.Sprint(uplinkName, i))
		if err != nil {
			t.Fatal(err)
		}
		sum += link.Attrs().Statistics.RxBytes + link.Attrs().Statistics.TxBytes
	}
	return sum
}

// A fleet of 40 has more pairs than the kernel's table of neighbours has room.
// TestCongestion: connections of hosts have the congestion control that was asked
// for, which reno is on no machine by default, and one that is not there is told.
func TestCongestion(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{Congestion: "reno"})
	out, _ := connect(t, makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{}))
	raw, err := out.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if cerr := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if name != "reno" {
		t.Errorf("a connection has %q, want reno", name)
	}
	wrong := makeLab(t, Options{Congestion: "nosuch"})
	if _, err := wrong.Host("a", 0, Link{}); err == nil || !strings.Contains(err.Error(), `no congestion control called "nosuch"; it has`) {
		t.Errorf("a host with a control that is not there: %v", err)
	}
}

func TestHostsKnowEachOtherForGood(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	for i := range 40 {
		makeHost(t, l, fmt.Sprintf("host-%d", i), 0, Link{})
	}
	for _, h := range l.hosts {
		ns, err := h.nl.NeighList(h.nic, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		known := 0
		for _, n := range ns {
			if n.State == netlink.NUD_PERMANENT {
				known++
			}
		}
		if known != len(l.hosts)-1 {
			t.Errorf("%s knows %d of the others", h.Name(), known)
		}
	}
	connect(t, l.hosts[0], l.hosts[39])
}

// A packet that is lost because a link is not yet ready would be a second that
// the network did not take.
func TestHostsAreReachableAtOnce(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{Zones: 2})
	b := makeHost(t, l, "b", 0, Link{})
	for i := range 8 {
		a := makeHost(t, l, fmt.Sprintf("a-%d", i), i%2, Link{})
		connect(t, a, b)
		if err := a.Cut(); err != nil {
			t.Fatal(err)
		}
		if err := a.Heal(); err != nil {
			t.Fatal(err)
		}
		connect(t, a, b)
		if n := repeated(t, a); n != "0" {
			t.Errorf("%s had to ask for a connection again, %s times", a.Name(), n)
		}
	}
}

// repeated returns how often a host had to repeat the first packet of a
// connection.
func repeated(t *testing.T, h *Host) string {
	t.Helper()
	const name = "TCPSynRetrans"
	lines := strings.Split(output(t, h, "cat", "/proc/net/netstat"), "\n")
	for i, line := range lines { // names, then values
		if n := slices.Index(strings.Fields(line), name); n >= 0 {
			return strings.Fields(lines[i+1])[n]
		}
	}
	t.Fatal("the kernel does not count " + name)
	return ""
}

func TestNamesAreUsedOnce(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	a := makeHost(t, l, "a", 0, Link{})
	if _, err := l.Host("a", 0, Link{}); err == nil {
		t.Error("two hosts have one name")
	}
	if _, err := l.Host("b", 1, Link{}); err == nil {
		t.Error("a host is in a zone that there is not")
	}
	b := makeHost(t, l, "b", 0, Link{})
	connect(t, a, b) // the first a is as it was
}

func TestHostThatCannotBeConnectedIsGone(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	other := &netlink.Bridge{LinkAttrs: attributes(portName + "1")} // has the name of its port
	if err := l.nl.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host("a", 0, Link{}); err == nil {
		t.Fatal("two links have one name")
	}
	if _, err := os.Stat(filepath.Join(run, l.prefix+"a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace of a host that was not made: %v", err)
	}
	if err := l.nl.LinkDel(other); err != nil {
		t.Fatal(err)
	}
	connect(t, makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{}))
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Zones: -1}); err == nil {
		t.Error("a lab has -1 zones")
	}
}

// state is all that a lab could leave behind.
type state struct{ namespaces, links, mounts, files []string }

// observe returns what is there now.
func observe(t *testing.T) (s state) {
	t.Helper()
	for dir, names := range map[string]*[]string{run: &s.namespaces, "/sys/class/net": &s.links, "/proc/self/fd": &s.files} {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		*names, err = f.Readdirnames(-1)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	links, err := netlink.LinkList() // /sys shows the machine's
	if err != nil {
		t.Fatal(err)
	}
	s.links = nil
	for _, l := range links {
		s.links = append(s.links, l.Attrs().Name)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		s.mounts = append(s.mounts, string(bytes.Fields(line)[4]))
	}
	return s
}

// It is not parallel: it looks at the whole process.
func TestCloseLeavesNothing(t *testing.T) {
	need(t) // makes /run/netns a mount
	for _, o := range []Options{{}, {Zones: 2, CrossZoneRate: slow}, {Delay: time.Millisecond}} {
		before := observe(t)
		l := makeLab(t, o)
		a, b := makeHost(t, l, "a", 0, Link{fast, fast}), makeHost(t, l, "b", 0, Link{})
		_, _ = l.Host("b", 0, Link{}) // fails
		out, in := connect(t, a, b)
		out.Close()
		in.Close()
		during := observe(t)
		if len(during.namespaces) != len(before.namespaces)+3 {
			t.Errorf("namespaces of a lab of two: %q", during.namespaces)
		}
		if !slices.Equal(during.links, before.links) {
			t.Errorf("links of the machine: %q, before %q", during.links, before.links)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		after := observe(t)
		for what, p := range map[string][2][]string{
			"namespaces": {before.namespaces, after.namespaces},
			"links":      {before.links, after.links},
			"mounts":     {before.mounts, after.mounts},
		} {
			if !slices.Equal(p[0], p[1]) {
				t.Errorf("%s: %q, before %q", what, p[1], p[0])
			}
		}
		if len(before.files) != len(after.files) {
			t.Errorf("%d open files, before %d", len(after.files), len(before.files))
		}
		checkClosed(t, l, a)
	}
}

// checkClosed checks that a closed lab says so.
func checkClosed(t *testing.T, l *Lab, h *Host) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.Host("c", 0, Link{}); !errors.Is(err, errClosed) {
		t.Errorf("Host: %v", err)
	}
	if err := h.Cut(); !errors.Is(err, errClosed) {
		t.Errorf("Cut: %v", err)
	}
	if _, _, err := h.Traffic(); !errors.Is(err, errClosed) {
		t.Errorf("Traffic: %v", err)
	}
	if c, err := h.Dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, errClosed) {
		t.Errorf("Dial: %v, %v", c, err)
	}
}
