package door

import (
	"container/list"
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"sync"
	"syscall"
	"time"
)

// piece is how much of a file the kernel is given at once: for less each costs
// more, and a client has to take it within patience.
const piece = 4 << 20

// A conn is a connection whose writes end when the client does not take them.
type conn struct {
	net.Conn

	// immutable
	client   string // whose it is, for the limits
	crowd    *crowd
	patience time.Duration

	// crowd.mu protects these
	place *list.Element // in crowd.idle
	since uint64        // which came first there

	mu    sync.Mutex
	until time.Time // what the deadline of writes was set to by others; mu protects it
}

// hurry gives the next write its deadline, which is never after the one that
// was set by others.
func (c *conn) hurry() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now().Add(c.patience)
	if !c.until.IsZero() && c.until.Before(at) {
		at = c.until
	}
	return c.Conn.SetWriteDeadline(at)
}

// SetWriteDeadline is part of net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = t
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is part of net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Write is part of net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.hurry(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// ReadFrom hands a file to the kernel, piece by piece. What else it is given is
// copied.
func (c *conn) ReadFrom(src io.Reader) (sent int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok || !isFile(limited.R) {
		return io.Copy(writer{c}, src)
	}
	for limited.N > 0 {
		if err := c.hurry(); err != nil {
			return sent, err
		}
		part := io.LimitedReader{R: limited.R, N: min(piece, limited.N)}
		want := part.N
		n, err := tcp.ReadFrom(&part)
		sent += n
		limited.N -= n
		if err != nil || n < want {
			return sent, err
		}
	}
	return sent, nil
}

// isFile reports whether the kernel can read r, and without waiting for
// anything but a disk.
func isFile(r io.Reader) bool {
	f, ok := r.(interface {
		syscall.Conn
		Stat() (fs.FileInfo, error)
	})
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// A writer hides the ReadFrom of a conn from io.Copy.
type writer struct{ c *conn }

func (w writer) Write(p []byte) (int, error) { return w.c.Write(p) }

// CloseWrite ends what is sent: how net/http lets a client read the answer to a
// request that it has not finished.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// CloseRead ends what is received, as a tunnel does whose other side has.
func (c *conn) CloseRead() error {
	if half, ok := c.Conn.(interface{ CloseRead() error }); ok {
		return half.CloseRead()
	}
	return nil
}

// Close is part of net.Conn.
func (c *conn) Close() error {
	c.crowd.leave(c)
	return c.Conn.Close()
}
