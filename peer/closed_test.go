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
	"time"

	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// Whoever is not on the list gets no chunk and no stream, though the gossip
// names him.
func TestNotOnTheList(t *testing.T) {
	t.Parallel()
	friend, stranger := newNode(t).run(t), newNode(t).run(t)
	server := newNode(t, func(c *Config) { c.Allowed = func(id string) bool { return id == friend.ID() } })
	server.HandleControl(func(_ context.Context, from string, s io.ReadWriteCloser) { _, _ = io.WriteString(s, "hello "+from) })
	server.run(t)
	fleet(server, friend, stranger)
	fetchWorks(t, friend, server)
	content, b := pulltest.Content(1, 1000)
	server.put(t, b, content)
	var got bytes.Buffer
	if err := stranger.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got); err == nil || got.Len() > 0 {
		t.Errorf("the stranger got %d bytes, %v", got.Len(), err)
	}
	s, err := stranger.OpenControl(t.Context(), server.member())
	if err == nil {
		said, _ := io.ReadAll(s)
		_ = s.Close()
		if len(said) > 0 {
			t.Errorf("the stranger was told %q", said)
		}
	}
	if s, err = friend.OpenControl(t.Context(), server.member()); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if said, err := io.ReadAll(s); string(said) != "hello "+friend.ID() {
		t.Errorf("the friend was told %q, %v", said, err)
	}
}

// A peer asks by the name and with the capability that it is given, and the
// other end learns who asks. What is not for the asker is as if it were not here.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"none", "tls"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content, b := pulltest.Content(1, 3*proto.MinChunk)
			alias := proto.DigestOf([]byte("alias"))
			capability := "let me in"
			asker := newNode(t, append(securities[name], func(c *Config) {
				c.Name = func(d proto.Digest) (proto.Digest, string) {
					if d == b.Digest {
						return alias, capability
					}
					return d, ""
				}
			})...).run(t)
			var server *node
			server = newNode(t, append(securities[name], func(c *Config) {
				c.Real = func(name proto.Digest, who, shown string) (proto.Digest, bool) {
					if want := asker.ID(); server.insecure == (who == want) {
						t.Errorf("%q asks, want it to be proven that it is %s with TLS only", who, want)
					}
					if name == b.Digest {
						return b.Digest, false
					}
					if name == alias {
						return b.Digest, shown == "let me in"
					}
					return name, shown == ""
				}
			})...).run(t)
			fleet(server, asker)
			server.put(t, b, content)
			var got bytes.Buffer
			src := asker.Source(server.ID(), server.Addr())
			if err := src.Fetch(t.Context(), b.Run(), &got); err != nil || !bytes.Equal(got.Bytes(), content) {
				t.Errorf("Fetch = %v, %d bytes", err, got.Len())
			}
			capability = "let me in, please"
			got.Reset()
			if err := src.Fetch(t.Context(), b.Run(), &got); !errors.Is(err, ErrAbsent) || got.Len() > 0 {
				t.Errorf("without the capability: %v, %d bytes", err, got.Len())
			}
			fetchWorks(t, asker, server) // a blob of its own name

			// In the clear, and with two capabilities, it is not here.
			for what, h := range map[string]http.Header{
				blobPath + b.Digest.String(): {capabilityHeader: {"let me in"}},
				blobPath + alias.String():    {capabilityHeader: {"let me in", "let me in"}},
			} {
				for _, method := range []string{"GET", "HEAD"} {
					h.Set("Range", "bytes=0-1")
					resp, body, err := request(t, asker, server, method, what, h, "")
					if err != nil || resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Range") != "" {
						t.Errorf("%s %s: %d %q, %v", method, what, resp.StatusCode, body, err)
					}
					_, absent, _ := request(t, asker, server, method, blobPath+proto.DigestOf([]byte("absent")).String(), http.Header{"Range": {"bytes=0-1"}}, "")
					if method == "GET" && len(absent) != len(body) {
						t.Errorf("refused with %q, absent is %q", body, absent)
					}
				}
			}
		})
	}
}

// One member can't take all connections. When it gives some back it can have
// others.
func TestConnectionsOfOnePeer(t *testing.T) {
	t.Parallel()
	server, greedy, asker := newNode(t), newNode(t).run(t), newNode(t).run(t)
	server.front.most = 8
	server.run(t)
	fleet(server, greedy, asker)
	key := net.JoinHostPort(poolKey(server.ID(), server.Addr()), "443")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range server.front.most {
		c, err := greedy.dialTLS(t.Context(), "tcp", key)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	c, err := greedy.dialTLS(t.Context(), "tcp", key) // in TLS 1.3 the refusal comes after the handshake here
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if err == nil || isTimeout(err) {
		t.Errorf("one more is let in: %v", err)
	}
	fetchWorks(t, asker, server)
	for _, c := range conns {
		_ = c.Close()
	}
	fetchWorks(t, greedy, server)
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		server.front.mu.Lock()
		n := server.front.perPeer[greedy.ID()]
		server.front.mu.Unlock()
		if n <= 1 { // the one that fetched
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are on the books", n)
		}
	}
}

// A header that is too long is refused, and one that does not end holds nothing
// up but its own connection.
func TestHeaders(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	key := net.JoinHostPort(poolKey(server.ID(), server.Addr()), "443")
	bomb, err := asker.dialTLS(t.Context(), "tcp", key)
	if err != nil {
		t.Fatal(err)
	}
	defer bomb.Close()
	_ = bomb.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(bomb, "GET / HTTP/1.1\r\nHost: x\r\n")
	sent := 0
	for sent < 64<<20 {
		n, err := fmt.Fprintf(bomb, "X-%d: %s\r\n", sent, strings.Repeat("x", 1000))
		if sent += n; err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("64 MiB of headers are read")
	}
	for range 20 {
		slow, err := asker.dialTLS(t.Context(), "tcp", key)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		_, _ = io.WriteString(slow, "GET /v1/blobs/ HTTP/1.1\r\nHo")
	}
	fetchWorks(t, asker, server)
	if server.http.ReadHeaderTimeout == 0 || server.http.IdleTimeout == 0 || server.http.MaxHeaderBytes == 0 {
		t.Error("the server has no limits")
	}
}

// What Sign signs can be checked by the peer ID alone.
func TestSign(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	defer n.Close()
	signature, err := n.Sign([]byte("a word"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := n.id.ExtractPublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := key.Verify([]byte("a word"), signature); !ok || err != nil {
		t.Errorf("Verify = %v, %v", ok, err)
	}
}
