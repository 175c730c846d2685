package mirror

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A response is what a handler writes to. It counts, and it gives a handler a
// last chance to answer with an error: http.ServeContent decides on the status
// before it reads a byte.
type response struct {
	http.ResponseWriter

	// ready, if not nil, is called before a status of success is sent. An
	// error of it is kept in refused and nothing is sent. late says that what
	// follows may take a while, so that the headers must not wait for it.
	ready func() (late bool, err error)
	// first, if not nil, is called before the first byte of a body.
	first func()
	// serving says that http.ServeContent is at work, whose own errors are
	// kept in refused.
	serving bool
	// held is the content that is passed on, from the time that some of it is.
	// The end of a body is not sent before all of it is known to be right. live
	// says that there may be some.
	held atomic.Pointer[through]
	live bool
	// patience is how long a client may take for a quantum, if not the default.
	patience time.Duration
	// buffers are for what has to be copied. Nil: they are made as needed.
	buffers *sync.Pool // of *[copySize]byte
	// bare says that the kernel can send a file to the client as it is.
	bare bool

	copying error // with which the copying of a body ended
	status  int   // that was sent, or 0
	bytes   int64 // of the body that were sent
	refused error // why no success was sent
	lost    bool  // the client has closed the connection
}

// How slow a client may be: one that takes less than a quantum within patience is
// let go, so that whoever stops reading does not hold a blob for ever. It is 70
// kbit/s. The time counts from when there is something to send, and not while
// that is on its way here.
const (
	quantum  = 1 << 20
	patience = 2 * time.Minute
)

// errRefused ends the copying of a body whose headers were not sent.
var errRefused = errors.New("response was refused")

// WriteHeader sends the status, or keeps an error in refused.
func (w *response) WriteHeader(status int) {
	if w.status != 0 || w.refused != nil {
		return
	}
	if w.serving && status == http.StatusRequestedRangeNotSatisfiable {
		w.refused = fail(status, codeRangeInvalid, "the Range of the request is malformed, or begins after the end of the content")
		return
	}
	var late bool
	if w.ready != nil && (status == http.StatusOK || status == http.StatusPartialContent) {
		if late, w.refused = w.ready(); w.refused != nil {
			return
		}
	}
	w.status = status
	w.ResponseWriter.WriteHeader(status)
	if late {
		// net/http would hold the headers back until there is a body.
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// Write is part of http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	n, err := w.push(p)
	w.bytes += int64(n)
	w.lose(err)
	return n, err
}

// push writes p within the time that the client has for it.
func (w *response) push(p []byte) (int, error) {
	w.hurry()
	defer w.rest()
	return w.ResponseWriter.Write(p)
}

// hurry begins the time that the client has for a quantum, rest ends it. They
// matter to a stream of HTTP/2, which ends at its deadline whether somebody
// writes or not.
func (w *response) hurry() {
	atMost := w.patience
	if atMost == 0 {
		atMost = patience
	}
	w.deadline(time.Now().Add(atMost))
}

func (w *response) rest() { w.deadline(time.Time{}) }

func (w *response) deadline(at time.Time) {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at) // not supported: no connection to protect
}

// ReadFrom hands src on as it is, so that the kernel copies a file to a socket,
// unless its end may have to be held back.
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	if w.live {
		n, err = w.copyHeld(src)
	} else {
		n, err = w.copyFile(src)
	}
	w.bytes += n
	w.copying = err
	w.lose(err)
	return n, err
}

// copyFile copies to the body what need not be waited for, a quantum at a time.
// To the kernel each of them is still a part of the file.
func (w *response) copyFile(src io.Reader) (sent int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	defer w.rest()
	for limited.N > 0 {
		part := io.LimitedReader{R: limited.R, N: min(quantum, limited.N)}
		want := part.N
		w.hurry()
		n, err := io.Copy(w.ResponseWriter, &part)
		sent += n
		limited.N -= want - part.N
		if err != nil || n < want {
			return sent, err
		}
	}
	return sent, nil
}

// holdSize is how much of the end of a body is held back until all of the
// content is known to be right: no client takes a body without its last bytes
// for a whole one.
const holdSize = 32 << 10

// copySize is how much is copied at once of what can't be sent from its file.
const copySize = 256 << 10

