package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

func TestReaderSeek(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, chunk+10)
	store(t, c, blob, data)
	b := get(t, c, blob)
	r := b.NewReader(context.Background())
	defer r.Close()
	if err := iotest.TestReader(r, data); err != nil {
		t.Error(err)
	}
	if _, err := r.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		offset int64
		whence int
		want   int64
	}{
		{-50, io.SeekCurrent, 50},
		{0, io.SeekEnd, blob.Size},
		{-1, io.SeekEnd, blob.Size - 1},
		{5, io.SeekEnd, blob.Size + 5},
		{-blob.Size - 6, io.SeekCurrent, -1},
		{chunk - 1, io.SeekStart, chunk - 1},
		{0, 3, -1},
		{0, io.SeekCurrent, chunk - 1},
	}
	for _, tt := range tests {
		got, err := r.Seek(tt.offset, tt.whence)
		if (err != nil) != (tt.want < 0) || err == nil && got != tt.want {
			t.Errorf("Seek(%d, %d) = %d, %v", tt.offset, tt.whence, got, err)
		}
		if tt.want < 0 {
			continue
		}
		p := make([]byte, 1)
		n, err := r.Read(p)
		switch {
		case got >= blob.Size && err != io.EOF:
			t.Errorf("Read at %d: %d, %v", got, n, err)
		case got < blob.Size && (n != 1 || p[0] != data[got]):
			t.Errorf("Read at %d: %d, %v, %x", got, n, err, p)
		}
		if _, err := r.Seek(-int64(n), io.SeekCurrent); err != nil {
			t.Error(err)
		}
	}
	if r.Size() != blob.Size {
		t.Errorf("Size = %d", r.Size())
	}
}

// The last chunk is kept from clients until the whole is known to be right,
// and so is all of a blob of one chunk, of course.
func TestLastChunkWithheld(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk+10)
	b := get(t, c, blob)
	put(t, b, data, 0, 2, 3)
	r := b.NewReader(context.Background())
	defer r.Close()
	if _, err := r.Seek(2*chunk, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*chunk)
	n, err := r.Read(buf)
	if n != chunk || err != nil || !bytes.Equal(buf[:n], data[2*chunk:3*chunk]) {
		t.Errorf("Read = %d, %v", n, err)
	}
	stopped := errors.New("stopped")
	errs := make(chan error)
	go func() {
		_, err := r.Read(buf)
		errs <- err
	}()
	waitForWaiter(b, blob.Chunks())
	b.Fail(stopped)
	if err := <-errs; !errors.Is(err, stopped) {
		t.Errorf("Read of the last chunk: %v", err)
	}
	if err := b.Wait(context.Background(), 3); err != nil {
		t.Errorf("a peer waits for it: %v", err)
	}
	f, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.ReadAt(buf[:10], 3*chunk); err != nil || !bytes.Equal(buf[:n], data[3*chunk:]) {
		t.Errorf("a peer is served it: %d, %v", n, err)
	}
	put(t, b, data, 1)
	if n, err := r.Read(buf); n != 10 || err != nil {
		t.Errorf("Read once it is whole: %d, %v", n, err)
	}
}

// A reader goes on over the moment in which the blob becomes whole and its
// file gets another name.
func TestReadOverCompletion(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 6*chunk)
	b, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	r := b.NewReader(context.Background())
	defer r.Close()
	put(t, b, data, 0, 1)
	got := make([]byte, chunk/2)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	if r.Content() != io.ReadSeeker(r) {
		t.Error("content of a partial blob is not the reader")
	}
	put(t, b, data, 5, 4, 3, 2)
	b.Release() // the reader has a reference of its own
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), data) {
		t.Errorf("%d bytes more, %v", len(rest), err)
	}
	if _, err := r.Seek(-7, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	f, ok := r.Content().(*os.File)
	if !ok {
		t.Fatal("content of a whole blob is not its file")
	}
	if tail, err := io.ReadAll(f); err != nil || !bytes.Equal(tail, data[len(data)-7:]) {
		t.Errorf("content is not where the reader was: %d bytes, %v", len(tail), err)
	}
	if r.Content() != io.ReadSeeker(f) {
		t.Error("content is another one the second time")
	}
	r.Close()
	if _, err := f.Stat(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("the file of a closed reader: %v", err)
	}
}

