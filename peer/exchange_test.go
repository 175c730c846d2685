package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

var _ pull.Source = (*Source)(nil)

// securities are the two kinds of data plane.
var securities = map[string][]func(*Config){"tls": nil, "none": {insecure}}

func TestSuite(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pulltest.Suite(t, func(t *testing.T, b proto.Blob, content []byte) pull.Source {
				server, asker := newNode(t, change...).run(t), newNode(t, change...).run(t)
				fleet(server, asker)
				server.put(t, b, content)
				return asker.Source(server.ID(), server.Addr())
			})
		})
	}
}

// A stranger is refused whatever it tries, and no byte of a blob reaches it.
func TestStranger(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, asker, stranger := newNode(t, change...).run(t), newNode(t).run(t), newNode(t, change...).run(t)
			server.SetMembers([]proto.Member{{ID: asker.ID(), Addr: "192.0.2.1:7051"}})
			content, b := pulltest.Content(1, 3*proto.MinChunk)
			server.put(t, b, content)
			var got bytes.Buffer
			err := stranger.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got)
			if err == nil || got.Len() != 0 {
				t.Errorf("Fetch of a stranger = %v and %d bytes", err, got.Len())
			}
			if name == "tls" && !strings.Contains(err.Error(), "refused us") {
				t.Errorf("Fetch of a stranger = %v, want that it was refused", err)
			}
		})
	}
}

// Plain HTTP gets nothing from a node that has TLS, and somebody without a
// certificate neither.
func TestPlainStranger(t *testing.T) {
	t.Parallel()
	server := newNode(t).run(t)
	server.SetMembers([]proto.Member{{ID: server.ID(), Addr: "127.0.0.1:7051"}})
	content, b := pulltest.Content(1, 1000)
	server.put(t, b, content)
	plain := newNode(t, insecure).run(t)
	var got bytes.Buffer
	if err := plain.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got); err == nil || got.Len() != 0 {
		t.Errorf("plain Fetch = %v and %d bytes", err, got.Len())
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: insecureTLS(), DisableKeepAlives: true}}
	resp, err := client.Get("https://" + server.Addr() + blobPath + b.Digest.String())
	if err == nil {
		_ = resp.Body.Close()
		t.Errorf("a client without a certificate got %s", resp.Status)
	}
}

// A member that the gossip brings a moment late is waited for.
func TestMemberLearnedLate(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, late := newNode(t, change...).run(t), newNode(t, change...).run(t)
			content, b := pulltest.Content(1, 3*proto.MinChunk)
			server.put(t, b, content)
			meet := whenAwaited(t, server, late)
			var got bytes.Buffer
			if err := late.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got); err != nil {
				t.Errorf("Fetch = %v", err)
			}
			meet()
			if !bytes.Equal(got.Bytes(), content) {
				t.Error("wrong bytes")
			}
		})
	}
}

// whenAwaited makes a fleet of the two as soon as somebody waits at server's
// door. It returns a function that waits for that, or gives it up.
func whenAwaited(t *testing.T, server, late *node) func() {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for server.members.waitingNow() == 0 {
			if !wait(ctx, time.Millisecond) {
				return
			}
		}
		fleet(server, late)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (m *members) waitingNow() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting
}

// Who has gone is refused on the connection that it still has.
func TestFormerMember(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, asker := newNode(t, change...).run(t), newNode(t, change...).run(t)
			fleet(server, asker)
			content, b := pulltest.Content(1, 1000)
			server.put(t, b, content)
			src := asker.Source(server.ID(), server.Addr())
			if err := src.Fetch(t.Context(), b.Run(), io.Discard); err != nil {
				t.Fatal(err)
			}
			server.SetMembers(nil)
			if err := src.Fetch(t.Context(), b.Run(), io.Discard); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("Fetch of a former member = %v, want 403", err)
			}
		})
	}
}

