package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

func insecureTLS() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func bufioReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

func TestKindOf(t *testing.T) {
	for b := range 256 {
		want := kindUnknown
		switch {
		case b == 0x16:
			want = kindTLS
		case b == 0x13:
			want = kindControl
		case b >= 'A' && b <= 'Z':
			want = kindPlain
		}
		if got := kindOf(byte(b)); got != want {
			t.Errorf("kindOf(%#02x) = %d, want %d", b, got, want)
		}
	}
}

// fetchWorks checks that asker can still get a blob from server.
func fetchWorks(t *testing.T, asker, server *node) {
	t.Helper()
	content, b := pulltest.Content(1, 1000)
	server.put(t, b, content)
	var got bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := asker.Source(server.ID(), server.Addr()).Fetch(ctx, b.Run(), &got)
	if err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("Fetch = %v, %d bytes", err, got.Len())
	}
}

// Bytes of no protocol, of the wrong protocol, or the beginnings of the right
// ones followed by nonsense close the connection and harm nobody else.
func TestGarbage(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	for _, said := range []string{
		"\x00", "\xff\xfe\xfd", "SSH-2.0-x\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01garbage and more of it",
		"\x16", "\x13", "\x13/multistream/1.0.0\n", "\x13garbagegarbagegarbagegarbage", "\x05\x01\x00",
	} {
		c, err := net.Dial("tcp", server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, said)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(c)
		if isTimeout(err) {
			t.Errorf("after %q the connection stays open", said)
		}
		if len(got) > 64 {
			t.Errorf("%q is answered with %q", said, got)
		}
		_ = c.Close()
	}
	fetchWorks(t, asker, server)
}

// Connections that never say anything, or stop after a byte, are not in the
// way of others, however many, and their number is bounded.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	for name, said := range map[string]string{"silent": "", "half a hello": "\x16\x03\x01", "half a greeting": "\x13/multi"} {
		t.Run(name, func(t *testing.T) {
			server, asker := newNode(t).run(t), newNode(t).run(t)
			fleet(server, asker)
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					_ = c.Close()
				}
			}()
			for range maxUnproven + 50 {
				c, err := net.Dial("tcp", server.Addr())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(c, said)
				conns = append(conns, c)
			}
			fetchWorks(t, asker, server)
			// Those that are let go are closed at once, and counted until their
			// owners, libp2p for one, have seen it.
			for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				n := server.front.open(kindUnknown, kindTLS, kindControl)
				if n <= maxUnproven+1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d connections are open", n)
				}
			}
			// The oldest was let go.
			_ = conns[0].SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, conns[0]); isTimeout(err) {
				t.Error("the oldest connection is still open")
			}
		})
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// Connections that end before they begin leave nothing behind.
func TestBooks(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	for i := range 30 {
		c, err := net.Dial("tcp", server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 1 {
			_, _ = io.WriteString(c, "\x16")
		} else if i%3 == 2 {
			_, _ = io.WriteString(c, "\x13")
		}
		if i%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
	fetchWorks(t, asker, server)
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		server.front.mu.Lock()
		guests, unproven, count := len(server.front.guests), server.front.unproven.Len(), server.front.count
		server.front.mu.Unlock()
		if guests == 1 && unproven == 0 && count == [kinds]int{kindTLS: 1} {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d guests, %d of them unproven, by kind %v; want the one that fetched", guests, unproven, count)
		}
	}
}

// Run ends though connections are open in every state.
func TestRunEndsUnderConnections(t *testing.T) {
	t.Parallel()
	server := newNode(t).run(t)
	fleet(server)
	for _, said := range []string{"", "\x16", "\x16\x03\x01\x02", "\x13", "\x13/multistream/1.0.0\n"} {
		c, err := net.Dial("tcp", server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, said)
	}
	content, b := pulltest.Content(1, 2*proto.MinChunk)
	server.put(t, b, content, 0)
	server.end(t)
}

// The conns that the data plane gets are bare, so that nothing hides their
// ReadFrom.
func TestConnsAreBare(t *testing.T) {
	t.Parallel()
	server := newNode(t, insecure)
	fleet(server)
	server.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if _, ok := c.(*net.TCPConn); !ok {
			t.Errorf("the server has a %T", c)
		}
		return context.WithValue(ctx, guestKey{}, server.front.guest(c.RemoteAddr()))
	}
	server.run(t)
	fetchWorks(t, server, server)
}
