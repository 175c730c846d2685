package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/registry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine))
}

// upstreamHost is a name that the certificates of httptest are for. Nothing
// resolves it: the bed's transport leads to the registry of the test.
const upstreamHost = "example.com"

// A bed is a proxy with its listener in front of a server that is the upstream
// example.com.
type bed struct {
	*Proxy
	addr    string
	roots   *x509.CertPool // with the proxy's CA
	origin  *httptest.Server
	handled atomic.Int64 // requests that went to the handler
}

// newBed starts a proxy. The handler for manifests and blobs is answer, or the
// registry itself by another way if that is nil.
func newBed(t *testing.T, origin http.Handler, answer func(untouched http.Handler) http.Handler, change func(*Config)) *bed {
	t.Helper()
	b := &bed{origin: httptest.NewUnstartedServer(origin)}
	b.origin.Config.ErrorLog = quiet()
	b.origin.StartTLS()
	t.Cleanup(b.origin.Close)
	dir := t.TempDir()
	ca, err := InitCA(InitOptions{CertFile: filepath.Join(dir, "ca.crt"), KeyFile: filepath.Join(dir, "ca.key"),
		Hosts: []string{upstreamHost, "127.0.0.1", "*.below.test"}, Node: "test"})
	if err != nil {
		t.Fatal(err)
	}
	b.roots = x509.NewCertPool()
	b.roots.AddCert(ca.cert)
	originRoots := x509.NewCertPool()
	originRoots.AddCert(b.origin.Certificate())
	transport := NewTransport(originRoots)
	transport.DialContext = b.toOrigin(transport.DialContext)
	t.Cleanup(transport.CloseIdleConnections)
	cfg := Config{
		CA: ca, Tunnel: true,
		Upstream: func(host string) (string, bool) { return "up", host == upstreamHost },
		Handler: func(upstream string, untouched http.Handler) http.Handler {
			if upstream != "up" {
				t.Errorf("handler for %q", upstream)
			}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b.handled.Add(1)
				if r.URL.Host != "" || r.URL.Scheme != "" {
					t.Errorf("the handler was given %s", r.URL)
				}
				if answer == nil {
					origin.ServeHTTP(w, r)
					return
				}
				answer(untouched).ServeHTTP(w, r)
			})
		},
		Transport: func(string) http.RoundTripper { return transport },
	}
	if change != nil {
		change(&cfg)
	}
	b.Proxy, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.listen(t)
	return b
}

func (b *bed) listen(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	front := b.Server()
	done := make(chan error, 2)
	go func() { done <- front.Serve(ln) }()
	go func() { done <- b.Serve() }()
	t.Cleanup(func() {
		_ = front.Close()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-done; err != nil && err != http.ErrServerClosed {
				t.Error(err)
			}
		}
	})
}

// toOrigin leads connections to example.com to the origin.
func (b *bed) toOrigin(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, upstreamHost+":") {
			addr = b.origin.Listener.Addr().String()
		}
		return dial(ctx, network, addr)
	}
}

// transport is that of a client that uses the proxy.
func (b *bed) transport(t *testing.T) *http.Transport {
	t.Helper()
	tr := &http.Transport{
		Proxy:                 http.ProxyURL(&url.URL{Scheme: "http", Host: b.addr}),
		TLSClientConfig:       &tls.Config{RootCAs: b.roots},
		ExpectContinueTimeout: 5 * time.Second,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func (b *bed) client(t *testing.T) *http.Client { return &http.Client{Transport: b.transport(t)} }

// connect sends a CONNECT and returns the connection after it, with the answer.
func (b *bed) connect(t *testing.T, host string, early ...byte) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write(append([]byte("CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"), early...)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	return conn, r, resp
}

// inside opens TLS in a connection to the upstream.
func (b *bed) inside(t *testing.T) *tls.Conn {
	t.Helper()
	conn, _, resp := b.connect(t, upstreamHost+":443")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	tc := tls.Client(conn, &tls.Config{RootCAs: b.roots, ServerName: upstreamHost})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// tcp starts a server for each connection that is made to it, and returns its
// address.
func tcp(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serve(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// loopback lets tunnels lead to the servers of the test.
func loopback(addrs ...string) func(*Config) {
	return func(c *Config) {
		c.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		for _, a := range addrs {
			_, port, _ := net.SplitHostPort(a)
			n, _ := strconv.Atoi(port)
			c.Ports = append(c.Ports, n)
		}
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// do sends a request and returns the status and the body.
func do(t *testing.T, c *http.Client, method, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, readAll(t, resp.Body)
}

// told answers every request with what it was told.
var told = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "%s %s host=%s auth=%q proxyauth=%q xff=%q ae=%q body=%q", r.Method, r.URL.RequestURI(), r.Host,
		r.Header.Get("Authorization"), r.Header.Get("Proxy-Authorization"), r.Header.Get("X-Forwarded-For"), r.Header.Get("Accept-Encoding"), body)
})
