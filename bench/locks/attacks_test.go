//go:build linux

package locks_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
)

// crowd runs n of do at once. The error is the first one, and how many there were.
func crowd(n int, do func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = do(i) })
	}
	wg.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d failed: %w", len(errs), n, errs[0])
}

// dial opens n connections, fewer if they are refused.
func dial(ctx context.Context, addr string, n int) []net.Conn {
	var conns []net.Conn
	for range n {
		c, err := attacker.DialContext(ctx, "tcp", addr)
		if err != nil {
			break
		}
		conns = append(conns, c)
	}
	return conns
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// heads are how what comes to the ports begins, of every protocol that there is.
var heads = []string{
	"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "GET / HTTP/1.1\r\n", "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
	"\x13/multistream/1.0.0\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT [::1]:1 HTTP/1.1\r\n\r\n",
	"\x0a\xff\xff\xff\xff", "\x06\x85", // the gossip's encrypted and plain push-pull
}

func garbage(ctx context.Context, v *victim, underWay func()) error {
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	underWay()
	for _, addr := range v.ports() {
		err := crowd(4*len(heads), func(i int) error {
			c, err := attacker.DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(attackFor))
			_, _ = io.WriteString(c, heads[i%len(heads)])
			_, _ = c.Write(noise[i*100:]) // it may hang up at any byte
			_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
			return nil
		})
		if err != nil {
			return err
		}
	}
	u, err := net.Dial("udp", v.Gossip)
	if err != nil {
		return err
	}
	defer u.Close()
	for i := range 5000 {
		if _, err := u.Write(noise[i : i+1+i%1400]); err != nil {
			return err
		}
	}
	return nil
}

// bomb sends head, and then more of the same until the other end hangs up. It is
// an error if that one takes most of it.
func bomb(ctx context.Context, addr, head string, more []byte, most int) error {
	c, err := attacker.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, head); err != nil {
		return nil
	}
	for sent := 0; sent < most; {
		n, err := c.Write(more)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s: after %d bytes of %.30q it still does not hang up", addr, sent, head)
		}
		if err != nil {
			return nil
		}
	}
	return fmt.Errorf("%s took %d bytes of %.30q", addr, most, head)
}

// endless is more than the buffers of the two kernels hold.
const endless = 48 << 20

func headerBomb(ctx context.Context, v *victim, underWay func()) error {
	line := []byte("X-" + strings.Repeat("a", 4000) + ": " + strings.Repeat("b", 4000) + "\r\n")
	underWay()
	var errs []error
	for _, addr := range v.http() {
		errs = append(errs, crowd(16, func(i int) error {
			return bomb(ctx, addr, []string{"GET /v2/ HTTP/1.1\r\nHost: x\r\n", "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n"}[i%2], line, endless)
		}))
	}
	return errors.Join(errs...)
}

func bodyBomb(ctx context.Context, v *victim, underWay func()) error {
	heads := []string{
		"POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n",
		"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n[\"",
		"GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n",
		"GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
	}
	piece := bytes.Repeat([]byte("x"), 64<<10)
	underWay()
	var errs []error
	for _, addr := range v.http() {
		errs = append(errs, crowd(4*len(heads), func(i int) error {
			return bomb(ctx, addr, heads[i%len(heads)], piece, endless)
		}))
	}
	return errors.Join(errs...)
}

// slowLoris begins requests and goes on with them a byte at a time. They all are
// let go after a while, by every port.
func slowLoris(ctx context.Context, v *victim, underWay func()) error {
	const each = 50
	request := "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 1000)
	starts := map[string][]string{
		v.Peers:  {"\x16\x03\x01\x02\x00\x01" + strings.Repeat("\x00", 500), "\x13/multistream/1.0.0\n" + strings.Repeat("\x13", 500)},
		v.Gossip: {"\x0a\x00\x00\x10\x00" + strings.Repeat("a", 4000), "\x06" + strings.Repeat("a", 1000)},
	}
	var conns []net.Conn
	var texts []string
	defer func() { closeAll(conns) }()
	for name, addr := range v.ports() {
		opened := dial(ctx, addr, each)
		if len(opened) < each {
			return fmt.Errorf("%s: %d connections of %d", name, len(opened), each)
		}
		for i, c := range opened {
			text := request
			if own := starts[addr]; own != nil {
				text = own[i%len(own)]
			}
			conns, texts = append(conns, c), append(texts, text)
		}
	}
	underWay()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return crowd(len(conns), func(i int) error { return trickle(ctx, conns[i], texts[i]) })
}