func TestReaderEnds(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	b := get(t, c, blob)
	put(t, b, data, 0)
	errs := make(chan error)
	read := func(r *Reader, off int64) {
		if _, err := r.Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := r.Read(make([]byte, 1))
			errs <- err
		}()
		waitFor(t, b, int(off/chunk))
	}

	r := b.NewReader(context.Background())
	read(r, chunk)
	r.Close()
	if err := <-errs; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read ended by Close: %v", err)
	}
	if _, err := r.Read(nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := r.Seek(0, io.SeekStart); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Seek after Close: %v", err)
	}
	if r.Content() != io.ReadSeeker(r) {
		t.Error("Content after Close opened a file")
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	r = b.NewReader(ctx)
	defer r.Close()
	read(r, 2*chunk)
	left := errors.New("the client left")
	cancel(left)
	if err := <-errs; !errors.Is(err, left) {
		t.Errorf("Read ended by ctx: %v", err)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 10)); n != 10 || err != nil {
		t.Errorf("Read of what is here, after ctx ended: %d, %v", n, err)
	}
	waitFor(t, b)
}

func TestFileCutBehindItsBack(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	b := get(t, c, blob)
	if err := os.Truncate(c.layout.blob(blob.Digest), chunk); err != nil {
		t.Fatal(err)
	}
	r := b.NewReader(context.Background())
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that was cut ends with %v", err)
	}
}

// spy is a listener that sees what its connections are given to read from.
type spy struct {
	net.Listener
	from chan io.Reader
}

func (s spy) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return spied{c.(*net.TCPConn), s.from}, nil
}

type spied struct {
	*net.TCPConn
	from chan io.Reader
}

func (s spied) ReadFrom(r io.Reader) (int64, error) {
	s.from <- r
	return s.TCPConn.ReadFrom(r)
}

// http.ServeContent hands the file of a whole blob down to the TCP connection,
// whose ReadFrom makes a sendfile of *os.File, also inside a LimitedReader.
func TestSendfile(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	from := make(chan io.Reader, 10)
	srv := serve(t, spy{l, from}, c)
	for _, tt := range []struct {
		ranged string
		want   []byte
	}{
		{"", data},
		{"bytes=1000-", data[1000:]},
		{"bytes=-7777", data[len(data)-7777:]}, // shorter ones go through a buffer
	} {
		got := fetch(t, srv, blob.Digest.String(), tt.ranged)
		if !bytes.Equal(got, tt.want) {
			t.Errorf("%q: %d bytes are not those", tt.ranged, len(got))
		}
		var r io.Reader
		select {
		case r = <-from:
		default:
		}
		if lim, ok := r.(*io.LimitedReader); ok {
			r = lim.R
		}
		if _, ok := r.(*os.File); !ok {
			t.Errorf("%q: the connection reads from a %T, so there is no sendfile", tt.ranged, r)
		}
	}
}

// A range of an arriving blob is answered as soon as its own chunks are in.
func TestServeArriving(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir())
	blob, data := content(1, 6*chunk)
	b := get(t, c, blob)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := serve(t, l, c)
	got := make(chan []byte)
	go func() { got <- fetch(t, srv, blob.Digest.String(), fmt.Sprintf("bytes=%d-%d", 2*chunk, 4*chunk-1)) }()
	waitFor(t, b, 2)
	put(t, b, data, 3, 2)
	if !bytes.Equal(<-got, data[2*chunk:4*chunk]) {
		t.Error("the range has other bytes")
	}
	go func() { got <- fetch(t, srv, blob.Digest.String(), "") }()
	waitFor(t, b, 0)
	put(t, b, data, 5, 4, 1, 0)
	if !bytes.Equal(<-got, data) {
		t.Error("the whole has other bytes")
	}
}

// serve serves the blobs of c by their digests, until the test ends.
func serve(t *testing.T, l net.Listener, c *Cache) (url string) {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		d, err := proto.ParseDigest(req.URL.Path[1:])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		b, ok := c.Known(d)
		if !ok {
			http.NotFound(w, req)
			return
		}
		r := b.NewReader(req.Context())
		b.Release()
		defer r.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, req, "", time.Time{}, r.Content())
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func fetch(t *testing.T, url, digest, ranged string) []byte {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/"+digest, nil)
	if err != nil {
		t.Error(err)
		return nil
	}
	if ranged != "" {
		req.Header.Set("Range", ranged)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return data
}

// TestFailReachesReadersThatDoNotWaitYet: between the opening of a reader and
// its first wait, whoever fills the blob may give up.
func TestFailReachesReadersThatDoNotWaitYet(t *testing.T) {
	c, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Blob(proto.Blob{Digest: proto.DigestOf([]byte("x")), Size: 2 * proto.MinChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	before := b.NewReader(t.Context())
	defer before.Close()
	gone := errors.New("origin is gone")
	b.Fail(gone)
	if _, err := before.Read(make([]byte, 1)); !errors.Is(err, gone) {
		t.Errorf("Read = %v, want the error of Fail", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	after := b.NewReader(ctx)
	defer after.Close()
	cancel()
	if _, err := after.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Read of a later reader = %v, want that it waited", err)
	}
}
