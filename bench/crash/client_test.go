package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// counts are what the clients of a node have met, so that a test which kills a
// daemon that does nothing is seen.
type counts struct {
	pulls, bodies, cuts, collections, scrubs atomic.Int64
	// pinned is how many of the pulls were of the pinned image.
	pinned atomic.Int64
}

// A client asks one life of a daemon.
type client struct {
	life   *life
	origin *origin
	http   *http.Client
	counts *counts
	rnd    *rand.Rand
}

// A step is something that a client does, so often of a hundred.
type step struct {
	share int
	do    func(*client, context.Context) error
}

var steps = []step{
	{50, (*client).pullSome},
	{20, (*client).readRange},
	{15, (*client).leave},
	{10, (*client).collect},
	{5, (*client).scrub},
}

// run does one thing after the other until the daemon is killed. Its error is
// what is wrong.
func (c *client) run(ctx context.Context) error {
	for !c.life.killed() {
		n := c.rnd.IntN(100)
		i := slices.IndexFunc(steps, func(s step) bool {
			n -= s.share
			return n < 0
		})
		if err := steps[i].do(c, ctx); err != nil {
			return err
		}
	}
	return nil
}

// pullSome pulls an image. Some are asked for more often than others.
func (c *client) pullSome(ctx context.Context) error {
	return c.pull(ctx, c.origin.images[min(c.rnd.IntN(images), c.rnd.IntN(images))])
}

// pull pulls an image as runtimes do: the manifest by its tag, then the blobs.
func (c *client) pull(ctx context.Context, img registry.Image) error {
	k := c.origin.blobs[img.Manifest.Digest]
	if err := c.check(ctx, "/v2/"+img.Repository+"/manifests/"+img.Tag, k, whole(k)); err != nil {
		return err
	}
	for _, b := range img.Blobs() {
		if err := c.read(ctx, b.Digest); err != nil || c.life.killed() {
			return err
		}
	}
	c.counts.pulls.Add(1)
	if img.Repository == c.origin.images[pinned].Repository {
		c.counts.pinned.Add(1)
	}
	return nil
}

// read reads all of what a digest names.
func (c *client) read(ctx context.Context, d proto.Digest) error {
	k := c.origin.blobs[d]
	return c.check(ctx, k.path(d), k, whole(k))
}

// some returns a random layer.
func (c *client) some() (proto.Digest, known) {
	layers := c.origin.images[c.rnd.IntN(images)].Layers
	d := layers[c.rnd.IntN(len(layers))].Digest
	return d, c.origin.blobs[d]
}

// readRange reads a piece of a layer.
func (c *client) readRange(ctx context.Context) error {
	d, k := c.some()
	s := span{offset: c.rnd.IntN(len(k.data))}
	s.size = 1 + c.rnd.IntN(len(k.data)-s.offset)
	s.ranged = true
	return c.check(ctx, k.path(d), k, s)
}

// leave begins to read a layer and goes away.
func (c *client) leave(ctx context.Context) error {
	d, k := c.some()
	s := whole(k)
	s.leave = 1 + c.rnd.IntN(len(k.data))
	return c.check(ctx, k.path(d), k, s)
}

// collect has the daemon collect garbage.
func (c *client) collect(ctx context.Context) error {
	c.counts.collections.Add(1)
	return c.order(ctx, "/v1/cache/gc")
}

// scrub has it check what it has, unless it does so already.
func (c *client) scrub(ctx context.Context) error {
	if !c.life.scrubbing.TryLock() {
		return nil
	}
	defer c.life.scrubbing.Unlock()
	c.counts.scrubs.Add(1)
	return c.order(ctx, "/v1/cache/scrub")
}

// order tells the daemon's admin door to do something and waits for the answer.
func (c *client) order(ctx context.Context, path string) error {
	resp, err := c.do(ctx, http.MethodPost, "http://"+c.life.Admin+path, http.Header{"Content-Type": {"application/json"}}, "{}")
	if err != nil || resp == nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.excused(fmt.Errorf("POST %s: %w", path, err))
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("POST %s: %s: %s", path, resp.Status, text)
	}
	return nil
}

// A span is what of some content a client reads.
type span struct {
	offset, size int
	ranged       bool // asked for as a range
	leave        int  // bytes after which the client goes away; 0: it does not
}

func whole(k known) span { return span{size: len(k.data)} }

// check reads from the mirror and compares each byte that comes, however the
// answer ends. It returns nil for an answer that the kill cut.
func (c *client) check(ctx context.Context, path string, k known, s span) error {
	header := http.Header{"Accept": {"application/vnd.oci.image.manifest.v1+json, */*"}}
	want := http.StatusOK
	if s.ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.offset, s.offset+s.size-1))
		want = http.StatusPartialContent
	}
	resp, err := c.do(ctx, http.MethodGet, "http://"+c.life.Mirror+path+"?ns="+upstream, header, "")
	if err != nil || resp == nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // for a person
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, text)
	}
	if resp.ContentLength != int64(s.size) {
		return fmt.Errorf("GET %s: it says %d bytes, and %d were asked for", path, resp.ContentLength, s.size)
	}
	return c.compare(resp.Body, path, k, s)
}

// compare reads a body and compares it with what was pushed.
func (c *client) compare(body io.Reader, path string, k known, s span) error {
	buf := make([]byte, 32<<10)
	for done := 0; ; {
		n, err := body.Read(buf)
		if at := k.wrong(s.offset+done, buf[:n]); at >= 0 {
			return fmt.Errorf("GET %s: byte %d is WRONG", path, at)
		}
		done += n
		c.life.sent(n)
		switch {
		case s.leave > 0 && done >= s.leave:
			return nil
		case errors.Is(err, io.EOF) && done == s.size:
			c.counts.bodies.Add(1)
			return nil
		case err != nil:
			return c.excused(fmt.Errorf("GET %s: after %d of %d bytes: %w", path, done, s.size, err))
		}
	}
}

// do sends a request. Neither an answer nor an error: the daemon was killed.
func (c *client) do(ctx context.Context, method, url string, header http.Header, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.excused(err)
	}
	return resp, nil
}

// excused returns err unless the kill explains it.
func (c *client) excused(err error) error {
	if c.life.killed() {
		c.counts.cuts.Add(1)
		return nil
	}
	return err
}
