package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/elazarl/goproxy"
)

// newFront returns what takes CONNECT requests apart.
func (p *Proxy) newFront() *goproxy.ProxyHttpServer {
	front := goproxy.NewProxyHttpServer()
	front.Logger = lineLogger{p.log}
	front.OnRequest().HandleConnectFunc(p.connect)
	return front
}

// lineLogger is the logger that goproxy knows.
type lineLogger struct {
	log interface{ Debug(string, ...any) }
}

// Printf is part of goproxy.Logger.
func (l lineLogger) Printf(format string, args ...any) {
	l.log.Debug("goproxy", "line", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// A hijackable is a ResponseWriter whose connection, when goproxy takes it over,
// is a *line: goproxy would lose what the client has sent after its CONNECT
// without waiting for the answer.
type hijackable struct {
	http.ResponseWriter
	lines *lines
}

// Hijack is part of http.Hijacker.
func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what is buffered is there
	return &line{Conn: conn, early: bytes.Clone(early), lines: h.lines}, rw, nil
}

// connect decides on a CONNECT request.
func (p *Proxy) connect(host string, ctx *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
	t, err := parseTarget(host, 0)
	if err != nil {
		return p.reject(ctx, refuse(http.StatusBadRequest, "%v", err)), host
	}
	to := p.route(t)
	no := p.admit(to, 0)
	if no == nil && to.intercepted {
		// Now, while there is a way to say why it fails.
		if _, err := p.leaves.get(t.host); err != nil {
			p.log.Warn("cannot make a certificate", "host", t.host, "error", err)
			no = refuse(http.StatusBadGateway, "the proxy's CA cannot vouch for %s: look at it with `shoal ca show`", t.host)
		}
	}
	if no != nil {
		return p.reject(ctx, no), host
	}
	return &goproxy.ConnectAction{Action: goproxy.ConnectHijack, Hijack: func(r *http.Request, conn net.Conn, _ *goproxy.ProxyCtx) {
		l := conn.(*line) // hijackable's
		to.own = addrPort(l.LocalAddr())
		l.route = to
		if err := p.lines.add(l); err != nil {
			p.count(r, to, resultRefused)
			refuse(http.StatusServiceUnavailable, "%v", err).send(l)
			return
		}
		if to.intercepted {
			p.count(r, to, resultIntercepted)
			p.intercept(l)
			return
		}
		p.count(r, to, resultTunnelled)
		p.tunnel(l)
	}}, host
}

func (p *Proxy) reject(ctx *goproxy.ProxyCtx, no *refusal) *goproxy.ConnectAction {
	p.metrics.connects.WithLabelValues(resultRefused).Inc()
	p.log.Debug("connection refused", "client", ctx.Req.RemoteAddr, "host", fmt.Sprintf("%.300q", ctx.Req.Host), "reason", no.Error())
	ctx.Resp = no.response()
	return &goproxy.ConnectAction{Action: goproxy.ConnectReject}
}

func (p *Proxy) count(r *http.Request, to route, result string) {
	p.metrics.connects.WithLabelValues(result).Inc()
	p.log.Debug("connection "+result, "client", r.RemoteAddr, "host", to.target.String(), "upstream", to.upstream)
}

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// intercept hands the connection to the server inside.
func (p *Proxy) intercept(l *line) {
	_ = l.SetDeadline(time.Now().Add(headersWithin)) // the server inside sets its own
	if _, err := io.WriteString(l, established); err != nil {
		_ = l.Close() // the client has gone
		return
	}
	if !p.handed.deliver(tls.Server(l, p.tls)) {
		_ = l.Close() // the proxy is closing
	}
}

// tunnel connects the client with its target and moves bytes between the two
// until both ends are done, or one fails, or neither says anything for too long.
func (p *Proxy) tunnel(l *line) {
	defer l.Close()
	_ = l.SetWriteDeadline(time.Now().Add(patience))
	ctx, cancel := context.WithTimeout(withOwn(p.ctx, l.route.own), dialWithin)
	defer cancel()
	dial := p.guard.dialer()
	if l.route.upstream != "" {
		dial = loopDialer()
	}
	remote, err := dial(ctx, "tcp", l.route.target.String())
	if err != nil {
		p.log.Debug("cannot connect", "host", l.route.target.String(), "error", err)
		unreachable(l.route.target, err).send(l)
		return
	}
	defer remote.Close()
	if _, err := io.WriteString(l, established); err != nil {
		return
	}
	p.relay(l, remote)
}

// unreachable says why a connect failed.
func unreachable(t target, err error) *refusal {
	var no *refusal
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusGatewayTimeout, "cannot connect to %s within %s", t, dialWithin)
	}
	return refuse(http.StatusBadGateway, "cannot connect to %s: %v", t, err)
}
