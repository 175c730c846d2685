package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/door"
	"github.com/shoal-project/shoal/proto"
)

// Sendings count what the connections of a listener are given: bytes that the
// program has copied, and bytes of files that the kernel has sent.
type sendings struct {
	net.Listener
	copied, fromFiles atomic.Int64
}

func (s *sendings) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &sender{tcp, s}, nil
	}
	return c, nil
}

type sender struct {
	*net.TCPConn
	all *sendings
}

func (s *sender) Write(p []byte) (int, error) {
	s.all.copied.Add(int64(len(p)))
	return s.TCPConn.Write(p)
}

// ReadFrom believes only what net would send with sendfile.
func (s *sender) ReadFrom(src io.Reader) (int64, error) {
	to := &s.all.copied
	if limited, ok := src.(*io.LimitedReader); ok {
		if _, ok := limited.R.(*os.File); ok {
			to = &s.all.fromFiles
		}
	}
	n, err := s.TCPConn.ReadFrom(src)
	to.Add(n)
	return n, err
}

// A shore is a mirror with one blob that arrives when the test says so.
type shore struct {
	*bed
	blob    proto.Blob
	content []byte
	kept    *cache.Blob
	sent    *sendings
	client  *http.Client
	url     string
}

// newShore has a mirror that is reached by a transport: tcp, tls, h2 or unix.
func newShore(t *testing.T, transport string, size int64) *shore {
	t.Helper()
	b := newBed(t, options{firstByte: 10 * time.Millisecond})
	layer := b.push(t, "team/app", "1", size).Layers[0]
	s := &shore{bed: b, blob: layer, content: b.content(t, "team/app", layer.Digest)}
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			<-r.Context().Done()
		}
		return false
	})
	var err error
	if s.kept, err = b.cache.Blob(layer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kept.Release)

	srv := httptest.NewUnstartedServer(b.handler)
	if transport == "unix" {
		srv.Listener.Close()
		if srv.Listener, err = net.Listen("unix", filepath.Join(t.TempDir(), "s")); err != nil {
			t.Fatal(err)
		}
	}
	s.sent = &sendings{Listener: srv.Listener}
	srv.Listener, srv.EnableHTTP2 = s.sent, transport == "h2"
	switch transport {
	case "tls", "h2":
		srv.StartTLS()
	default:
		srv.Start()
	}
	t.Cleanup(srv.Close)
	s.url, s.client = srv.URL+blobPath("team/app", layer.Digest), srv.Client()
	if transport == "unix" {
		at := srv.Listener.Addr().String()
		s.url = "http://mirror" + blobPath("team/app", layer.Digest)
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", at) }}
		t.Cleanup(tr.CloseIdleConnections)
		s.client = &http.Client{Transport: tr}
	}
	return s
}

// ask sends a request and returns with the headers.
func (s *shore) ask(t *testing.T, rng string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rng != "" {
		req.Header.Set("Range", "bytes="+rng)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// put has chunks arrive.
func (s *shore) put(t *testing.T, chunks ...int) {
	t.Helper()
	for _, i := range chunks {
		c := s.blob.Chunk(i)
		if err := s.kept.Put(i, s.content[c.Offset:c.Offset+c.Size]); err != nil {
			t.Fatal(err)
		}
	}
}

// read reads what the body should have next, and no more.
func (s *shore) read(t *testing.T, body io.Reader, from, to int64) {
	t.Helper()
	got := make([]byte, to-from)
	if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, s.content[from:to]) {
		t.Fatalf("bytes %d to %d: %v", from, to, err)
	}
}

// A client gets each chunk when it is there, and not when the next one is, over
// all transports, whatever it has asked for. On a bare TCP connection all of it
// but what was read before the headers goes from the file to the socket.
func TestArrivingChunkByChunk(t *testing.T) {
	t.Parallel()
	const size = 3*mib + 12345
	for _, transport := range []string{"tcp", "tls", "h2", "unix"} {
		for _, test := range []struct {
			rng      string
			from, to int64
		}{
			{"", 0, size},
			{"100000-", 100000, size},
			{"262100-2000000", 262100, 2000001}, // 44 bytes of its first chunk
			{"-2500000", size - 2500000, size},
		} {
			t.Run(transport+" "+test.rng, func(t *testing.T) {
				t.Parallel()
				s := newShore(t, transport, size)
				resp := s.ask(t, test.rng)
				if resp.ContentLength != test.to-test.from || (resp.ProtoMajor == 2) != (transport == "h2") || (resp.TLS != nil) != (transport == "tls" || transport == "h2") {
					t.Fatalf("%s, %d bytes", resp.Proto, resp.ContentLength)
				}
				at := test.from
				for i := range s.blob.Chunks() {
					s.put(t, i)
					if c := s.blob.Chunk(i); c.Offset+c.Size > at && at < test.to {
						upto := min(c.Offset+c.Size, test.to)
						s.read(t, resp.Body, at, upto)
						at = upto
					}
				}
				if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("and then %d bytes, %v", n, err)
				}
				if transport != "tcp" {
					return
				}
				if files, copied := s.sent.fromFiles.Load(), s.sent.copied.Load(); files < test.to-test.from-aheadSize || copied > aheadSize+4096 {
					t.Errorf("of %d bytes the kernel has sent %d from the file, %d were copied", test.to-test.from, files, copied)
				}
			})
		}
	}
}