// Another identity at the address is found out, on a new connection and on one
// that is there from asking that other identity.
func TestWrongIdentity(t *testing.T) {
	t.Parallel()
	server, asker, expected := newNode(t).run(t), newNode(t).run(t), newNode(t)
	defer expected.Close()
	fleet(server, asker)
	content, b := pulltest.Content(1, 1000)
	server.put(t, b, content)
	if err := asker.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), io.Discard); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err := asker.Source(expected.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got)
	if err == nil || got.Len() != 0 || !strings.Contains(err.Error(), "wrong identity: "+expected.ID()) ||
		!strings.Contains(err.Error(), server.ID()) {
		t.Errorf("Fetch = %v and %d bytes, want an error that names both", err, got.Len())
	}
	if err := asker.Source("nonsense", server.Addr()).Fetch(t.Context(), b.Run(), &got); err == nil {
		t.Error("a Source without a peer ID works")
	}
}

// answer reads a request and writes the given response.
func answer(c net.Conn, text string) {
	buf := make([]byte, 64<<10)
	if n, err := c.Read(buf); err != nil || !bytes.Contains(buf[:n], []byte("\r\n\r\n")) {
		return
	}
	_, _ = io.WriteString(c, text)
}

func head(b proto.Blob) string {
	return fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n",
		b.Size-1, b.Size, b.Size)
}

// stall makes stalls short. The peers that these tests ask send nothing more
// for ever, so the time does not matter.
func stall(c *Config) { c.StallTimeout = 200 * time.Millisecond }

// A peer that stops in the middle of a chunk, after the header, before it, or
// in the handshake, is given up.
func TestStall(t *testing.T) {
	t.Parallel()
	content, b := pulltest.Content(1, 1000)
	for _, tc := range []struct {
		name   string
		secure bool
		said   string
		got    int
	}{
		{"in the middle", true, head(b) + string(content[:300]), 300},
		{"after the header", true, head(b), 0},
		{"before the header", true, "HTTP/1.1 206 Part", 0},
		{"without a word", true, "", 0},
		{"in the handshake", false, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			peer := rogue(t, tc.secure, func(c net.Conn) {
				answer(c, tc.said)
				_, _ = io.Copy(io.Discard, c)
			})
			asker := newNode(t, stall).run(t)
			var got bytes.Buffer
			err := asker.Source(peer.ID, peer.Addr).Fetch(t.Context(), b.Run(), &got)
			// On a busy machine even the handshake can take too long.
			if !errors.Is(err, ErrStalled) || !bytes.HasPrefix(content[:tc.got], got.Bytes()) {
				t.Errorf("Fetch = %v and %d bytes, want ErrStalled and %d", err, got.Len(), tc.got)
			}
		})
	}
}

