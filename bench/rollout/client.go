package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/proto"
)

const (
	// layersAtOnce is containerd's default.
	layersAtOnce = 3
	// patience is how long a client goes on after errors without a byte in
	// between. A runtime gives up earlier, but then its kubelet comes again.
	patience = 10 * time.Second
	// pause is the time between two attempts.
	pause = 250 * time.Millisecond
	// readSize is how much is read at a time at most; less is not waited for. Where
	// cores are short, more than 128 KiB has often come: with that for a limit a
	// read brought 122 kB on average, with this one 210 kB.
	readSize = 256 << 10
)

// errKilled is wrapped by the error of a client whose daemon a fault has killed
// for good.
var errKilled = errors.New("killed by a fault")

// A client pulls the image as a runtime does. Each node has one.
type client struct {
	// immutable
	base  string // URL of what it pulls from
	http  *http.Client
	img   *image
	track *track
	// broken says why going on is in vain, or nil.
	broken   func() error
	patience time.Duration
}

// pull pulls the image once. Every byte is checked.
func (c *client) pull(ctx context.Context) error {
	var manifest bytes.Buffer
	err := c.get(ctx, "/manifests/"+tag, int64(len(c.img.manifest)), &manifest, func(int) {})
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if !bytes.Equal(manifest.Bytes(), c.img.manifest) {
		return errors.New("manifest: it is not the one that was pushed")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	g.Go(func() error {
		blob := proto.Blob{Digest: proto.DigestOf(config), Size: int64(len(config))}
		if err := c.blob(ctx, blob, func(int) {}); err != nil {
			return fmt.Errorf("config: %w", err)
		}
		return nil
	})
	for i, l := range c.img.layers {
		g.Go(func() error {
			if err := c.blob(ctx, l, c.track.got); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
			c.track.layer(i)
			return nil
		})
	}
	return g.Wait()
}

// blob reads a blob and compares it with what was pushed.
func (c *client) blob(ctx context.Context, b proto.Blob, progress func(n int)) error {
	return c.get(ctx, "/blobs/"+b.Digest.String(), b.Size, &comparison{want: c.img.pushed[b.Digest]}, progress)
}

// A comparison is written to what should be the bytes of want, in order. To
// compare them costs less than a third of hashing them, and who measures is to
// cost little.
type comparison struct {
	want   []byte
	offset int
}

// errBytes is wrapped by the error of a comparison that failed.
var errBytes = errors.New("the bytes are wrong")

func (c *comparison) Write(p []byte) (int, error) {
	rest := c.want[c.offset:]
	if len(p) > len(rest) {
		return 0, fmt.Errorf("%w: more than the %d that were pushed", errBytes, len(c.want))
	}
	if !bytes.Equal(p, rest[:len(p)]) {
		return 0, fmt.Errorf("%w: not those that were pushed, in the %d from offset %d on", errBytes, len(p), c.offset)
	}
	c.offset += len(p)
	return len(p), nil
}

// get reads size bytes into w, going on where it was after an error.
func (c *client) get(ctx context.Context, what string, size int64, w io.Writer, progress func(n int)) error {
	have, since := int64(0), time.Now()
	for {
		n, err := c.read(ctx, what, have, size, w, progress)
		have += n
		if err == nil || errors.Is(err, errBytes) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if gone := c.broken(); gone != nil {
			return gone
		}
		if n > 0 {
			since = time.Now()
		}
		if time.Since(since) > c.patience {
			return err
		}
		c.track.resumed()
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// read sends one request, for what is missing, and returns how much came.
func (c *client) read(ctx context.Context, what string, have, size int64, w io.Writer, progress func(n int)) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v2/"+repository+what, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", manifestType)
	want := http.StatusOK
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		want = http.StatusPartialContent
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it
		return 0, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(said))
	}
	if n := resp.ContentLength; n >= 0 && n != size-have {
		return 0, fmt.Errorf("%d bytes are announced, %d are missing", n, size-have)
	}
	return copyCounted(w, resp.Body, size-have, progress)
}

// copyCounted copies exactly n bytes, as they come.
func copyCounted(w io.Writer, r io.Reader, n int64, progress func(n int)) (int64, error) {
	buf := make([]byte, min(n+1, readSize)) // one more, to see that there are none
	var done int64
	for {
		k, err := r.Read(buf)
		if done+int64(k) > n {
			return done, fmt.Errorf("more than the %d bytes that there should be", n)
		}
		if k > 0 {
			progress(k)
			if _, err := w.Write(buf[:k]); err != nil {
				return done, err
			}
			done += int64(k)
		}
		switch {
		case errors.Is(err, io.EOF) && done < n:
			return done, io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return done, nil
		case err != nil:
			return done, err
		}
	}
}

// A track is what one client has got, and when.
type track struct {
	start time.Time // of the rollout

	// mu protects the fields below.
	mu       sync.Mutex
	arrived  time.Duration
	last     time.Duration // when the last byte came
	silence  time.Duration // the longest time without one
	bytes    int64
	layers   []time.Duration
	progress []report.Point
	retries  int // requests that took up where another had broken off
	ended    bool
}

func newTrack(start time.Time, layers int) *track {
	return &track{start: start, layers: make([]time.Duration, layers)}
}

// arrive notes that the client begins.
func (t *track) arrive() {
	now := time.Since(t.start)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.arrived, t.last = now, now
	t.progress = append(t.progress, report.Point{At: now.Seconds()})
}

// got notes that n bytes of a layer came.
func (t *track) got(n int) {
	now := time.Since(t.start)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.silence = max(t.silence, now-t.last)
	t.last = now
	t.bytes += int64(n)
}

// layer notes that a layer is complete.
func (t *track) layer(i int) {
	now := time.Since(t.start)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.layers[i] = now
}

func (t *track) resumed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retries++
}

// sample adds a point to the progress and returns how much there is.
func (t *track) sample() (have int64, ended bool) {
	now := time.Since(t.start)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.progress); n > 0 && t.progress[n-1].Bytes != t.bytes {
		t.progress = append(t.progress, report.Point{At: now.Seconds(), Bytes: t.bytes})
	}
	return t.bytes, t.ended
}

// end puts what was found into n. err is what became of the pull.
func (t *track) end(n *report.Node, err error) {
	now := time.Since(t.start)
	t.sample()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	n.Arrived, n.Silence, n.Progress, n.Resumed = t.arrived.Seconds(), t.silence.Seconds(), t.progress, t.retries
	for _, l := range t.layers {
		n.Layers = append(n.Layers, l.Seconds())
	}
	if err != nil {
		n.Error, n.Killed = err.Error(), errors.Is(err, errKilled)
		return
	}
	n.Done = now.Seconds()
}
