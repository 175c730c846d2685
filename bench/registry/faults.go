package registry

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/time/rate"
)

// Auth is how a Registry wants its clients to log in.
type Auth int

// Ways to log in.
const (
	AuthNone Auth = iota
	// AuthBasic wants a user's name and password with each request.
	AuthBasic
	// AuthToken wants a token of the registry's own token server (at /token).
	AuthToken
)

// Faults say how a Registry misbehaves. The zero Faults are none. Those of
// bodies concern GETs of blobs only.
type Faults struct {
	// Auth is not a fault, but clients have to deal with it.
	Auth Auth
	// Realm is what challenges of AuthToken name instead of /token.
	Realm string

	// CutAfter closes each connection cleanly after that many bytes of a body.
	CutAfter int64
	// StallAfter sends nothing more after that many bytes of a body, until the
	// client gives up or the faults are changed.
	StallAfter int64
	// Rate limits all bodies together, in bytes a second.
	Rate int64

	// Status answers GETs of blobs with an error.
	Status int
	// FailFirst limits Status (503 if that is 0) to so many GETs of blobs.
	FailFirst int
	// RetryAfter is the header that goes with Status, ManifestStatus and
	// ListStatus.
	RetryAfter string

	// ManifestStatus answers GETs and HEADs of manifests with an error.
	ManifestStatus int
	// ManifestRetryAfter goes with ManifestStatus in the place of RetryAfter.
	ManifestRetryAfter string
	// StallManifests gives GETs and HEADs of manifests no answer until the
	// client gives up or the faults are changed.
	StallManifests bool
	// RateLimit goes with all answers to GETs and HEADs of manifests as Docker
	// Hub sends it: what is allowed, a space and what is left of it, such as
	// "100;w=21600 76;w=21600".
	RateLimit string
	// ListStatus answers GETs of tags and referrers with an error.
	ListStatus int

	// Down closes each connection as soon as a request has come in, and cuts
	// the bodies that are under way, at the object storage as well. Clients may
	// send a request a second time then, on a new connection; each one counts.
	Down bool

	// WrongBytes is how many times the middle byte of a blob leaves wrong;
	// negative: always.
	WrongBytes int
	// ShortBody leaves the last byte of each body out, and says so in
	// Content-Length.
	ShortBody bool
	// LongBody adds a byte to each body, and says so in Content-Length.
	LongBody bool
	// Chunked leaves Content-Length out.
	Chunked bool
	// WrongDigest sends another Docker-Content-Digest, with manifests as well.
	WrongDigest bool
	// NoRange ignores Range.
	NoRange bool
	// NoLength leaves Docker-Content-Digest and Content-Length out of the
	// answers to HEADs of manifests.
	NoLength bool

	// Redirect answers GETs of blobs with a redirect to another port, where an
	// Authorization header is an error that Counts.Leaks counts.
	Redirect bool

	// over is closed when other faults take the place of these.
	over chan struct{}
}

// SetFaults makes the registry misbehave as f says from now on. Answers that
// have stalled go on; bodies that are under way keep their other faults, unless
// the registry is Down now.
func (r *Registry) SetFaults(f Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		close(r.faults.over)
		f.over = make(chan struct{})
	} else {
		f.over = r.faults.over
	}
	r.faults = f
	r.limit = nil
	if f.Rate > 0 {
		// Sleeps of 10 ms keep the rate even without waking up all the time.
		burst := min(max(int(f.Rate/100), writeSize), 1<<20)
		r.limit = rate.NewLimiter(rate.Limit(f.Rate), burst)
	}
}

// serveBlob answers the GET of a blob.
func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, t thing, f Faults) {
	if status := r.failing(); status != 0 {
		fail(w, status, f.RetryAfter)
		return
	}
	if f.Redirect {
		if !r.pullAllowed(w, req, t.repository) {
			return
		}
		r.mu.Lock()
		r.counts.Redirects++
		r.mu.Unlock()
		http.Redirect(w, req, r.signed(req.URL.Path), http.StatusTemporaryRedirect)
		return
	}
	r.sendBlob(r.current(), w, req, t, f)
}

// isDown reports whether no answer may go on.
func (r *Registry) isDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed || r.faults.Down
}

// failing returns the status with which to refuse this GET of a blob, or 0.
func (r *Registry) failing() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	status := r.faults.Status
	if r.faults.FailFirst != 0 {
		if r.faults.FailFirst < 0 { // used up
			return 0
		}
		if r.faults.FailFirst--; r.faults.FailFirst == 0 {
			r.faults.FailFirst = -1
		}
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
	}
	return status
}

func fail(w http.ResponseWriter, status int, retryAfter string) {
	if retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":"UNKNOWN","message":"the test registry was told to fail with %d"}]}`, status)
}

// sendBlob serves a blob through the faults of bodies.
func (r *Registry) sendBlob(app http.Handler, w http.ResponseWriter, req *http.Request, t thing, f Faults) {
	if f.NoRange {
		req = req.Clone(req.Context())
		req.Header.Del("Range")
	}
	s := &sender{ResponseWriter: w, registry: r, ctx: req.Context(), faults: f, digest: t.digest}
	app.ServeHTTP(s, req)
	s.finish()
}

// serveManifest answers a GET or HEAD of a manifest.
func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, f Faults) {
	if f.StallManifests {
		select {
		case <-f.over:
		case <-req.Context().Done():
		}
		if r.isDown() || req.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if limit, remaining, ok := strings.Cut(f.RateLimit, " "); ok {
		w.Header().Set("ratelimit-limit", limit)
		w.Header().Set("ratelimit-remaining", remaining)
	}
	if f.ManifestStatus != 0 {
		fail(w, f.ManifestStatus, cmp.Or(f.ManifestRetryAfter, f.RetryAfter))
		return
	}
	r.current().ServeHTTP(&manifestSender{ResponseWriter: w, registry: r, head: req.Method == http.MethodHead, faults: f}, req)
}

// A manifestSender is the ResponseWriter of a manifest.
type manifestSender struct {
	http.ResponseWriter
	registry *Registry
	head     bool
	faults   Faults
	started  bool
	body     bool // the manifest's bytes, and not an error's
}

func (s *manifestSender) WriteHeader(status int) {
	s.started = true
	s.body = status == http.StatusOK
	h := s.Header()
	if s.faults.WrongDigest && status == http.StatusOK {
		h.Set("Docker-Content-Digest", wrongDigest)
	}
	if s.faults.NoLength && s.head {
		h.Del("Docker-Content-Digest")
		h.Del("Content-Length")
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *manifestSender) Write(p []byte) (int, error) {
	if !s.started {
		s.WriteHeader(http.StatusOK)
	}
	if s.body {
		s.registry.mu.Lock()
		s.registry.counts.ManifestBytes += int64(len(p))
		s.registry.mu.Unlock()
	}
	return s.ResponseWriter.Write(p)
}
