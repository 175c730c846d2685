package origin_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// Ranges that are fetched in parallel, again and again, need no more
// connections than there are at once.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	const parallel = 16
	var opened atomic.Int64
	r := registry.New(registry.Options{})
	s := httptest.NewUnstartedServer(r)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	t.Cleanup(r.Close)
	_, b := push(t, s.URL, 1, parallel*proto.MinChunk)
	c := newClient(t, at(s.URL))
	opened.Store(0)
	for range 4 {
		var wg sync.WaitGroup
		for i := range parallel {
			wg.Go(func() {
				if _, err := fetch(t, c, proto.Run{Blob: b, First: i, Count: 1}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if n := opened.Load(); n > parallel {
		t.Errorf("%d connections for %d fetches at once", n, parallel)
	}
}

// Nothing on the way may compress a blob, and nothing here may decompress it.
func TestContentIsNotTransformed(t *testing.T) {
	t.Parallel()
	content, b := pulltest.Content(2, 1000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if accept := req.Header.Get("Accept-Encoding"); accept != "identity" {
			t.Errorf("Accept-Encoding %q, want identity", accept)
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			_, _ = z.Write(content)
			return
		}
		// Some object storage labels gzip layers like this. The bytes are right.
		w.Header().Set("Content-Encoding", "gzip")
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(s.Close)
	c := newClient(t, at(s.URL))
	for _, manifest := range []bool{false, true} {
		var got bytes.Buffer
		src := c.Source(proto.Origin{Upstream: upstream, Repository: repository, Manifest: manifest})
		if err := src.Fetch(t.Context(), b.Run(), &got); err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
		ref := origin.Ref{Upstream: upstream, Repository: repository, Digest: b.Digest, Manifest: manifest}
		if d, err := c.Resolve(t.Context(), ref); err != nil || d.Blob != b {
			t.Errorf("%v, %v; want %v", d, err, b)
		}
	}
}

// Headers that never end are not kept in memory.
func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	_, b := pulltest.Content(3, 1000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 1<<20))
	}))
	t.Cleanup(s.Close)
	if _, err := fetch(t, newClient(t, at(s.URL)), b.Run()); err == nil || !strings.Contains(err.Error(), "exceeded 65536 bytes") {
		t.Errorf("%v, want a complaint about the headers", err)
	}
}

// Answers to a request for bytes 262144 to 524287 of 1 MiB.
func TestOddRanges(t *testing.T) {
	t.Parallel()
	content, b := pulltest.Content(4, 4*proto.MinChunk)
	const first, last = proto.MinChunk, 2*proto.MinChunk - 1
	partial := func(contentRange string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
		}
	}
	chunk := content[first : last+1]
	for _, tc := range []struct {
		name  string
		serve http.HandlerFunc
		ok    bool
	}{
		{"right", partial("bytes 262144-524287/1048576", chunk), true},
		{"unknown total", partial("bytes 262144-524287/*", chunk), true},
		{"another total", partial("bytes 262144-524287/1048577", chunk), false},
		{"bytes before", partial("bytes 262143-524287/1048576", content[first-1:last+1]), false},
		{"bytes after", partial("bytes 262144-524288/1048576", content[first:last+2]), false},
		{"other bytes", partial("bytes 0-262143/1048576", content[:first]), false},
		{"no Content-Range", partial("", chunk), false},
		{"half at a time", func(w http.ResponseWriter, req *http.Request) {
			var from, to int
			_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to)
			to = min(to, from+100_000-1)
			partial(fmt.Sprintf("bytes %d-%d/%d", from, to, len(content)), content[from:to+1])(w, req)
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(tc.serve)
			t.Cleanup(s.Close)
			got, err := fetch(t, newClient(t, at(s.URL)), proto.Run{Blob: b, First: 1, Count: 1})
			if tc.ok {
				if err != nil || !bytes.Equal(got, chunk) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if !errors.Is(err, origin.ErrProtocol) || len(got) != 0 {
				t.Errorf("%d bytes, %v; want none and ErrProtocol", len(got), err)
			}
		})
	}
	t.Run("for the whole", func(t *testing.T) {
		t.Parallel()
		s := httptest.NewServer(partial("bytes 0-1048575/1048576", content))
		t.Cleanup(s.Close)
		if got, err := fetch(t, newClient(t, at(s.URL)), b.Run()); !errors.Is(err, origin.ErrProtocol) || len(got) != 0 {
			t.Errorf("%d bytes, %v; want none and ErrProtocol", len(got), err)
		}
	})
}
