package peer

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// A connection from which a whole body came in one read, its end with it, is
// left as it was: short answers that follow would not be noticed.
func TestLowWaterIsReset(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := newNode(t)
	defer n.Close()
	w := newWatch(time.Minute, func() {})
	defer w.stop()
	b := batch{conn: conn}
	const size = 3 * batchSize
	if err := n.copy(io.Discard, atOnce{}, w, &b, &turn{size: size}); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var water int
	if cerr := raw.Control(func(fd uintptr) {
		water, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if water != 1 {
		t.Errorf("the next read waits for %d bytes", water)
	}
}

// atOnce is a body that fills what it is given, and ends with that.
type atOnce struct{}

func (atOnce) Read(p []byte) (int, error) { return len(p), io.EOF }
