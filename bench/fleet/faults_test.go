package fleet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// pullAll pulls an image on the given nodes at once.
func pullAll(t *testing.T, img registry.Image, nodes ...*fleet.Node) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		c := newClient(t)
		wg.Go(func() {
			if err := pullImage(t.Context(), c, n, img); err != nil {
				t.Errorf("%s: %v", n.Config.Name, err)
			}
		})
	}
	wg.Wait()
}

// blobFile returns where a node keeps a whole blob.
func blobFile(t *testing.T, n *fleet.Node, d proto.Digest) string {
	t.Helper()
	file := filepath.Join(n.Config.Data, "blobs", d.Algorithm(), d.Hex()[:2], d.Hex())
	waitFor(t, file, func() bool { // readers have the bytes before they are durable
		_, err := os.Stat(file)
		return err == nil
	})
	return file
}

func TestPeerThatSendsWrongBytes(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 1, 8<<20)
	f := startFleet(t, fleet.Options{Nodes: 4, Origin: o.url})
	pullAll(t, img, f.Nodes[0])
	layer := img.Layers[0]
	file := blobFile(t, f.Nodes[0], layer.Digest)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < layer.Chunks(); i += 3 {
		data[layer.Chunk(i).Offset+100] ^= 1
	}
	w, err := os.OpenFile(file, os.O_WRONLY, 0) // the same file, as a bad disk would
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pullAll(t, img, f.Nodes[1:]...)
	for _, n := range f.Nodes[1:] {
		if least, _ := o.Copies(layer.Digest); least < 1 {
			t.Errorf("%s has the right bytes, but from whom?", n.Config.Name)
		}
	}
}

func TestPeerThatStalls(t *testing.T) {
	for name, cut := range map[string]bool{"stalls": false, "dies": true} {
		t.Run(name, func(t *testing.T) {
			o := startOrigin(t)
			img := o.push(t, "team/app", 2, 8<<20)
			f := startFleet(t, fleet.Options{Nodes: 3, Scheduler: true, Origin: o.url,
				Configure: func(i int, c *daemon.Config) {
					if i == 0 {
						throughProxy(c)
					}
				}})
			p := startProxy(t, f.Nodes[0], 1<<40, cut)
			// Node 0 is the only holder but for the scheduler, which seeds and
			// is stopped.
			pullAll(t, img, f.Nodes[0])
			if err := f.Scheduler.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := f.Converge(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.limit.Store(1<<20 + 12345) // in the middle of a chunk
			pullAll(t, img, f.Nodes[1:]...)
		})
	}
}

// TestSchedulerThatDies: in the middle of a rollout the scheduler, which is
// also the seed, goes away. Others take over; nothing is fetched from the
// origin a second time but what nobody else had.
func TestSchedulerThatDies(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 3, 24<<20)
	f := startFleet(t, fleet.Options{Nodes: 4, Scheduler: true, Origin: o.url})
	o.SetFaults(registry.Faults{Rate: 8 << 20}) // three seconds' worth
	var wg sync.WaitGroup
	for _, n := range f.Nodes {
		c := newClient(t)
		wg.Go(func() {
			if err := pullImage(t.Context(), c, n, img); err != nil {
				t.Errorf("%s: %v", n.Config.Name, err)
			}
		})
	}
	waitFor(t, "a third of the layer at the scheduler", func() bool {
		return f.Scheduler.Status().Bytes.Origin > 8<<20
	})
	if err := f.Scheduler.Stop(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	_, most := o.Copies(img.Layers[0].Digest)
	if most > 2 {
		t.Errorf("some bytes left the origin %d times, want twice at most: to the scheduler and to one other", most)
	}
}

// TestNodeThatLeaves: a node that has fetched chunks for the others stops in
// the middle.
func TestNodeThatLeaves(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 4, 24<<20)
	f := startFleet(t, fleet.Options{Nodes: 4, Origin: o.url})
	o.SetFaults(registry.Faults{Rate: 8 << 20})
	var wg sync.WaitGroup
	for i, n := range f.Nodes {
		c := newClient(t)
		wg.Go(func() {
			if err := pullImage(t.Context(), c, n, img); err != nil && i != 0 {
				t.Errorf("%s: %v", n.Config.Name, err)
			}
		})
	}
	waitFor(t, "a quarter of the layer at node 0", func() bool {
		b := f.Nodes[0].Status().Bytes
		return b.Origin+b.Peers() > 6<<20
	})
	if err := f.Nodes[0].Stop(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestOriginThatCuts(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 5, 12<<20+1)
	f := startFleet(t, fleet.Options{Nodes: 3, Scheduler: true, Origin: o.url})
	o.SetFaults(registry.Faults{CutAfter: 1 << 20})
	pullAll(t, img, f.Nodes...)
	o.onceEach(t, img)
}

// TestOriginThatLies: the origin sends wrong bytes. No client ever gets a
// complete wrong blob, and nothing wrong is kept.
func TestOriginThatLies(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 6, 4<<20)
	f := startFleet(t, fleet.Options{Nodes: 2, Origin: o.url})
	o.SetFaults(registry.Faults{WrongBytes: -1})
	if err := get(t.Context(), newClient(t), f.Nodes[0], img, img.Layers[0]); err == nil {
		t.Error("a client got a blob of which the origin sends wrong bytes, and it was right")
	} else if strings.Contains(err.Error(), "other content") {
		t.Errorf("a client got a complete wrong blob: %v", err)
	}
	waitFor(t, "the node to give up", func() bool { return len(f.Nodes[0].Status().Pulls) == 0 })
	o.SetFaults(registry.Faults{})
	pullAll(t, img, f.Nodes...)
}

