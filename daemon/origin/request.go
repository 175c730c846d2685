package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A query is one question to an endpoint.
type query struct {
	kind       string // for metrics
	method     string
	path       string // below where repositories begin, without a leading slash
	rawQuery   string
	repository string
	header     http.Header // without Authorization
	remember   bool        // the target of a redirect may be used again
}

// A target is where an endpoint redirected a blob to.
type target struct {
	url   *url.URL
	until time.Time
	grant uint64 // number of the granted that it was found with, if any
}

const (
	// maxHops is how many redirects are followed.
	maxHops = 5
	// maxTargets bounds the redirects that are remembered per endpoint.
	maxTargets = 256
	// maxDiscard is how much of an unwanted body is read so that its
	// connection can be used again.
	maxDiscard = 64 << 10
)

// do sends q, logs in if the registry asks for it, and follows redirects. An
// error is an *attemptError; a response may have any status but a redirect's
// or an unanswered 401, and its body must be closed.
func (e *endpoint) do(ctx context.Context, q query) (*http.Response, error) {
	if err := e.lacksGrant(ctx, q); err != nil {
		return nil, err // nothing was sent, so it says nothing about a rest
	}
	asked := time.Now()
	resp, err := e.send(ctx, q)
	e.answered(asked, resp, err)
	return resp, err
}

// answered ends e's rest if what came of a request that was sent at asked is the
// answer of a registry that wants to be asked.
func (e *endpoint) answered(asked time.Time, resp *http.Response, err error) {
	if err == nil && !asksForRest(resp.StatusCode, retryAfter(resp, asked)) || errors.Is(err, ErrDenied) {
		e.up.rests.answered(e, asked)
	}
}

func (e *endpoint) send(ctx context.Context, q query) (*http.Response, error) {
	if e.up.passthrough {
		return e.sendForCaller(ctx, q)
	}
	if resp, err := e.sendToTarget(ctx, q, func(target) bool { return true }); resp != nil || err != nil {
		return resp, err
	}
	for asked := false; ; asked = true {
		authz, err := e.auth.header(ctx, q.repository)
		if err != nil {
			return nil, err
		}
		resp, err := e.follow(ctx, q, e.url(q.path, q.rawQuery), authz)
		if err != nil {
			return nil, err
		}
		if !e.unauthorized(resp) {
			e.keep(q, resp, 0)
			return resp, nil
		}
		discard(resp)
		if asked {
			return nil, e.auth.refused(ctx)
		}
		if err := e.auth.challenged(ctx, q.repository, resp.Header.Values("WWW-Authenticate"), authz); err != nil {
			return nil, err
		}
	}
}

// sendToTarget sends q to where its redirect led before, if that may be used,
// without Authorization. It returns neither a response nor an error if the
// registry has to be asked.
func (e *endpoint) sendToTarget(ctx context.Context, q query, may func(target) bool) (*http.Response, error) {
	u := e.recall(q, may)
	if u == nil {
		return nil, nil
	}
	resp, err := e.roundTrip(ctx, q, u, "")
	if err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent) {
		return resp, nil
	}
	e.forget(q)
	if err != nil {
		return nil, err
	}
	discard(resp) // the signature has expired, or so
	return nil, nil
}

// follow sends q to u and follows redirects of GET and HEAD. authz goes to u's
// own origin only.
func (e *endpoint) follow(ctx context.Context, q query, u *url.URL, authz string) (*http.Response, error) {
	home := u
	for range maxHops + 1 {
		h := ""
		if sameOrigin(u, home) {
			h = authz
		}
		resp, err := e.roundTrip(ctx, q, u, h)
		if err != nil {
			return nil, err
		}
		if !redirects(resp.StatusCode) || q.method == http.MethodPost {
			return resp, nil
		}
		discard(resp)
		if u, err = location(resp); err != nil {
			return nil, err
		}
	}
	return nil, protocolError("more than %d redirects", maxHops)
}

func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// location returns where resp redirects to. Errors do not repeat it: it may
// have a signature in it.
func location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil || u.Hostname() == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, protocolError("redirect without a usable Location")
	}
	if u.User != nil {
		return nil, protocolError("redirect to %s with a user name in it", u.Host)
	}
	if u.Scheme == "http" && resp.Request.URL.Scheme == "https" {
		return nil, denied("redirect from https to plain http at %s: serve it over https, or configure the upstream's url as http", u.Host)
	}
	return u, nil
}

