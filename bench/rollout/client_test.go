package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/proto"
)

// testImage returns an image and an origin that has it.
func testImage(t *testing.T, size int64, layers int) (*image, http.Handler) {
	t.Helper()
	img, err := newImage(size, layers, 7)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := img.close(); err != nil {
			t.Error(err)
		}
		unmapped(t, dir)
	})
	if err := img.write(dir); err != nil {
		t.Fatal(err)
	}
	return img, fileOrigin(img)
}

// unmapped checks that this process has mapped no file below dir.
func unmapped(t *testing.T, dir string) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err == nil && strings.Contains(string(maps), dir+"/") {
		t.Errorf("a file below %s is still mapped", dir)
	}
}

// testClient returns a client of what h serves.
func testClient(t *testing.T, img *image, h http.Handler) *client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	tr := newTransport(new(net.Dialer).DialContext)
	t.Cleanup(tr.CloseIdleConnections)
	c := &client{
		base: srv.URL, http: &http.Client{Transport: tr}, img: img,
		track: newTrack(time.Now(), len(img.layers)), broken: func() error { return nil }, patience: patience,
	}
	c.track.arrive()
	return c
}

func TestImage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		size   int64
		layers int
	}{{1, 1}, {1000, 3}, {127, 127}, {1<<20 + 1, 4}} {
		img, err := newImage(tc.size, tc.layers, 1)
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, l := range img.layers {
			sum += l.Size
			if l.Size < 1 {
				t.Errorf("%+v: a layer of %d bytes", tc, l.Size)
			}
		}
		if sum != tc.size || len(img.layers) != tc.layers {
			t.Errorf("%+v: %d bytes in %d layers", tc, sum, len(img.layers))
		}
		again, err := newImage(tc.size, tc.layers, 1)
		if err != nil || string(again.manifest) != string(img.manifest) {
			t.Errorf("%+v: the same seed makes another image (%v)", tc, err)
		}
		other, err := newImage(tc.size, tc.layers, 2)
		if err != nil || string(other.manifest) == string(img.manifest) {
			t.Errorf("%+v: another seed makes the same image (%v)", tc, err)
		}
	}
}

// TestPushed: what clients compare with is what was made, also of layers that are
// the same.
func TestPushed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		size   int64
		layers int
	}{{1, 1}, {127, 127}, {3<<20 + 1, 3}} {
		img, _ := testImage(t, tc.size, tc.layers)
		for i, l := range img.layers {
			want, err := io.ReadAll(img.content(i, l.Size))
			if err != nil || !bytes.Equal(img.pushed[l.Digest], want) {
				t.Errorf("%+v: layer %d is something else (%v)", tc, i+1, err)
			}
		}
		if !bytes.Equal(img.pushed[proto.DigestOf(config)], config) {
			t.Errorf("%+v: the config is something else", tc)
		}
	}
}

// TestComparison: every byte counts, in whatever pieces they come.
func TestComparison(t *testing.T) {
	t.Parallel()
	want := []byte("every byte of what was pushed")
	try := func(got []byte, piece int) error {
		c := &comparison{want: want}
		for p := range slices.Chunk(got, piece) {
			if _, err := c.Write(p); err != nil {
				return err
			}
		}
		return nil
	}
	for piece := 1; piece <= len(want)+1; piece++ {
		if err := try(want, piece); err != nil {
			t.Errorf("in pieces of %d: %v", piece, err)
		}
		if err := try(append(slices.Clone(want), 'x'), piece); !errors.Is(err, errBytes) {
			t.Errorf("a byte more, in pieces of %d: %v", piece, err)
		}
		for i := range want {
			wrong := slices.Clone(want)
			wrong[i] ^= 1
			if err := try(wrong, piece); !errors.Is(err, errBytes) {
				t.Errorf("byte %d is wrong, in pieces of %d: %v", i, piece, err)
			}
		}
	}
}

func TestClientPulls(t *testing.T) {
	t.Parallel()
	img, h := testImage(t, 1<<20, 5)
	c := testClient(t, img, h)
	if err := c.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	var n report.Node
	c.track.end(&n, nil)
	if got := n.Progress[len(n.Progress)-1].Bytes; got != 1<<20 {
		t.Errorf("%d bytes are told of", got)
	}
	if n.Done <= 0 || n.Resumed != 0 || n.Error != "" || slices.Contains(n.Layers, 0) || slices.Max(n.Layers) > n.Done {
		t.Errorf("%+v", n)
	}
}

// TestCopyAsItComes: what comes is told of at once, since silence is measured.
func TestCopyAsItComes(t *testing.T) {
	t.Parallel()
	const n = 5
	r, w := io.Pipe()
	came, copied := make(chan int, n), make(chan error, 1)
	go func() {
		_, err := copyCounted(io.Discard, r, n, func(k int) { came <- k })
		copied <- err
	}()
	for range n {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		select {
		case k := <-came:
			if k != 1 {
				t.Errorf("told of %d bytes", k)
			}
		case <-time.After(20 * time.Second):
			t.Error("it waits for more")
			_ = w.CloseWithError(io.ErrUnexpectedEOF)
			<-copied
			return
		}
	}
	if err := errors.Join(w.Close(), <-copied); err != nil {
		t.Error(err)
	}
}

// TestClientGoesOn: a connection that breaks costs no byte twice.
func TestClientGoesOn(t *testing.T) {
	t.Parallel()
	img, h := testImage(t, 1<<20, 1)
	var sent, requests atomic.Int64
	c := testClient(t, img, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, img.layers[0].Digest.String()) {
			h.ServeHTTP(w, r)
			return
		}
		requests.Add(1)
		h.ServeHTTP(&breaking{ResponseWriter: w, left: 400 << 10, sent: &sent}, r)
	}))
	if err := c.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if requests.Load() != 3 || sent.Load() != 1<<20 || c.track.retries != 2 {
		t.Errorf("%d bytes in %d requests, %d of them again", sent.Load(), requests.Load(), c.track.retries)
	}
}

