package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/proto"
)

// maxScrapes bounds how many scrapes are answered at once: gathering walks all
// metrics, and two scrapers are already more than most have.
const maxScrapes = 4

// Config says where the answers come from. All functions are called by several
// goroutines at once. What is nil is not offered: 404.
type Config struct {
	// Status returns what the node is doing. It must not block on the network.
	// Required.
	Status func() Status
	// Ready returns nil if the node can do its work, else the reason for a
	// person. As Status, it does not block. Required.
	Ready func() error
	// Gatherer is what /metrics tells.
	Gatherer prometheus.Gatherer

	// StartJob starts a job. It, and Webhook, may return errors that wrap
	// jobs.ErrInvalid or jobs.ErrBusy.
	StartJob func(ctx context.Context, s jobs.Spec) (jobs.Job, error)
	// Job returns one job, Jobs all of them, the newest first.
	Job  func(id string) (jobs.Job, bool)
	Jobs func() []jobs.Job
	// WatchJob yields a job each time it has changed.
	WatchJob func(ctx context.Context, id string) iter.Seq[jobs.Job]
	// CancelJob ends a job, or returns an error that wraps jobs.ErrNotFound or
	// jobs.ErrEnded.
	CancelJob func(id string) error
	// Webhook starts jobs for what a registry says was pushed.
	Webhook func(ctx context.Context, events []jobs.Event) ([]jobs.Job, error)
	// WebhookToken is what the senders of webhooks must have in their
	// Authorization header, as it is or after "Bearer ". It takes the place of
	// what Access says. Empty: they need the role Operate.
	WebhookToken string

	// Cache returns what the cache holds.
	Cache func() cache.Use
	// GC cleans up, Scrub reads and checks everything. Both block until that is
	// done or ctx ends, which it does when the client goes.
	GC    func(ctx context.Context, o cache.GCOptions) (cache.GCReport, error)
	Scrub func(ctx context.Context) (cache.ScrubReport, error)
	// ScrubProgress returns how far the scrub is, and false if none runs.
	ScrubProgress func() (cache.ScrubProgress, bool)
	// Pins returns the pins, Pin adds one, and Unpin takes one back or returns
	// an error that wraps cache.ErrNotPinned.
	Pins  func() []cache.Pin
	Pin   func(pattern string) error
	Unpin func(pattern string) error
	// PutBlob takes a blob in, all of it or nothing. PutImage makes what was
	// taken in an image, and returns an error that wraps jobs.ErrIncomplete if
	// not all of it was.
	PutBlob  func(ctx context.Context, b proto.Blob, r io.Reader) error
	PutImage func(ctx context.Context, i jobs.Image) error

	// Blocklist is what the fleet may not have.
	Blocklist Blocklist

	// Checks looks at what the node needs. It may block until ctx ends.
	Checks func(ctx context.Context) []Check

	// Offline reports whether no origin is contacted, SetOffline says so.
	Offline    func() bool
	SetOffline func(offline bool)

	// Access says who may do what. Its zero is this machine, and nobody else.
	Access Access

	// Log gets a line when an answer could not be made, and one for each request
	// that is to change something. Nil is silent.
	Log *slog.Logger
}

type server struct {
	cfg Config
	log *slog.Logger
}

// New returns the handler of the admin door. It panics without Status or
// Ready, which is a mistake of the caller that the first start shows.
func New(cfg Config) http.Handler {
	if cfg.Status == nil || cfg.Ready == nil {
		panic("admin: New needs Status and Ready")
	}
	s := &server{cfg: cfg, log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	if cfg.Gatherer != nil {
		metrics := promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
			ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelError),
			ErrorHandling:       promhttp.ContinueOnError,
			MaxRequestsInFlight: maxScrapes,
		})
		if !cfg.Access.OpenMetrics {
			metrics = s.may(View, metrics)
		}
		mux.Handle("GET /metrics", metrics)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	for _, r := range append(s.routes(), s.blocklistRoutes()...) {
		switch {
		case !r.offered:
		case strings.HasPrefix(r.pattern, webhooks) && cfg.WebhookToken != "":
			mux.Handle(r.pattern, r.handler) // its sender has a token of its own
		default:
			mux.Handle(r.pattern, s.may(needs(r.pattern), r.handler))
		}
	}
	return mux
}

// webhooks begins the patterns of webhooks.
const webhooks = "POST /v1/webhooks/"

// A route is an endpoint that a node may or may not have.
type route struct {
	offered bool
	pattern string
	handler http.Handler
}

