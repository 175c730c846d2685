package fleet_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

// origin is the registry that a fleet pulls from.
type origin struct {
	*registry.Registry
	url string
}

func startOrigin(t *testing.T) *origin {
	t.Helper()
	r := registry.New(registry.Options{})
	srv := httptest.NewServer(r)
	t.Cleanup(func() {
		srv.Close()
		r.Close()
	})
	return &origin{r, srv.URL}
}

// push makes an image of random layers and forgets what the push counted.
func (o *origin) push(t *testing.T, repository string, seed uint64, layers ...int64) registry.Image {
	t.Helper()
	img, err := registry.PushImage(t.Context(), o.url, repository, "v1", layers, seed)
	if err != nil {
		t.Fatal(err)
	}
	o.Reset()
	return img
}

func startFleet(t *testing.T, o fleet.Options) *fleet.Fleet {
	t.Helper()
	o.Dir = t.TempDir()
	if testing.Verbose() && os.Getenv("SHOAL_TEST_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	f, err := fleet.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(); err != nil {
			t.Errorf("stopping the fleet: %v", err)
		}
	})
	return f
}

// newClient returns an HTTP client with connections of its own, as every
// container runtime has.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 8}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get fetches a blob or manifest through a mirror and checks it.
func get(ctx context.Context, c *http.Client, n *fleet.Node, img registry.Image, b proto.Blob) error {
	kind := "blobs"
	if b.Digest == img.Manifest.Digest {
		kind = "manifests"
	}
	url := fmt.Sprintf("%s/v2/%s/%s/%s?ns=%s", n.MirrorURL(), img.Repository, kind, b.Digest, fleet.Upstream)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	h := b.Digest.NewHash()
	size, err := io.Copy(h, resp.Body)
	if err != nil {
		return fmt.Errorf("%s after %d of %d bytes: %w", url, size, b.Size, err)
	}
	if size != b.Size || !b.Digest.Matches(h) {
		return fmt.Errorf("%s: %d bytes of other content, want %d", url, size, b.Size)
	}
	return nil
}

// pullImage fetches the manifest and then all blobs at once.
func pullImage(ctx context.Context, c *http.Client, n *fleet.Node, img registry.Image) error {
	if err := get(ctx, c, n, img, img.Manifest); err != nil {
		return err
	}
	blobs := img.Blobs()
	errs := make(chan error, len(blobs))
	for _, b := range blobs {
		go func() { errs <- get(ctx, c, n, img, b) }()
	}
	var first error
	for range blobs {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// onceEach checks that every byte of every blob left the origin exactly once.
func (o *origin) onceEach(t *testing.T, img registry.Image) {
	t.Helper()
	for _, b := range img.Blobs() {
		if least, most := o.Copies(b.Digest); least != 1 || most != 1 {
			t.Errorf("bytes of %s (%d bytes) left the origin %d to %d times, want exactly once", b.Digest, b.Size, least, most)
		}
	}
}

// TestOnce: however many nodes and clients ask for the same cold image, each
// chunk leaves the origin exactly once, and everybody has the right bytes.
func TestOnce(t *testing.T) {
	for _, tc := range []struct {
		nodes     int
		scheduler bool
	}{{1, false}, {3, false}, {3, true}, {20, false}, {20, true}} {
		if testing.Short() {
			// The race detector makes everything ten times as dear, and on two
			// cores 20 nodes are too busy to hear each other in time.
			tc.nodes = min(tc.nodes, 8)
		}
		t.Run(fmt.Sprintf("%d nodes, scheduler %v", tc.nodes, tc.scheduler), func(t *testing.T) {
			o := startOrigin(t)
			img := o.push(t, "team/app", uint64(tc.nodes), 12<<20+77, 3<<20, 1000)
			f := startFleet(t, fleet.Options{Nodes: tc.nodes, Scheduler: tc.scheduler, Origin: o.url})
			clients := 8
			if testing.Short() {
				clients = 2
			}
			var wg sync.WaitGroup
			start := time.Now()
			for _, n := range f.Nodes {
				for range clients {
					c := newClient(t)
					wg.Go(func() {
						if err := pullImage(t.Context(), c, n, img); err != nil {
							t.Error(err)
						}
					})
				}
			}
			wg.Wait()
			t.Logf("%d clients in %s", tc.nodes*clients, time.Since(start).Round(time.Millisecond))
			o.onceEach(t, img)
			if got := o.Count().ManifestGets; got != 1 {
				t.Errorf("the manifest left the origin %d times, want exactly once", got)
			}
			var all admin.Bytes
			for _, n := range f.Nodes {
				all = all.Plus(n.Status().Bytes)
			}
			came := all.Origin + all.Peers()
			t.Logf("%d bytes came in, %d of them for nothing", came, all.Duplicate)
			// Not none: a chunk that looks late is tried from a second source.
			if all.Duplicate*100 > came {
				t.Errorf("of %d bytes that came in %d were for nothing, want 1 %% at most", came, all.Duplicate)
			}
		})
	}
}

// TestBytesBySource: every node tells from where it got an image: the one that
// asks first from the origin, its neighbour from it, a node of another zone
// from there; and with a scheduler process from that.
func TestBytesBySource(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 21, 6<<20, 1000)
	zones := func(i int, c *daemon.Config) { c.Zone = []string{"eu", "eu", "eu", "us"}[i+1] }

	f := startFleet(t, fleet.Options{Nodes: 3, Origin: o.url, Configure: zones})
	for i, want := range []admin.Bytes{{Origin: img.Size()}, {Zone: img.Size()}, {Far: img.Size()}} {
		pullAll(t, img, f.Nodes[i])
		got := f.Nodes[i].Status().Bytes
		got.Disk = 0
		if got != want {
			t.Errorf("node %d of zone %s counted %+v, want %+v", i, f.Nodes[i].Config.Zone, got, want)
		}
	}

	f = startFleet(t, fleet.Options{Nodes: 1, Scheduler: true, Origin: o.url, Configure: zones})
	pullAll(t, img, f.Nodes[0])
	if got := f.Nodes[0].Status().Bytes; got.Seed < 6<<20 || got.Origin+got.Seed != img.Size() || got.Peers() != got.Seed {
		t.Errorf("with a scheduler process, of %d bytes, the node counted %+v", img.Size(), got)
	}
}
