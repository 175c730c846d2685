package mirror

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/shoal-project/shoal/cache"
)

// A stream is the content of a blob that may still be arriving. It can read
// ahead of who reads from it, so that a failure shows before anything is sent,
// and goes over to what is passed on from the origin when the cache can't take
// the rest. One goroutine reads and seeks at a time; finish may be called
// meanwhile.
type stream struct {
	size    int64
	content *cache.Reader // nil: all is passed on
	// instead returns what to read when content fails with an error that noRoom
	// is for. cancel ends the reads of it.
	instead func() *through
	cancel  context.CancelFunc
	// first, if not nil, is called when the first byte has been read.
	first func()

	mu      sync.Mutex // held during a read; protects the fields below
	off     int64      // where the next read of content begins
	buf     []byte     // was read ahead, and comes before off
	err     error      // ends all reads
	passing *through   // takes the place of content; nil: not yet
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
		var n int
		n, s.err = s.read(buf)
		s.buf = buf[:n]
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

// read reads at off from whatever has the content. s.mu is held.
func (s *stream) read(p []byte) (n int, err error) {
	if s.passing == nil {
		err = cache.ErrFull
		if s.content != nil {
			n, err = s.content.Read(p)
		}
		if err == nil || !noRoom(err) {
			s.off += int64(n)
			return n, err
		}
		s.passing = s.instead()
		if err := s.passing.seek(s.off); err != nil {
			return 0, err
		}
	}
	n, err = s.passing.Read(p)
	s.off += int64(n)
	return n, err
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
		n, s.err = s.read(p)
		err = s.err
	}
	s.given(int64(n))
	return n, err
}

// given notes that who reads from s has n bytes more. s.mu is held.
func (s *stream) given(n int64) {
	if n > 0 && s.first != nil {
		s.first()
		s.first = nil
	}
}

// here waits for the next bytes, as Read does, and returns how many of them are
// in the cache. None: Read has them, or knows what is wrong.
func (s *stream) here() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.buf) > 0 || s.err != nil || s.passing != nil || s.content == nil {
		return 0
	}
	n, err := s.content.Await()
	if err != nil {
		return 0
	}
	return n
}

// file returns the file in which the bytes are that here has found, set to the
// first of them. It is nil if only Read can give them.
func (s *stream) file() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.content.File()
	if err != nil {
		return nil
	}
	return f
}

// skip goes over n bytes that were taken from the file.
func (s *stream) skip(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off += n
	_, s.err = s.content.Seek(s.off, io.SeekStart)
	s.given(n)
}

// Seek is part of io.Seeker.
func (s *stream) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return 0, s.err
	}
	switch whence {
	case io.SeekCurrent:
		offset += s.off
	case io.SeekEnd:
		offset += s.size
	}
	s.err, s.off = nil, offset
	switch {
	case s.passing != nil:
		return offset, s.passing.seek(offset)
	case s.content != nil:
		return s.content.Seek(offset, io.SeekStart)
	}
	return offset, nil
}

// finish closes the content, waits for a read of it that is going on, and
// returns the error that a read met, if it was not the end.
func (s *stream) finish() error {
	s.cancel()
	if s.content != nil {
		_ = s.content.Close() // nothing was written; it ends a read
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.passing != nil {
		s.passing.close()
	}
	err := s.err
	s.err = os.ErrClosed
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