func (s *server) routes() []route {
	c := s.cfg
	asJSON := only(jsonType)
	return []route{
		{true, "GET /v1/status", s.read(func(w http.ResponseWriter, _ *http.Request) error { s.json(w, s.full()); return nil })},
		{true, "GET /v1/members", s.read(func(w http.ResponseWriter, _ *http.Request) error { s.json(w, s.full().Members); return nil })},
		{true, "GET /v1/pulls", s.read(func(w http.ResponseWriter, _ *http.Request) error { s.json(w, s.full().Pulls); return nil })},
		{c.StartJob != nil, "POST /v1/jobs", s.change(asJSON, s.startJob)},
		{c.Jobs != nil, "GET /v1/jobs", s.read(s.listJobs)},
		{c.Job != nil, "GET /v1/jobs/{id}", s.read(s.job)},
		{c.CancelJob != nil, "DELETE /v1/jobs/{id}", s.change(asJSON, s.cancelJob)},
		{c.Webhook != nil, "POST /v1/webhooks/distribution", s.change(anyJSON, s.webhook(jobs.ParseDistribution))},
		{c.Webhook != nil, "POST /v1/webhooks/harbor", s.change(anyJSON, s.webhook(jobs.ParseHarbor))},
		{c.Cache != nil, "GET /v1/cache", s.read(func(w http.ResponseWriter, _ *http.Request) error {
			s.json(w, c.Cache())
			return nil
		})},
		{c.GC != nil, "POST /v1/cache/gc", s.change(asJSON, s.gc)},
		{c.Scrub != nil, "POST /v1/cache/scrub", s.change(asJSON, s.scrub)},
		{c.ScrubProgress != nil, "GET /v1/cache/scrub", s.read(func(w http.ResponseWriter, _ *http.Request) error {
			at, running := c.ScrubProgress()
			s.json(w, Scrubbing{Running: running, ScrubProgress: at})
			return nil
		})},
		{c.Pins != nil, "GET /v1/cache/pins", s.read(s.pins)},
		{c.Pin != nil, "POST /v1/cache/pins", s.change(asJSON, s.pin)},
		{c.Unpin != nil, "DELETE /v1/cache/pins", s.change(asJSON, s.unpin)},
		{c.PutBlob != nil, putBlobs, s.change(only(octets), s.putBlob)},
		{c.PutImage != nil, "PUT /v1/cache/images", s.change(asJSON, s.putImage)},
		{c.Checks != nil, "GET /v1/checks", s.read(s.checks)},
		{c.Offline != nil, "GET /v1/offline", s.read(func(w http.ResponseWriter, _ *http.Request) error {
			s.json(w, Mode{Offline: c.Offline()})
			return nil
		})},
		{c.SetOffline != nil, "PUT /v1/offline", s.change(asJSON, s.setOffline)},
	}
}

func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := s.cfg.Ready(); err != nil {
		text(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
		return
	}
	text(w, http.StatusOK, "ok")
}

// full returns the status with what this room adds: whether the node is ready,
// and lists rather than JSON's null where there is nothing.
func (s *server) full() Status {
	st := s.cfg.Status()
	st.Ready = true
	if err := s.cfg.Ready(); err != nil {
		st.Ready, st.Reason = false, err.Error()
	}
	if st.Members == nil {
		st.Members = []Member{}
	}
	if st.Pulls == nil {
		st.Pulls = []Pull{}
	}
	return st
}

func (s *server) startJob(w http.ResponseWriter, r *http.Request) error {
	var spec jobs.Spec
	if err := body(w, r, &spec); err != nil {
		return err
	}
	job, err := s.cfg.StartJob(r.Context(), spec)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/jobs/"+job.ID)
	s.answer(w, http.StatusAccepted, job)
	return nil
}

func (s *server) listJobs(w http.ResponseWriter, _ *http.Request) error {
	all := s.cfg.Jobs()
	if all == nil {
		all = []jobs.Job{}
	}
	s.json(w, all)
	return nil
}

func (s *server) job(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	job, ok := s.cfg.Job(id)
	if !ok {
		return refuse(http.StatusNotFound, "there is no job %.100q here; jobs are known to the node that was asked for them", id)
	}
	if r.URL.Query().Get("watch") == "" || s.cfg.WatchJob == nil {
		s.json(w, job)
		return nil
	}
	plain(w.Header(), "application/x-ndjson")
	lines := json.NewEncoder(w)
	for job := range s.cfg.WatchJob(r.Context(), id) {
		if lines.Encode(job) != nil || http.NewResponseController(w).Flush() != nil {
			return nil // the client has gone
		}
	}
	return nil
}

