package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// request sends a request from asker to server, and returns the response with
// its body read.
func request(t *testing.T, asker, server *node, method, path string, header http.Header, body string) (*http.Response, []byte, error) {
	t.Helper()
	u := url.URL{Scheme: "https", Host: poolKey(server.ID(), server.Addr()), Path: path}
	if asker.insecure {
		u.Scheme = "http"
	}
	req, err := http.NewRequestWithContext(t.Context(), method, u.String(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := asker.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp, got, err
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	content, b := pulltest.Content(1, 2*proto.MinChunk+100)
	server.put(t, b, content, 0, 1)
	_, absent := pulltest.Content(2, 1000)
	empty := proto.Blob{Digest: proto.DigestOf(nil)}
	server.hold(t, empty)
	at := func(b proto.Blob) string { return blobPath + b.Digest.String() }
	ranged := func(values ...string) http.Header { return http.Header{"Range": values} }
	for _, tc := range []struct {
		name, method, path string
		header             http.Header
		body               string
		code               int
		want               []byte // nil: not looked at
		wantHeader         string // "Name: value"
	}{
		{"a range", "GET", at(b), ranged("bytes=5-10"), "", 206, content[5:11], "Content-Range: bytes 5-10/" + fmt.Sprint(b.Size)},
		{"one byte", "GET", at(b), ranged("bytes=0-0"), "", 206, content[:1], "Content-Length: 1"},
		{"over a border", "GET", at(b), ranged(fmt.Sprintf("bytes=%d-%d", proto.MinChunk-5, proto.MinChunk+5)), "", 206,
			content[proto.MinChunk-5 : proto.MinChunk+6], "Content-Type: application/octet-stream"},
		{"all that is here", "GET", at(b), ranged(fmt.Sprintf("bytes=0-%d", 2*proto.MinChunk-1)), "", 206, content[:2*proto.MinChunk], "Accept-Ranges: bytes"},
		{"no range", "GET", at(b), nil, "", 416, nil, fmt.Sprintf("Content-Range: bytes */%d", b.Size)},
		{"two headers", "GET", at(b), ranged("bytes=0-1", "bytes=2-3"), "", 416, nil, ""},
		{"two ranges", "GET", at(b), ranged("bytes=0-1,2-3"), "", 416, nil, ""},
		{"open end", "GET", at(b), ranged("bytes=5-"), "", 416, nil, ""},
		{"suffix", "GET", at(b), ranged("bytes=-5"), "", 416, nil, ""},
		{"backwards", "GET", at(b), ranged("bytes=10-5"), "", 416, nil, ""},
		{"beyond the end", "GET", at(b), ranged(fmt.Sprintf("bytes=0-%d", b.Size)), "", 416, nil, ""},
		{"far beyond", "GET", at(b), ranged("bytes=0-99999999999999999999"), "", 416, nil, ""},
		{"other unit", "GET", at(b), ranged("chunks=0-1"), "", 416, nil, ""},
		{"of an empty blob", "GET", at(empty), ranged("bytes=0-0"), "", 416, nil, "Content-Range: bytes */0"},
		{"HEAD", "HEAD", at(b), nil, "", 200, []byte{}, fmt.Sprintf("Content-Length: %d", b.Size)},
		{"HEAD of a range", "HEAD", at(b), ranged("bytes=5-10"), "", 206, []byte{}, "Content-Length: 6"},
		{"HEAD of an empty blob", "HEAD", at(empty), nil, "", 200, []byte{}, "Content-Length: 0"},
		{"absent", "GET", at(absent), ranged("bytes=0-1"), "", 404, nil, ""},
		{"HEAD absent", "HEAD", at(absent), nil, "", 404, nil, ""},
		{"bad digest", "GET", blobPath + "sha256:12", ranged("bytes=0-1"), "", 400, nil, ""},
		{"bad algorithm", "GET", blobPath + "md5:d41d8cd98f00b204e9800998ecf8427e", ranged("bytes=0-1"), "", 400, nil, ""},
		{"path in the digest", "GET", blobPath + "../../etc/passwd", ranged("bytes=0-1"), "", 400, nil, ""},
		{"other path", "GET", "/", nil, "", 404, nil, ""},
		{"PUT", "PUT", at(b), nil, "content", 405, nil, "Allow: GET, HEAD"},
		{"DELETE", "DELETE", at(b), nil, "", 405, nil, "Allow: GET, HEAD"},
		{"a body", "GET", at(b), ranged("bytes=0-1"), "content", 400, nil, ""},
		{"bad wait", "GET", at(b), http.Header{"Range": {"bytes=0-1"}, withinHeader: {"soon"}}, "", 400, nil, ""},
		{"two waits", "GET", at(b), http.Header{"Range": {"bytes=0-1"}, withinHeader: {"1", "2"}}, "", 400, nil, ""},
		{"not here in time", "GET", at(b), http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.Size-1, b.Size-1)}, withinHeader: {"0"}}, "", 503, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.header == nil {
				tc.header = http.Header{}
			}
			resp, got, err := request(t, asker, server, tc.method, tc.path, tc.header, tc.body)
			if err != nil || resp.StatusCode != tc.code {
				t.Fatalf("answered %d, %v: %s, want %d", resp.StatusCode, err, got, tc.code)
			}
			if tc.want != nil && !bytes.Equal(got, tc.want) {
				t.Errorf("got %d bytes, want %d others", len(got), len(tc.want))
			}
			if name, value, ok := strings.Cut(tc.wantHeader, ": "); ok && resp.Header.Get(name) != value {
				t.Errorf("%s: %q, want %q", name, resp.Header.Get(name), value)
			}
		})
	}
}

