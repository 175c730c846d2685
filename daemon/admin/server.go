package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds how many scrapes are answered at once: gathering walks all
// metrics, and two scrapers are already more than most have.
const maxScrapes = 4

// Config says where the answers come from.
type Config struct {
	// Status returns what the node is doing. It is called by several
	// goroutines at once and must not block on the network. Required.
	Status func() Status
	// Ready returns nil if the node can do its work, else the reason for a
	// person. As Status, it does not block. Required.
	Ready func() error
	// Gatherer is what /metrics tells. Nil leaves /metrics out.
	Gatherer prometheus.Gatherer
	// Log gets a line when an answer could not be made. Nil is silent.
	Log *slog.Logger
}

type server struct {
	status func() Status
	ready  func() error
	log    *slog.Logger
}

// New returns the handler of the admin door. It panics without Status or
// Ready, which is a mistake of the caller that the first start shows.
func New(cfg Config) http.Handler {
	if cfg.Status == nil || cfg.Ready == nil {
		panic("admin: New needs Status and Ready")
	}
	s := &server{status: cfg.Status, ready: cfg.Ready, log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	if cfg.Gatherer != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
			ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelError),
			ErrorHandling:       promhttp.ContinueOnError,
			MaxRequestsInFlight: maxScrapes,
		}))
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.full()) })
	mux.HandleFunc("GET /v1/members", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.full().Members) })
	mux.HandleFunc("GET /v1/pulls", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.full().Pulls) })
	return mux
}

func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := s.ready(); err != nil {
		text(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
		return
	}
	text(w, http.StatusOK, "ok")
}

// full returns the status with what this room adds: whether the node is ready,
// and lists rather than JSON's null where there is nothing.
func (s *server) full() Status {
	st := s.status()
	st.Ready = true
	if err := s.ready(); err != nil {
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

func (s *server) json(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.log.Error("admin answer could not be encoded", "error", err)
		text(w, http.StatusInternalServerError, "the answer could not be encoded")
		return
	}
	plain(w.Header(), "application/json")
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