func (s *server) cancelJob(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.CancelJob(r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// webhook reads a notification with parse and answers with the jobs that it
// started, none if no rule is about it.
func (s *server) webhook(parse func([]byte) ([]jobs.Event, error)) call {
	return func(w http.ResponseWriter, r *http.Request) error {
		if !s.authorized(r) {
			return refuse(http.StatusUnauthorized, "the Authorization header is not the token of webhook.tokenFile")
		}
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			return err
		}
		events, err := parse(data)
		if err != nil {
			return &refusal{http.StatusBadRequest, err}
		}
		started, err := s.cfg.Webhook(r.Context(), events)
		if err != nil {
			return err
		}
		if started == nil {
			started = []jobs.Job{}
		}
		s.answer(w, http.StatusAccepted, started)
		return nil
	}
}

// authorized reports whether a webhook has the token, in a time that does not
// depend on how much of it is right.
func (s *server) authorized(r *http.Request) bool {
	if s.cfg.WebhookToken == "" {
		return true
	}
	given := r.Header.Get("Authorization")
	if scheme, token, ok := strings.Cut(given, " "); ok && strings.EqualFold(scheme, "Bearer") {
		given = strings.TrimSpace(token)
	}
	want, got := sha256.Sum256([]byte(s.cfg.WebhookToken)), sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

func (s *server) gc(w http.ResponseWriter, r *http.Request) error {
	var c Collection
	if err := body(w, r, &c); err != nil {
		return err
	}
	report, err := s.cfg.GC(r.Context(), cache.GCOptions{DryRun: c.DryRun})
	if err != nil {
		return err
	}
	s.json(w, report)
	return nil
}

func (s *server) scrub(w http.ResponseWriter, r *http.Request) error {
	// To its end, or net/http does not look out for the client's going.
	if err := body(w, r, &struct{}{}); err != nil {
		return err
	}
	report, err := s.cfg.Scrub(r.Context())
	if err != nil {
		return err
	}
	s.json(w, report)
	return nil
}

func (s *server) pins(w http.ResponseWriter, _ *http.Request) error {
	all := s.cfg.Pins()
	if all == nil {
		all = []cache.Pin{}
	}
	s.json(w, all)
	return nil
}

func (s *server) pin(w http.ResponseWriter, r *http.Request) error {
	var p Pattern
	if err := body(w, r, &p); err != nil {
		return err
	}
	if err := s.cfg.Pin(p.Pattern); err != nil {
		return &refusal{http.StatusBadRequest, err}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) unpin(w http.ResponseWriter, r *http.Request) error {
	pattern := r.URL.Query().Get("pattern")
	if pattern == "" {
		return refuse(http.StatusBadRequest, "which pin? say ?pattern=")
	}
	if err := s.cfg.Unpin(pattern); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) putBlob(w http.ResponseWriter, r *http.Request) error {
	var b proto.Blob
	var err error
	if b.Digest, err = proto.ParseDigest(r.PathValue("digest")); err != nil {
		return &refusal{http.StatusBadRequest, err}
	}
	if b.Size, err = strconv.ParseInt(r.URL.Query().Get("size"), 10, 64); err != nil {
		return refuse(http.StatusBadRequest, "how long is the blob? say ?size= in bytes: %w", err)
	}
	if err := b.Validate(); err != nil {
		return &refusal{http.StatusBadRequest, err}
	}
	if n := r.ContentLength; n >= 0 && n != b.Size {
		return refuse(http.StatusBadRequest, "the body has %d bytes, the blob %d", n, b.Size)
	}
	if err := s.cfg.PutBlob(r.Context(), b, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *server) putImage(w http.ResponseWriter, r *http.Request) error {
	var i jobs.Image
	if err := body(w, r, &i); err != nil {
		return err
	}
	if err := s.cfg.PutImage(r.Context(), i); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *server) setOffline(w http.ResponseWriter, r *http.Request) error {
	var m struct {
		Offline *bool `json:"offline"`
	}
	if err := body(w, r, &m); err != nil {
		return err
	}
	if m.Offline == nil {
		return refuse(http.StatusBadRequest, `say {"offline":true} or {"offline":false}`)
	}
	s.cfg.SetOffline(*m.Offline)
	s.log.Info("offline was switched", "offline", *m.Offline)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) json(w http.ResponseWriter, v any) { s.answer(w, http.StatusOK, v) }

func (s *server) answer(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.log.Error("admin answer could not be encoded", "error", err)
		text(w, http.StatusInternalServerError, "the answer could not be encoded")
		return
	}
	plain(w.Header(), jsonType)
	w.WriteHeader(status)
	w.Write(append(data, '\n'))
}

func text(w http.ResponseWriter, status int, line string) {
	plain(w.Header(), "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, fmt.Sprintln(line))
}

// plain sets the headers of all answers: what they say is true now and not
// later, and they are not for a browser to interpret.
func plain(h http.Header, contentType string) {
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}