// breaking ends a connection after so many bytes.
type breaking struct {
	http.ResponseWriter
	left int64
	sent *atomic.Int64
}

func (b *breaking) Write(p []byte) (int, error) {
	p = p[:min(int64(len(p)), b.left)]
	b.sent.Add(int64(len(p))) // before the client can have the last of them
	n, err := b.ResponseWriter.Write(p)
	b.left -= int64(n)
	if b.left == 0 {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestClientRefuses(t *testing.T) {
	t.Parallel()
	img, h := testImage(t, 64<<10, 1)
	layer := "/" + img.layers[0].Digest.String()
	gone := errors.New("the node is gone")
	for _, tc := range []struct {
		name, want string
		broken     error
		answer     http.HandlerFunc // of layers, or of the manifest
		manifest   bool
	}{
		{name: "wrong bytes", want: "layer 1: the bytes are wrong", answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, 64<<10))
		}},
		{name: "a wrong byte", want: "layer 1: the bytes are wrong", answer: func(w http.ResponseWriter, _ *http.Request) {
			got := bytes.Clone(img.pushed[img.layers[0].Digest])
			got[len(got)-1] ^= 1
			_, _ = w.Write(got)
		}},
		{name: "too many", want: "65537 bytes are announced, 65536 are missing", broken: nil, answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "65537")
			_, _ = w.Write(make([]byte, 64<<10+1))
		}},
		{name: "another manifest", want: "not the one that was pushed", manifest: true, answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(strings.Replace(string(img.manifest), "2", "3", 1)))
		}},
		{name: "gone", want: gone.Error(), broken: gone, answer: func(w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}},
		{name: "an error", want: "404 Not Found: no such thing", broken: nil, answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no such thing", http.StatusNotFound)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			c := testClient(t, img, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, layer) || tc.manifest && strings.Contains(r.URL.Path, "/manifests/") {
					tc.answer(w, r)
					return
				}
				h.ServeHTTP(w, r)
			}))
			c.broken = func() error { return tc.broken }
			c.patience = time.Nanosecond
			if err := c.pull(ctx); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// TestClientIsInterrupted: the cause is what a person sees.
func TestClientIsInterrupted(t *testing.T) {
	t.Parallel()
	img, h := testImage(t, 64<<10, 1)
	asked, release := make(chan struct{}), make(chan struct{})
	c := testClient(t, img, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			h.ServeHTTP(w, r)
			return
		}
		select {
		case asked <- struct{}{}:
		case <-release:
		}
		<-release
	}))
	defer close(release)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go func() { <-asked; cancel(why) }()
	if err := c.pull(ctx); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// TestTrack: silence is the longest time without a byte, from the arrival on.
func TestTrack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := newTrack(time.Now(), 2)
		var n report.Node
		step := func(d time.Duration, bytes int) {
			time.Sleep(d)
			tr.got(bytes)
			tr.sample()
		}
		time.Sleep(time.Second)
		tr.arrive()
		step(300*time.Millisecond, 10)
		tr.layer(0)
		step(100*time.Millisecond, 20)
		tr.sample() // nothing new: no point
		step(400*time.Millisecond, 5)
		tr.layer(1)
		time.Sleep(200 * time.Millisecond)
		tr.end(&n, nil)
		want := report.Node{
			Arrived: 1, Done: 2, Silence: 0.4, Layers: []float64{1.3, 1.8},
			Progress: []report.Point{{At: 1}, {At: 1.3, Bytes: 10}, {At: 1.4, Bytes: 30}, {At: 1.8, Bytes: 35}},
		}
		if fmt.Sprint(n) != fmt.Sprint(want) {
			t.Errorf("got\n%+v\nwant\n%+v", n, want)
		}
	})
}

// TestTrackOfFailure: a client that failed is not done.
func TestTrackOfFailure(t *testing.T) {
	t.Parallel()
	tr := newTrack(time.Now(), 1)
	tr.arrive()
	var n report.Node
	tr.end(&n, errors.New("no"))
	if n.Done != 0 || n.Error != "no" {
		t.Errorf("%+v", n)
	}
}

// TestOriginCounts: what counts is what leaves of layers, whoever asks for
// whatever part of them.
func TestOriginCounts(t *testing.T) {
	t.Parallel()
	img, h := testImage(t, 1<<20, 2)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serve(ln, h, img, nil, Options{}.filled().Log)
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	tr := newTransport(new(net.Dialer).DialContext)
	defer tr.CloseIdleConnections()
	get := func(what, part string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/v2/"+repository+what, nil)
		if err != nil {
			t.Fatal(err)
		}
		if part != "" {
			req.Header.Set("Range", part)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := copyCounted(io.Discard, resp.Body, resp.ContentLength, func(int) {}); err != nil || resp.StatusCode > 299 {
			t.Fatal(resp.Status, err)
		}
	}
	get("/manifests/"+tag, "")
	get("/blobs/"+proto.DigestOf(config).String(), "")
	if n := s.sent.Load(); n != 0 {
		t.Errorf("%d bytes before any of a layer", n)
	}
	get("/blobs/"+img.layers[0].Digest.String(), "")
	get("/blobs/"+img.layers[1].Digest.String(), "bytes=100-1099")
	if n := s.sent.Load(); n != 512<<10+1000 {
		t.Errorf("%d bytes", n)
	}
}
