package mirror

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/shoal-project/shoal/cache"
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

	status  int   // that was sent, or 0
	bytes   int64 // of the body that were sent
	refused error // why no success was sent
}

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
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom hands src on as it is, so that the kernel copies a file to a socket.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	n, err := io.Copy(w.ResponseWriter, src)
	w.bytes += n
	return n, err
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
	w.serving = true
	http.ServeContent(w, r, "", time.Time{}, content)
	w.serving, w.ready, w.first = false, nil, nil
	err := w.refused
	w.refused = nil
	return err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A stream is the content of a blob that may still be arriving. It can read
// ahead of who reads from it, so that a failure shows before anything is sent.
// One goroutine reads and seeks at a time; finish may be called meanwhile.
type stream struct {
	content *cache.Reader
	// first, if not nil, is called when the first byte has been read.
	first func()

	mu  sync.Mutex // held during a read; protects the fields below
	buf []byte     // was read ahead
	err error      // ends all reads
}

// aheadSize is how much is read ahead: what io.Copy asks for at once.
const aheadSize = 32 << 10

// await begins to read at the current position and waits for the first bytes,
// for at most the given time. It returns the error that the read met, or late
// if there is no outcome yet. After it the stream is read but not sought in.
func (s *stream) await(atMost time.Duration) (late bool, err error) {
	read := make(chan struct{})
	s.mu.Lock() // for the goroutine: no other read may come before it
	go func() {
		defer close(read)
		defer s.mu.Unlock()
		buf := make([]byte, aheadSize)
		n, err := s.content.Read(buf)
		s.buf, s.err = buf[:n], err
	}()
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, nil
	case <-read:
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.buf) == 0 {
			return false, s.err
		}
		return false, nil
	}
}

// Read is part of io.Reader.
func (s *stream) Read(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.buf) > 0:
		n = copy(p, s.buf)
		s.buf = s.buf[n:]
	case s.err != nil:
		return 0, s.err
	default:
		n, s.err = s.content.Read(p)
		err = s.err
	}
	if n > 0 && s.first != nil {
		s.first()
		s.first = nil
	}
	return n, err
}

// Seek is part of io.Seeker.
func (s *stream) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return 0, s.err
	}
	s.err = nil
	return s.content.Seek(offset, whence)
}

// finish closes the content, waits for a read of it that is going on, and
// returns the error that a read met, if it was not the end.
func (s *stream) finish() error {
	_ = s.content.Close() // nothing was written; it ends a read
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.err
	s.err = os.ErrClosed
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
