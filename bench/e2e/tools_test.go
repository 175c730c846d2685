//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/shoal-project/shoal/proto"
)

// registriesConf writes a registries.conf as the README has it, and returns
// its path.
func registriesConf(t *testing.T, dir, mirror string) string {
	t.Helper()
	file := filepath.Join(dir, "registries.conf")
	write(t, file, fmt.Sprintf(`[[registry]]
location = %q

[[registry.mirror]]
location = "%s/%[1]s"
insecure = true
`, upstream, mirror))
	return file
}

// checkDir checks what skopeo wrote: files that are named by their digests,
// and the manifest.
func (i image) checkDir(t *testing.T, dir string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := proto.DigestOf(raw).String(); got != i.digest {
		t.Errorf("skopeo has the manifest %s, want %s", got, i.digest)
	}
	var manifest struct {
		Layers []struct{ Digest proto.Digest }
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Layers) != len(i.layers) {
		t.Fatalf("skopeo has %d layers, want %d", len(manifest.Layers), len(i.layers))
	}
	for _, l := range manifest.Layers {
		data, err := os.ReadFile(filepath.Join(dir, l.Digest.Hex()))
		if err != nil {
			t.Error(err)
		} else if got := proto.DigestOf(data); got != l.Digest {
			t.Errorf("skopeo's file %s has the digest %s", l.Digest, got)
		}
	}
}

// A podman has its storage in a directory of the test.
type podman struct {
	env   []string
	args  []string
	start func(*exec.Cmd) error // on this machine, unless it is another host's
}

func newPodman(t *testing.T, dir, registriesConf string) podman {
	t.Helper()
	storage := filepath.Join(dir, "storage.conf")
	root := filepath.Join(dir, "podman")
	write(t, storage, fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n",
		filepath.Join(root, "root"), filepath.Join(root, "run")))
	p := podman{
		env:   []string{"CONTAINERS_REGISTRIES_CONF=" + registriesConf, "CONTAINERS_STORAGE_CONF=" + storage},
		args:  []string{"--runtime", lookPath(t, "runc"), "--tmpdir", filepath.Join(root, "tmp")},
		start: (*exec.Cmd).Start,
	}
	t.Cleanup(func() {
		killMentioning(t, root) // conmon of a container that was left
	})
	return p
}

func (p podman) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try is run for commands that may fail.
func (p podman) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return tryAt(t, p.start, p.env, "podman", append(p.args[:len(p.args):len(p.args)], args...)...)
}

// checkContainer runs a container of an image that was pulled, and checks its
// files.
func (p podman) checkContainer(t *testing.T, img image, ref string) {
	t.Helper()
	img.checkSums(t, "podman", p.run(t, "run", "--rm", "--network", "none", "--cgroup-manager", "cgroupfs",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", ref))
}

// checkTarball checks that a file of crane's has the image's layers.
func (i image) checkTarball(t *testing.T, file string) {
	t.Helper()
	got, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != len(i.layers) {
		t.Fatalf("crane has %d layers, want %d", len(layers), len(i.layers))
	}
	for k, l := range layers {
		// The file has them as they came, so they have the registry's digests.
		if d, err := l.Digest(); err != nil || d != i.layers[k].Digest {
			t.Errorf("layer %d is %s, want %s: %v", k, d, i.layers[k].Digest, err)
		}
	}
}

// TestAbsent: what a person sees who asks for an image that is not there.
func TestAbsent(t *testing.T) {
	dir := workDir(t)
	n := startAlone(t, dir, startOrigin(t, dir), upstream)
	if out, err := try(t, nil, "crane", "manifest", "--insecure", n.Mirror+"/"+upstream+"/team/nothing:v1"); err == nil || !strings.Contains(err.Error(), "UNKNOWN") {
		t.Errorf("crane asked for an image that is not there and got %q, %v", out, err)
	}
}