// When a chunk in the middle does not come, what was before it is sent, and
// then the connection is closed short of Content-Length, with nothing after.
func TestCutShort(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t).run(t), newNode(t).run(t)
	fleet(server, asker)
	content, b := pulltest.Content(1, 3*proto.MinChunk)
	server.put(t, b, content, 0, 2)
	resp, got, err := request(t, asker, server, "GET", blobPath+b.Digest.String(),
		http.Header{"Range": {fmt.Sprintf("bytes=0-%d", b.Size-1)}, withinHeader: {"0"}}, "")
	if resp.StatusCode != 206 || !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got, content[:proto.MinChunk]) {
		t.Errorf("answered %d, %d bytes, then %v", resp.StatusCode, len(got), err)
	}
}

// A blob is served while it is still arriving, whatever the order in which its
// chunks come, to several at once, and each gets a chunk as soon as it is here.
func TestServesWhileTheBlobArrives(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, asker := newNode(t, change...).run(t), newNode(t, change...).run(t)
			fleet(server, asker)
			content, b := pulltest.Content(1, 6*proto.MinChunk+777)
			held := server.hold(t, b)
			src := asker.Source(server.ID(), server.Addr())
			first := make(chan struct{}, 10)
			var askers sync.WaitGroup
			for range 5 {
				askers.Go(func() {
					var got bytes.Buffer
					err := src.Fetch(t.Context(), b.Run(), writerFunc(func(p []byte) (int, error) {
						if got.Len() == 0 {
							first <- struct{}{}
						}
						return got.Write(p)
					}))
					if err != nil || !bytes.Equal(got.Bytes(), content) {
						t.Errorf("Fetch = %v, %d bytes", err, got.Len())
					}
				})
			}
			put := func(i int) {
				c := b.Chunk(i)
				if err := held.Put(i, content[c.Offset:c.Offset+c.Size]); err != nil {
					t.Error(err)
				}
			}
			for _, i := range []int{5, 2, 0} {
				put(i)
			}
			for range 5 {
				<-first // though the rest is not here
			}
			for _, i := range []int{1, 4, 6, 3} {
				put(i)
			}
			askers.Wait()
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A blob that is found wrong as a whole while it is served begins anew in
// another file. What is sent from then on is from there.
func TestServesAcrossANewBeginning(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	defer n.Close()
	content, b := pulltest.Content(1, 3*proto.MinChunk)
	wrong := bytes.Clone(content)
	for i := proto.MinChunk; i < len(wrong); i++ {
		wrong[i]++
	}
	held := n.put(t, b, wrong, 0)
	srv := n.http.Handler.(*serverHandler)
	srv.allowed = func(*http.Request) bool { return true }
	r := httptest.NewRequest("GET", blobPath+b.Digest.String(), nil)
	r.Header.Set("Range", fmt.Sprintf("bytes=0-%d", 2*proto.MinChunk-1))
	w := &pausing{ResponseRecorder: httptest.NewRecorder(), pause: func() { // while chunk 0 is sent
		put := func(i int, content []byte) error {
			c := b.Chunk(i)
			return held.Put(i, content[c.Offset:c.Offset+c.Size])
		}
		if err := errors.Join(put(1, wrong), put(2, wrong)); err == nil {
			t.Error("wrong content is taken")
		}
		if err := put(1, content); err != nil {
			t.Error(err)
		}
	}}
	srv.ServeHTTP(w, r)
	if got := w.Body.Bytes(); !bytes.Equal(got, content[:2*proto.MinChunk]) {
		t.Errorf("got %d bytes, not those of the new beginning", len(got))
	}
}

// pausing calls pause when the first bytes have been written.
type pausing struct {
	*httptest.ResponseRecorder
	pause func()
}

func (p *pausing) Write(b []byte) (int, error) {
	n, err := p.ResponseRecorder.Write(b)
	if p.pause != nil {
		p.pause()
		p.pause = nil
	}
	return n, err
}

// An asker that takes nothing is let go.
func TestAskerThatTakesNothing(t *testing.T) {
	t.Parallel()
	server, asker := newNode(t, insecure), newNode(t, insecure).run(t)
	server.http.Handler.(*serverHandler).within = 100 * time.Millisecond
	server.run(t)
	fleet(server, asker)
	content, b := pulltest.Content(1, 32<<20) // more than the sockets hold
	server.put(t, b, content)
	c, err := net.Dial("tcp", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s%s HTTP/1.1\r\nHost: x\r\nRange: bytes=0-%d\r\n\r\n", blobPath, b.Digest, b.Size-1)
	server.log.await(t, "cut an answer short")
}

// serverHandler is server where a variable has that name.
type serverHandler = server

// With security none the bytes go from the file to the socket without a copy.
// What shows it: the socket holds pages of the file and not what was in them,
// so bytes that are changed in the file before the asker reads them arrive
// changed. The same is tried first with io.Copy between a bare file and a bare
// connection, to know whether this kernel does so.
func TestSendfile(t *testing.T) {
	t.Parallel()
	const size = 64 << 10 // fits into the socket's buffers
	if !changedBytesArrive(t, func(f *os.File, c net.Conn) { _, _ = io.Copy(c, f) }, size) {
		t.Skip("this kernel copies for sendfile")
	}
	if changedBytesArrive(t, func(f *os.File, c net.Conn) { _, _ = io.Copy(struct{ io.Writer }{c}, f) }, size) {
		t.Fatal("a copy shows the change too: this test proves nothing")
	}
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			server, asker := newNode(t, change...).run(t), newNode(t, change...).run(t)
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
			if used := !bytes.Equal(got, content); used != (name == "none") {
				t.Errorf("sendfile is used: %v", used)
			}
		})
	}
}

