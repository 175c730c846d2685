package origin

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

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
	a := &attemptError{text: statusText(code)}
	switch {
	case code == http.StatusNotFound || code == http.StatusGone:
		a.class, a.final = ErrNotFound, true
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusUnavailableForLegalReasons:
		a.class, a.final = ErrDenied, true
	case passes(code):
		a.class = ErrUnavailable
		a.retryAfter = retryAfter(resp, now)
	default:
		a.class, a.final = ErrProtocol, true
	}
	return a
}

// statusText returns a status as a person writes it. The registry's own phrase
// is not used.
func statusText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}

// An abortError ends a call at once, with err and no further attempt.
type abortError struct{ err error }

func (e *abortError) Error() string { return e.err.Error() }
func (e *abortError) Unwrap() error { return e.err }

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
