package keep_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/shoal-project/shoal/daemon"
)

// TestByTheClock: what the configuration wants at certain times is done then.
func TestByTheClock(t *testing.T) {
	t.Parallel()
	const size = 2 << 20
	b := startOrigin(t)
	wanted := b.push("team/wanted", "v1", 1, 1<<20)
	b.fleet = startFleet(t, b.url, 1, func(c *daemon.Config) {
		c.Prefetch = []daemon.PrefetchConfig{{Image: "origin.test/team/wanted:v1", At: "@every 1s"}}
		c.Cache.Scrub = "@every 1s"
		c.Cache.GC = "@every 1s"
		set(t, &c.Cache.Quota, "8MiB")
		set(t, &c.Cache.High, "100%")
		set(t, &c.Cache.Low, "50%")
		c.Cache.Keep = 0
	})
	b.node = b.fleet.Nodes[0]
	waitFor(t, "the image to be brought", func() bool { return b.has(wanted.Layers[0].Digest) })

	for i := range uint64(3) { // under the high watermark, over the low one
		b.pull(b.push(fmt.Sprintf("team/app%d", i), "v1", 10+i, size))
	}
	waitFor(t, "the collection", func() bool {
		u, err := b.admin().Cache(t.Context())
		return err == nil && u.Bytes <= 4<<20
	})

	last := b.push("team/last", "v1", 20, size)
	b.pull(last)
	layer := last.Layers[0]
	waitFor(t, "the blob to be in its place", func() bool { return b.has(layer.Digest) && len(b.node.Status().Pulls) == 0 })
	if err := os.Truncate(b.file(layer.Digest), 1000); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the scrub to find the damage, and the blob to be fetched again", func() bool {
		least, _ := b.Copies(layer.Digest)
		return least == 2
	})
}
