package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
)

const (
	jsonType = "application/json"
	octets   = "application/octet-stream"
)

// maxBody bounds in bytes what is read of a request in JSON: a job of a
// thousand images, or a notification with as many events.
const maxBody = 2 << 20

// A refusal is an error with the status that says whose fault it is.
type refusal struct {
	status int
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Errorf(format, args...)}
}

// status says how an error of another room is answered.
func status(err error) int {
	var own *refusal
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &own):
		return own.status
	case errors.As(err, &tooLong):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, jobs.ErrNotFound), errors.Is(err, cache.ErrNotPinned):
		return http.StatusNotFound
	case errors.Is(err, jobs.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, jobs.ErrEnded), errors.Is(err, cache.ErrScrubbing):
		return http.StatusConflict
	case errors.Is(err, jobs.ErrBusy):
		return http.StatusServiceUnavailable
	case errors.Is(err, jobs.ErrIncomplete), errors.Is(err, cache.ErrDigest), errors.Is(err, cache.ErrCorrupt), errors.Is(err, cache.ErrSize):
		return http.StatusUnprocessableEntity
	case errors.Is(err, cache.ErrFull):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// A call answers a request, or returns why not before it has begun to.
type call func(w http.ResponseWriter, r *http.Request) error

// read is the handler of a call that changes nothing.
func (s *server) read(c call) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := c(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// change is the handler of a call that changes something, with a body of a
// Content-Type that accepts takes. No page of another site can make a browser
// send such a request.
func (s *server) change(accepts func(contentType string) error, c call) http.HandlerFunc {
	return s.read(func(w http.ResponseWriter, r *http.Request) error {
		if err := ownSite(r); err != nil {
			return err
		}
		if err := accepts(r.Header.Get("Content-Type")); err != nil {
			return err
		}
		return c(w, r)
	})
}

// only accepts one Content-Type.
func only(want string) func(string) error {
	return func(contentType string) error {
		if t, _, err := mime.ParseMediaType(contentType); err != nil || t != want {
			return refuse(http.StatusUnsupportedMediaType, "the request's Content-Type is %.100q: send it as %s", contentType, want)
		}
		return nil
	}
}

// anyJSON accepts application/json and what is made of it.
func anyJSON(contentType string) error {
	if t, _, err := mime.ParseMediaType(contentType); err != nil || t != jsonType && !strings.HasSuffix(t, "+json") {
		return refuse(http.StatusUnsupportedMediaType, "the request's Content-Type is %.100q: send it as %s", contentType, jsonType)
	}
	return nil
}

// ownSite refuses what a browser sends for a page that is not this node's own.
// A name can be made to lead here by whoever owns it (DNS rebinding), and its
// pages then count as this node's, so a browser must name the node by its
// address.
func ownSite(r *http.Request) error {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return refuse(http.StatusForbidden, "a page of another site may not do this: %w", err)
	}
	if r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
		return nil // no browser
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
		return refuse(http.StatusForbidden, "a page at %.200q may not do this: open it by the IP address of the node", r.Host)
	}
	return nil
}

// body reads a request in JSON.
func body(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			return err
		}
		return refuse(http.StatusBadRequest, "the request is not understood: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "the request is not understood: there is more after its end")
	}
	return nil
}

// fail answers with an error.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := status(err)
	if code == http.StatusInternalServerError {
		s.log.Warn("admin request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	s.answer(w, code, Failure{Error: err.Error()})
}
