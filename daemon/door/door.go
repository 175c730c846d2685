package door

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/daemon/reload"
)

// Defaults of the limits. See doc.go.
const (
	DefaultMaxConns          = 8192
	DefaultRequestsPerClient = 256

	headerWithin = 10 * time.Second
	maxHeader    = 64 << 10
	idleFor      = 2 * time.Minute
	// patience is how long one read or write may wait for the client.
	patience = 2 * time.Minute

	maxStreams   = 100
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	silence      = time.Minute
	pongWithin   = 15 * time.Second
)

// Config is what Listen needs. Name, Addr and Server must be set.
type Config struct {
	// Name of the door: mirror, proxy or admin. Its address is the key
	// Name.listen to a person, and its metrics have it as a label.
	Name string
	// Addr is host:port, or "unix:" and the absolute path of a socket.
	Addr string
	// SocketMode is that of a unix socket. Default: 0660, its owner and group.
	SocketMode fs.FileMode
	// TLS, if not nil, makes the door speak HTTPS, and HTTP/2 with it.
	TLS *TLS
	// AllowFrom are the networks that may connect. Nothing is let in beside
	// them, loopback neither. Whoever may write to a unix socket is let in.
	// Default: everybody.
	AllowFrom []netip.Prefix
	// MaxConns is the greatest number of connections. Default: DefaultMaxConns.
	MaxConns int
	// RequestsPerClient is how many requests of one client are answered at
	// once. Default: DefaultRequestsPerClient.
	RequestsPerClient int
	// MaxBody is the greatest body of a request in bytes. Default: no bound.
	MaxBody int64
	// Server answers. Listen takes it over, puts the limits around its Handler
	// and sets those that it does not have.
	Server *http.Server
	// Log gets a line when somebody is turned away, at most one a minute of a
	// kind, and when a certificate was read again. Nil is silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

// A Door is an http.Server with its listener.
type Door struct {
	// immutable
	cfg     Config
	addr    string
	ln      net.Listener
	server  *http.Server
	crowd   *crowd
	certs   *certificates // nil without TLS
	metrics *metrics
	log     *slog.Logger
	waiting time.Duration // patience
}

// Listen opens the door. Connections are accepted by the kernel from then on,
// and answered once Serve runs. The caller calls Close in any case.
//
// It panics if Registry has the metrics of a door of that name already.
func Listen(cfg Config) (*Door, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.RequestsPerClient <= 0 {
		cfg.RequestsPerClient = DefaultRequestsPerClient
	}
	if cfg.SocketMode == 0 {
		cfg.SocketMode = 0o660
	}
	d := &Door{cfg: cfg, server: cfg.Server, log: cfg.Log.With("door", cfg.Name), waiting: patience}
	if cfg.TLS != nil {
		var err error
		if d.certs, err = loadCertificates(*cfg.TLS, d.log); err != nil {
			return nil, &keyError{cfg.Name + ".tls", err}
		}
	}
	ln, err := listen(cfg.Name+".listen", cfg.Addr, cfg.SocketMode)
	if err != nil {
		return nil, err
	}
	d.addr = ln.Addr().String()
	if s, ok := ln.(*socket); ok {
		d.addr = unixPrefix + s.path
	}
	most := affordable(cfg.MaxConns)
	if most < cfg.MaxConns {
		d.log.Info("fewer connections than the limit, or they would take the files that the process may open", "connections", most, "limit", cfg.MaxConns)
	}
	d.crowd = newCrowd(most)
	d.metrics = newMetrics(cfg.Registry, cfg.Name, d)
	d.ln = &turnstile{Listener: ln, door: d}
	d.prepare()
	return d, nil
}

// prepare sets what the server does not have.
func (d *Door) prepare() {
	s := d.server
	if s.ReadHeaderTimeout == 0 {
		s.ReadHeaderTimeout = headerWithin
	}
	if s.MaxHeaderBytes == 0 {
		s.MaxHeaderBytes = maxHeader
	}
	if s.IdleTimeout == 0 {
		s.IdleTimeout = idleFor
	}
	if s.ErrorLog == nil {
		s.ErrorLog = slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)
	}
	s.Handler = d.limit(s.Handler)
	next := s.ConnState
	s.ConnState = func(c net.Conn, state http.ConnState) {
		d.crowd.note(c, state)
		if next != nil {
			next(c, state)
		}
	}
	if d.certs == nil {
		return
	}
	s.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: d.certs.config}
	if s.HTTP2 == nil {
		s.HTTP2 = &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               silence,
			PingTimeout:                   pongWithin,
			WriteByteTimeout:              patience,
		}
	}
}

// Serve answers until Shutdown or Close is called, and returns nil then. It
// blocks.
func (d *Door) Serve() error {
	if d.certs == nil {
		return done(d.server.Serve(d.ln))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := reload.Watch(ctx, d.log, d.certs.load, d.certs.files()...); err != nil {
			d.log.Warn("certificates are not read again before the next start", "error", err)
		}
	})
	return done(d.server.ServeTLS(d.ln, "", ""))
}

func done(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown lets nobody in any more and waits for the requests that run, until
// ctx ends: then it returns ctx's error. Connections that were hijacked are not
// waited for; Close ends them.
func (d *Door) Shutdown(ctx context.Context) error {
	return d.server.Shutdown(ctx)
}

// Close closes the listener and all connections at once, those that were
// hijacked too. It may be called more than once, and before Serve.
func (d *Door) Close() error {
	err := d.server.Close()
	if lerr := d.ln.Close(); !errors.Is(lerr, net.ErrClosed) { // it was open: Serve did not run
		err = errors.Join(err, lerr)
	}
	d.crowd.close()
	return err
}

// Addr is where the door is: host:port with the port that was chosen for 0, or
// "unix:" and the path.
func (d *Door) Addr() string { return d.addr }
