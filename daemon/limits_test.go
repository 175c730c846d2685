package daemon_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
)

// pullBlob fetches a layer through a node's mirror, checks it, and returns how
// long that took.
func pullBlob(t *testing.T, n *fleet.Node, img registry.Image, b proto.Blob) time.Duration {
	t.Helper()
	start := time.Now()
	resp, err := http.Get(n.MirrorURL() + "/v2/" + img.Repository + "/blobs/" + b.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || proto.DigestOf(body) != b.Digest {
		t.Fatalf("%s: %s, %d bytes, %v", n.Config.Name, resp.Status, len(body), err)
	}
	return time.Since(start)
}

// metric returns a sample of a node's metrics.
func metric(t *testing.T, n *fleet.Node, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + n.AdminAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestLimits: a limit holds in a fleet, for its kind and its node alone, and
// nobody takes what waits for it to be broken.
func TestLimits(t *testing.T) {
	t.Parallel()
	const (
		limit   rate.Rate = 40e6 / 8
		quantum           = 40e6 / 8 / 8 // 125 ms
		size              = 4 << 20
	)
	least := time.Duration((size - quantum) / float64(limit) * float64(time.Second))
	for _, tt := range []struct {
		name   string
		kind   rate.Kind
		node   int // which has the limit; node 0 pulls first, then node 1 from it
		limits daemon.LimitsConfig
		slow   [2]bool // whose pull it is that the limit makes slow
	}{
		{"origin", rate.Origin, 0, daemon.LimitsConfig{OriginRate: limit}, [2]bool{true, false}},
		{"upload", rate.Upload, 0, daemon.LimitsConfig{UploadRate: limit}, [2]bool{false, true}},
		{"download from the origin", rate.Download, 0, daemon.LimitsConfig{DownloadRate: limit}, [2]bool{true, false}},
		{"download from a peer", rate.Download, 1, daemon.LimitsConfig{DownloadRate: limit}, [2]bool{false, true}},
		{"schedule", rate.Upload, 0, daemon.LimitsConfig{UploadRate: 1e6 / 8, Schedule: []string{"00:00-24:00 upload 40mbit"}}, [2]bool{false, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			origin := registry.New(registry.Options{})
			server := httptest.NewServer(origin)
			t.Cleanup(func() { server.Close(); origin.Close() })
			img, err := registry.PushImage(t.Context(), server.URL, "team/app", "v1", []int64{size}, 1)
			if err != nil {
				t.Fatal(err)
			}
			f, err := fleet.Start(t.Context(), fleet.Options{
				Nodes: 2, Origin: server.URL, Dir: t.TempDir(),
				Configure: func(i int, c *daemon.Config) {
					c.Admin.Listen = "127.0.0.1:0"
					if i == tt.node {
						c.Limits = tt.limits
					}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := f.Stop(); err != nil {
					t.Error(err)
				}
			})
			for i, n := range f.Nodes {
				took := pullBlob(t, n, img, img.Layers[0])
				if tt.slow[i] && took < least {
					t.Errorf("%s: the pull took %s, less than the %s that %s allows", n.Config.Name, took, least, limit)
				}
				if d := n.Status().Bytes.Duplicate; d != 0 {
					t.Errorf("%s: %d bytes came for nothing", n.Config.Name, d)
				}
			}
			if n := f.Nodes[1].Status().Bytes; n.Origin != 0 || n.Peers() != size {
				t.Errorf("the second node has %d bytes from the origin and %d from the first", n.Origin, n.Peers())
			}
			for i, n := range f.Nodes {
				for _, kind := range []rate.Kind{rate.Upload, rate.Download, rate.Origin} {
					want, limited := 0.0, i == tt.node && kind == tt.kind
					if limited {
						want = float64(limit)
					}
					label := fmt.Sprintf(`{kind=%q}`, kind)
					if got := metric(t, n, "shoal_limit_bytes_per_second"+label); got != want {
						t.Errorf("%s: the metric of %s says %v, want %v", n.Config.Name, kind, got, want)
					}
					if waited := metric(t, n, "shoal_limit_waited_seconds_total"+label); (waited > 0) != limited {
						t.Errorf("%s: waited %v s for %s", n.Config.Name, waited, kind)
					}
				}
			}
		})
	}
}
