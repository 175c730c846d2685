package peer

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"

	"github.com/shoal-project/shoal/proto"
)

// Errors of Source.Fetch that say something of the peer.
var (
	// ErrAbsent is wrapped when the peer answers that it has nothing of the
	// blob.
	ErrAbsent = errors.New("the peer has nothing of the blob")
	// ErrStalled is wrapped when no byte came for Config.StallTimeout, or the
	// peer says that a chunk did not reach it in that time.
	ErrStalled = errors.New("the peer has stalled")
)

// errClosed is the cause when the Host ends under a Fetch or a dial.
var errClosed = errors.New("the peer host is closed")

const (
	// DefaultStallTimeout is Config.StallTimeout if that is zero. A lease has
	// a deadline of its own, mostly a shorter one; this is the bound for a
	// fetch without one.
	DefaultStallTimeout = 10 * time.Second

	// dialWithin bounds connecting and the handshake. It leaves a node that
	// the peer has not heard of yet the second that the peer waits for it.
	dialWithin = 5 * time.Second

	// copyBuffer is how much is read and written at a time.
	copyBuffer = 256 << 10

	// Idle connections are kept for the next lease from the same peer. The
	// server keeps them longer, so that it does not close one in the moment
	// in which it is used again.
	idlePerPeer   = 16
	idleConns     = 256
	idleWithin    = 45 * time.Second
	serverIdle    = 2 * idleWithin
	maxHeader     = 8 << 10
	headerWithin  = 10 * time.Second
	errorTextSize = 200
)

// A Source asks one peer for chunks, over HTTP/1.1 with range requests. It is
// a pull.Source; any number of goroutines can use it, and it needs no closing.
type Source struct {
	host *Host
	id   string
	addr string
	url  url.URL // without the path
	err  error   // of the ID
}

// Source returns the Source that asks the member with the given peer ID at
// addr, a host:port. Nothing is dialled before the first Fetch.
func (h *Host) Source(id, addr string) *Source {
	s := &Source{host: h, id: id, addr: addr}
	s.url = url.URL{Scheme: "https", Host: poolKey(id, addr)}
	if h.insecure {
		s.url.Scheme = "http"
	}
	if _, err := libp2ppeer.Decode(id); err != nil {
		s.err = fmt.Errorf("peer %q at %s: not a peer ID: %w", id, addr, err)
	}
	return s
}

// poolKey packs an identity and an address into a host name, by which the
// http.Transport pools connections: one that was made to one identity is never
// used to ask another that has come to the same address.
func poolKey(id, addr string) string { return hex.EncodeToString([]byte(addr)) + "." + id }

func parsePoolKey(hostport string) (id libp2ppeer.ID, addr string, err error) {
	key, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", "", err
	}
	enc, text, _ := strings.Cut(key, ".")
	raw, err := hex.DecodeString(enc)
	if err != nil {
		return "", "", err
	}
	id, err = libp2ppeer.Decode(text)
	return id, string(raw), err
}

func newTransport(h *Host) *http.Transport {
	return &http.Transport{
		DialContext:            h.dialPlain,
		DialTLSContext:         h.dialTLS,
		DisableCompression:     true,
		MaxIdleConns:           idleConns,
		MaxIdleConnsPerHost:    idlePerPeer,
		IdleConnTimeout:        idleWithin,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// dialPlain connects to the address in a pool key.
func (h *Host) dialPlain(ctx context.Context, _, key string) (net.Conn, error) {
	if !h.begin() {
		return nil, errClosed
	}
	defer h.tasks.Done()
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	_, addr, err := parsePoolKey(key)
	if err != nil {
		return nil, err
	}
	return h.dialer.DialContext(ctx, "tcp", addr)
}

// dialTLS connects to the address in a pool key and has the other end prove
// the identity there.
func (h *Host) dialTLS(ctx context.Context, _, key string) (net.Conn, error) {
	if !h.begin() {
		return nil, errClosed
	}
	defer h.tasks.Done()
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	id, addr, err := parsePoolKey(key)
	if err != nil {
		return nil, err
	}
	conn, err := h.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	config, _ := h.identity.ConfigForPeer(id)
	config.NextProtos = []string{alpn}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, explainHandshake(err)
	}
	return secured, nil
}

// explainHandshake says in Shoal's words what a TLS handshake failed of.
func explainHandshake(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("TLS handshake: %w: does the peer have another peer.security than tls?", err)
	}
	return explainIdentity(fmt.Errorf("TLS handshake: %w", err))
}

// explainIdentity says in Shoal's words that another has answered.
func explainIdentity(err error) error {
	var mismatch sec.ErrPeerIDMismatch
	if errors.As(err, &mismatch) {
		return fmt.Errorf("wrong identity: %s was expected there and %s answers: %w",
			mismatch.Expected, mismatch.Actual, err)
	}
	return err
}