// The last chunk counts as awaited by who is sent the file, and is sent at once
// when it has come and the whole is right.
func TestArrivingChunkIsAwaited(t *testing.T) {
	t.Parallel()
	s := newShore(t, "tcp", 2*mib)
	resp := s.ask(t, "")
	s.put(t, 0, 1)
	s.read(t, resp.Body, 0, s.blob.Chunk(2).Offset)
	last := s.blob.Chunks() - 1
	for i := 2; i <= last; i++ {
		for !s.kept.Awaited().Has(i) {
			if err := t.Context().Err(); err != nil {
				t.Fatal(err)
			}
		}
		s.put(t, i)
	}
	s.read(t, resp.Body, s.blob.Chunk(2).Offset, s.blob.Size)
}

// A blob that is found wrong while it is sent: the answer is cut before its last
// chunk, though that was in the file for long, and nothing of the next try is
// added. Who asks anew gets the next try.
func TestArrivingAndWrong(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"tcp", "tls"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := newShore(t, transport, 16*mib)
			last := s.blob.Chunks() - 1
			begin := s.blob.Chunk(last).Offset
			for i := range s.blob.Chunks() {
				if i != 1 {
					s.put(t, i)
				}
			}
			resp := s.ask(t, fmt.Sprintf("%d-", begin-100000))
			s.read(t, resp.Body, begin-100000, begin)
			early := s.ask(t, "") // has chunk 0 only
			s.read(t, early.Body, 0, s.blob.Chunk(1).Offset)
			if err := s.kept.Put(1, make([]byte, s.blob.ChunkSize())); !errors.Is(err, cache.ErrDigest) {
				t.Fatalf("put of a wrong chunk: %v", err)
			}
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d bytes of the last chunk, %v", len(rest), err)
			}
			again := s.ask(t, "")
			for i := range s.blob.Chunks() {
				s.put(t, i)
			}
			s.read(t, again.Body, 0, s.blob.Size)
			rest, err := io.ReadAll(early.Body)
			if int64(len(rest)) > begin-s.blob.ChunkSize() || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("of the first try: %d bytes more, %v", len(rest), err)
			}
		})
	}
}

// A file that somebody has cut: the answer ends where it does, and does not hang.
func TestArrivingFileIsCut(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"tcp", "tls"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := newShore(t, transport, 2*mib)
			size := s.blob.ChunkSize()
			resp := s.ask(t, fmt.Sprintf("%d-", size)) // chunk 0 never comes, so nobody reads the file for the digest
			s.put(t, 1)
			s.read(t, resp.Body, size, 2*size)
			s.put(t, 3)
			f, err := s.kept.File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := os.Truncate(f.Name(), 3*size+1000); err != nil {
				t.Fatal(err)
			}
			s.put(t, 2)
			s.read(t, resp.Body, 2*size, 3*size+1000)
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("then %d bytes, %v", len(rest), err)
			}
			s.close()
			if log := s.log.String(); !strings.Contains(log, `msg="response cut short"`) || !strings.Contains(log, "unexpected EOF") && !strings.Contains(log, "bytes sent") {
				t.Errorf("the log:\n%s", log)
			}
		})
	}
}

