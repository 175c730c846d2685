package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// pingWithin bounds how long a registry may take to say that it is one, before
// the handler is asked instead. dockerd waits for 15 s.
const pingWithin = 8 * time.Second

// NewTransport returns a Transport for Config.Transport. Roots are the CAs of
// the upstream; nil are the system's. It follows no proxy of the environment,
// which might be this one, and it does not connect to the proxy itself.
func NewTransport(roots *x509.CertPool) *http.Transport {
	return newTransport(roots, loopDialer())
}

func newTransport(roots *x509.CertPool, dial dialFunc) *http.Transport {
	return &http.Transport{
		DialContext: dial,
		// http/1.1, as the client speaks it: what it upgrades to, and when it
		// waits for 100-continue, is then for the two of them to say.
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, NextProtos: []string{"http/1.1"}},
		TLSHandshakeTimeout:   dialWithin,
		ExpectContinueTimeout: 2 * time.Second,
		// A registry that has got the last byte of a layer may hash all of it.
		ResponseHeaderTimeout:  idleWithin,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    4,
		MaxIdleConns:           64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// ping asks the registry whether it is one, and the handler if there is no
// answer: a runtime asks that before each pull, also before one of what is here.
func (p *Proxy) ping(w http.ResponseWriter, r *http.Request, to route) {
	ctx, cancel := context.WithTimeout(r.Context(), pingWithin)
	defer cancel()
	to.fallback = p.cfg.Handler(to.upstream, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(http.StatusBadGateway, "the registry %s does not answer", to.target).answer(w)
	}))
	to.original = r
	p.untouched(w, r.WithContext(ctx), to)
}

// untouched sends a request to where it was meant to go, and its answer back.
func (p *Proxy) untouched(w http.ResponseWriter, r *http.Request, to route) {
	clear(w.Header()) // what a handler has set before it gave the request up
	p.metrics.untouched.Inc()
	transport := http.RoundTripper(p.guarded)
	if to.upstream != "" {
		transport = p.direct
		if p.cfg.Transport != nil {
			if own := p.cfg.Transport(to.upstream); own != nil {
				transport = own
			}
		}
	}
	r = r.WithContext(withOwn(r.Context(), to.own))
	patient := &patientWriter{ResponseWriter: w}
	if r.Body != nil && r.ContentLength != 0 {
		r.Body = &patientBody{ReadCloser: r.Body, control: http.NewResponseController(w)}
	}
	reverse := httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = &url.URL{
				Scheme: to.scheme, Host: to.target.authority(to.scheme),
				Path: pr.In.URL.Path, RawPath: pr.In.URL.RawPath,
				RawQuery: pr.In.URL.RawQuery, ForceQuery: pr.In.URL.ForceQuery,
			}
			for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := pr.In.Header[h]; ok {
					pr.Out.Header[h] = v
				}
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			if to.fallback != nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError) {
				return fmt.Errorf("the registry says %d", resp.StatusCode)
			}
			return nil
		},
		FlushInterval: -1, // what the registry sends bit by bit, the client gets so
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			var no *refusal
			switch {
			case to.fallback != nil && to.original.Context().Err() == nil && !errors.As(err, &no):
				p.log.Debug("the registry does not answer a ping", "upstream", to.upstream, "error", err)
				to.fallback.ServeHTTP(w, to.original)
			default:
				unreachable(to.target, err).answer(w)
			}
		},
	}
	reverse.ServeHTTP(patient, r)
}

// A patientWriter is a ResponseWriter whose client may be slow, but not stand
// still.
type patientWriter struct {
	http.ResponseWriter
	renewed time.Time
}

// Write is part of http.ResponseWriter.
func (w *patientWriter) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(w.renewed) > time.Second {
		w.renewed = now
		// Not supported: no connection to protect.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(now.Add(patience))
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack is part of http.Hijacker. The connection of an upgraded protocol is
// let go when nothing has moved for as long as in a tunnel. What the client has
// sent already is read from it: ReverseProxy does not look into the buffer.
func (w *patientWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what is buffered is there
	return &patientConn{Conn: conn, early: bytes.Clone(early)}, rw, nil
}

// A patientBody is the body of a request whose client may be slow, but not stand
// still.
type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
}

// Read is part of io.Reader. There is no deadline after the end of the body:
// it would end the context of a request whose answer takes its time.
func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(patience)) // not supported: no connection to protect
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
