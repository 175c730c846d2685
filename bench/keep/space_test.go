package keep_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// file returns where the node keeps a whole blob.
func (b *bed) file(d proto.Digest) string {
	return filepath.Join(b.node.Config.Data, "blobs", d.Algorithm(), d.Hex()[:2], d.Hex())
}

func (b *bed) has(d proto.Digest) bool {
	_, err := os.Stat(b.file(d))
	return err == nil
}

// TestQuotaAndPins: more is pulled than the quota holds; what is pinned stays,
// what was used longest ago goes, and everything can be pulled again.
func TestQuotaAndPins(t *testing.T) {
	t.Parallel()
	const size = 2 << 20
	b := start(t, func(c *daemon.Config) {
		set(t, &c.Cache.Quota, "10MiB")
		c.Cache.Keep = 0
		c.Cache.Pins = []string{"origin.test/team/pinned:v*"}
	})
	pinned := b.push("team/pinned", "v1", 100, size)
	b.pull(pinned)
	var images []registry.Image
	for i := range uint64(8) {
		img := b.push(fmt.Sprintf("team/app%d", i), "v1", i, size)
		b.pull(img)
		images = append(images, img)
	}
	waitFor(t, "the quota to be kept", func() bool {
		u, err := b.admin().Cache(t.Context())
		return err == nil && u.Bytes <= 10<<20
	})
	if !b.has(pinned.Layers[0].Digest) || !b.has(pinned.Manifest.Digest) || !b.has(pinned.Config.Digest) {
		t.Error("a pinned image has lost blobs")
	}
	if b.has(images[0].Layers[0].Digest) {
		t.Error("the blob that was used longest ago is still here")
	}
	for _, img := range images {
		b.pull(img)
	}
}

// TestSharedBlob is of a blob that two repositories have, and that one of them
// loses at the origin.
func TestSharedBlob(t *testing.T) {
	t.Parallel()
	for _, evicted := range []bool{false, true} {
		t.Run(fmt.Sprint("evicted ", evicted), func(t *testing.T) {
			t.Parallel()
			b := start(t, nil)
			one, two := b.push("team/one", "v1", 1, 300<<10), b.push("team/two", "v1", 1, 300<<10)
			layer := one.Layers[0]
			b.pull(one)
			b.Reset()
			b.pull(two)
			if _, most := b.Copies(layer.Digest); most != 0 {
				t.Error("a blob that is here was fetched again for another repository")
			}
			if evicted {
				if err := b.node.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(b.file(layer.Digest)); err != nil {
					t.Fatal(err)
				}
				b.startAgain()
			}
			b.blob("team/two", layer)
			b.blob("team/one", layer)
			if least, most := b.Copies(layer.Digest); evicted && (least != 1 || most != 1) || !evicted && most != 0 {
				t.Errorf("bytes left the origin %d to %d times", least, most)
			}
			b.want(b.ask("GET", "team/three/blobs/"+layer.Digest.String()), 404)
		})
	}
}

// small mounts a file system of so many bytes.
func small(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestFullDisk: pulls are streamed through, each of them right, and what was
// kept is served.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := small(t, 96<<20)
	b := start(t, func(c *daemon.Config) { c.Data = filepath.Join(dir, "data") })
	kept := b.push("team/kept", "v1", 1, 4<<20)
	b.pull(kept)
	// Somebody else fills the disk.
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = hog.Write(make([]byte, 1<<16))
	}
	hog.Close()
	b.SetFaults(registry.Faults{})
	for i := range uint64(3) {
		b.pull(b.push(fmt.Sprintf("team/app%d", i), "v1", 10+i, 5<<20))
	}
	b.pull(kept)
	img := b.push("team/ranges", "v1", 20, 5<<20)
	whole := b.want(b.ask("GET", "team/ranges/blobs/"+img.Layers[0].Digest.String()), 200).body
	part := b.want(b.ask("GET", "team/ranges/blobs/"+img.Layers[0].Digest.String(), "Range", "bytes=3000000-3000099"), 206).body
	if string(part) != string(whole[3000000:3000100]) {
		t.Error("a range of a blob that is streamed through is wrong")
	}
	if err := os.Remove(hog.Name()); err != nil {
		t.Fatal(err)
	}
	again := b.push("team/again", "v1", 30, 5<<20)
	b.pull(again)
	waitFor(t, "the cache to keep blobs again", func() bool { return b.has(again.Layers[0].Digest) })
}