// Fetch writes the bytes of r to w, in order. It waits for chunks that the
// peer is still receiving, and gives up when ctx ends, when no byte comes for
// the stall timeout (ErrStalled), or when the peer has nothing of the blob
// (ErrAbsent). Time that w takes does not count against the peer. An error of
// w is returned as it is.
func (s *Source) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	if s.err != nil {
		return s.err
	}
	if err := r.Validate(); err != nil {
		return fmt.Errorf("peer %s: %w", s.id, err)
	}
	fetching, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.host.ctx, func() { cancel(errClosed) })()
	watch := newWatch(s.host.stall, func() { cancel(ErrStalled) })
	defer watch.stop()

	err := s.take(fetching, r, w, watch)
	var failed *writeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failed):
		return failed.err
	case ctx.Err() != nil:
		err = ctx.Err()
	case fetching.Err() != nil:
		err = context.Cause(fetching)
	}
	return fmt.Errorf("peer %s at %s: %w", s.id, s.addr, err)
}

// writeError tells an error of the caller's writer from those of the peer.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// take fetches on a connection that is free, or will be soon, or a new one.
func (s *Source) take(ctx context.Context, r proto.Run, w io.Writer, watch *watch) error {
	lanes := &s.host.lanes
	a, err := lanes.enter(ctx, s.url.Host, r.Size())
	if err != nil {
		return err
	}
	err = s.fetch(ctx, r, w, watch, a)
	lanes.leave(s.url.Host, a, err == nil)
	return err
}

func (s *Source) fetch(ctx context.Context, r proto.Run, w io.Writer, watch *watch, a *turn) error {
	var b batch
	resp, err := s.ask(b.traced(ctx), r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return explainStatus(resp)
	}
	want := fmt.Sprintf("bytes %d-%d/%d", r.Offset(), r.Offset()+r.Size()-1, r.Blob.Size)
	if got := resp.Header.Get("Content-Range"); got != want || resp.ContentLength != r.Size() {
		return fmt.Errorf("answered with Content-Range %.80q and %d bytes, asked for %q", got, resp.ContentLength, want)
	}
	return s.host.copy(w, resp.Body, watch, &b, a)
}

// ask sends the request and waits for the response's header.
func (s *Source) ask(ctx context.Context, r proto.Run) (*http.Response, error) {
	name, capability := r.Blob.Digest, ""
	if s.host.name != nil {
		name, capability = s.host.name(r.Blob.Digest)
	}
	u := s.url
	u.Path = blobPath + name.String()
	within := s.host.stall
	if deadline, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(deadline))
	}
	// The peer gives up a little earlier than this side, so that its answer
	// arrives and the connection stays of use.
	within -= within / 10
	req := &http.Request{
		Method: http.MethodGet,
		URL:    &u,
		Host:   s.addr,
		Header: http.Header{
			"Range":      {fmt.Sprintf("bytes=%d-%d", r.Offset(), r.Offset()+r.Size()-1)},
			withinHeader: {strconv.FormatInt(max(within.Milliseconds(), 0), 10)},
			"User-Agent": {"shoal"},
		},
	}
	if capability != "" {
		req.Header[capabilityHeader] = []string{capability}
	}
	resp, err := s.host.transport.RoundTrip(req.WithContext(ctx))
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" { // a TLS alert
		return nil, fmt.Errorf("refused us, perhaps it has not heard of this node as a member: %w", err)
	}
	return resp, err
}

// explainStatus turns an answer without the bytes into an error.
func explainStatus(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, errorTextSize))
	said := strings.TrimSpace(string(text))
	switch resp.StatusCode {
	case http.StatusNotFound:
		return ErrAbsent
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%w: it answered %q", ErrStalled, said)
	}
	return fmt.Errorf("answered with status %d: %q", resp.StatusCode, said)
}

// copy copies what a is, and reads the end after it, so that the connection can
// be used again.
func (h *Host) copy(w io.Writer, body io.Reader, watch *watch, b *batch, a *turn) error {
	buf := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(buf)
	for left := a.size; ; {
		b.expect(left)
		watch.begin()
		k, err := body.Read((*buf)[:min(int64(len(*buf)), max(left, 1))])
		watch.end()
		if k > 0 && left > 0 {
			a.count(k)
			if _, err := w.Write((*buf)[:k]); err != nil {
				return &writeError{err}
			}
			left -= int64(k)
		}
		if err == io.EOF && left == 0 {
			b.expect(0) // the last read may have been a long one; short answers may follow on the connection
			return nil
		}
		if err != nil {
			return fmt.Errorf("the body broke off %d bytes short: %w", left, err)
		}
	}
}

// A watch calls a function when the peer has been waited for in vain. Reading
// costs it two atomic stores; its one timer fires once in a timeout and sees
// then how long the wait under way has lasted.
type watch struct {
	timeout time.Duration
	stalled func()
	start   time.Time
	since   atomic.Int64 // when the wait under way began, after start; -1: none
	timer   *time.Timer
}

// newWatch returns a watch whose first wait has begun.
func newWatch(timeout time.Duration, stalled func()) *watch {
	w := &watch{timeout: timeout, stalled: stalled, start: time.Now()}
	w.timer = time.AfterFunc(timeout, w.check)
	return w
}

func (w *watch) begin() { w.since.Store(int64(time.Since(w.start))) }
func (w *watch) end()   { w.since.Store(-1) }
func (w *watch) stop()  { w.timer.Stop() }

func (w *watch) check() {
	left := w.timeout
	if since := w.since.Load(); since >= 0 {
		left -= time.Since(w.start) - time.Duration(since)
	}
	if left <= 0 {
		w.stalled()
		return
	}
	w.timer.Reset(left)
}
