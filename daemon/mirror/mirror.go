package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

// How long a client waits for the headers of a response. See doc.go.
const (
	// answerWithin bounds the wait for what must be there before an answer:
	// the origin's word that something exists, and a manifest as a whole.
	answerWithin = 15 * time.Second
	// firstByteWithin bounds the wait for the first bytes of a blob. After it
	// the headers are sent and the bytes follow when they come.
	firstByteWithin = 5 * time.Second
)

// Config is what a Handler needs. Gate, Puller, Origin and Cache must be set.
type Config struct {
	Gate   *policy.Gate
	Puller *pull.Puller
	Origin *origin.Client
	// Cache is the Puller's. Lists are kept in it.
	Cache *cache.Cache
	// Default is the upstream of requests that name none, such as "docker.io".
	// Empty: they are refused.
	Default string
	// Prefetch starts the config and the layers of a manifest when it is
	// served.
	Prefetch bool
	// Upstreams are the names that the metrics tell apart. All others are one.
	Upstreams []string
	// MaxStale is the greatest age at which a list is served when the upstream
	// does not answer. While the node is offline by its configuration any age
	// will do. Default: no bound.
	MaxStale time.Duration
	// Through returns the source of content that is passed on to a client
	// because there is no room for it here. Default: Origin's.
	Through func(proto.Origin) pull.Source
	// SourceOf says where most of a blob comes from that is still arriving:
	// "peer" or "origin". Default: the Puller's word.
	SourceOf func(proto.Digest) string
	// Doubt is told of a blob that is whole here and could not be read. It must
	// not block. Default: the Cache's Doubt.
	Doubt func(proto.Digest)
	// Audit, if not nil, gets a record of each GET of a manifest or a blob that
	// was answered, and of each request that was denied. It must not block.
	Audit func(audit.Record)
	// Log gets a line at debug level per request, and one at warning level per
	// request that this node failed or answered with something stale. Nil is
	// silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

// A Handler is the mirror.
type Handler struct {
	// immutable
	gate      *policy.Gate
	puller    *pull.Puller
	origin    *origin.Client
	cache     *cache.Cache
	through   func(proto.Origin) pull.Source
	sourceOf  func(proto.Digest) string
	doubt     func(proto.Digest)
	def       string
	upstreams []string // in lower case
	maxStale  time.Duration
	prefetch  bool
	audit     func(audit.Record) // may be nil
	log       *slog.Logger
	metrics   *metrics
	answer    time.Duration // answerWithin
	firstByte time.Duration // firstByteWithin

	draining atomic.Bool
	foreign  foreign
	buffers  sync.Pool // of *[copySize]byte
}

// New returns a Handler. It panics if Registry has a mirror's metrics already.
func New(cfg Config) *Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Through == nil {
		cfg.Through = func(o proto.Origin) pull.Source { return cfg.Origin.Source(o) }
	}
	if cfg.SourceOf == nil {
		cfg.SourceOf = cfg.Puller.SourceOf
	}
	if cfg.Doubt == nil {
		cfg.Doubt = cfg.Cache.Doubt
	}
	upstreams := make([]string, len(cfg.Upstreams))
	for i, name := range cfg.Upstreams {
		upstreams[i] = strings.ToLower(name)
	}
	return &Handler{
		gate:      cfg.Gate,
		puller:    cfg.Puller,
		origin:    cfg.Origin,
		cache:     cfg.Cache,
		through:   cfg.Through,
		sourceOf:  cfg.SourceOf,
		doubt:     cfg.Doubt,
		upstreams: upstreams,
		maxStale:  cfg.MaxStale,
		def:       strings.ToLower(cfg.Default),
		prefetch:  cfg.Prefetch,
		audit:     cfg.Audit,
		log:       cfg.Log,
		metrics:   newMetrics(cfg.Registry),
		answer:    answerWithin,
		firstByte: firstByteWithin,
	}
}

// Drain makes the handler refuse new pulls: from now on a ping, a manifest and
// a list get 503 UNAVAILABLE and the connection is closed after it. Blobs are
// still served, since whoever asks for one has its manifest and may have no
// way back. It returns at once.
func (h *Handler) Drain() { h.draining.Store(true) }

