package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

const (
	// blobPath is where blobs are, followed by their digest.
	blobPath = "/v1/blobs/"
	// withinHeader is how long the asker wants the server to wait for chunks
	// that are not here yet, in milliseconds since the request.
	withinHeader  = "Shoal-Within"
	defaultWithin = 10 * time.Second
	maxWithin     = time.Minute
	// capabilityHeader is what the asker shows to be given a private blob.
	capabilityHeader = "Shoal-Capability"

	// quantum is how much is sent with one deadline: an asker that takes less
	// in sendWithin is let go. 1 MiB is large enough to cost nothing. Ten that
	// share the lowest download limit, 1 Mbit/s, take 84 s for it.
	quantum    = 1 << 20
	sendWithin = 2 * time.Minute
)

// A server gives chunks of the cache's blobs, whole or still arriving:
//
//	GET /v1/blobs/<digest>
//	Range: bytes=<first>-<last>
//
// It is an ordinary http.Handler and knows nothing of how its requests come.
type server struct {
	cache    *cache.Cache
	log      *slog.Logger
	allowed  func(*http.Request) bool
	within   time.Duration // sendWithin
	upload   func(ctx context.Context, want int64) (int64, error)
	real     func(name proto.Digest, asker, capability string) (proto.Digest, bool)
	served   prometheus.Counter
	requests *prometheus.CounterVec // by code
}

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.within))
	code := s.answer(w, r)
	s.requests.WithLabelValues(strconv.Itoa(code)).Inc()
}

// refuse writes an error response.
func refuse(w http.ResponseWriter, code int, format string, args ...any) int {
	http.Error(w, fmt.Sprintf(format, args...), code)
	return code
}

// answer writes the response and returns its code.
func (s *server) answer(w http.ResponseWriter, r *http.Request) int {
	if !s.allowed(r) {
		w.Header().Set("Connection", "close")
		return refuse(w, http.StatusForbidden, "you are not a member of this fleet")
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.Header().Set("Connection", "close") // a body is not waited for
		return refuse(w, http.StatusMethodNotAllowed, "method %.20q: only GET and HEAD", r.Method)
	}
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		return refuse(w, http.StatusBadRequest, "a request here has no body")
	}
	name, ok := strings.CutPrefix(r.URL.Path, blobPath)
	if !ok {
		return refuse(w, http.StatusNotFound, "only %s<digest> is here", blobPath)
	}
	digest, err := proto.ParseDigest(name)
	if err != nil {
		return refuse(w, http.StatusBadRequest, "%v", err)
	}
	within, ok := parseWithin(r.Header[withinHeader])
	if !ok {
		return refuse(w, http.StatusBadRequest, "%s is not a number of milliseconds", withinHeader)
	}
	blob, ok := s.known(r, digest)
	if !ok {
		return refuse(w, http.StatusNotFound, "nothing of %s is here", digest)
	}
	defer blob.Release()

	size := blob.Blob().Size
	w.Header().Set("Accept-Ranges", "bytes")
	if ranges := r.Header["Range"]; r.Method == http.MethodGet || ranges != nil {
		off, n, ok := parseRange(ranges, size)
		if !ok {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			return refuse(w, http.StatusRequestedRangeNotSatisfiable,
				"the header Range must be bytes=<first>-<last>, inside %d bytes", size)
		}
		ctx, cancel := context.WithTimeout(r.Context(), within)
		defer cancel()
		t := transfer{server: s, w: w, asker: r.Context(), blob: blob, off: off, end: off + n, size: size, head: r.Method == http.MethodHead}
		return t.run(ctx)
	}
	describe(w.Header(), size)
	w.WriteHeader(http.StatusOK)
	return http.StatusOK
}

// known returns the blob that the sender of r means by a name, if it is here for
// that one.
func (s *server) known(r *http.Request, name proto.Digest) (*cache.Blob, bool) {
	if s.real == nil {
		return s.cache.Known(name)
	}
	asker, capability := "", ""
	if g, ok := r.Context().Value(guestKey{}).(*guest); ok {
		asker = g.asker
	}
	if values := r.Header[capabilityHeader]; len(values) == 1 {
		capability = values[0]
	}
	digest, ok := s.real(name, asker, capability)
	if !ok {
		return nil, false
	}
	return s.cache.Known(digest)
}

// describe sets the headers of a body of n bytes. Without a type, net/http
// would read the first bytes itself to guess one.
func describe(h http.Header, n int64) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(n, 10))
}

// A transfer is one answer with a part of a blob.
type transfer struct {
	server   *server
	w        http.ResponseWriter
	asker    context.Context // ends when the asker has gone, or the Host
	blob     *cache.Blob
	off, end int64 // what is still to be sent
	size     int64 // of the blob
	head     bool
	file     *os.File
	fill     <-chan struct{} // the blob's Done when file was opened
	started  bool
}