// A peer that answers that the chunk did not come in time has stalled too; one
// that has nothing of the blob has not.
func TestStatus(t *testing.T) {
	t.Parallel()
	late := rogue(t, true, func(c net.Conn) {
		answer(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\ntoo late")
	})
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	_, b := pulltest.Content(1, 1000)
	if err := asker.Source(late.ID, late.Addr).Fetch(t.Context(), b.Run(), io.Discard); !errors.Is(err, ErrStalled) ||
		!strings.Contains(err.Error(), "too late") {
		t.Errorf("Fetch answered with 503 = %v, want ErrStalled and what was said", err)
	}
	src := asker.Source(server.ID(), server.Addr())
	if err := src.Fetch(t.Context(), b.Run(), io.Discard); !errors.Is(err, ErrAbsent) {
		t.Errorf("Fetch of an unknown blob = %v, want ErrAbsent", err)
	}
	if err := src.Fetch(t.Context(), proto.Run{Blob: b, First: 1, Count: 1}, io.Discard); err == nil {
		t.Error("Fetch of a run outside the blob is no error")
	}
}

// What a broken or lying peer answers is an error, never a success.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	content, b := pulltest.Content(1, 1000)
	body := string(content)
	for _, tc := range []struct{ name, said, want string }{
		{"cut body", head(b) + body[:300], "unexpected EOF"},
		{"nothing", "", "EOF"},
		{"another range", strings.Replace(head(b), "0-999/1000", "1-1000/1000", 1) + body, "asked for"},
		{"another size", strings.Replace(head(b), "/1000", "/2000", 1) + body, "asked for"},
		{"long body", strings.Replace(head(b), "Length: 1000", "Length: 2000", 1) + body + body, "asked for"},
		{"short body", strings.Replace(head(b), "Length: 1000", "Length: 300", 1) + body[:300], "asked for"},
		{"whole", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + body, "status 200"},
		{"chunked", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/1000\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + body + "\r\n0\r\n\r\n", "asked for"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 302"},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", "malformed"},
		{"endless header", "HTTP/1.1 206 Partial Content\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "header"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			peer := rogue(t, true, func(c net.Conn) { answer(c, tc.said) })
			asker := newNode(t).run(t)
			var got bytes.Buffer
			err := asker.Source(peer.ID, peer.Addr).Fetch(t.Context(), b.Run(), &got)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !bytes.HasPrefix(content, got.Bytes()) {
				t.Errorf("Fetch = %v and %d bytes, want %q", err, got.Len(), tc.want)
			}
			if err != nil && (!strings.Contains(err.Error(), peer.ID) || !strings.Contains(err.Error(), peer.Addr)) {
				t.Errorf("Fetch = %v, want who and where", err)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	asker, gone := newNode(t).run(t), newNode(t)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	_, b := pulltest.Content(1, 1000)
	if err := asker.Source(gone.ID(), gone.Addr()).Fetch(t.Context(), b.Run(), io.Discard); err == nil || errors.Is(err, ErrStalled) {
		t.Errorf("Fetch = %v", err)
	}
}

// Connections are used again, after errors of the peer too.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	content, b := pulltest.Content(1, 3*proto.MinChunk)
	server.put(t, b, content)
	_, other := pulltest.Content(2, 1000)
	src := asker.Source(server.ID(), server.Addr())
	for range 5 {
		if err := src.Fetch(t.Context(), b.Run(), io.Discard); err != nil {
			t.Fatal(err)
		}
		if err := src.Fetch(t.Context(), other.Run(), io.Discard); !errors.Is(err, ErrAbsent) {
			t.Fatal(err)
		}
	}
	if n := server.front.open(kindTLS); n != 1 {
		t.Errorf("%d connections for ten requests, want 1", n)
	}
}

// A Fetch ends when the Host under it does.
func TestFetchEndsWithTheHost(t *testing.T) {
	t.Parallel()
	_, b := pulltest.Content(1, 1000)
	asked := make(chan struct{})
	peer := rogue(t, true, func(c net.Conn) {
		answer(c, head(b))
		close(asked)
		_, _ = io.Copy(io.Discard, c)
	})
	asker := newNode(t).run(t)
	go func() {
		<-asked
		asker.stop()
	}()
	if err := asker.Source(peer.ID, peer.Addr).Fetch(t.Context(), b.Run(), io.Discard); !errors.Is(err, errClosed) {
		t.Errorf("Fetch = %v", err)
	}
}

// The watch counts what the peer takes, not what the writer takes, and a
// trickle of bytes is no stall.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		waits []time.Duration // on the peer and on the writer in turn
		at    time.Duration   // of the stall; 0: none
	}{
		{"prompt", []time.Duration{5, 0, 5, 0, 5}, 0},
		{"trickle", []time.Duration{9, 0, 9, 0, 9, 0, 9, 0, 9}, 0},
		{"slow writer", []time.Duration{1, 100, 9, 35, 9}, 0},
		{"first byte", []time.Duration{20}, 10},
		{"later", []time.Duration{9, 0, 20}, 19},
		{"after a slow writer", []time.Duration{1, 25, 20}, 36},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var at time.Duration
				w := newWatch(10*time.Second, func() { at = time.Since(start) })
				for i, d := range tc.waits {
					if i%2 == 0 {
						w.begin()
					} else {
						w.end()
					}
					time.Sleep(d * time.Second)
				}
				w.stop()
				synctest.Wait()
				if at != tc.at*time.Second {
					t.Errorf("stalled at %v, want %v", at, tc.at*time.Second)
				}
			})
		})
	}
}

func TestPoolKey(t *testing.T) {
	id := newNode(t)
	defer id.Close()
	for _, addr := range []string{"10.0.0.1:7051", "[2001:db8::1]:7051", "node-1.example:7051", "[fe80::1%eth0]:1"} {
		got, at, err := parsePoolKey(net.JoinHostPort(poolKey(id.ID(), addr), "443"))
		if err != nil || at != addr || got.String() != id.ID() {
			t.Errorf("%s came back as %s, %s, %v", addr, got, at, err)
		}
	}
	for _, key := range []string{"", "x", "zz.x:443", "31.nonsense:443"} {
		if _, _, err := parsePoolKey(key); err == nil {
			t.Errorf("%q is a pool key", key)
		}
	}
}
