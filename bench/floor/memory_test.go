package floor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkMemory starts a scheduler and three daemons and rolls an image of
// 64 MiB in four layers out. It reports the largest resident memory of a daemon
// that has been idle for some seconds, of a daemon by the end, at its peak, and
// of the scheduler at its peak, in MB of 1,000,000 bytes.
func BenchmarkMemory(b *testing.B) {
	const nodes, settle = 3, 5 * time.Second
	origin := startOrigin(b)
	img := push(b, origin, "bench/memory", 1, 16<<20, 16<<20, 16<<20, 16<<20)
	for b.Loop() {
		seed := startNode(b, "scheduler", "scheduler", origin, "")
		daemons := make([]*node, nodes)
		for i := range daemons {
			daemons[i] = startNode(b, "daemon", fmt.Sprintf("node-%d", i), origin, seed.Gossip)
		}
		converge(b, append([]*node{seed}, daemons...)...)
		time.Sleep(settle)
		b.ReportMetric(largest(b, "VmRSS", daemons...), "idle-MB")
		var wg sync.WaitGroup
		for _, n := range daemons {
			c := newClient(b)
			wg.Go(func() {
				err := c.try(b.Context(), n.manifestURL(img.Repository, img.Tag), img.Manifest.Size)
				for _, p := range img.Blobs() {
					err = errors.Join(err, c.try(b.Context(), n.blobURL(img.Repository, p.Digest), p.Size))
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(largest(b, "VmHWM", daemons...), "rollout-peak-MB")
		b.ReportMetric(largest(b, "VmHWM", seed), "scheduler-peak-MB")
	}
}

// largest returns the largest value of a field of /proc/PID/status, in MB.
func largest(b *testing.B, field string, nodes ...*node) float64 {
	b.Helper()
	most := 0.0
	for _, n := range nodes {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
		if err != nil {
			b.Skipf("the memory of a process is read from /proc, as Linux has it: %v", err)
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(line, field+":"); ok {
				kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
				if err != nil {
					b.Fatal(err)
				}
				most = max(most, kib*1024/1e6)
			}
		}
	}
	return most
}
