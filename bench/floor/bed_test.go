package floor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

const (
	// upstream is what the nodes call the registry.
	upstream = "registry.bench"
	// upWithin bounds how long a program may take to start.
	upWithin = 30 * time.Second
	// grace is how long a program may take to end after SIGTERM.
	grace = 10 * time.Second
)

func TestMain(m *testing.M) {
	leaks := goleak.IgnoreTopFunction(registry.LeakedGoroutine)
	goleak.VerifyTestMain(m, leaks, goleak.Cleanup(func(code int) {
		if bin.dir != "" {
			_ = os.RemoveAll(bin.dir)
		}
		os.Exit(code)
	}))
}

// bin is the binary, made for the first benchmark that needs it.
var bin struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// binary returns the path of the binary.
func binary(b *testing.B) string {
	b.Helper()
	bin.once.Do(func() {
		if bin.dir, bin.err = os.MkdirTemp("", "shoal-floor-"); bin.err == nil {
			bin.path, bin.err = process.Shoal(bin.dir)
		}
	})
	if bin.err != nil {
		b.Fatal(bin.err)
	}
	return bin.path
}

// startup returns the context of a program that starts.
func startup(b *testing.B) context.Context {
	ctx, cancel := context.WithTimeoutCause(b.Context(), upWithin, fmt.Errorf("it took longer than %s", upWithin))
	b.Cleanup(cancel)
	return ctx
}

// startOrigin starts a registry on a listener of its own and returns its URL.
func startOrigin(b *testing.B) string {
	b.Helper()
	r := registry.New(registry.Options{})
	server := httptest.NewServer(r)
	b.Cleanup(func() {
		server.Close()
		r.Close()
	})
	return server.URL
}

// push pushes an image of random layers.
func push(b *testing.B, origin, repository string, seed uint64, layers ...int64) registry.Image {
	b.Helper()
	img, err := registry.PushImage(b.Context(), origin, repository, "v1", layers, seed)
	if err != nil {
		b.Fatal(err)
	}
	return img
}

// A node is a process of Shoal with its data directory.
type node struct {
	*process.Node
	data string
}

// startNode starts a node in front of origin that joins another, or nobody.
func startNode(b *testing.B, command, name, origin, join string) *node {
	b.Helper()
	dir := b.TempDir()
	n := &node{data: filepath.Join(dir, "data")}
	config, secret := filepath.Join(dir, "shoal.yaml"), filepath.Join(dir, "secret")
	err := errors.Join(
		os.WriteFile(secret, []byte("the secret of a benchmark"), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, "data: %s\nmirror: {default: %[2]s}\ngossip: {join: [%[3]s], secretFile: %[4]s}\nupstreams:\n  %[2]s: {url: %[5]q}\n",
			n.data, upstream, join, secret, origin), 0o600))
	if err != nil {
		b.Fatal(err)
	}
	n.Node, err = process.StartNode(startup(b), process.NodeOptions{
		Name: name, Binary: binary(b), Command: command, Args: []string{"--config", config},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Stop(grace); err != nil {
			b.Error(err)
		}
	})
	return n
}

// converge waits until the nodes are one fleet.
func converge(b *testing.B, nodes ...*node) {
	b.Helper()
	var all []*process.Node
	for _, n := range nodes {
		all = append(all, n.Node)
	}
	if err := process.Converge(startup(b), all...); err != nil {
		b.Fatal(err)
	}
}

// blobURL and manifestURL return where the node has something, as containerd
// asks for it.
func (n *node) blobURL(repository string, d proto.Digest) string {
	return fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", n.Mirror, repository, d, upstream)
}

func (n *node) manifestURL(repository, tag string) string {
	return fmt.Sprintf("http://%s/v2/%s/manifests/%s?ns=%s", n.Mirror, repository, tag, upstream)
}

// A client reads and throws away. It has connections of its own.
type client struct {
	http *http.Client
	buf  []byte
}

func newClient(b *testing.B) *client {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 4}
	b.Cleanup(t.CloseIdleConnections)
	return &client{&http.Client{Transport: t}, make([]byte, 256<<10)}
}

// get reads what is at a URL, which is of the given size, and returns how long
// that took.
func (c *client) get(b *testing.B, url string, size int64) time.Duration {
	b.Helper()
	start := time.Now()
	if err := c.try(b.Context(), url, size); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// try is get for goroutines that must not end the benchmark.
func (c *client) try(ctx context.Context, url string, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, */*")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// io.Discard itself would be given small pieces.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, c.buf)
	if err != nil || n != size || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s, %d of %d bytes, %w", url, resp.Status, n, size, err)
	}
	return nil
}

// median returns the middle of durations, in seconds.
func median(ds []time.Duration) float64 {
	ds = slices.Sorted(slices.Values(ds))
	if len(ds) == 0 {
		return 0
	}
	return ((ds[(len(ds)-1)/2] + ds[len(ds)/2]) / 2).Seconds()
}

// freePort returns an address that nobody listens at now.
func freePort(b *testing.B) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startNginx starts an nginx that serves file, and returns it and the URL.
func startNginx(b *testing.B, file string) (*process.Process, string) {
	b.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // not in every user's PATH
	}
	if _, err := os.Stat(path); err != nil {
		b.Skip("nginx is not installed, which the figures are compared with: apt-get install nginx-light, or the package nginx of another system")
	}
	for range 3 { // somebody else may take the port
		dir, addr := b.TempDir(), freePort(b)
		config := filepath.Join(dir, "nginx.conf")
		text := strings.NewReplacer("DIR", dir, "ADDR", addr, "FILE", file).Replace(nginxConfig)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		p, err := process.Start(process.Options{Name: "nginx", Path: path, Args: []string{"-e", "stderr", "-p", dir, "-c", config}})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(p.Kill)
		// It says so when its listeners are open.
		if _, err = p.Line(startup(b), func(l string) bool { return strings.Contains(l, "event method") }); err == nil {
			return p, "http://" + addr + "/blob"
		}
		b.Log(err)
	}
	b.Fatal("nginx does not start")
	return nil, ""
}

const nginxConfig = `
daemon off;
master_process off;
pid DIR/nginx.pid;
error_log stderr notice;
events {}
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	default_type application/octet-stream;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen ADDR;
		location = /blob { alias FILE; }
	}
}
`
