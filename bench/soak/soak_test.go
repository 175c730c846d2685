//go:build soak

package soak

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

const (
	// clients ask each node at a time.
	clients = 2
	// samples is how many are taken of each figure.
	samples = 200
)

// figures are those that are sampled of each node. A megabyte is 1,000,000
// bytes.
var figures = []figure{
	{"resident MB", 0.15, 8},
	{"goroutines", 0.15, 16},
	{"open files", 0.15, 16},
}

// TestSoak: under load for as long as SOAK says, nothing of a daemon grows
// without bound, no answer is wrong and no quota is exceeded.
func TestSoak(t *testing.T) {
	duration, seed := 10*time.Minute, rand.Uint64()
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil || duration < time.Second {
			t.Fatalf("SOAK=%s: write a duration of a second or more, such as 10m", text)
		}
	}
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	t.Logf("%d nodes for %s: %d images of %d bytes, and a quota of %d; SOAK_SEED=%d", nodes, duration, images, layerSize, quota, seed)
	r, url, all := startOrigin(t)
	fleet := startFleet(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	requests := &log{}
	var wg sync.WaitGroup
	for i, n := range fleet {
		for k := range clients {
			transport := &http.Transport{DisableCompression: true}
			defer transport.CloseIdleConnections()
			c := &client{
				node: n, number: i, images: all, shares: popularity(), log: requests, http: &http.Client{Transport: transport},
				rnd: rand.New(rand.NewPCG(seed, uint64(i*clients+k))), buf: make([]byte, 256<<10),
			}
			wg.Go(func() {
				if err := c.run(ctx); err != nil {
					t.Error(err)
					cancel()
				}
			})
		}
	}
	series := watch(ctx, t, fleet, duration/samples)
	wg.Wait()
	if t.Failed() {
		return
	}
	judge(t, fleet, series)
	counts := r.Count()
	report(t, fleet, requests, all[0].Size(), counts.BlobBytes+counts.ManifestBytes)
}

// watch samples the figures of each node until ctx ends.
func watch(ctx context.Context, t *testing.T, fleet []*node, every time.Duration) [nodes][][]float64 {
	var series [nodes][][]float64
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return series
		case <-tick.C:
		}
		for i, n := range fleet {
			s, err := n.sample(ctx, c)
			if ctx.Err() != nil {
				return series
			}
			if err != nil {
				t.Error(err)
				return series
			}
			if series[i] == nil {
				series[i] = make([][]float64, len(figures))
			}
			for k, v := range s {
				series[i][k] = append(series[i][k], v)
			}
		}
	}
}

// judge fails the test if a figure has grown or a quota is exceeded.
func judge(t *testing.T, fleet []*node, series [nodes][][]float64) {
	for i, n := range fleet {
		for k, f := range figures {
			if got := len(series[i]); got == 0 || len(series[i][k]) < 10 {
				t.Fatalf("%s: too few samples for a judgement; run it for longer", n.Name())
			}
			before, after, ok := f.flat(series[i][k])
			t.Logf("%s: %-11s %6.1f in the second fifth, %6.1f in the last", n.Name(), f.name, before, after)
			if !ok {
				t.Errorf("%s: %s grew from %.1f to %.1f, by more than %.0f %% and %.0f", n.Name(), f.name, before, after, 100*f.share, f.slack)
			}
		}
		// What is being put at this moment comes on top.
		if got := n.used(t); got > quota+quota/20 {
			t.Errorf("%s: its blobs take %d bytes, and its quota is %d", n.Name(), got, quota)
		}
	}
}

// report prints the hit ratios beside the optimum for the same requests: of each
// node, where a miss is what it had to fetch from anywhere, and of the fleet,
// where it is what left the registry.
func report(t *testing.T, fleet []*node, requests *log, size, left int64) {
	capacity := int(quota / size)
	for i, n := range fleet {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes from the registry, %d from others, of which %d for nothing", n.Name(), s.Bytes.Origin, s.Bytes.Peers(), s.Bytes.Duplicate)
		printRatio(t, n.Name(), requests.nodes[i], size, s.Bytes.Origin+s.Bytes.Peers(), capacity)
	}
	printRatio(t, "the fleet", requests.fleet, size, left, nodes*capacity)
}

func printRatio(t *testing.T, name string, trace []int, size, missed int64, capacity int) {
	n := float64(len(trace))
	t.Logf("%s: %.0f requests, hit ratio %.3f; with room for %d images LRU would have %.3f, and Belady's optimum is %.3f",
		name, n, 1-float64(missed)/(n*float64(size)), capacity,
		float64(recent(trace, capacity))/n, float64(optimum(trace, capacity))/n)
}