// run sends the bytes, waiting for chunks that are not here yet until ctx
// ends. It returns the response's code. Once that is on its way, all it can do
// about an error is to send no more: net/http then closes the connection, and
// the asker sees that it is short.
func (t *transfer) run(ctx context.Context) int {
	defer t.closeFile()
	if t.head {
		t.start()
	}
	for t.off < t.end && !t.head {
		here, err := t.ready(ctx)
		if err != nil && !t.started {
			return t.fail(err)
		}
		if err == nil {
			t.start()
			err = t.send(here)
		}
		if err != nil {
			t.server.log.Debug("cut an answer short", "digest", t.blob.Blob().Digest, "offset", t.off, "error", err)
			break
		}
	}
	return http.StatusPartialContent
}

// ready waits for the chunk at t.off, sees to it that t.file is open there, and
// returns the end of what is here from there on without a gap, t.end at most.
//
// A blob that is found wrong as a whole begins anew in another file, and its
// Done is another channel then. So the file is opened anew when that has
// changed, and not held over a wait.
func (t *transfer) ready(ctx context.Context) (int64, error) {
	cs := t.blob.Blob().ChunkSize()
	i := int(t.off / cs)
	for t.file == nil || t.fill != t.blob.Done() || !t.blob.Has(i) {
		t.closeFile()
		if err := t.blob.Wait(ctx, i); err != nil {
			return 0, err
		}
		if err := t.open(); err != nil {
			return 0, err
		}
	}
	for i++; int64(i)*cs < t.end && t.blob.Has(i); i++ {
	}
	return min(int64(i)*cs, t.end), nil
}

func (t *transfer) closeFile() {
	if t.file != nil {
		_ = t.file.Close()
		t.file = nil
	}
}

// open opens the blob's file at t.off.
func (t *transfer) open() error {
	t.fill = t.blob.Done()
	file, err := t.blob.File()
	if err != nil {
		return err
	}
	t.file = file
	_, err = file.Seek(t.off, io.SeekStart)
	return err
}

// fail answers with an error instead of the bytes.
func (t *transfer) fail(err error) int {
	if errors.Is(err, context.DeadlineExceeded) {
		return refuse(t.w, http.StatusServiceUnavailable, "the chunk did not come in time")
	}
	t.server.log.Debug("could not serve a chunk", "digest", t.blob.Blob().Digest, "offset", t.off, "error", err)
	return refuse(t.w, http.StatusServiceUnavailable, "the chunk can not be had here now")
}

// start sends the header, once.
func (t *transfer) start() {
	if t.started {
		return
	}
	t.started = true
	h := t.w.Header()
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", t.off, t.end-1, t.size))
	describe(h, t.end-t.off)
	t.w.WriteHeader(http.StatusPartialContent)
}

// send sends the bytes up to the offset upto. io.CopyN finds the ReadFrom of
// the ResponseWriter, which hands the file to the connection's own, which is
// sendfile if the connection is a bare *net.TCPConn. The wait for the upload
// limit is over before the deadline for a quantum is set.
func (t *transfer) send(upto int64) error {
	deadline := http.NewResponseController(t.w)
	for t.off < upto {
		may := min(quantum, upto-t.off)
		if t.server.upload != nil {
			n, err := t.server.upload(t.asker, may)
			if err != nil {
				return err
			}
			may = n
		}
		if err := deadline.SetWriteDeadline(time.Now().Add(t.server.within)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		n, err := io.CopyN(t.w, t.file, may)
		t.off += n
		t.server.served.Add(float64(n))
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.EIO) {
			t.server.cache.Doubt(t.blob.Blob().Digest) // the file has not given what it should
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseRange reads the values of the header Range: exactly one, exactly one
// range, both ends given and inside a blob of size bytes (RFC 9110, section
// 14.1.2, which also allows what no peer needs). It returns where the range
// starts and how long it is, at least a byte.
func parseRange(values []string, size int64) (off, n int64, ok bool) {
	if len(values) != 1 {
		return 0, 0, false
	}
	spec, ok := strings.CutPrefix(values[0], "bytes=")
	if !ok {
		return 0, 0, false
	}
	from, to, ok := strings.Cut(spec, "-")
	if !ok {
		return 0, 0, false
	}
	first, err1 := strconv.ParseUint(from, 10, 62)
	last, err2 := strconv.ParseUint(to, 10, 62)
	if err1 != nil || err2 != nil || first > last || int64(last) >= size {
		return 0, 0, false
	}
	return int64(first), int64(last-first) + 1, true
}

// parseWithin reads the values of the header Shoal-Within: none or one, in
// milliseconds. More than maxWithin is maxWithin.
func parseWithin(values []string) (time.Duration, bool) {
	switch len(values) {
	case 0:
		return defaultWithin, true
	case 1:
		ms, err := strconv.ParseUint(values[0], 10, 31)
		return min(time.Duration(ms)*time.Millisecond, maxWithin), err == nil
	}
	return 0, false
}
