//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// A containerd is an instance with everything of its own.
type containerd struct {
	*process.Process
	name   string
	socket string
	hosts  string // directory of hosts.toml files
}

// startContainerd starts an instance that pulls from upstream through a mirror
// and has no other way to it.
func startContainerd(t *testing.T, dir, name, mirror string) *containerd {
	t.Helper()
	dir = filepath.Join(dir, name)
	c := &containerd{name: name, socket: filepath.Join(dir, "c.sock"), hosts: filepath.Join(dir, "certs.d")}
	config := filepath.Join(dir, "config.toml")
	write(t, config, fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, filepath.Join(dir, "opt")))
	write(t, filepath.Join(c.hosts, "_default", "hosts.toml"), fmt.Sprintf(`[host."http://%s"]
  capabilities = ["pull", "resolve"]
`, mirror))
	t.Cleanup(func() { killMentioning(t, c.socket) }) // after the daemon's own end: shims
	c.Process = start(t, process.Options{Name: name, Path: "containerd", Args: []string{"--config", config}})
	line(t, c.Process, "containerd successfully booted")
	return c
}

// ctr runs a command of ctr.
func (c *containerd) ctr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, nil, "ctr", append([]string{"--address", c.socket}, args...)...)
}

// pull pulls and unpacks an image.
func (c *containerd) pull(t *testing.T, img image) error {
	t.Helper()
	_, err := c.ctr(t, "images", "pull", "--hosts-dir", c.hosts, img.name())
	return err
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
