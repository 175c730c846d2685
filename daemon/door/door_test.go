package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	used := filepath.Join(dir, "used")
	answering, err := net.Listen("unix", used)
	must(t, err)
	defer answering.Close()

	for _, tt := range []struct{ addr, want string }{
		{taken.Addr().String(), "proxy.listen: " + taken.Addr().String() + " is in use by another process: stop it, or set proxy.listen to another port"},
		{"unix:" + used, "proxy.listen: unix:" + used + " is in use by another process: stop it, or set proxy.listen to another path"},
		{"unix:" + file, "is there and is not a socket"},
		{"unix:relative", "write unix:/run/shoal/mirror.sock"},
		{"unix:@abstract", "not an absolute path"},
		{"unix:/" + strings.Repeat("a", 110), "too long for a socket"},
		{"unix:" + dir + "/nowhere/sock", "no such file or directory"},
		{"127.0.0.1", "missing port"},
	} {
		d, err := Listen(Config{Name: "proxy", Addr: tt.addr, Server: &http.Server{Handler: http.HandlerFunc(ok)}})
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want it to say %q", tt.addr, err, tt.want)
		}
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("a file that is no socket is gone")
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "mirror.sock")
	// What a dead process leaves.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	left.SetUnlinkOnClose(false)
	must(t, left.Close())

	var who atomic.Value
	d := open(t, Config{Addr: "unix:" + path}, func(w http.ResponseWriter, r *http.Request) {
		who.Store(ClientAddr(r))
		ok(w, r)
	})
	if status, body := get(t, browser(t, unixTo(path)), "http://localhost/"); status != 200 || body != "ok" {
		t.Errorf("%d %q", status, body)
	}
	if who.Load() != Local {
		t.Errorf("the client is %q", who.Load())
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o660 || d.Addr() != "unix:"+path {
		t.Errorf("mode %s, at %s", info.Mode(), d.Addr())
	}
	must(t, d.Close())
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := os.Stat(path + newSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other name is still there: %v", err)
	}
}

// The socket of a successor is not removed by who comes to its end later.
func TestUnixSocketOfAnother(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "mirror.sock")
	first := open(t, Config{Addr: "unix:" + path, SocketMode: 0o600}, ok)
	must(t, os.Remove(path))
	open(t, Config{Addr: "unix:" + path}, ok)
	must(t, first.Close())
	get(t, browser(t, unixTo(path)), "http://localhost/")
}

func TestAllowFrom(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	d := open(t, Config{Registry: registry, AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.2/32")}}, ok)
	if status, _ := get(t, browser(t, from("127.0.0.2")), "http://"+d.Addr()); status != 200 {
		t.Errorf("status %d for a network that is allowed", status)
	}
	if resp, err := browser(t).Get("http://" + d.Addr()); err == nil {
		t.Errorf("%s for a network that is not allowed", resp.Status)
	}
	if n := count(t, registry, "shoal_door_connections_refused_total"); n == 0 {
		t.Error("nothing was counted")
	}
	for addr, want := range map[string]bool{
		"[::ffff:10.1.2.3]:5": true, "10.1.2.3:5": true, "127.0.0.1:5": false, "[fe80::1%lo]:5": false,
	} {
		if got := d.allowed(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got != want {
			t.Errorf("%s: %t", addr, got)
		}
	}
}

// count returns the sum of a metric.
func count(t testing.TB, g prometheus.Gatherer, name string) (sum float64) {
	t.Helper()
	all, err := g.Gather()
	must(t, err)
	for _, f := range all {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string][2]string{
		"10.0.0.1:80":               {"10.0.0.1", "10.0.0.1"},
		"[::ffff:10.0.0.1]:80":      {"10.0.0.1", "10.0.0.1"},
		"[2001:db8:1:2:3::4]:80":    {"2001:db8:1:2:3::4", "2001:db8:1:2::/64"},
		"[fe80::1%eth0]:80":         {"fe80::1", "fe80::/64"},
		"[::1]:80":                  {"::1", "::1"},
		"@":                         {Local, Local},
		"":                          {Local, Local},
		"/run/containerd/some.sock": {Local, Local},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = remote
		r.Header.Set("X-Forwarded-For", "192.0.2.1")
		if got := [2]string{ClientAddr(r), clientAt(remote)}; got != want {
			t.Errorf("%s: %v, want %v", remote, got, want)
		}
	}
}

// Shutdown waits for what runs, lets nobody in, and Close cuts off the rest.
func TestShutdown(t *testing.T) {
	t.Parallel()
	running, finish := make(chan struct{}), make(chan struct{})
	d := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-finish
		ok(w, r)
	})
	answer := make(chan error, 1)
	go func() {
		resp, err := browser(t).Get("http://" + d.Addr())
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		answer <- err
	}()
	<-running
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := d.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shut down with %v while a request runs", err)
	}
	if c, err := net.Dial("tcp", d.Addr()); err == nil {
		c.Close()
		t.Error("let in after Shutdown")
	}
	close(finish)
	must(t, d.Shutdown(t.Context()))
	must(t, <-answer)
}

func TestCloseEndsHijacked(t *testing.T) {
	t.Parallel()
	gone := make(chan error, 1)
	d := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		must(t, err)
		_, err = io.WriteString(c, "tunnel")
		must(t, err)
		go func() {
			_, err := c.Read(make([]byte, 1))
			gone <- err
		}()
	})
	c := dial(t, d)
	fmt.Fprintf(c, "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n")
	_, err := io.ReadFull(c, make([]byte, len("tunnel")))
	must(t, err)
	if all, idle := d.crowd.count(); all != 1 || idle != 0 {
		t.Errorf("%d connections, %d idle, with one tunnel", all, idle)
	}
	must(t, d.Close())
	if err := <-gone; err == nil {
		t.Error("the tunnel goes on")
	}
	if all, _ := d.crowd.count(); all != 0 {
		t.Errorf("%d connections are left", all)
	}
}

func TestCloseWithoutServe(t *testing.T) {
	t.Parallel()
	d, err := Listen(Config{Name: "admin", Addr: "127.0.0.1:0", Server: &http.Server{Handler: http.HandlerFunc(ok)}})
	must(t, err)
	must(t, d.Close())
	must(t, d.Close())
	must(t, d.Serve())
}

// A server has the limits of doc.go, and keeps those of its own.
func TestDefaults(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, own := range []time.Duration{0, 7 * time.Second} {
		s := &http.Server{ReadHeaderTimeout: own, IdleTimeout: own, MaxHeaderBytes: int(own)}
		open(t, Config{Server: s, TLS: ca.files(t, t.TempDir(), "a")}, ok)
		want := [3]int{int(headerWithin), int(idleFor), maxHeader}
		if own != 0 {
			want = [3]int{int(own), int(own), int(own)}
		}
		if got := [3]int{int(s.ReadHeaderTimeout), int(s.IdleTimeout), s.MaxHeaderBytes}; got != want {
			t.Errorf("%v, want %v", got, want)
		}
		if s.HTTP2 == nil || s.HTTP2.MaxConcurrentStreams != maxStreams || s.HTTP2.WriteByteTimeout != patience {
			t.Errorf("HTTP/2: %+v", s.HTTP2)
		}
	}
	if n := affordable(1 << 30); n < 1 || n == 1<<30 {
		t.Errorf("%d connections are affordable", n)
	}
	if n := affordable(3); n != 3 {
		t.Errorf("%d connections are affordable, want all 3", n)
	}
}
