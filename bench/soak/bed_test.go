//go:build soak

package soak

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
)

const (
	// upstream is what the daemons call the registry.
	upstream = "registry.soak"
	// nodes is how many daemons there are.
	nodes = 3
	// images is how many there are, of one layer of layerSize bytes each; a
	// node may keep a quarter of them.
	images    = 240
	layerSize = 1 << 20
	quota     = images / 4 * layerSize
	// upWithin bounds how long the fleet may take to start.
	upWithin = 30 * time.Second
	// grace is how long a daemon may take to end after SIGTERM.
	grace = 30 * time.Second
)

// shoal is the path of the binary.
var shoal string

// TestMain gets the binary.
func TestMain(m *testing.M) {
	leaks := goleak.IgnoreTopFunction(registry.LeakedGoroutine)
	dir, err := os.MkdirTemp("", "shoal-soak-")
	if err == nil {
		shoal, err = process.Shoal(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, leaks, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// startOrigin starts a registry with the images in it, the most popular first.
func startOrigin(t *testing.T) (*registry.Registry, string, []registry.Image) {
	t.Helper()
	r := registry.New(registry.Options{})
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.Close()
		r.Close()
	})
	var all []registry.Image
	for i := range uint64(images) {
		img, err := registry.PushImage(t.Context(), server.URL, fmt.Sprintf("team/app-%d", i), "v1", []int64{layerSize}, i)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, img)
	}
	r.Reset()
	return r, server.URL, all
}

// A node is a daemon with its directory.
type node struct {
	*process.Node
	data string
}

// startFleet starts the daemons and returns when they know each other.
func startFleet(t *testing.T, origin string) []*node {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), upWithin, fmt.Errorf("it took longer than %s", upWithin))
	defer cancel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	write(t, secret, "the secret of the soak test")
	var fleet []*node
	var all []*process.Node
	join := ""
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		n := &node{data: filepath.Join(dir, name)}
		config := filepath.Join(dir, name+".yaml")
		write(t, config, fmt.Sprintf(`
data: %s
drain: 5s
mirror: {default: %[2]s}
gossip: {join: [%[3]s], secretFile: %[4]s}
cache: {quota: %[5]dMiB, reserve: 1MiB, keep: 200ms, gc: "* * * * *", scrub: "* * * * *"}
tags: {ttl: 5s}
upstreams:
  %[2]s: {url: %[6]q}
`, n.data, upstream, join, secret, quota>>20, origin))
		o := process.NodeOptions{Name: name, Binary: shoal, Command: "daemon", Args: []string{"--config", config}}
		if logs := os.Getenv("SOAK_LOGS"); logs != "" {
			f, err := os.Create(filepath.Join(logs, name+".log"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			o.Log = f
		}
		var err error
		if n.Node, err = process.StartNode(ctx, o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Stop(grace); err != nil {
				t.Error(err)
			}
		})
		join = n.Gossip
		fleet, all = append(fleet, n), append(all, n.Node)
	}
	if err := process.Converge(ctx, all...); err != nil {
		t.Fatal(err)
	}
	return fleet
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// used returns how many bytes the node's blobs take, whole and in part.
func (n *node) used(t *testing.T) (bytes int64) {
	t.Helper()
	for _, dir := range []string{"blobs", "partial"} {
		err := filepath.WalkDir(filepath.Join(n.data, dir), func(path string, d fs.DirEntry, err error) error {
			var info fs.FileInfo
			if err == nil && !d.IsDir() {
				if info, err = d.Info(); err == nil {
					bytes += info.Size()
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // evicted meanwhile
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return bytes
}

// sample returns the node's figures, in their order.
func (n *node) sample(ctx context.Context, c *http.Client) ([]float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		return nil, errors.Join(err, n.Died())
	}
	kib := 0.0
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if kib, err = strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64); err != nil {
				return nil, err
			}
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.PID()))
	if err != nil {
		return nil, errors.Join(err, n.Died())
	}
	goroutines, err := n.metric(ctx, c, "go_goroutines")
	return []float64{kib * 1024 / 1e6, goroutines, float64(len(files))}, err
}

// metric returns the value of a metric without labels.
func (n *node) metric(ctx context.Context, c *http.Client, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s: %w", n.Name(), name, lines.Err())
}
