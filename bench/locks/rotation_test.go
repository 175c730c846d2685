package locks_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

// replace puts a file in the place of another at once, as a mounted secret is.
func replace(t *testing.T, file string, lines ...string) {
	t.Helper()
	next := file + ".next"
	write(t, next, strings.Join(lines, "\n")+"\n")
	if err := os.Rename(next, file); err != nil {
		t.Fatal(err)
	}
}

// TestSecretChangesUnderLoad: the cluster secret is changed in three steps, node
// by node, with pulls going on. At every moment all members have each other, and
// each chunk leaves the origin once. After that the old secret is worth nothing.
func TestSecretChangesUnderLoad(t *testing.T) {
	const nodes, before, after = 3, "the secret that is to be changed", "the secret that takes its place"
	dir, heard := t.TempDir(), &spy{}
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("secret-%d", i)) }
	b := startWith(t, registry.AuthToken, daemon.Upstream{Auth: "passthrough"}, heard, fleet.Options{Nodes: nodes, Configure: func(i int, c *daemon.Config) {
		secret := before
		if i > nodes {
			secret = after
		}
		write(t, file(i), secret)
		c.Gossip.SecretFile = file(i)
		withOpen(c)
	}})
	stop := b.busy(nodes)
	changed := make([]int, nodes)
	for _, step := range [][]string{{before, after}, {after, before}, {after}} {
		for i := range nodes {
			replace(t, file(i), step...)
			changed[i]++
			waitFor(t, "the secret to be taken in", func() bool {
				return heard.count("cluster secret changed", fmt.Sprintf(" at=node-%d ", i)) == changed[i]
			})
			// The two halves still understand each other, both ways.
			b.tells(0, nodes-1)
			b.tells(nodes-1, 0)
		}
	}
	pulls := stop()
	t.Logf("%d images pulled by all nodes meanwhile", pulls)
	if pulls < 3 {
		t.Errorf("%d images were pulled meanwhile", pulls)
	}
	if n, err := b.fleet.StartNode(nodes); err != nil { // with the old secret
		t.Error(err)
	} else {
		waitFor(t, "the node with the old secret to knock", func() bool { return heard.count("another cluster secret knocks") > 0 })
		if err := n.Stop(); err != nil && !strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
	}
	for _, at := range b.fleet.Nodes {
		if got := len(at.Status().Members); got != nodes {
			t.Errorf("%s has %d members after somebody came with the old secret", at.Config.Name, got)
		}
	}
	n, err := b.fleet.StartNode(nodes + 1) // with the new one
	if err != nil {
		t.Fatal(err)
	}
	b.fleet.Nodes = append(b.fleet.Nodes, n)
	if err := b.fleet.Converge(t.Context()); err != nil {
		t.Error(err)
	}
}

// watch looks whether each node has n members, until over is closed. Where the
// machine has just let nothing run for a while, members miss each other with
// reason.
func (b *bed) watch(n int, over <-chan struct{}) {
	const starved, recovers = 300 * time.Millisecond, 10 * time.Second
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	last, hungry := time.Now(), time.Time{}
	for {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Sub(last) > starved {
			hungry = now
		}
		last = now
		for _, at := range b.fleet.Nodes {
			if got := len(at.Status().Members); got != n && now.Sub(hungry) > recovers {
				b.t.Errorf("%s has %d members, want %d", at.Config.Name, got, n)
				return
			}
		}
	}
}

// busy has all nodes pull one new public image after the other, and watches their
// members meanwhile, until the function that it returns is called, which returns
// how many images that were. Nodes pull an image at once, and each chunk of it may
// leave the origin once.
func (b *bed) busy(n int) (stop func() (pulls int)) {
	over, pulls := make(chan struct{}), 0
	var running sync.WaitGroup
	running.Go(func() { b.watch(n, over) })
	as := strings.Replace(b.url, "http://", "http://root:"+passwords["root"]+"@", 1)
	running.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			seed := b.seed.Add(1)
			img, err := registry.PushImage(b.t.Context(), as, publicRepo, fmt.Sprintf("v%d", seed), []int64{2 << 20, 1000}, seed)
			if err != nil {
				b.t.Error(err)
				return
			}
			var all sync.WaitGroup
			for _, at := range b.fleet.Nodes {
				all.Go(func() {
					if err := b.fetch(at, img); err != nil {
						b.t.Error(err)
					}
				})
			}
			all.Wait()
			for _, l := range img.Layers {
				if least, most := b.Copies(l.Digest); least != 1 || most != 1 {
					b.t.Errorf("bytes of %s left the origin %d to %d times, want once", img.Tag, least, most)
					return
				}
			}
			pulls++
		}
	})
	return func() int {
		close(over)
		running.Wait()
		return pulls
	}
}

// tells has one node tell another something through the gossip.
func (b *bed) tells(from, to int) {
	b.t.Helper()
	d := proto.DigestOf(fmt.Append(nil, "nobody has this ", b.seed.Add(1)))
	b.block(from, d.String(), "told")
	waitFor(b.t, fmt.Sprintf("news of node %d at node %d", from, to), func() bool { return b.blocked(to, d) })
}

func (b *bed) block(i int, image, reason string) {
	b.t.Helper()
	if _, err := admin.NewClient(b.fleet.Nodes[i].AdminAddr()).Block(b.t.Context(), image, reason); err != nil {
		b.t.Fatal(err)
	}
}

// blocked reports whether node i knows that a digest is blocked.
func (b *bed) blocked(i int, d proto.Digest) bool {
	b.t.Helper()
	all, err := admin.NewClient(b.fleet.Nodes[i].AdminAddr()).Blocked(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range all {
		if e.Digest == d {
			return e.Blocked
		}
	}
	return false
}
