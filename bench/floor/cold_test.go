package floor

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// BenchmarkColdBlob reads a blob that a node has never heard of, and in turn the
// same from the origin. It reports the median of what a pair differs by
// (extra-ms).
func BenchmarkColdBlob(b *testing.B) {
	for _, size := range []int64{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			cold(b, func(n *node, origin string, round int) (ours, direct func(*client)) {
				content := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{byte(round), byte(round >> 8), byte(round >> 16)}).Read(content)
				if err := registry.PushBlob(b.Context(), origin, "bench/cold", content); err != nil {
					b.Fatal(err)
				}
				d := proto.DigestOf(content)
				return func(c *client) { c.get(b, n.blobURL("bench/cold", d), size) },
					func(c *client) { c.get(b, fmt.Sprintf("%s/v2/bench/cold/blobs/%s", origin, d), size) }
			})
		})
	}
}

// BenchmarkColdImage pulls an image of one layer by its tag, as BenchmarkColdBlob
// reads a blob: the manifest, then the config and the layer.
func BenchmarkColdImage(b *testing.B) {
	for _, size := range []int64{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			cold(b, func(n *node, origin string, round int) (ours, direct func(*client)) {
				repository := fmt.Sprintf("bench/cold-%d", round)
				img := push(b, origin, repository, uint64(round), size)
				pull := func(c *client, manifest string, blob func(proto.Digest) string) {
					c.get(b, manifest, img.Manifest.Size)
					for _, p := range img.Blobs() {
						c.get(b, blob(p.Digest), p.Size)
					}
				}
				ours = func(c *client) {
					pull(c, n.manifestURL(repository, "v1"), func(d proto.Digest) string { return n.blobURL(repository, d) })
				}
				direct = func(c *client) {
					base := fmt.Sprintf("%s/v2/%s", origin, repository)
					pull(c, base+"/manifests/v1", func(d proto.Digest) string { return base + "/blobs/" + d.String() })
				}
				return ours, direct
			})
		})
	}
}

// cold measures rounds, each of which prepare makes new content for.
func cold(b *testing.B, prepare func(n *node, origin string, round int) (ours, direct func(*client))) {
	origin := startOrigin(b)
	n := startNode(b, "daemon", "cold", origin, "")
	converge(b, n)
	// Connections of their own, as two runtimes would have them.
	nodeClient, originClient := newClient(b), newClient(b)
	measure := func(f func(*client), c *client) time.Duration {
		start := time.Now()
		f(c)
		return time.Since(start)
	}
	ours, direct := prepare(n, origin, 0)
	ours(nodeClient)
	direct(originClient)

	var floors, extra []time.Duration
	for b.Loop() {
		b.StopTimer()
		ours, direct := prepare(n, origin, 1+len(extra))
		b.StartTimer()
		var us, them time.Duration
		turns(b, len(extra),
			func() { us = measure(ours, nodeClient) },
			func() { them = measure(direct, originClient) })
		floors, extra = append(floors, them), append(extra, us-them)
	}
	b.ReportMetric(median(extra)*1e3, "extra-ms")
	b.ReportMetric(median(floors)*1e3, "direct-ms")
}
