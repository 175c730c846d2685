package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestTunnel: another host is reached through the proxy, and the client sees its
// own certificate.
func TestTunnel(t *testing.T) {
	t.Parallel()
	other := httptest.NewTLSServer(told)
	t.Cleanup(other.Close)
	b := newBed(t, told, nil, loopback(other.Listener.Addr().String()))
	b.roots = x509.NewCertPool() // without the proxy's
	b.roots.AddCert(other.Certificate())
	if _, got := do(t, b.client(t), "GET", other.URL+"/v2/a/manifests/v1"); !strings.HasPrefix(got, "GET /v2/a/manifests/v1 host=127.0.0.1") {
		t.Error(got)
	}
	if n := b.handled.Load(); n != 0 {
		t.Errorf("the handler has answered %d requests for a host that it is not for", n)
	}
}

// TestHalfClose: a side of a tunnel that has said all it has to say is still
// answered.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	echo := tcp(t, func(c *net.TCPConn) {
		data, _ := io.ReadAll(c) // until the client has said that it is done
		_, _ = c.Write(bytes.ToUpper(data))
	})
	b := newBed(t, told, nil, loopback(echo))
	conn, r, resp := b.connect(t, echo, []byte("sent at once, ")...)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	if _, err := io.WriteString(conn, "and later"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); got != "SENT AT ONCE, AND LATER" {
		t.Errorf("got %q", got)
	}
}

// TestEarlyHello: a client that does not wait for the answer to its CONNECT gets
// through TLS all the same.
func TestEarlyHello(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, nil)
	near, far := net.Pipe()
	client := tls.Client(near, &tls.Config{RootCAs: b.roots, ServerName: upstreamHost})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	hello := make([]byte, 16<<10)
	n, err := far.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	conn, r, resp := b.connect(t, upstreamHost+":443", hello[:n]...)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	copied := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(far, r); copied <- struct{}{} }()
	go func() { _, _ = io.Copy(conn, far); copied <- struct{}{} }()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, _, _ = near.Close(), far.Close(), conn.Close()
	<-copied
	<-copied
}

// TestRefused: what the proxy does not connect to, and that a client is told why
// in the only words that it shows: those of the status.
func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, func(c *Config) { c.Ports = []int{443, 1} })
	off := newBed(t, told, nil, func(c *Config) { c.Tunnel = false })
	for _, tt := range []struct {
		bed    *bed
		host   string
		status int
		says   string
	}{
		{b, "mail.example:25", 403, "port 25"},
		{b, "127.0.0.1:443", 403, "this machine itself"},
		{b, "[::ffff:127.0.0.1]:443", 403, "this machine itself"},
		{b, "[::1]:443", 403, "this machine itself"},
		{b, "0.0.0.0:443", 403, "this machine itself"},
		{b, "localhost:443", 403, "this machine itself"},
		{b, "169.254.169.254:443", 403, "metadata"},
		{b, "[fe80::1]:443", 403, "link-local"},
		{b, "no-such-host.invalid:443", 502, "cannot connect"},
		{b, "example.com", 400, "not a host and a port"},
		{b, "example.com:0", 400, "no port"},
		{b, "-x:443", 400, "no host name"},
		{off, "other.example:443", 403, "proxy.tunnel is off"},
		{off, "example.com:443", 200, ""},
	} {
		_, r, resp := tt.bed.connect(t, tt.host)
		if resp.StatusCode != tt.status || !strings.Contains(resp.Status, tt.says) {
			t.Errorf("%s: %s", tt.host, resp.Status)
		}
		if tt.status != 200 {
			if body := readAll(t, r); !strings.Contains(body, `"errors"`) || !strings.Contains(body, tt.says) {
				t.Errorf("%s: %s", tt.host, body)
			}
		}
	}
}

