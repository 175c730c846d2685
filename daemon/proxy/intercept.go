package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
)

// A handover is the listener of the server inside: its connections are those
// that deliver is given.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// deliver hands a connection to Accept. It reports false if the listener is
// closed.
func (h *handover) deliver(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept is part of net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close is part of net.Listener.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is part of net.Listener.
func (h *handover) Addr() net.Addr { return &net.UnixAddr{Name: "intercepted", Net: "unix"} }

type lineKey struct{}

// innerServer returns the server for what is inside of intercepted connections.
// It does the TLS handshake too.
func (p *Proxy) innerServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(p.inside),
		ReadHeaderTimeout: headersWithin,
		IdleTimeout:       keepWithin,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, lineKey{}, c.(*tls.Conn).NetConn().(*line)) // intercept's
		},
	}
}

// certificate returns the certificate that the client of a connection sees: of
// the host that it has named in its CONNECT, whatever it says now.
func (p *Proxy) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	l, ok := hello.Conn.(*line)
	if !ok {
		return nil, fmt.Errorf("connection of type %T", hello.Conn)
	}
	return p.leaves.get(l.route.target.host)
}

// inside answers a request in an intercepted connection.
func (p *Proxy) inside(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		refuse(http.StatusServiceUnavailable, "the proxy is shutting down").answer(w)
		return
	}
	defer p.serving.Done()
	l := r.Context().Value(lineKey{}).(*line)
	r.Header.Del("Proxy-Authorization")
	to := l.route
	if r.Method == http.MethodConnect {
		refuse(http.StatusBadRequest, "there is no CONNECT inside of a connection to %s", to.target).answer(w)
		return
	}
	// The upstream, and so what the client may have, follows from the host of
	// its CONNECT.
	if host, err := parseTarget(r.Host, to.target.port); err != nil || host.host != to.target.host || host.port != to.target.port {
		refuse(http.StatusMisdirectedRequest, "this connection leads to %s, and the request is for another host", to.target).answer(w)
		return
	}
	p.answer(w, r, to)
}

// answer answers a request that is for a route.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, to route) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.URL.User = "", "", nil // to has them; Handler is told of the path only
	untouched := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.untouched(w, r, to) })
	if !to.intercepted {
		untouched(w, r)
		return
	}
	switch what(r) {
	case content:
		p.cfg.Handler(to.upstream, untouched).ServeHTTP(w, r)
	case ping:
		p.ping(w, r, to)
	default:
		untouched(w, r)
	}
}

// What a request is for.
const (
	other   = iota
	content // a manifest or a blob
	ping    // whether there is a registry
)

// what says what a request is for. Whatever a registry could take for that of a
// manifest or a blob is content, however it is written: what goes to the registry
// goes around the policy. The handler hands back what it turns out not to be.
func what(r *http.Request) int {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return other
	}
	if (r.URL.Path == "/v2" || r.URL.Path == "/v2/") && r.URL.RawQuery == "" && r.URL.RawPath == "" {
		return ping
	}
	if !strings.HasPrefix(path.Clean(r.URL.Path), "/v2/") {
		return other
	}
	if strings.Contains(r.URL.Path, "/manifests/") || strings.Contains(r.URL.Path, "/blobs/") {
		return content
	}
	return other
}
