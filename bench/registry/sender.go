package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/shoal-project/shoal/proto"
)

// writeSize is the largest piece of a body that is written at once, in bytes.
const writeSize = 32 << 10

// wrongDigest is a digest that no blob of a test has.
const wrongDigest = "sha256:00000000000000000000000000000000000000000000000000000000000000ff"

// A sender is the ResponseWriter of one blob's body. It records what leaves.
type sender struct {
	http.ResponseWriter
	registry *Registry
	ctx      context.Context
	faults   Faults
	digest   proto.Digest

	started bool
	body    bool  // a blob's bytes, and not an error's
	offset  int64 // in the blob, of the next byte
	size    int64 // of the blob
	end     int64 // offset after the last byte that may be sent
	sent    int64
	cut     bool
}

// Unwrap is for http.ResponseController.
func (s *sender) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *sender) WriteHeader(status int) {
	s.started = true
	h := s.Header()
	length, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if (status == http.StatusOK || status == http.StatusPartialContent) && err == nil {
		s.body = true
		s.size = length
		if cr := h.Get("Content-Range"); cr != "" {
			var last int64
			_, _ = fmt.Sscanf(cr, "bytes %d-%d/%d", &s.offset, &last, &s.size)
		}
		s.end = s.offset + length
		s.breakHead(h, length)
		s.registry.expect(s.digest, s.size)
	}
	s.ResponseWriter.WriteHeader(status)
}

// breakHead puts the faults that show in headers in.
func (s *sender) breakHead(h http.Header, length int64) {
	if s.faults.WrongDigest {
		h.Set("Docker-Content-Digest", wrongDigest)
	}
	if s.faults.ShortBody {
		s.end--
		h.Set("Content-Length", strconv.FormatInt(length-1, 10))
	}
	if s.faults.LongBody {
		h.Set("Content-Length", strconv.FormatInt(length+1, 10))
	}
	if s.faults.Chunked {
		h.Del("Content-Length")
	}
}

// errCut ends a body. Its text is seen by the library's log only.
var errCut = errors.New("the test registry was told to end here")

func (s *sender) Write(p []byte) (int, error) {
	if !s.started {
		s.WriteHeader(http.StatusOK)
	}
	if !s.body {
		return s.ResponseWriter.Write(p)
	}
	done := 0
	for done < len(p) {
		piece := p[done:min(len(p), done+writeSize)]
		room, err := s.room()
		if err != nil {
			return done, err
		}
		piece = piece[:min(int64(len(piece)), room)]
		if err := s.registry.throttle(s.ctx, len(piece)); err != nil {
			return done, err
		}
		// Counted before it leaves: whoever has a byte finds it counted.
		s.registry.record(s.digest, s.offset, int64(len(piece)), 1)
		n, err := s.ResponseWriter.Write(s.flipped(piece))
		s.registry.record(s.digest, s.offset+int64(n), int64(len(piece)-n), -1)
		s.offset += int64(n)
		s.sent += int64(n)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// room returns how many bytes may be sent now, at least one, or the error that
// ends the body. It waits out a stall.
func (s *sender) room() (int64, error) {
	room := s.end - s.offset
	if room <= 0 {
		return 0, errCut // ShortBody
	}
	if s.registry.isDown() {
		s.cut = true
		return 0, errCut
	}
	if s.faults.CutAfter > 0 {
		if s.sent >= s.faults.CutAfter {
			s.cut = true
			return 0, errCut
		}
		room = min(room, s.faults.CutAfter-s.sent)
	}
	if s.faults.StallAfter > 0 {
		if s.sent >= s.faults.StallAfter {
			if err := s.stall(); err != nil {
				return 0, err
			}
			s.faults.StallAfter = 0
			return room, nil
		}
		room = min(room, s.faults.StallAfter-s.sent)
	}
	return room, nil
}

// stall waits until the faults change or the body is to end.
func (s *sender) stall() error {
	s.flush()
	select {
	case <-s.faults.over:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	if s.registry.isDown() {
		s.cut = true
		return errCut
	}
	return nil
}

func (s *sender) flush() { _ = http.NewResponseController(s.ResponseWriter).Flush() }

// flipped returns p, which goes out at s.offset, with the middle byte of the
// blob wrong if it is time for that.
func (s *sender) flipped(p []byte) []byte {
	i := s.size/2 - s.offset
	if i < 0 || i >= int64(len(p)) || !s.registry.takeWrong() {
		return p
	}
	p = bytes.Clone(p)
	p[i] ^= 0xff
	return p
}

// takeWrong reports whether a byte is to leave wrong, and counts it.
func (r *Registry) takeWrong() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults.WrongBytes > 0 {
		r.faults.WrongBytes--
		return true
	}
	return r.faults.WrongBytes < 0
}

// throttle waits until n bytes may leave.
func (r *Registry) throttle(ctx context.Context, n int) error {
	r.mu.Lock()
	limit := r.limit
	r.mu.Unlock()
	if limit == nil {
		return nil
	}
	return limit.WaitN(ctx, n)
}

// finish ends the answer. For a cut it flushes what was written and closes the
// connection: with a FIN, since nothing of the request is left to read.
func (s *sender) finish() {
	if s.cut {
		s.flush()
		panic(http.ErrAbortHandler)
	}
	if s.body && s.faults.LongBody && s.offset == s.end {
		_, _ = s.ResponseWriter.Write([]byte{0})
	}
}
