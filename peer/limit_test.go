package peer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// With an upload limit the same bytes arrive, in both kinds of data plane and
// whatever is granted at a time.
func TestSuiteWithUploadLimit(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pulltest.Suite(t, func(t *testing.T, b proto.Blob, content []byte) pull.Source {
				limit := func(c *Config) {
					c.Upload = func(_ context.Context, want int64) (int64, error) { return min(want, 1+rand.Int64N(100_000)), nil }
				}
				server, asker := newNode(t, append([]func(*Config){limit}, change...)...).run(t), newNode(t, change...).run(t)
				fleet(server, asker)
				server.put(t, b, content)
				return asker.Source(server.ID(), server.Addr())
			})
		})
	}
}

// Every byte that is sent was asked for, at most a quantum at a time.
func TestUploadLimitSeesEveryByte(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var asked, granted int64
			limit := func(c *Config) {
				c.Upload = func(_ context.Context, want int64) (int64, error) {
					mu.Lock()
					defer mu.Unlock()
					asked = max(asked, want)
					n := min(want, 300_000)
					granted += n
					return n, nil
				}
			}
			server, asker := newNode(t, append([]func(*Config){limit}, change...)...).run(t), newNode(t, change...).run(t)
			fleet(server, asker)
			content, b := pulltest.Content(1, 5<<20+7)
			server.put(t, b, content)
			var got bytes.Buffer
			if err := asker.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got); err != nil || !bytes.Equal(got.Bytes(), content) {
				t.Fatalf("Fetch = %v, %d bytes", err, got.Len())
			}
			mu.Lock()
			defer mu.Unlock()
			if granted != b.Size || asked != quantum {
				t.Errorf("%d bytes were granted, %d at most wanted at a time; want %d and %d", granted, asked, b.Size, quantum)
			}
		})
	}
}

// A wait for the limit is not time that the asker takes.
func TestWaitForUploadIsNoStall(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const within = 300 * time.Millisecond
			limit := func(c *Config) {
				c.Upload = func(ctx context.Context, want int64) (int64, error) {
					wait(ctx, within*5/4)
					return min(want, 200_000), nil
				}
			}
			server, asker := newNode(t, append([]func(*Config){limit}, change...)...), newNode(t, change...).run(t)
			server.http.Handler.(*serverHandler).within = within
			server.run(t)
			fleet(server, asker)
			content, b := pulltest.Content(1, 500_000)
			server.put(t, b, content)
			var got bytes.Buffer
			if err := asker.Source(server.ID(), server.Addr()).Fetch(t.Context(), b.Run(), &got); err != nil || !bytes.Equal(got.Bytes(), content) {
				t.Errorf("Fetch = %v, %d bytes", err, got.Len())
			}
		})
	}
}

// Who has gone does not wait for its turn any more, and neither does the Host
// when it ends.
func TestAskerGoesWhileItWaitsForUpload(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{"the asker", "the host"} {
		t.Run(gone, func(t *testing.T) {
			t.Parallel()
			waiting, ended := make(chan struct{}), make(chan struct{})
			server := newNode(t, insecure, func(c *Config) {
				c.Upload = func(ctx context.Context, _ int64) (int64, error) {
					close(waiting)
					<-ctx.Done()
					close(ended)
					return 0, ctx.Err()
				}
			}).run(t)
			fleet(server)
			content, b := pulltest.Content(1, 1000)
			server.put(t, b, content)
			c, err := net.Dial("tcp", server.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "GET %s%s HTTP/1.1\r\nHost: x\r\nRange: bytes=0-%d\r\n\r\n", blobPath, b.Digest, b.Size-1)
			<-waiting
			if gone == "the asker" {
				_ = c.Close()
			} else {
				server.stop()
			}
			<-ended
			if gone == "the host" {
				_, _ = io.Copy(io.Discard, c)
			}
		})
	}
}

// What is granted still goes by sendfile; see TestSendfile.
func TestSendfileWithUploadLimit(t *testing.T) {
	t.Parallel()
	const size = 64 << 10
	if !changedBytesArrive(t, func(f *os.File, c net.Conn) { _, _ = io.Copy(c, f) }, size) {
		t.Skip("this kernel copies for sendfile")
	}
	limit := func(c *Config) {
		c.Upload = func(_ context.Context, want int64) (int64, error) { return min(want, 16<<10), nil }
	}
	server, asker := newNode(t, insecure, limit).run(t), newNode(t, insecure).run(t)
	fleet(server, asker)
	content, b := pulltest.Content(1, size)
	held := server.put(t, b, content)
	conn, err := dialData(t, asker, server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s%s HTTP/1.1\r\nHost: x\r\nRange: bytes=0-%d\r\n\r\n", blobPath, b.Digest, size-1)
	awaitRequests(t, server, 1)
	scribble(t, held.File)
	resp, err := http.ReadResponse(bufioReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || len(got) != size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	same := 0
	for i := range got {
		if got[i] == content[i] {
			same++
		}
	}
	// scribble changes each, and net/http copies the first 512 of an answer.
	if same > 512 {
		t.Errorf("%d of %d bytes were copied", same, size)
	}
}