// TestLoop: a proxy that is its own upstream does not call itself for ever.
func TestLoop(t *testing.T) {
	t.Parallel()
	var self string
	b := newBed(t, told, nil, func(c *Config) {
		c.Transport = nil
		c.Upstream = func(host string) (string, bool) { return "up", host == self }
		c.Intercept = []string{"127.0.0.1:1"} // not this one: it is tunnelled
	})
	self = b.addr
	if _, _, resp := b.connect(t, self); resp.StatusCode != 403 || !strings.Contains(resp.Status, "this proxy itself") {
		t.Error(resp.Status)
	}
	if code, body := do(t, b.client(t), "GET", "http://"+self+"/v2/"); code != 403 || !strings.Contains(body, "this proxy itself") {
		t.Error(code, body)
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	g := guard{allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
	for addr, allowed := range map[string]bool{
		"192.0.2.1": true, "10.0.0.1": true, "2001:db8::1": true, "127.0.0.2": true, "::ffff:127.0.0.2": true,
		"127.0.0.1": false, "127.255.0.1": false, "::1": false, "0.0.0.0": false, "::": false, "169.254.0.1": false,
		"fe80::1": false, "ff02::1": false, "224.0.0.1": false, "255.255.255.255": false, "fd00:ec2::254": false,
		"100.100.100.200": false, "64:ff9b::7f00:1": false, "64:ff9b::a00:1": true, "168.63.129.16": false,
	} {
		if got := g.check(netip.AddrPortFrom(netip.MustParseAddr(addr), 443)) == nil; got != allowed {
			t.Errorf("%s: %t", addr, got)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		ip, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if g.check(netip.AddrPortFrom(ip.Unmap(), 443)) == nil {
			t.Errorf("%s is this machine's own", ip)
		}
	}
}

// newLine returns a line on one end of a pipe, and the other end.
func newLine(s *lines) (*line, net.Conn) {
	near, far := net.Pipe()
	return &line{Conn: far, lines: s}, near
}

// TestTooMany: at the limit a new connection takes the place of the one that has
// been idle for longest, and of none that is in use.
func TestTooMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newLines(2, 10)
		old, oldFar := newLine(s)
		mid, midFar := newLine(s)
		fresh, freshFar := newLine(s)
		if err := errors.Join(s.add(old), s.add(mid)); err != nil {
			t.Fatal(err)
		}
		if err := s.add(fresh); err == nil {
			t.Error("one too many was let in")
		}
		time.Sleep(2 * yieldAfter)
		mid.touch()
		if err := s.add(fresh); err != nil {
			t.Error(err)
		}
		if _, err := oldFar.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Error("the idle one was not closed:", err)
		}
		if s.count() != 2 || s.by["pipe"] != 2 {
			t.Errorf("%d open, by client %v", s.count(), s.by)
		}
		s.perClient = 2
		if err := s.add(old); err == nil || !strings.Contains(err.Error(), "one client") {
			t.Error(err)
		}
		_, _, _, _ = midFar.Close(), freshFar.Close(), mid.Close(), fresh.Close()
		if s.count() != 0 || len(s.by) != 0 {
			t.Errorf("%d open, by client %v", s.count(), s.by)
		}
	})
}

// relayed starts a relay between two pipes.
func relayed(t *testing.T) (p *Proxy, client, remote net.Conn, done chan struct{}) {
	t.Helper()
	p = &Proxy{lines: newLines(10, 10), metrics: &metrics{
		sent: prometheus.NewCounter(prometheus.CounterOpts{}), received: prometheus.NewCounter(prometheus.CounterOpts{})}}
	l, client := newLine(p.lines)
	remote, far := net.Pipe()
	if err := p.lines.add(l); err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		p.relay(l, far)
		_, _ = l.Close(), far.Close()
	}()
	return p, client, remote, done
}

// TestIdle: a tunnel in which something moves stays, in which nothing moves
// ends, and one whose client stands still with bytes under way ends too.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, client, remote, done := relayed(t)
		for range 5 {
			time.Sleep(idleWithin * 2 / 3)
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := remote.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		<-done
		if took := time.Since(start); took > idleWithin {
			t.Errorf("it has lived for %s without use", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		_, _, remote, done := relayed(t)
		start := time.Now()
		_, _ = remote.Write([]byte("nobody reads this"))
		<-done
		if took := time.Since(start); took > idleWithin+time.Second {
			t.Errorf("it has lived for %s without use", took)
		}
	})
}

// TestDrainTunnels: tunnels end soon when the proxy stops, unless they are used.
func TestDrainTunnels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, client, remote, done := relayed(t)
		synctest.Wait()
		p.lines.drain()
		for range 10 {
			time.Sleep(drainIdle * 3 / 4)
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := remote.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := p.lines.wait(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
		if took := time.Since(start); took > 2*drainIdle {
			t.Errorf("it has lived for %s without use", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p, _, _, done := relayed(t)
		synctest.Wait()
		start := time.Now()
		p.lines.drain()
		<-done
		if took := time.Since(start); took > drainIdle {
			t.Errorf("nothing has ever moved in it, and it has lived for %s", took)
		}
	})
}

// TestCloseTunnel: a tunnel in use ends with the proxy, which waits for it.
func TestCloseTunnel(t *testing.T) {
	t.Parallel()
	echo := tcp(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	b := newBed(t, told, nil, loopback(echo))
	conn, r, _ := b.connect(t, echo, []byte("x")...)
	if _, err := r.ReadByte(); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := r.ReadByte(); err == nil {
		t.Error("it goes on")
	}
	<-closed
	if n := b.lines.count(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	_ = conn.Close()
}
