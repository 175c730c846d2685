package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A refusal is why a client does not get what it asked for, with the status that
// says so.
type refusal struct {
	status int
	text   string
}

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// Error is part of error.
func (r *refusal) Error() string { return r.text }

// code is the error's code in the distribution API.
func (r *refusal) code() string {
	switch r.status {
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return "UNAVAILABLE"
	}
	return "UNSUPPORTED"
}

// body is the error as the distribution API has it.
func (r *refusal) body() string {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, _ := json.Marshal(map[string][]entry{"errors": {{r.code(), r.text}}}) // two strings
	return string(b) + "\n"
}

// answer sends the refusal to a client that waits for a response.
func (r *refusal) answer(w http.ResponseWriter) {
	clear(w.Header())
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.body()) // the client has gone
}

// response returns the answer to a CONNECT. Its reason phrase is the text: the
// clients that are written in Go show nothing else of it.
func (r *refusal) response() *http.Response {
	phrase := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, r.text)
	body := r.body()
	return &http.Response{
		StatusCode: r.status, Status: fmt.Sprintf("%d %.400s", r.status, phrase),
		ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header:        http.Header{"Content-Type": {"application/json; charset=utf-8"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
	}
}

// send answers a CONNECT whose connection was taken over, and closes that.
func (r *refusal) send(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(headersWithin))
	_ = r.response().Write(conn) // the client has gone
	_ = conn.Close()
}
