package peer

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// A stream is one end of a control stream.
type stream struct {
	s      network.Stream
	plane  *controlPlane
	served bool // a handler has it

	once    sync.Once
	closed  atomic.Bool
	reading sync.Mutex // held by a Read
}

// Read reads what the other end has written. It fails with net.ErrClosed once
// the stream was closed here.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.s.Read(p)
	if err != nil && s.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// Write writes to the other end.
func (s *stream) Write(p []byte) (int, error) { return s.s.Write(p) }

// Close closes both directions. What was written is still delivered, and a
// Read that waits returns. Close does not block.
func (s *stream) Close() (err error) {
	s.once.Do(func() {
		s.closed.Store(true)
		err = s.s.CloseWrite()
		_ = s.s.SetReadDeadline(longAgo())
		if !s.plane.begin() { // libp2p is down already, and the stream with it
			_ = s.s.Reset()
			s.plane.leave(s)
			return
		}
		go func() {
			defer s.plane.tasks.Done()
			s.linger()
		}()
	})
	return err
}

// linger waits for the other end to close too.
func (s *stream) linger() {
	defer s.plane.leave(s)
	s.reading.Lock() // the last Read has returned
	defer s.reading.Unlock()
	_ = s.s.SetReadDeadline(time.Now().Add(lingerWithin))
	if _, err := io.Copy(io.Discard, s.s); err != nil {
		_ = s.s.Reset()
	}
	_ = s.s.Close()
	s.plane.closeIdle(s.s.Conn())
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }
