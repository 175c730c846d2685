package origin

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBackoff bounds the doubling of Config.Backoff.
const maxBackoff = 5 * time.Second

// An attemptError is why one attempt at one URL failed. Its text has nothing
// that the registry chose, and no URL beyond the host, so that no credential
// or signature gets into a log through it.
type attemptError struct {
	class error // one of the package's errors
	text  string
	// final: asking this URL again would bring the same.
	final bool
	// down: the URL could not be reached at all.
	down bool
	// retryAfter is how long the registry wants to be left alone.
	retryAfter time.Duration
}

func (e *attemptError) Error() string { return e.text }
func (e *attemptError) Unwrap() error { return e.class }

func protocolError(format string, args ...any) *attemptError {
	return &attemptError{class: ErrProtocol, text: fmt.Sprintf(format, args...), final: true}
}

func denied(format string, args ...any) *attemptError {
	return &attemptError{class: ErrDenied, text: fmt.Sprintf(format, args...), final: true}
}

// interrupted is the error of a body that ended before its time.
func interrupted(text string) *attemptError {
	return &attemptError{class: ErrUnavailable, text: text}
}

// networkError says what a failed round trip means.
func networkError(err error) *attemptError {
	a := &attemptError{class: ErrUnavailable, text: networkText(err)}
	var private *privateAddrError
	var cert *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &private):
		return denied("%s", private)
	case errors.As(err, &cert):
		a.final = true
		a.text += "; if the certificate is of a CA of your own, name its file in the upstream's ca"
	case errors.As(err, &plain) && string(plain.RecordHeader[:]) == "HTTP/":
		a.final = true
		a.text = "it speaks plain http; if that is meant, configure the upstream's url as http://"
	default:
		a.down = true
	}
	return a
}

// networkText returns err's text without our own port, so that equal failures
// read the same.
func networkText(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		remote := *op
		remote.Source = nil
		return remote.Error()
	}
	return err.Error()
}

// statusError says what an unwanted status means.
func statusError(resp *http.Response, now time.Time) *attemptError {
	code := resp.StatusCode
	a := &attemptError{text: strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))}
	switch {
	case code == http.StatusNotFound || code == http.StatusGone:
		a.class, a.final = ErrNotFound, true
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusUnavailableForLegalReasons:
		a.class, a.final = ErrDenied, true
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		a.class = ErrUnavailable
		a.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), now)
	default:
		a.class, a.final = ErrProtocol, true
	}
	return a
}

// parseRetryAfter returns how long a Retry-After header asks to wait: seconds
// or a date (RFC 9110, section 10.2.3). Zero if it says nothing usable.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if secs, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(secs) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

// An abortError ends a call at once, with err and no further attempt.
type abortError struct{ err error }

func (e *abortError) Error() string { return e.err.Error() }

// A failure is what is left when no URL of an upstream could do it.
type failure struct {
	what     string
	attempts []failedAttempt
}

// A failedAttempt stands for n equal ones in a row.
type failedAttempt struct {
	host string
	err  *attemptError
	n    int
}

func (f *failure) add(host string, err *attemptError) {
	if k := len(f.attempts) - 1; k >= 0 && f.attempts[k].host == host && f.attempts[k].err.text == err.text {
		f.attempts[k].n++
		return
	}
	f.attempts = append(f.attempts, failedAttempt{host, err, 1})
}

// Error lists every attempt, in order.
func (f *failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", f.what, f.Unwrap())
	for i, a := range f.attempts {
		b.WriteString(map[bool]string{true: ": ", false: "; "}[i == 0])
		fmt.Fprintf(&b, "%s: %s", a.host, a.err.text)
		if a.n > 1 {
			fmt.Fprintf(&b, " (%d times)", a.n)
		}
	}
	return b.String()
}

// Unwrap returns the one class that the last words of all hosts come to. A
// refusal counts most, so that nothing stale is served on it. Then comes not
// knowing: one mirror's 404 is no proof while another URL did not answer.
func (f *failure) Unwrap() error {
	last := make(map[string]error)
	for _, a := range f.attempts {
		last[a.host] = a.err.class
	}
	for _, class := range []error{ErrDenied, ErrUnavailable, ErrProtocol, ErrTooLarge, ErrNotFound} {
		for _, c := range last {
			if c == class {
				return class
			}
		}
	}
	return ErrUnavailable
}

// try calls attempt for each URL in order until one succeeds, and begins again
// after a growing wait with those that may do better the next time. An attempt
// that failed after progress is repeated at the same URL at once.
func (up *upstream) try(ctx context.Context, what string, attempt func(context.Context, *endpoint) (progress bool, err error)) error {
	cfg := &up.client.cfg
	f := &failure{what: what}
	left := up.inOrder(time.Now())
	for round := 1; ; round++ {
		var again []*endpoint
		var wait time.Duration
		for i := 0; i < len(left); i++ {
			e := left[i]
			progress, err := attempt(ctx, e)
			if err == nil {
				e.setDown(false)
				return nil
			}
			a, err := up.failed(ctx, what, e, err)
			if err != nil {
				return err
			}
			f.add(e.base.Host, a)
			switch {
			case a.final || a.retryAfter > cfg.MaxRetryAfter:
			case progress:
				round = 1
				i-- // the same again
			default:
				again = append(again, e)
				wait = max(wait, a.retryAfter)
			}
		}
		if left = again; len(left) == 0 || round >= cfg.Tries {
			return f
		}
		wait = max(wait, backoff(cfg.Backoff, round))
		if err := sleep(ctx, wait); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// failed notes and returns why an attempt failed, or the error with which the
// whole call ends.
func (up *upstream) failed(ctx context.Context, what string, e *endpoint, err error) (*attemptError, error) {
	if abort, ok := errors.AsType[*abortError](err); ok {
		return nil, fmt.Errorf("%s: %w", what, abort.err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", what, ctx.Err())
	}
	a, ok := errors.AsType[*attemptError](err)
	if !ok {
		a = &attemptError{class: ErrUnavailable, text: err.Error()}
	}
	e.setDown(a.down)
	up.client.log.Debug("upstream attempt failed", "upstream", up.name, "host", e.base.Host, "what", what, "error", a.text)
	return a, nil
}

// backoff returns the wait after the given round, counted from 1.
func backoff(base time.Duration, round int) time.Duration {
	d := min(base<<min(round-1, 16), max(base, maxBackoff))
	return d*3/4 + rand.N(cmp.Or(d/2, 1))
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