// A blob that is deleted while it is sent goes on, copied: its file has no name
// any more that could be opened.
func TestArrivingAndDeleted(t *testing.T) {
	t.Parallel()
	s := newShore(t, "tcp", 2*mib)
	for i := range s.blob.Chunks() - 1 {
		s.put(t, i)
	}
	f, err := s.kept.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	begin := s.blob.Chunk(s.blob.Chunks() - 1).Offset
	resp := s.ask(t, fmt.Sprintf("0-%d", begin-1))
	s.read(t, resp.Body, 0, begin)
	if copied := s.sent.copied.Load(); copied < begin {
		t.Errorf("%d bytes were copied", copied)
	}
}

// Who asks for what is here does not wait for what is not: the connection is free
// for the next request.
func TestArrivingRangeEnds(t *testing.T) {
	t.Parallel()
	s := newShore(t, "tcp", 2*mib)
	s.client.Transport.(*http.Transport).MaxConnsPerHost = 1
	s.put(t, 0, 1)
	end := s.blob.Chunk(2).Offset
	for range 2 {
		resp := s.ask(t, fmt.Sprintf("0-%d", end-1))
		s.read(t, resp.Body, 0, end)
		if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("and then %d bytes, %v", n, err)
		}
	}
}

// A client that stops reading what is still arriving is let go.
func TestArrivingToAStoppedReader(t *testing.T) {
	t.Parallel()
	const size = 64 * mib
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	blob, err := c.Blob(proto.Blob{Digest: proto.DigestOf([]byte("other")), Size: size})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Release()
	chunk := make([]byte, blob.Blob().ChunkSize())
	for i := range blob.Blob().Chunks() - 1 {
		if err := blob.Put(i, chunk); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan *response, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reader := blob.NewReader(r.Context())
		defer reader.Close()
		out := &response{ResponseWriter: w, patience: 300 * time.Millisecond, live: true}
		w.Header().Set("Content-Type", octets)
		_ = out.serve(r, &stream{size: size, content: reader, cancel: func() {}}) // what it did is in out
		ended <- out
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	select {
	case out := <-ended:
		if out.bytes == 0 || out.bytes == size || !out.lost || !out.bare {
			t.Errorf("%d bytes were sent, by the kernel: %t, the client counts as gone: %t", out.bytes, out.bare, out.lost)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("still sending")
	}
}

// BenchmarkArriving is a client that reads a blob all of which is here but the
// last chunk, through a door. What that costs in CPU is without the client's
// thread.
func BenchmarkArriving(b *testing.B) {
	const size = 256 * mib
	m := newBed(b, options{})
	blob, part := arrived(b, m, size)
	d, err := door.Listen(door.Config{Name: "mirror", Addr: "127.0.0.1:0", Server: m.handler.Server()})
	if err != nil {
		b.Fatal(err)
	}
	serving := make(chan error, 1)
	go func() { serving <- d.Serve() }()
	defer func() {
		_ = d.Close()
		<-serving
	}()
	conn, err := net.Dial("tcp", d.Addr())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	in, buf := bufio.NewReaderSize(conn, mib), make([]byte, mib)
	b.SetBytes(part)
	b.ReportAllocs()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was := serverTime()
	for b.Loop() {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: mirror\r\nRange: bytes=0-%d\r\n\r\n", blobPath("team/app", blob), part-1)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); n != part || err != nil {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric((serverTime()-was).Seconds()/float64(b.N)/float64(part)*(1<<30), "CPU-s/GiB")
}

// serverTime is what the process has had of the CPUs but for the calling thread.
func serverTime() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var all, own syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &all) // there is no error to be had
	_ = syscall.Getrusage(thread, &own)
	return time.Duration(all.Utime.Nano() + all.Stime.Nano() - own.Utime.Nano() - own.Stime.Nano())
}

// arrived has all of a blob but its last chunk in the cache of m, and returns how
// much that is.
func arrived(b *testing.B, m *bed, size int64) (proto.Digest, int64) {
	layer := m.push(b, "team/app", "1", size).Layers[0]
	content := m.content(b, "team/app", layer.Digest)
	m.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			<-r.Context().Done()
		}
		return false
	})
	blob, err := m.cache.Blob(layer)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(blob.Release)
	last := layer.Chunk(layer.Chunks() - 1)
	for i := range last.Index {
		c := layer.Chunk(i)
		if err := blob.Put(i, content[c.Offset:c.Offset+c.Size]); err != nil {
			b.Fatal(err)
		}
	}
	return layer.Digest, last.Offset
}