// Server returns a server for the handler with the limits that suit it. The
// caller gives it a listener and shuts it down.
func (h *Handler) Server() *http.Server {
	return &http.Server{
		Handler: h,
		// A client on the same machine sends its few hundred bytes at once.
		ReadHeaderTimeout: 10 * time.Second,
		// containerd keeps connections for 30 s, others for 90 s: let the
		// client close them, so that none is closed under a request.
		IdleTimeout: 2 * time.Minute,
		// References, ranges and a token fit in a tenth of it.
		MaxHeaderBytes: 64 << 10,
		// No WriteTimeout: a layer may arrive over a thin link for hours. No
		// ReadTimeout: its deadline would end the context of such a request.
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
}

// bodyWithin bounds how long the server reads the body of a request, which
// nobody wants, before it gives the connection up.
const bodyWithin = 10 * time.Second

// A visit is one request and what became of it, for the log, the metrics and the
// audit.
type visit struct {
	request
	who   policy.Caller
	start time.Time
	// upstream is the one that a proxy's client asks for; its URL names none.
	// untouched serves its requests that this handler leaves alone. Both are
	// zero at the mirror's own door.
	upstream  string
	untouched http.Handler
	// digest is what the request was admitted for, ruling what the rules said.
	digest proto.Digest
	ruling policy.Ruling
	// source is where the content comes from, and arriving the blob that was
	// still on its way when asked for: then the source shows later. Both are
	// zero without content.
	source   string
	arriving proto.Digest
	stale    bool // the answer is what was remembered
	cut      bool // the response ended before its Content-Length
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.visit(w, r, &visit{who: caller(policy.DoorMirror, r)})
}

// visit answers the request of v, or has it answered.
func (h *Handler) visit(w http.ResponseWriter, r *http.Request, v *visit) {
	v.request, v.start = request{kind: kindOther}, time.Now()
	out := &response{ResponseWriter: w, buffers: &h.buffers}
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(v.start.Add(bodyWithin)) // not supported: no connection to protect
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := h.serve(out, r, v)
	content := out.bytes
	if err != nil && out.status == 0 {
		if h.leave(r, v, err) {
			h.untouched(out, r, v)
			return
		}
		writeError(out, v.request, err)
		content = 0
	}
	h.account(out, r, v, content, err)
}

// serve answers the request, or returns why not. If something was sent by then
// the response is cut short: net/http closes the connection of a handler that
// returns before its Content-Length.
func (h *Handler) serve(w *response, r *http.Request, v *visit) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return fail(http.StatusMethodNotAllowed, codeUnsupported,
			"%.20s is not possible: a mirror is read only, push to the registry itself", r.Method)
	}
	var err error
	if v.untouched == nil {
		v.request, err = parseRequest(r.URL.Path, r.URL.RawQuery, h.def, h.origin.Knows)
	} else {
		v.request, err = parseProxied(r.URL.Path, r.URL.RawQuery, v.upstream)
	}
	if err != nil {
		return err
	}
	if h.draining.Load() {
		if v.kind != kindBlob {
			return errDraining
		}
		w.Header().Set("Connection", "close")
	}
	switch v.kind {
	case kindPing:
		return h.ping(w, r, v)
	case kindManifest, kindBlob:
		err = h.content(w, r, v)
	default:
		err = h.pass(w, r, v)
	}
	if errors.Is(err, context.DeadlineExceeded) && w.status == 0 {
		err = fmt.Errorf("nothing came within %s, which is as long as clients wait: %w", h.answer, err)
	}
	return err
}

// content serves a manifest or a blob. If a passthrough upstream has refused the
// token that it was to be fetched with, this caller's own is asked about once
// more: it is another one, or its time is over and the caller has to know.
func (h *Handler) content(w *response, r *http.Request, v *visit) error {
	serve := h.blob
	if v.kind == kindManifest {
		serve = h.manifest
	}
	err := serve(w, r, v)
	if err == nil || w.status != 0 || !errors.Is(err, origin.ErrDenied) || !h.passthrough(v.ref.Upstream) ||
		errors.As(err, new(*origin.ChallengeError)) {
		return err
	}
	h.gate.Distrust(v.ref, v.who)
	return serve(w, r, v)
}

func (h *Handler) passthrough(upstream string) bool {
	return h.origin.Auth(upstream) == origin.AuthPassthrough
}

// ping says that this is a registry. Where the upstream wants to see callers'
// own tokens it says so here already: dockerd only logs in if it does.
func (h *Handler) ping(w *response, r *http.Request, v *visit) error {
	if h.passthrough(v.pinged) {
		ctx, cancel := context.WithTimeout(r.Context(), h.answer)
		defer cancel()
		if err := h.origin.Challenge(ctx, v.pinged, v.who.Authorization); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", "2")
	_, _ = w.Write([]byte("{}"))
	return nil
}

// account counts the request and logs it.
func (h *Handler) account(w *response, r *http.Request, v *visit, content int64, err error) {
	gone := w.lost || r.Context().Err() != nil
	source := h.count(gone, w, v, content, err)
	if v.kind == kindManifest && r.Method == http.MethodGet && (w.status == http.StatusOK || w.status == http.StatusPartialContent) {
		h.gate.Served(v.ref, v.ruling)
	}
	h.record(w, r, v, content, err)
	level, text := slog.LevelDebug, "request"
	switch {
	case v.cut && !gone:
		level, text = slog.LevelWarn, "response cut short"
	case w.status >= http.StatusInternalServerError && !errors.Is(err, errDraining) && !gone:
		level, text = slog.LevelWarn, "request failed"
	}
	if !h.log.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("kind", string(v.kind)),
		slog.String("upstream", v.ref.Upstream),
		slog.String("repository", v.ref.Repository),
		slog.String("reference", v.reference()),
		slog.Int("status", w.status),
		slog.Int64("bytes", w.bytes),
		slog.String("source", source),
		slog.Duration("duration", time.Since(v.start)),
		slog.String("client", r.RemoteAddr),
	}
	if rng := r.Header.Get("Range"); rng != "" {
		attrs = append(attrs, slog.String("range", fmt.Sprintf("%.80s", rng)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	h.log.LogAttrs(r.Context(), level, text, attrs...)
}