func TestOriginThatLiesOnce(t *testing.T) {
	// One wrong byte, once: the node finds out at the end, fetches everything
	// again on its own, and the client, cut off once, resumes.
	o := startOrigin(t)
	img := o.push(t, "team/app", 7, 4<<20)
	f := startFleet(t, fleet.Options{Nodes: 1, Origin: o.url})
	o.SetFaults(registry.Faults{WrongBytes: 1})
	c := newClient(t)
	if err := get(t.Context(), c, f.Nodes[0], img, img.Layers[0]); err == nil {
		t.Log("the client read slowly enough not to meet the wrong byte")
	}
	waitFor(t, "the node to mend the blob", func() bool { return len(f.Nodes[0].Status().Pulls) == 0 })
	if err := get(t.Context(), c, f.Nodes[0], img, img.Layers[0]); err != nil {
		t.Errorf("after the wrong byte was found: %v", err)
	}
}

// TestRestartResumes: what a node has of a blob when it stops, it has when it
// comes back.
func TestRestartResumes(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 8, 24<<20)
	f := startFleet(t, fleet.Options{Nodes: 1, Origin: o.url})
	o.SetFaults(registry.Faults{Rate: 8 << 20})
	done := make(chan error, 1)
	c := newClient(t)
	go func() { done <- get(t.Context(), c, f.Nodes[0], img, img.Layers[0]) }()
	waitFor(t, "half of the layer", func() bool { return f.Nodes[0].Status().Bytes.Origin > 12<<20 })
	if err := f.Nodes[0].Stop(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Fatal("the layer came too fast to be interrupted")
	}
	o.SetFaults(registry.Faults{})
	n, err := f.StartNode(0)
	if err != nil {
		t.Fatal(err)
	}
	f.Nodes[0] = n
	if err := f.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := get(t.Context(), c, n, img, img.Layers[0]); err != nil {
		t.Fatal(err)
	}
	// Chunks that were half there at the stop are fetched again, the others not.
	b := img.Layers[0]
	if got, limit := o.Count().BlobBytes, b.Size+8*b.ChunkSize(); got > limit {
		t.Errorf("%d bytes left the origin for a blob of %d, want %d at most", got, b.Size, limit)
	}
}

func TestWarm(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 9, 4<<20, 1<<20)
	f := startFleet(t, fleet.Options{Nodes: 2, Scheduler: true, Origin: o.url})
	pullAll(t, img, f.Nodes...)
	before := o.Count()
	pullAll(t, img, f.Nodes...)
	if after := o.Count(); after.BlobBytes != before.BlobBytes || after.ManifestBytes != before.ManifestBytes {
		t.Errorf("a warm pull took bytes from the origin: %+v, then %+v", before, after)
	}
	for _, n := range f.Nodes {
		if disk := n.Status().Bytes.Disk; disk < img.Size()-img.Manifest.Size {
			t.Errorf("%s served %d bytes from disk, want the image's %d", n.Config.Name, disk, img.Size())
		}
	}
}

func TestLateNodeTakesFromPeers(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 10, 8<<20)
	f := startFleet(t, fleet.Options{Nodes: 3, Origin: o.url})
	pullAll(t, img, f.Nodes[0])
	pullAll(t, img, f.Nodes[1])
	pullAll(t, img, f.Nodes[2])
	o.onceEach(t, img)
}

func TestNodesOfOneNameAndPlainTransport(t *testing.T) {
	o := startOrigin(t)
	img := o.push(t, "team/app", 11, 6<<20)
	f := startFleet(t, fleet.Options{Nodes: 3, Scheduler: true, Origin: o.url,
		Configure: func(i int, c *daemon.Config) {
			c.Peer.Security = "none"
			c.Name = "same"
			c.Zone = fmt.Sprintf("z%d", i&1)
		}})
	pullAll(t, img, f.Nodes...)
	o.onceEach(t, img)
}