// sameOrigin reports whether a and b are the same scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(hostPort(a), hostPort(b))
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Hostname() + " " + port
}

// roundTrip sends q to u, once, and counts it. The response's body fails when
// it brings nothing for Config.StallTimeout.
func (e *endpoint) roundTrip(ctx context.Context, q query, u *url.URL, authz string) (*http.Response, error) {
	var form io.Reader
	if q.method == http.MethodPost {
		form = strings.NewReader(q.rawQuery)
	}
	c := e.up.client
	ctx, cancel := c.whileOnline(ctx)
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), form)
	if err != nil {
		cancel(nil)
		return nil, protocolError("address at %s that cannot be requested", u.Host)
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "shoal")
	if authz != "" {
		req.Header.Set("Authorization", authz)
	}
	asked := time.Now()
	resp, err := e.up.transport.RoundTrip(req) // which sends nothing if ctx has ended
	if err != nil {
		cancel(nil)
		c.metrics.answered(e.up.label, q.kind, 0)
		return nil, networkError(err)
	}
	c.metrics.answered(e.up.label, q.kind, resp.StatusCode)
	e.observe(q, u, resp, asked)
	b := &body{rc: resp.Body, ctx: ctx, cancel: cancel, stall: c.cfg.StallTimeout}
	b.timer = time.AfterFunc(b.stall, func() { cancel(errStalled) })
	b.timer.Stop()
	if q.kind != kindToken && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent) {
		b.bytes = c.metrics.bytes.WithLabelValues(e.up.label)
	}
	resp.Body = b
	return resp, nil
}

// observe takes in what an answer to q, which was sent to u at asked, says about
// the rate of requests that is allowed.
func (e *endpoint) observe(q query, u *url.URL, resp *http.Response, asked time.Time) {
	c := e.up.client
	registry := sameOrigin(u, e.base)
	if !registry && q.kind != kindToken {
		return // object storage speaks for itself
	}
	if registry {
		c.metrics.rateLimit(e.up.label, resp.Header)
	}
	now := time.Now()
	wait := retryAfter(resp, now)
	if !asksForRest(resp.StatusCode, wait) {
		return
	}
	c.metrics.throttled.WithLabelValues(e.up.label).Inc()
	why := statusText(resp.StatusCode)
	until, fresh := e.up.rests.throttled(e, asked, now, wait, c.cfg.Backoff, why)
	if fresh && until.Sub(now) > maxShortWait {
		c.log.Warn("upstream asks to be left alone", "upstream", e.up.name, "host", u.Host, "status", why, "until", until)
	}
}

func retryAfter(resp *http.Response, now time.Time) time.Duration {
	return parseRetryAfter(resp.Header.Get("Retry-After"), now)
}

// errStalled is the cause with which a body that brings nothing is cut.
var errStalled = errors.New("body stalled")

// A body is a response's body that is counted, and cut when it stalls. Only
// the time inside Read counts: a slow reader is not a slow registry.
type body struct {
	rc     io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	bytes  prometheus.Counter // nil: not counted
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if b.bytes != nil {
		b.bytes.Add(float64(n))
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errStalled) {
		err = fmt.Errorf("no bytes for %s", b.stall)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.rc.Close()
	b.timer.Stop()
	b.cancel(nil)
	return err
}

// discard ends with resp, leaving its connection usable if what is left of the
// body is short.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxDiscard)
	_ = resp.Body.Close()
}

// recall returns the remembered target of q's redirect that may be used, or nil.
func (e *endpoint) recall(q query, may func(target) bool) *url.URL {
	if !q.remember || e.up.rests.unproven(e) {
		return nil // the registry itself has to show that its rest is over
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.targets[q.path]
	if !ok || !time.Now().Before(t.until) {
		delete(e.targets, q.path)
		return nil
	}
	if !may(t) {
		return nil
	}
	return t.url
}

// keep remembers where q was redirected to, and the number of the granted that it
// took, if resp is good and from there.
func (e *endpoint) keep(q query, resp *http.Response, grant uint64) {
	good := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
	if !q.remember || !good || sameOrigin(resp.Request.URL, e.base) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.targets) >= maxTargets {
		clear(e.targets) // a minute's worth at most: the registry tells again
	}
	e.targets[q.path] = target{resp.Request.URL, time.Now().Add(e.up.client.cfg.RedirectTTL), grant}
}

func (e *endpoint) forget(q query) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.targets, q.path)
}