// trickle sends text, slowly, until the other end hangs up.
func trickle(ctx context.Context, c net.Conn, text string) error {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c) // until it hangs up
	}()
	defer func() { c.Close(); <-gone }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s still listens after %d bytes of %.20q", c.RemoteAddr(), i, text)
		case <-tick.C:
			if i < len(text) {
				_, _ = io.WriteString(c, text[i:i+1])
			}
		}
	}
}

// slowReaders ask for a blob and read none of it.
func slowReaders(ctx context.Context, v *victim, underWay func()) error {
	img, err := registry.PushImage(ctx, v.origin, "team/large", "v1", []int64{32 << 20}, 1)
	if err != nil {
		return err
	}
	if _, err := v.get(ctx, "team/large/manifests/v1"); err != nil {
		return err
	}
	conns := dial(ctx, v.Mirror, 200)
	defer closeAll(conns)
	for _, c := range conns {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		if _, err := fmt.Fprintf(c, "GET /v2/team/large/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", img.Layers[0].Digest); err != nil {
			return err
		}
	}
	underWay()
	<-ctx.Done()
	return nil
}

// flood asks for what is not there, more at once than a client may, at every
// door.
func flood(ctx context.Context, v *victim, underWay func()) error {
	tr := &http.Transport{DialContext: attacker.DialContext, MaxIdleConnsPerHost: 400}
	defer tr.CloseIdleConnections()
	paths := []string{"/v2/", "/v2/team/none/manifests/v%d", "/v2/team/app/manifests/sha256:%064x", "/v2/x/blobs/sha256:%064x", "/v2/a/manifests/v1?ns=other%d.test", "/v2/team/app/tags/list?n=%d", "/v2/%d/../../etc/passwd", "/metrics", "/v1/status", "/%d"}
	doors := []string{v.Mirror, v.Mirror, v.Mirror, v.Mirror, v.proxy, v.Admin}
	underWay()
	return crowd(500, func(i int) error {
		for k := 0; ctx.Err() == nil; k++ {
			path := paths[(i+k)%len(paths)]
			if strings.Contains(path, "%") {
				path = fmt.Sprintf(path, i*1_000_000+k)
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+doors[i%len(doors)]+path, nil)
			if err != nil {
				return err
			}
			if resp, err := tr.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}
		return nil
	})
}

// handshakes begins TLS with the peers' port as one who is no member, and sends
// the gossip packets of a stranger.
func handshakes(ctx context.Context, v *victim, underWay func()) error {
	u, err := net.Dial("udp", v.Gossip)
	if err != nil {
		return err
	}
	defer u.Close()
	packet := make([]byte, 1400)
	_, _ = rand.Read(packet)
	underWay()
	return crowd(50, func(i int) error {
		for ctx.Err() == nil {
			if i%5 == 0 {
				if _, err := u.Write(packet[i:]); err != nil {
					return err
				}
				continue
			}
			c, err := attacker.DialContext(ctx, "tcp", v.Peers)
			if err != nil {
				continue // ctx, most likely
			}
			_ = c.SetDeadline(time.Now().Add(attackFor))
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1", "libp2p"}}).HandshakeContext(ctx)
			c.Close()
		}
		return nil
	})
}

// idle opens connections and says nothing.
func idle(ctx context.Context, v *victim, underWay func()) error {
	var conns []net.Conn
	defer func() { closeAll(conns) }()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	// Go raises the limit as far as it may. Where that is not far there are fewer.
	most := min(10_000, int(min(files.Cur, 1<<20))-5000)
	conns = append(conns, dial(ctx, v.Mirror, most)...)
	if len(conns) < most {
		return fmt.Errorf("%d connections of %d", len(conns), most)
	}
	for _, addr := range []string{v.Peers, v.Gossip, v.Admin, v.proxy} {
		conns = append(conns, dial(ctx, addr, 1000)...)
	}
	underWay()
	<-ctx.Done()
	n := v.files()
	v.t.Logf("%d open files", n)
	if n > maxFiles {
		return fmt.Errorf("%d open files, want at most %d", n, maxFiles)
	}
	return nil
}
