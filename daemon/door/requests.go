package door

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Local is the address of whoever comes by a unix socket.
const Local = "unix"

// ClientAddr returns the IP address of a client, without its port, or Local.
// It is that of the connection: headers that tell of another one are believed
// by nobody here.
func ClientAddr(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return Local
	}
	return at.Addr().Unmap().WithZone("").String()
}

// clientAt returns who is at an address, for the limits. Whoever has an address
// of IPv6 has a /64 of them.
func clientAt(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return Local
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		network, _ := ip.Prefix(64) // 64 is never too long
		return network.String()
	}
	return ip.String()
}

// requests counts those that run, by client.
type requests struct {
	most int // immutable

	mu sync.Mutex
	by map[string]int // mu protects it; never has a zero
}

func (q *requests) begin(client string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.by[client] >= q.most {
		return false
	}
	q.by[client]++
	return true
}

func (q *requests) end(client string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.by[client]--; q.by[client] == 0 {
		delete(q.by, client)
	}
}

// limit is the handler with the limits of requests and bodies around it.
func (d *Door) limit(h http.Handler) http.Handler {
	running := &requests{most: d.cfg.RequestsPerClient, by: make(map[string]int)}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := clientAt(r.RemoteAddr)
		if !running.begin(who) {
			d.metrics.refusedRequests.Inc()
			d.metrics.warn(reasonRequests, d.log, "request refused: too many of one client at once", "client", who, "limit", running.most)
			refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE",
				fmt.Sprintf("%d requests of %s are being answered, which is as many as one client may have at once", running.most, who))
			return
		}
		defer running.end(who)
		if r.ProtoMajor > 1 {
			// What the handler leaves in buffers waits for the client's window.
			defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d.waiting)) }() // always supported
		}
		if limit := d.cfg.MaxBody; limit > 0 && r.ContentLength > limit {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("the body has %d bytes; %d are read", r.ContentLength, limit))
			return
		}
		h.ServeHTTP(w, d.guard(w, r))
	})
}

// refuse answers as a registry does (distribution-spec, "Error Codes"), which
// any other program can read too.
func refuse(w http.ResponseWriter, status int, code, message string) {
	type fault struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(map[string][]fault{"errors": {{code, message}}}) // only strings
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}

// guard returns r with a body that is read within the limits.
func (d *Door) guard(w http.ResponseWriter, r *http.Request) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	b := &body{ReadCloser: r.Body, conn: http.NewResponseController(w), patience: d.waiting, streams: r.ProtoMajor > 1}
	if !b.streams {
		// net/http reads what the handler leaves, and would wait for ever.
		b.deadline(time.Now().Add(b.patience))
	}
	guarded := *r
	guarded.Body = b
	if d.cfg.MaxBody > 0 {
		guarded.Body = http.MaxBytesReader(w, b, d.cfg.MaxBody)
	}
	return &guarded
}

// A body is one each of whose reads has a deadline.
type body struct {
	io.ReadCloser
	conn     *http.ResponseController
	patience time.Duration
	streams  bool // HTTP/2
}

// Read is part of io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.deadline(time.Now().Add(b.patience))
	n, err := b.ReadCloser.Read(p)
	if b.streams {
		b.deadline(time.Time{}) // a stream ends at its deadline even if nobody reads it
	}
	return n, err
}

func (b *body) deadline(at time.Time) {
	_ = b.conn.SetReadDeadline(at) // not supported: there is no connection to protect
}
