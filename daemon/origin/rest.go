package origin

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxRest bounds how long an endpoint is left alone at its word. A mistaken
	// Retry-After should not outlive the day, and a request an hour is a burden
	// to nobody.
	maxRest = time.Hour
	// maxDoubling bounds how long it is left alone when it does not say.
	maxDoubling = time.Minute
	// maxShortWait is the longest rest that those wait out who can do without
	// an answer. It takes in the first steps of the doubling; whoever is told
	// to wait longer may have something older to serve.
	maxShortWait = time.Second
)

// rests are those of an upstream's endpoints. An endpoint rests after it asked
// to be left alone: nobody asks it until that is over, then one does, and the
// others follow when that one was answered.
type rests struct {
	mu      sync.Mutex // protects the fields below
	of      map[*endpoint]*rest
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// A rest is what an endpoint asked for. It is there until the endpoint has
// answered somebody who asked after it was over.
type rest struct {
	until   time.Time
	strikes int    // in a row
	why     string // status of the answer
	probe   *probe // of the call that asks whether it is over, or nil
}

// A probe is held by the one call that asks an endpoint after its rest. It is
// not empty, so that each has an address of its own.
type probe struct{ _ byte }

// enter reports whether e may be asked now. If so and probe is not nil, the
// caller is the first after a rest: it calls leave afterwards. If not, e rests
// until the time that the returned rest says, or, if that is over, until the
// probe that it has is back.
func (r *rests) enter(e *endpoint, now time.Time) (p *probe, resting *rest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.of[e]
	if x == nil {
		return nil, nil
	}
	if now.Before(x.until) || x.probe != nil {
		copied := *x
		return nil, &copied
	}
	x.probe = new(probe)
	return x.probe, nil
}

// leave gives the probe back. If e has not answered since, the next call is the
// probe.
func (r *rests) leave(e *endpoint, p *probe) {
	if p == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.of[e]; x != nil && x.probe == p {
		x.probe = nil
		r.ring()
	}
}

// throttled notes that e answered a request that was sent at asked with why,
// and so asked to be left alone, for retryAfter or, if that is zero, for a time
// that doubles from base on. It returns until when, and whether that is new: of
// several answers to requests from before a rest the first one counts, and the
// longest retryAfter.
func (r *rests) throttled(e *endpoint, asked, now time.Time, retryAfter, base time.Duration, why string) (until time.Time, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.of[e]
	if x != nil && asked.Before(x.until) {
		if t := now.Add(retryAfter); retryAfter > 0 && t.After(x.until) {
			x.until = t
		}
		return x.until, false
	}
	if x == nil {
		x = new(rest)
		r.of[e] = x
	}
	x.strikes++
	x.why = why
	if retryAfter == 0 {
		retryAfter = backoff(base, x.strikes, maxDoubling, rand.Float64())
	}
	x.until = now.Add(retryAfter)
	return x.until, true
}

// answered notes that e answered a request that was sent at asked, and did not
// ask to be left alone. That ends its rest if the request was sent after it.
func (r *rests) answered(e *endpoint, asked time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.of[e]; x != nil && !asked.Before(x.until) {
		delete(r.of, e)
		r.ring()
	}
}

// until returns until when e rests, or zero if it does not at now.
func (r *rests) until(e *endpoint, now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.of[e]; x != nil && now.Before(x.until) {
		return x.until
	}
	return time.Time{}
}

// unproven reports whether e has asked to be left alone and not answered since.
func (r *rests) unproven(e *endpoint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[e] != nil
}

// ring tells those that wait for a change. r.mu is held.
func (r *rests) ring() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// watch returns a channel that is closed at the next change.
func (r *rests) watch() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

// asksForRest reports whether an answer asks to be left alone: 429, or an error
// that says for how long. A 503 that does not is one of many ways to fail, and
// may concern a single blob: the rest of the registry is not to suffer for it.
func asksForRest(code int, retryAfter time.Duration) bool {
	return code == http.StatusTooManyRequests || passes(code) && retryAfter > 0
}

// passes reports whether a status is of an error that may be over soon.
func passes(code int) bool {
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500
}

// parseRetryAfter returns how long a Retry-After header asks to wait, maxRest
// at most: seconds or a date (RFC 9110, section 10.2.3). Zero if it says
// nothing usable.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if value != "" && strings.Trim(value, "0123456789") == "" {
		secs, err := strconv.ParseInt(value, 10, 64)
		if err != nil || secs > int64(maxRest/time.Second) {
			return maxRest // more than fits is long as well
		}
		return time.Duration(secs) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return min(max(t.Sub(now), 0), maxRest)
	}
	return 0
}

// parseRateLimit returns the number of a RateLimit-Limit or
// RateLimit-Remaining header: "76;w=21600" as Docker Hub has it, or the first
// of several items (draft-ietf-httpapi-ratelimit-headers-03, "100, 100;w=60").
func parseRateLimit(value string) (n int64, ok bool) {
	first := value
	if i := strings.IndexAny(value, ",;"); i >= 0 {
		first = value[:i]
	}
	first = strings.Trim(first, " \t")
	if first == "" || strings.Trim(first, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil
}
