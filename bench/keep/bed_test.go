package keep_test

import (
	"bytes"
	"context"
	"encoding"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine),
		goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode")) // ends by itself
}

// bed is one registry and one node in front of it.
type bed struct {
	*registry.Registry
	t      *testing.T
	url    string
	server *httptest.Server
	fleet  *fleet.Fleet
	node   *fleet.Node
	client *http.Client
}

// start starts a registry and a node; change, if not nil, changes the node's
// configuration.
func start(t *testing.T, change func(c *daemon.Config)) *bed {
	t.Helper()
	b := startOrigin(t)
	b.fleet = startFleet(t, b.url, 1, change)
	b.node = b.fleet.Nodes[0]
	return b
}

func startOrigin(t *testing.T) *bed {
	t.Helper()
	r := registry.New(registry.Options{})
	srv := httptest.NewServer(r)
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		srv.Close()
		r.Close()
	})
	return &bed{Registry: r, t: t, url: srv.URL, server: srv, client: &http.Client{Transport: tr}}
}

func startFleet(t *testing.T, origin string, nodes int, change func(c *daemon.Config)) *fleet.Fleet {
	t.Helper()
	return startOptions(t, fleet.Options{Nodes: nodes, Origin: origin}, change)
}

func startOptions(t *testing.T, o fleet.Options, change func(c *daemon.Config)) *fleet.Fleet {
	t.Helper()
	o.Dir, o.Configure = t.TempDir(), func(_ int, c *daemon.Config) {
		c.Admin.Listen = "127.0.0.1:0"
		set(t, &c.Cache.Reserve, "1MiB") // a machine that tests run on may be full
		if change != nil {
			change(c)
		}
	}
	if os.Getenv("SHOAL_TEST_LOG") != "" {
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

// set sets a key of the configuration as its text in the file would.
func set(t *testing.T, key encoding.TextUnmarshaler, text string) {
	t.Helper()
	if err := key.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// admin returns a client of the node's admin door.
func (b *bed) admin() *admin.Client { return admin.NewClient(b.node.AdminAddr()) }

// restart stops the node and starts it again with the same data.
func (b *bed) restart() {
	b.t.Helper()
	if err := b.node.Stop(); err != nil {
		b.t.Fatal(err)
	}
	b.startAgain()
}

// startAgain starts a node that was stopped.
func (b *bed) startAgain() {
	b.t.Helper()
	n, err := b.fleet.StartNode(0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.fleet.Nodes[0], b.node = n, n
	if err := b.fleet.Converge(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// push pushes an image of random layers and forgets what that counted.
func (b *bed) push(repository, tag string, seed uint64, layers ...int64) registry.Image {
	b.t.Helper()
	img, err := registry.PushImage(b.t.Context(), b.url, repository, tag, layers, seed)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Reset()
	return img
}

// an answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request to the node's mirror and reads all of the answer. path
// follows /v2/. header has names and values in turn.
func (b *bed) ask(method, path string, header ...string) answer {
	b.t.Helper()
	a, err := b.try(b.t.Context(), b.node, method, path, header...)
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *bed) try(ctx context.Context, n *fleet.Node, method, path string, header ...string) (answer, error) {
	resp, err := b.open(ctx, n, method, path, header...)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s after %d bytes: %w", method, path, len(body), err)
	}
	return answer{resp.StatusCode, resp.Header, body}, nil
}

func (b *bed) open(ctx context.Context, n *fleet.Node, method, path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, n.MirrorURL()+"/v2/"+path, nil)
	if err != nil {
		return nil, err
	}
	q := req.URL.Query()
	q.Set("ns", fleet.Upstream)
	req.URL.RawQuery = q.Encode()
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return b.client.Do(req)
}

// want fails unless a has the status.
func (b *bed) want(a answer, status int) answer {
	b.t.Helper()
	if a.status != status {
		b.t.Fatalf("status %d, want %d: %.500s", a.status, status, a.body)
	}
	return a
}

// pull fetches an image by tag, all of it, and checks it.
func (b *bed) pull(img registry.Image) {
	b.t.Helper()
	a := b.want(b.ask("GET", img.Repository+"/manifests/"+img.Tag), 200)
	if !bytes.Equal(a.body, img.Raw) {
		b.t.Fatalf("manifest of %s is %.200q", img.Repository, a.body)
	}
	for _, blob := range img.Blobs() {
		b.blob(img.Repository, blob)
	}
}

// blob fetches a blob and checks it.
func (b *bed) blob(repository string, blob proto.Blob) {
	b.t.Helper()
	a := b.want(b.ask("GET", repository+"/blobs/"+blob.Digest.String()), 200)
	if got := proto.DigestOf(a.body); got != blob.Digest {
		b.t.Fatalf("blob %s came as %d bytes of %s", blob.Digest, len(a.body), got)
	}
}

// waitFor waits until something that is observed from outside is so.
func waitFor(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
