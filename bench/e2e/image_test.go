//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const mib = 1 << 20

// An image is one that was pushed: an index with an image for this machine,
// whose containers print the SHA-256 of each file below /data, and one for
// another platform.
type image struct {
	repository string
	digest     string            // of the manifest for this machine
	layers     []v1.Descriptor   // of the image for this machine
	foreign    []v1.Descriptor   // of the other one
	size       int64             // bytes of a pull: index, manifest, config, layers
	sums       map[string]string // by path
}

// printSums is what its containers do.
var printSums = []string{"/bin/sh", "-c", "sha256sum /data/*"}

// push makes an image with a layer of each of the given sizes, of random bytes,
// beside the one with a shell, and pushes it with the tag v1. With docker it has
// Docker's media types in place of OCI's.
func (o *origin) push(t *testing.T, repository string, docker bool, sizes ...int64) image {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile(lookPath(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	out := image{repository: repository, sums: make(map[string]string)}
	layers := []v1.Layer{makeLayer(t, dir, docker,
		&tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox,
		&tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil,
		&tar.Header{Name: "bin/sha256sum", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil,
		&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"),
		&tar.Header{Name: "etc/image", Mode: 0o644}, random(16))} // no two images share a layer
	for i, size := range sizes {
		data := random(size)
		path := fmt.Sprintf("data/%d", i)
		sum := sha256.Sum256(data)
		out.sums["/"+path] = hex.EncodeToString(sum[:])
		layers = append(layers, makeLayer(t, dir, docker, &tar.Header{Name: path, Mode: 0o644}, data))
	}
	img := assemble(t, docker, runtime.GOARCH, layers...)
	other := assemble(t, docker, "riscv64", makeLayer(t, dir, docker, &tar.Header{Name: "data/x", Mode: 0o644}, random(mib)))
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	if docker {
		index = mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	}
	index = mutate.AppendManifests(index, addendum(other, "riscv64"), addendum(img, runtime.GOARCH))
	tag, err := name.NewTag(o.registry+"/"+repository+":v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{remote.WithContext(t.Context())}
	if o.login != nil {
		options = append(options, remote.WithAuth(o.login))
	}
	if err := remote.WriteIndex(tag, index, options...); err != nil {
		t.Fatal(err)
	}
	out.describe(t, index, img, other)
	return out
}

// describe fills in what a pull of img takes.
func (i *image) describe(t *testing.T, index v1.ImageIndex, img, other v1.Image) {
	t.Helper()
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	i.digest, i.layers, i.foreign = digest.String(), manifest.Layers, foreign.Layers
	for _, sized := range []interface{ Size() (int64, error) }{index, img} {
		n, err := sized.Size()
		if err != nil {
			t.Fatal(err)
		}
		i.size += n
	}
	i.size += manifest.Config.Size
	for _, l := range manifest.Layers {
		i.size += l.Size
	}
}

func assemble(t *testing.T, docker bool, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if docker {
		img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.DockerManifestSchema2), types.DockerConfigJSON)
	}
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Cmd = printSums
	config.Config.Env = []string{"PATH=/bin"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func addendum(img v1.Image, arch string) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
}

// makeLayer writes a compressed tar file of headers and contents, in turn.
func makeLayer(t *testing.T, dir string, docker bool, entries ...any) v1.Layer {
	t.Helper()
	f, err := os.CreateTemp(dir, "*.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Random bytes do not get smaller, and trying takes its time.
	z, err := gzip.NewWriterLevel(f, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for i := 0; i < len(entries); i += 2 {
		h := entries[i].(*tar.Header)
		content, _ := entries[i+1].([]byte) // nil for a link
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []io.Closer{w, z} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mediaType := types.OCILayer
	if docker {
		mediaType = types.DockerLayer
	}
	l, err := tarball.LayerFromFile(f.Name(), tarball.WithMediaType(mediaType))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func random(size int64) []byte {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	return data
}

func lookPath(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkSums checks what a container of the image printed.
func (i image) checkSums(t *testing.T, who, printed string) {
	t.Helper()
	got := 0
	for line := range bytes.Lines([]byte(printed)) {
		f := bytes.Fields(line)
		if len(f) != 2 || i.sums[string(f[1])] != string(f[0]) {
			t.Errorf("%s: a file in the container is not what was pushed: %s", who, line)
			continue
		}
		got++
	}
	if got != len(i.sums) {
		t.Errorf("%s: the container has %d right files, want %d; it printed:\n%s", who, got, len(i.sums), printed)
	}
}

// checkOnce checks that what left the origin is the image once, within 2 %, and
// nothing of the foreign platform.
func (i image) checkOnce(t *testing.T, o *origin) {
	t.Helper()
	i.checkAtMost(t, o, i.size+i.size/50)
	if got := o.total(); got < i.size*98/100 {
		t.Errorf("%d bytes left the registry, and the image has %d: was it pulled through the proxy at all?", got, i.size)
	}
	for _, l := range i.layers {
		if got := o.left(l.Digest.String()); got != l.Size {
			t.Errorf("of the layer %s with %d bytes, %d left the registry", l.Digest, l.Size, got)
		}
	}
}

// checkAtMost checks that no more than limit bytes left the origin, and nothing
// of the foreign platform.
func (i image) checkAtMost(t *testing.T, o *origin, limit int64) {
	t.Helper()
	got := o.total()
	t.Logf("%d bytes left the registry, %.3f × the image's %d", got, float64(got)/float64(i.size), i.size)
	if got > limit {
		t.Errorf("%d bytes left the registry, want %d at most", got, limit)
	}
	for _, l := range i.foreign {
		if got := o.left(l.Digest.String()); got != 0 {
			t.Errorf("%d bytes of another platform's layer left the registry", got)
		}
	}
}
