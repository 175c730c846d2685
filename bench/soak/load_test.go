//go:build soak

package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// exponent is that of Zipf's law: the image of rank k is asked for in proportion
// to 1/k^exponent. What is published of registries and of the web is 0.8 to 1.
const exponent = 0.9

// popularity returns the sums of the shares of the images up to each.
func popularity() []float64 {
	sums := make([]float64, images)
	total := 0.0
	for k := range sums {
		total += math.Pow(float64(k+1), -exponent)
		sums[k] = total
	}
	for k := range sums {
		sums[k] /= total
	}
	return sums
}

// A log is which images were asked for, of each node and of all, in the order of
// the requests.
type log struct {
	mu    sync.Mutex // protects the fields below
	nodes [nodes][]int
	fleet []int
}

func (l *log) add(node, image int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes[node] = append(l.nodes[node], image)
	l.fleet = append(l.fleet, image)
}

// A client asks one node.
type client struct {
	node   *node
	number int // of the node
	images []registry.Image
	shares []float64
	log    *log
	http   *http.Client
	rnd    *rand.Rand
	buf    []byte
}

// run does one thing after the other until ctx ends, or until something is
// wrong, which is its error.
func (c *client) run(ctx context.Context) error {
	for {
		err := c.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errors.Join(err, c.node.Died())
		}
	}
}

func (c *client) step(ctx context.Context) error {
	image := min(images-1, func() int { k, _ := slices.BinarySearch(c.shares, c.rnd.Float64()); return k }())
	img := c.images[image]
	switch n := c.rnd.IntN(100); {
	case n < 82:
		c.log.add(c.number, image)
		return c.pull(ctx, img)
	case n < 88:
		c.log.add(c.number, image)
		return c.readRange(ctx, img)
	case n < 94:
		c.log.add(c.number, image)
		return c.leave(ctx, img)
	case n < 97:
		return c.status(ctx, "/v2/"+img.Repository+"/tags/list", http.StatusOK)
	default:
		return c.status(ctx, fmt.Sprintf("/v2/%s/manifests/v%d", img.Repository, 2+c.rnd.IntN(1000)), http.StatusNotFound)
	}
}

// pull pulls an image as runtimes do: the manifest by its tag, then the blobs.
func (c *client) pull(ctx context.Context, img registry.Image) error {
	if err := c.read(ctx, "/v2/"+img.Repository+"/manifests/"+img.Tag, img.Manifest); err != nil {
		return err
	}
	for _, b := range img.Blobs() {
		if err := c.read(ctx, blobPath(img, b), b); err != nil {
			return err
		}
	}
	return nil
}

func blobPath(img registry.Image, b proto.Blob) string {
	return "/v2/" + img.Repository + "/blobs/" + b.Digest.String()
}

// read reads a blob and checks it.
func (c *client) read(ctx context.Context, path string, b proto.Blob) error {
	resp, err := c.get(ctx, path, "", http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	hash := b.Digest.NewHash()
	n, err := io.CopyBuffer(struct{ io.Writer }{hash}, resp.Body, c.buf)
	if err != nil || n != b.Size || !b.Digest.Matches(hash) {
		return fmt.Errorf("GET %s: %d bytes of %d, which are the right ones: %t; %w", path, n, b.Size, b.Digest.Matches(hash), err)
	}
	return nil
}

// readRange reads a piece of the layer. That it is the right one is for bench/crash,
// which has the content.
func (c *client) readRange(ctx context.Context, img registry.Image) error {
	first := c.rnd.Int64N(layerSize)
	last := first + c.rnd.Int64N(layerSize-first)
	resp, err := c.get(ctx, blobPath(img, img.Layers[0]), fmt.Sprintf("bytes=%d-%d", first, last), http.StatusPartialContent)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, c.buf); err != nil || n != last-first+1 {
		return fmt.Errorf("bytes %d to %d of %s: %d came: %w", first, last, img.Layers[0].Digest, n, err)
	}
	return nil
}

// leave goes away in the middle of the layer.
func (c *client) leave(ctx context.Context, img registry.Image) error {
	resp, err := c.get(ctx, blobPath(img, img.Layers[0]), "", http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, c.rnd.Int64N(layerSize))
	return err
}

// status asks for something whose body is no matter.
func (c *client) status(ctx context.Context, path string, want int) error {
	resp, err := c.get(ctx, path, "", want)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// get asks the mirror and wants an answer with the given status.
func (c *client) get(ctx context.Context, path, byteRange string, want int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.node.Mirror+path+"?ns="+upstream, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, */*")
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // for a person
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s, want %d: %s", path, resp.Status, want, text)
	}
	return resp, nil
}
