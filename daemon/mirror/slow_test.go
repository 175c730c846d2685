package mirror

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// sparse is a file of so many bytes that takes no room.
func sparse(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// over calls run with a server of each protocol for a handler.
func over(t *testing.T, h func(w http.ResponseWriter, r *http.Request), run func(t *testing.T, srv *httptest.Server)) {
	t.Helper()
	for _, proto := range []string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(http.HandlerFunc(h))
			srv.EnableHTTP2 = proto == "HTTP/2.0"
			if proto == "HTTP/1.1" {
				srv.Start()
			} else {
				srv.StartTLS()
			}
			defer srv.Close()
			run(t, srv)
		})
	}
}

// A client that stops reading is let go, over all protocols: also where it stops
// one stream and not the connection.
func TestStoppedReaderIsLetGo(t *testing.T) {
	t.Parallel()
	const size = 1 << 30
	f := sparse(t, size)
	ended := make(chan *response, 1)
	over(t, func(w http.ResponseWriter, r *http.Request) {
		out := &response{ResponseWriter: w, patience: 300 * time.Millisecond}
		w.Header().Set("Content-Type", octets)
		_ = out.serve(r, file{f, size}) // what it did is in out
		ended <- out
	}, func(t *testing.T, srv *httptest.Server) {
		resp, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		select {
		case out := <-ended:
			if out.bytes == 0 || out.bytes == size || out.short() {
				t.Errorf("%d bytes were sent, and the source is blamed: %t", out.bytes, out.short())
			}
			if resp.ProtoMajor == 1 && !out.lost {
				t.Error("the client does not count as gone")
			}
		case <-time.After(30 * time.Second):
			t.Fatal("still sending")
		}
	})
}

// A slow source: each piece comes later than a client may take.
type slow struct {
	io.ReadSeeker
	every time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(s.every)
	return s.ReadSeeker.Read(p[:min(len(p), 1000)])
}

// The time that content takes to arrive is not the client's.
func TestSlowSourceIsNotTheClientsFault(t *testing.T) {
	t.Parallel()
	over(t, func(w http.ResponseWriter, r *http.Request) {
		out := &response{ResponseWriter: w, patience: 100 * time.Millisecond, live: true}
		w.Header().Set("Content-Type", octets)
		_ = out.serve(r, slow{bytes.NewReader(make([]byte, 3000)), 250 * time.Millisecond}) // the client tells
	}, func(t *testing.T, srv *httptest.Server) {
		for range 2 { // the second on the same connection
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if n != 3000 || err != nil {
				t.Errorf("%d bytes and %v", n, err)
			}
		}
	})
}

// A deadline of one answer does not end the next one on its connection.
func TestDeadlineEndsWithItsAnswer(t *testing.T) {
	t.Parallel()
	over(t, func(w http.ResponseWriter, r *http.Request) {
		out := &response{ResponseWriter: w, patience: 100 * time.Millisecond}
		if r.URL.Path == "/late" {
			time.Sleep(250 * time.Millisecond)
		}
		_ = out.serve(r, bytes.NewReader([]byte("content"))) // the client tells
	}, func(t *testing.T, srv *httptest.Server) {
		for _, path := range []string{"/", "/late"} {
			resp, err := srv.Client().Get(srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(data) != "content" || err != nil {
				t.Errorf("%q and %v", data, err)
			}
		}
	})
}

// A seen file counts how often the program reads it. The kernel does not
// count.
type seen struct {
	*os.File
	reads *atomic.Int64
}

func (f seen) Read(p []byte) (int, error) {
	f.reads.Add(1)
	return f.File.Read(p)
}

// A whole blob goes from its file to the socket without the program reading it.
// The deadlines cut it in pieces and no more.
func TestSendfileSurvives(t *testing.T) {
	t.Parallel()
	const size = 64<<20 + 777
	f := sparse(t, size)
	var reads atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &response{ResponseWriter: w}
		w.Header().Set("Content-Type", octets)
		_ = out.serve(r, seen{f, &reads}) // the client tells
	}))
	defer srv.Close()
	for rng, want := range map[string]int64{"": size, "bytes=3000000-": size - 3000000, "bytes=5-2000004": 2000000} {
		req, err := http.NewRequest("GET", srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", rng)
		reads.Store(0)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != want || err != nil {
			t.Errorf("Range %q: %d bytes and %v, want %d", rng, n, err, want)
		}
		if got := reads.Load(); got > 4 {
			t.Errorf("Range %q: the program read the file %d times", rng, got)
		}
	}
}