// dialData connects to server's data plane.
func dialData(t *testing.T, asker, server *node) (net.Conn, error) {
	key := net.JoinHostPort(poolKey(server.ID(), server.Addr()), "443")
	if asker.insecure {
		return asker.dialPlain(t.Context(), "tcp", key)
	}
	return asker.dialTLS(t.Context(), "tcp", key)
}

// awaitRequests waits until server has answered n requests.
func awaitRequests(t *testing.T, server *node, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		families, err := server.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		total := 0.0
		for _, f := range families {
			if f.GetName() == "shoal_peer_requests_total" {
				for _, m := range f.GetMetric() {
					total += m.GetCounter().GetValue()
				}
			}
		}
		if total >= float64(n) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v requests were answered, want %d", total, n)
		}
	}
}

// scribble changes every byte of the file that open opens.
func scribble(t *testing.T, open func() (*os.File, error)) {
	t.Helper()
	read, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	data, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i]++
	}
	if err := os.Chmod(read.Name(), 0o600); err != nil {
		t.Fatal(err)
	}
	write, err := os.OpenFile(read.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	if _, err := write.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

// changedBytesArrive sends a file with send, changes it, and only then reads.
func changedBytesArrive(t *testing.T, send func(*os.File, net.Conn), size int) bool {
	t.Helper()
	path := t.TempDir() + "/file"
	content, _ := pulltest.Content(1, size)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		send(f, c)
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-sent
	scribble(t, func() (*os.File, error) { return os.Open(path) })
	got, err := io.ReadAll(c)
	if err != nil || len(got) != size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	return !bytes.Equal(got, content)
}

func TestParseWithin(t *testing.T) {
	for _, tc := range []struct {
		values []string
		want   time.Duration
		ok     bool
	}{
		{nil, defaultWithin, true},
		{[]string{"0"}, 0, true},
		{[]string{"1500"}, 1500 * time.Millisecond, true},
		{[]string{"60001"}, maxWithin, true},
		{[]string{"2147483647"}, maxWithin, true},
		{[]string{"2147483648"}, 0, false},
		{[]string{"-1"}, 0, false},
		{[]string{"+1"}, 0, false},
		{[]string{"1s"}, 0, false},
		{[]string{""}, 0, false},
		{[]string{"1", "2"}, 0, false},
	} {
		if got, ok := parseWithin(tc.values); ok != tc.ok || ok && got != tc.want {
			t.Errorf("parseWithin(%q) = %v, %v", tc.values, got, ok)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=5-9", "bytes=9-5", "bytes=-5", "bytes=5-", "bytes=0-1,3-4", "bytes=+1-2",
		"bytes=00-007", "bytes=0x1-2", " bytes=0-1", "bytes= 0-1", "bytes=0-9223372036854775807", "bytes=18446744073709551615-0"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, s string, size int64) {
		off, n, ok := parseRange([]string{s}, size)
		if !ok {
			return
		}
		if off < 0 || n < 1 || off >= size || n > size-off {
			t.Fatalf("parseRange(%q, %d) = %d, %d", s, size, off, n)
		}
		first, last, _ := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
		if a, err := strconv.ParseInt(first, 10, 64); err != nil || a != off {
			t.Fatalf("parseRange(%q, %d) begins at %d", s, size, off)
		}
		if b, err := strconv.ParseInt(last, 10, 64); err != nil || b != off+n-1 {
			t.Fatalf("parseRange(%q, %d) ends at %d", s, size, off+n-1)
		}
	})
}

// Many askers at once, from several nodes, of a blob in chunk-sized leases.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newNode(t, change...).run(t)
			nodes := []*node{server, newNode(t, change...).run(t), newNode(t, change...).run(t)}
			fleet(nodes...)
			content, b := pulltest.Content(1, 20*proto.MinChunk)
			server.put(t, b, content)
			var askers sync.WaitGroup
			for _, n := range nodes[1:] {
				src := n.Source(server.ID(), server.Addr())
				for i := range b.Chunks() {
					askers.Go(func() {
						r := proto.Run{Blob: b, First: i, Count: 1}
						var got bytes.Buffer
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						if err := src.Fetch(ctx, r, &got); err != nil || !bytes.Equal(got.Bytes(), content[r.Offset():r.Offset()+r.Size()]) {
							t.Errorf("Fetch(%d) = %v, %d bytes", i, err, got.Len())
						}
					})
				}
			}
			askers.Wait()
		})
	}
}