// TestDiskFillsInTheMiddle of a response: the client notices nothing.
func TestDiskFillsInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := small(t, 128<<20)
	b := start(t, func(c *daemon.Config) { c.Data = filepath.Join(dir, "data") })
	const size = 24 << 20
	layer := b.push("team/app", "v1", 1, size).Layers[0]
	b.SetFaults(registry.Faults{Rate: 8 << 20})
	resp, err := b.open(t.Context(), b.node, "GET", "team/app/blobs/"+layer.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h := layer.Digest.NewHash()
	if _, err := io.CopyN(h, resp.Body, size/4); err != nil {
		t.Fatal(err)
	}
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = hog.Write(make([]byte, 1<<16))
	}
	hog.Close()
	b.SetFaults(registry.Faults{})
	if n, err := io.Copy(h, resp.Body); err != nil || n != size*3/4 || !layer.Digest.Matches(h) {
		t.Errorf("the rest is %d bytes, %v", n, err)
	}
}

// TestQuotaSmallerThanABlob: it is streamed through.
func TestQuotaSmallerThanABlob(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { set(t, &c.Cache.Quota, "2MiB") })
	img := b.push("team/app", "v1", 1, 5<<20)
	b.pull(img)
	b.pull(img)
	if b.has(img.Layers[0].Digest) {
		t.Error("a blob larger than the quota was kept")
	}
}

// TestDamagedBlob is of a file that changed on the disk, and of one that cannot
// be read: it is set aside, and fetched again.
func TestDamagedBlob(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"bit": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var one [1]byte
			if _, err := f.ReadAt(one[:], 100000); err != nil {
				return err
			}
			one[0] ^= 1
			_, err = f.WriteAt(one[:], 100000)
			return err
		},
		"short": func(path string) error { return os.Truncate(path, 1000) },
		"unreadable": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700) // reading it fails for root, too
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, nil)
			img := b.push("team/app", "v1", 1, 3<<20)
			layer := img.Layers[0]
			b.pull(img)
			waitFor(t, "the blob to be in its place", func() bool { return b.has(layer.Digest) && len(b.node.Status().Pulls) == 0 })
			if err := damage(b.file(layer.Digest)); err != nil {
				t.Fatal(err)
			}
			report, err := b.admin().Scrub(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Damaged) != 1 || report.Damaged[0] != layer.Digest {
				t.Errorf("the scrub found %v", report.Damaged)
			}
			waitFor(t, "the blob to be fetched again", func() bool { least, _ := b.Copies(layer.Digest); return least == 2 })
			b.blob("team/app", layer)
		})
	}
}

// TestScrubTellsHowFarItIs, and ends when who asked for it goes.
func TestScrubTellsHowFarItIs(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { set(t, &c.Cache.ScrubRate, "1mbit") })
	img := b.push("team/app", "v1", 1, 8<<20)
	b.pull(img)
	waitFor(t, "the blob to be in its place", func() bool { return b.has(img.Layers[0].Digest) && len(b.node.Status().Pulls) == 0 })
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := b.admin().Scrub(ctx)
		ended <- err
	}()
	waitFor(t, "the scrub to get somewhere", func() bool {
		at, err := b.admin().ScrubProgress(t.Context())
		return err == nil && at.Running && at.BytesDone > 0 && at.BytesDone < at.Bytes
	})
	if _, err := b.admin().Scrub(t.Context()); err == nil {
		t.Error("two scrubs at once")
	}
	leave()
	if err := <-ended; err == nil {
		t.Error("the scrub came to its end")
	}
	waitFor(t, "the scrub to be over", func() bool {
		at, err := b.admin().ScrubProgress(t.Context())
		return err == nil && !at.Running
	})
}

