//go:build e2e

package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// A containerd is an instance with everything of its own.
type containerd struct {
	*process.Process
	name   string
	client string // path of ctr
	socket string
	hosts  string // directory of hosts.toml files
}

// startContainerd starts an instance of Debian's containerd that pulls from
// upstream through a mirror and has no other way to it.
func startContainerd(t *testing.T, dir, name, mirror string) *containerd {
	t.Helper()
	dir = filepath.Join(dir, name)
	return bootContainerd(t, dir, mirror, "", fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socketIn(dir), filepath.Join(dir, "opt")))
}

// startContainerd2 starts an instance of containerd 2 likewise. If piece is not
// 0, it fetches each layer with several requests at once, so many bytes by each.
func startContainerd2(t *testing.T, dir, name, mirror string, piece int64) *containerd {
	t.Helper()
	dir = filepath.Join(dir, name)
	return bootContainerd(t, dir, mirror, containerd2Dir(), fmt.Sprintf(`version = 4
root = %q
state = %q
imports = []
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[plugins."io.containerd.server.v1.grpc"]
  address = %q
[plugins."io.containerd.server.v1.ttrpc"]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = %d
  concurrent_layer_fetch_buffer = %d
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socketIn(dir), filepath.Join(dir, "opt"), ranges, piece))
}

// ranges is how many requests containerd 2 has open at once.
const ranges = 4

func socketIn(dir string) string { return filepath.Join(dir, "c.sock") }

// bootContainerd starts the containerd that is in the directory bin, or in PATH
// if that is empty, with its own things in dir.
func bootContainerd(t *testing.T, dir, mirror, bin, config string) *containerd {
	t.Helper()
	c := &containerd{name: filepath.Base(dir), client: filepath.Join(bin, "ctr"), socket: socketIn(dir), hosts: filepath.Join(dir, "certs.d")}
	file := filepath.Join(dir, "config.toml")
	write(t, file, config)
	write(t, filepath.Join(c.hosts, "_default", "hosts.toml"), fmt.Sprintf(`[host."http://%s"]
  capabilities = ["pull", "resolve"]
`, mirror))
	t.Cleanup(func() { killMentioning(t, c.socket) }) // after the daemon's own end: shims
	c.Process = start(t, process.Options{Name: c.name, Path: filepath.Join(bin, "containerd"), Args: []string{"--config", file}})
	line(t, c.Process, "containerd successfully booted")
	return c
}

// ctr runs a command of ctr.
func (c *containerd) ctr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, nil, c.client, append([]string{"--address", c.socket}, args...)...)
}

// pull pulls and unpacks an image.
func (c *containerd) pull(t *testing.T, img image) error {
	t.Helper()
	_, err := c.ctr(t, "images", "pull", "--hosts-dir", c.hosts, img.name())
	return err
}

// forget removes an image with all that belongs to it.
func (c *containerd) forget(t *testing.T, img image) {
	t.Helper()
	if _, err := c.ctr(t, "images", "rm", "--sync", img.name()); err != nil {
		t.Fatal(err)
	}
	if out, err := c.ctr(t, "content", "ls", "--quiet"); err != nil || strings.TrimSpace(out) != "" {
		t.Fatalf("%s still has content, so it would not ask for it: %s%v", c.name, out, err)
	}
}

// checkMounted mounts an image that was pulled, and checks its files: without a
// container, since the shim has to be of the same release.
func (c *containerd) checkMounted(t *testing.T, img image) {
	t.Helper()
	at := filepath.Join(filepath.Dir(c.socket), "mounted")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ctr(t, "images", "mount", img.name(), at); err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	for path := range img.sums {
		data, err := os.ReadFile(filepath.Join(at, path))
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(&printed, "%x  %s\n", sha256.Sum256(data), path)
	}
	img.checkSums(t, c.name, printed.String())
	if _, err := c.ctr(t, "images", "unmount", "--rm", at); err != nil {
		t.Fatal(err)
	}
}

func (i image) name() string { return upstream + "/" + i.repository + ":v1" }

// runContainer runs a container of an image that was pulled, and checks its
// files. Its name is that of the instance's directory, since cgroups are the
// machine's.
func (c *containerd) runContainer(t *testing.T, img image) {
	t.Helper()
	id := filepath.Base(filepath.Dir(filepath.Dir(c.socket))) + "-" + c.name
	out, err := c.ctr(t, "run", "--rm", img.name(), id)
	if err != nil {
		t.Errorf("%s: run a container: %v", c.name, err)
		return
	}
	img.checkSums(t, c.name, out)
}

// pullAll pulls an image with several instances at once.
func pullAll(t *testing.T, img image, cs ...*containerd) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range cs {
		wg.Go(func() {
			if err := c.pull(t, img); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		})
	}
	wg.Wait()
}

// TestContainerd: two nodes pull the same cold image at once, unpack it and run
// containers of it, and it left the registry once.
func TestContainerd(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 64*mib, 32*mib, 16*mib, 8*mib, 1000)
	f := startFleet(t, dir, o, 2)
	a := startContainerd(t, dir, "containerd-1", f.daemons[0].Mirror)
	b := startContainerd(t, dir, "containerd-2", f.daemons[1].Mirror)
	pullAll(t, img, a, b)
	img.checkOnce(t, o)
	a.runContainer(t, img)
	b.runContainer(t, img)
	for _, n := range f.daemons {
		s := status(t, n)
		t.Logf("%s: %d bytes from the registry, %d from peers, %d for nothing", n.Name(), s.Bytes.Origin, s.Bytes.Peers(), s.Bytes.Duplicate)
	}
}