// copyHeld copies src to the body, as it comes, and holds back what w.held says.
func (w *response) copyHeld(src io.Reader) (sent int64, err error) {
	total, _ := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64) // ServeContent's own
	from := total - holdSize - w.bytes                                     // where in src the end begins
	var end []byte
	for err == nil {
		var n int64
		if n, err = w.sendHere(src); n == 0 && err == nil {
			n, end, err = w.copySome(src, max(from-sent, 0), end)
		}
		sent += n
	}
	if err != io.EOF {
		return sent, err
	}
	if len(end) == 0 {
		return sent, nil
	}
	if err := w.held.Load().verify(); err != nil {
		return sent, err
	}
	n, err := w.push(end)
	return sent + int64(n), err
}

// sendHere waits until some of src is here and has the kernel send it from the
// file that it is in: as much as is here, but a quantum at most. It sends nothing
// and returns 0 if src has to be read instead: because it is in no file, for the
// client's sake, or because the file does not give it, and a read tells why.
func (w *response) sendHere(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok || limited.N <= 0 {
		return 0, nil
	}
	content, ok := limited.R.(*stream)
	if !ok {
		return 0, nil
	}
	here := content.here() // in any case: who waits in a read has a buffer
	if here == 0 || !w.bare {
		return 0, nil
	}
	f := content.file()
	if f == nil {
		return 0, nil
	}
	w.hurry()
	n, err := io.Copy(w.ResponseWriter, &io.LimitedReader{R: f, N: min(quantum, here, limited.N)})
	w.rest()
	limited.N -= n
	content.skip(n)
	if !gone(err) {
		err = nil // if it was not the file's, the next write has it too
	}
	return n, err
}

// copySome reads from src once and writes it to the body, all but what comes
// after so many bytes of it if the end is held back: that it adds to end.
func (w *response) copySome(src io.Reader, before int64, end []byte) (int64, []byte, error) {
	buf := w.buffer()
	defer w.done(buf)
	n, err := src.Read(buf[:])
	p := buf[:n]
	if w.held.Load() != nil {
		now := min(before, int64(n))
		p, end = p[:now], append(end, p[now:]...)
	}
	if len(p) == 0 {
		return 0, end, err
	}
	m, werr := w.push(p)
	if werr != nil {
		return int64(m), end, werr
	}
	w.flush()
	return int64(m), end, err
}

// flush sends what net/http would hold back until there is more.
func (w *response) flush() {
	w.hurry()
	defer w.rest()
	_ = http.NewResponseController(w.ResponseWriter).Flush() // the next write fails as well
}

func (w *response) buffer() *[copySize]byte {
	if w.buffers != nil {
		if buf, ok := w.buffers.Get().(*[copySize]byte); ok {
			return buf
		}
	}
	return new([copySize]byte)
}

func (w *response) done(buf *[copySize]byte) {
	if w.buffers != nil {
		w.buffers.Put(buf)
	}
}

// short reports whether a body ended before its time because what it was read
// from did, and not because the client or the network did.
func (w *response) short() bool {
	return w.copying == nil || errors.As(w.copying, new(*fs.PathError)) || errors.Is(w.copying, syscall.EIO)
}

// lose notes that the client has gone, or has stopped to read, if that is what
// err says. The context of the request ends somewhat later than the write fails.
func (w *response) lose(err error) {
	w.lost = w.lost || gone(err)
}

// gone reports whether a write failed with err for the client's sake.
func gone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded)
}

func (w *response) begin() error {
	if w.status == 0 && w.refused == nil {
		w.WriteHeader(http.StatusOK)
	}
	if w.refused != nil {
		return errRefused
	}
	if w.first != nil {
		w.first()
		w.first = nil
	}
	return nil
}

// serve serves content and returns why nothing was sent, if so.
func (w *response) serve(r *http.Request, content io.ReadSeeker) error {
	w.serving, w.bare = true, bare(w.ResponseWriter, r)
	http.ServeContent(w, r, "", time.Time{}, content)
	w.serving, w.ready, w.first = false, nil, nil
	err := w.refused
	w.refused = nil
	return err
}

// bare reports whether the kernel can send a file to the client of r: there is
// nothing between it and the TCP connection, neither TLS nor HTTP/2.
func bare(w http.ResponseWriter, r *http.Request) bool {
	_, takes := w.(io.ReaderFrom)
	_, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return takes && tcp && r.TLS == nil
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