// TestEvictedIsTakenBack: nobody is sent to a node for a blob that has gone.
func TestEvictedIsTakenBack(t *testing.T) {
	t.Parallel()
	b := startOrigin(t)
	b.fleet = startFleet(t, b.url, 2, func(c *daemon.Config) {
		set(t, &c.Cache.Quota, "300KiB")
		set(t, &c.Cache.High, "100%")
		set(t, &c.Cache.Low, "10%")
		c.Cache.Keep = 0
	})
	b.node = b.fleet.Nodes[0]
	img := b.push("team/app", "v1", 1, 200<<10) // of one chunk: of others the sums are asked for first
	layer := img.Layers[0]
	b.pull(img)
	waitFor(t, "the blob to be in its place", func() bool { return b.has(layer.Digest) && len(b.node.Status().Pulls) == 0 })
	resp, err := b.client.Post("http://"+b.node.AdminAddr()+"/v1/cache/gc", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if b.has(layer.Digest) {
		t.Fatalf("the collection (%s) has left the blob", resp.Status)
	}
	a, err := b.try(t.Context(), b.fleet.Nodes[1], "GET", "team/app/blobs/"+layer.Digest.String())
	if err != nil || a.status != 200 || proto.DigestOf(a.body) != layer.Digest {
		t.Fatalf("the other node answered %d, %v", a.status, err)
	}
	for _, n := range b.fleet.Nodes {
		b.node = n
		if failed := b.metric("shoal_scheduler_failed_leases_total"); failed != "0" {
			t.Errorf("%s had %s leases that failed", n.Config.Name, failed)
		}
	}
}

// TestUnreadableFile: without a scrub, a client gets the blob all the same.
func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	img := b.push("team/app", "v1", 1, 3<<20)
	layer := img.Layers[0]
	b.pull(img)
	waitFor(t, "the blob to be in its place", func() bool { return b.has(layer.Digest) && len(b.node.Status().Pulls) == 0 })
	if err := os.Remove(b.file(layer.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.file(layer.Digest), 0o700); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.blob("team/app", layer)
}

// TestAdoptedStore: what containerd has is served without the origin and
// without a second copy.
func TestAdoptedStore(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	sums := filepath.Join(store, "blobs", "sha256")
	if err := os.MkdirAll(sums, 0o755); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *daemon.Config) { c.Cache.Adopt = []string{store} })
	img := b.push("team/app", "v1", 1, 3<<20)
	layer := img.Layers[0]
	content := b.get(layer.Digest)
	b.Reset()
	// As containerd commits: a rename into place.
	if err := os.WriteFile(filepath.Join(store, "ingest"), content, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(store, "ingest"), filepath.Join(sums, layer.Digest.Hex())); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the blob to be seen", func() bool {
		u, err := b.admin().Cache(t.Context())
		return err == nil && u.Adopted == 1
	})
	b.blob("team/app", layer)
	if _, most := b.Copies(layer.Digest); most != 0 {
		t.Error("an adopted blob was fetched from the origin")
	}
	if b.has(layer.Digest) {
		t.Error("an adopted blob was copied")
	}
	if err := os.Remove(filepath.Join(sums, layer.Digest.Hex())); err != nil {
		t.Fatal(err)
	}
	b.blob("team/app", layer)
	if least, _ := b.Copies(layer.Digest); least != 1 {
		t.Error("a blob that containerd has removed was not fetched")
	}
}

// get fetches a blob from the origin itself.
func (b *bed) get(d proto.Digest) []byte {
	b.t.Helper()
	resp, err := b.client.Get(b.url + "/v2/team/app/blobs/" + d.String())
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s, %v", resp.Status, err)
	}
	return content
}
