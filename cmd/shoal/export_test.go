package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	gcr "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// exports exports images from a mirror to dir, as the command does.
func exports(t *testing.T, mirror, dir, platformFlag string, images ...string) ([]exported, error) {
	t.Helper()
	refs, err := imageList(strings.Join(images, ","))
	if err != nil {
		t.Fatal(err)
	}
	l, unlock, err := createLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	e := &exporter{layout: l, door: newDoor(mirror), meter: quiet(), right: make(map[proto.Digest]bool)}
	defer e.door.close()
	if platformFlag != "" {
		if err := e.platform.UnmarshalText([]byte(platformFlag)); err != nil {
			t.Fatal(err)
		}
	}
	return e.run(t.Context(), refs)
}

// names returns how the layout in dir calls its images, sorted.
func layoutNames(t *testing.T, dir string) []string {
	t.Helper()
	ds, err := layout{dir}.images()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range ds {
		out = append(out, d.Annotations[containerdName])
		if d.Annotations[containerdName] != d.Annotations["org.opencontainers.image.ref.name"] {
			t.Errorf("two names: %v", d.Annotations)
		}
	}
	slices.Sort(out)
	return out
}

// checkFiles checks that every file of the layout's blobs is what its name says
// and returns their number.
func checkFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n++
		d, err := proto.ParseDigest(filepath.Base(filepath.Dir(name)) + ":" + e.Name())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if err := (layout{dir}).check(t.Context(), proto.Blob{Digest: d, Size: fi.Size()}); err != nil {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExport exports an image, an index and an artifact with a SHA-512, and has
// go-containerregistry read and check what it understands of them.
func TestExport(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	node := startNode(t, reg)
	app, err := registry.PushImage(t.Context(), reg, "team/app", "v1", []int64{3 << 20, 1000, 0}, 1)
	if err != nil {
		t.Fatal(err)
	}
	index, err := pushIndex(t.Context(), reg, "team/multi", "v1", "linux/amd64", "linux/arm64/v8")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new", "out")
	whole, err := exports(t, node.MirrorAddr(), dir, "", fleet.Upstream+"/team/app:v1", fleet.Upstream+"/team/multi:v1")
	if err != nil || len(whole) != 2 {
		t.Fatalf("%d images: %v", len(whole), err)
	}
	if got, want := layoutNames(t, dir), []string{fleet.Upstream + "/team/app:v1", fleet.Upstream + "/team/multi:v1"}; !slices.Equal(got, want) {
		t.Errorf("the layout has %q, want %q", got, want)
	}
	if got := whole[0].tree.size(); got != app.Size() {
		t.Errorf("the image has %d bytes, want %d", got, app.Size())
	}
	root, err := gcr.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	child, err := root.ImageIndex(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(child); err != nil {
		t.Error(err)
	}
	// validate.Image compares layers with diff IDs, which random bytes lack.
	img, err := root.Image(hash(t, app.Manifest.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if layers, err := img.Layers(); err != nil || len(layers) != 3 {
		t.Errorf("%d layers: %v", len(layers), err)
	}
	// The manifest, the config and three layers; the index, and two images of a
	// manifest, a config and two layers.
	if n := checkFiles(t, dir); n != 5+1+2*4 {
		t.Errorf("the layout has %d blobs", n)
	}

	manifest, blobs := artifact("some thing")
	pushRaw(t, reg, "team/thing", "v1", "application/vnd.oci.image.manifest.v1+json", manifest, blobs...)
	digest := proto.DigestOf([]byte(manifest)).String()
	if _, err := exports(t, node.MirrorAddr(), dir, "", fleet.Upstream+"/team/thing@"+digest); err != nil {
		t.Fatal(err)
	}
	if got := layoutNames(t, dir); len(got) != 3 || got[2] != fleet.Upstream+"/team/thing@"+digest {
		t.Errorf("the layout has %q", got)
	}
	if n := checkFiles(t, dir); n != 5+1+2*4+3 {
		t.Errorf("the layout has %d blobs", n)
	}
}

func hash(t *testing.T, d proto.Digest) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(d.String())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestExportGoesOn: what is there and right is not fetched again, what is wrong
// or half there is.
func TestExportGoesOn(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	tap := startTap(t, startNode(t, reg).MirrorAddr())
	app, err := registry.PushImage(t.Context(), reg, "team/app", "v1", []int64{3 << 20, 2 << 20, 1 << 20, 1000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	export := func() {
		t.Helper()
		if _, err := exports(t, tap.addr, dir, "", fleet.Upstream+"/team/app:v1"); err != nil {
			t.Fatal(err)
		}
		if n := checkFiles(t, dir); n != 6 {
			t.Errorf("the layout has %d blobs", n)
		}
		if got := layoutNames(t, dir); len(got) != 1 {
			t.Errorf("the layout has %q", got)
		}
	}
	export()
	tap.count("")
	export()
	if n := tap.count(""); n != 1 {
		t.Errorf("%d requests for an export that was complete, want that for the tag", n)
	}

	file := func(i int) string { return layout{dir}.blob(app.Layers[i].Digest) }
	data, err := os.ReadFile(file(0))
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(filepath.Dir(file(0)), ".partial-"+app.Layers[0].Digest.Hex())
	damaged := slices.Clone(data[:1<<20])
	damaged[1000] ^= 1
	for _, err := range []error{
		os.Remove(file(0)), os.WriteFile(half, data[:1<<20], 0o644), // interrupted
		os.Truncate(file(1), 1000),                       // too short
		os.WriteFile(file(2), damaged[:1<<20], 0o644),    // a wrong bit
		os.Remove(layout{dir}.blob(app.Manifest.Digest)), // not there
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tap.set(0, "")
	export()
	if n := tap.count(""); n != 1+1+3 {
		t.Errorf("%d requests, want those for the tag, the manifest and three layers", n)
	}
	// Wrong bytes of an interrupted export are noticed.
	for _, err := range []error{os.Remove(file(0)), os.WriteFile(half, damaged, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	export()
}

// TestExportThroughCuts: a mirror that cuts its answers is asked for the rest.
func TestExportThroughCuts(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	tap := startTap(t, startNode(t, reg).MirrorAddr())
	app, err := registry.PushImage(t.Context(), reg, "team/app", "v1", []int64{3 << 20}, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tap.set(1<<20, "")
	if _, err := exports(t, tap.addr, dir, "", fleet.Upstream+"/team/app:v1"); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, dir)
	if n := tap.count(app.Layers[0].Digest.String()); n != 3 {
		t.Errorf("the layer was asked for %d times", n)
	}
	// And wrong bytes are not taken: nothing of them stays.
	dir = t.TempDir()
	tap.set(0, app.Layers[0].Digest.String())
	_, err = exports(t, tap.addr, dir, "", fleet.Upstream+"/team/app:v1")
	if err == nil || !strings.Contains(err.Error(), "not what its digest says") {
		t.Errorf("wrong bytes: %v", err)
	}
	if got := layoutNames(t, dir); len(got) != 0 {
		t.Errorf("the layout has %q", got)
	}
	file := layout{dir}.blob(app.Layers[0].Digest)
	half := filepath.Join(filepath.Dir(file), ".partial-"+app.Layers[0].Digest.Hex())
	for _, name := range []string{file, half} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there after wrong bytes: %v", name, err)
		}
	}
	// The config may have been on its way just then, and what had come of it is
	// kept: the next export goes on with it.
	tap.set(0, "")
	if _, err := exports(t, tap.addr, dir, "", fleet.Upstream+"/team/app:v1"); err != nil {
		t.Fatal(err)
	}
	if n := checkFiles(t, dir); n != 3 {
		t.Errorf("the layout has %d blobs", n)
	}
}

func TestExportOfOnePlatform(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	mirror := startNode(t, reg).MirrorAddr()
	index, err := pushIndex(t.Context(), reg, "team/multi", "v1", "linux/amd64", "linux/arm/v7", "linux/arm64/v8")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	of, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	multi := fleet.Upstream + "/team/multi"
	for _, tt := range []struct {
		flag, image string
		want        v1.Hash
		name        string
	}{
		{"linux/arm64", multi + ":v1", manifest.Manifests[2].Digest, multi + ":v1"},
		{"linux/arm/v7", multi + ":v1@" + of.String(), manifest.Manifests[1].Digest, multi + ":v1"},
		{"linux/amd64", multi + "@" + of.String(), manifest.Manifests[0].Digest, multi + "@" + manifest.Manifests[0].Digest.String()},
		// A name for an image that is for one platform.
		{"linux/amd64", multi + "@" + manifest.Manifests[0].Digest.String(), manifest.Manifests[0].Digest, multi + "@" + manifest.Manifests[0].Digest.String()},
	} {
		dir := t.TempDir()
		whole, err := exports(t, mirror, dir, tt.flag, tt.image)
		if err != nil {
			t.Errorf("%s of %s: %v", tt.flag, tt.image, err)
			continue
		}
		if got := whole[0].root.Digest.String(); got != tt.want.String() {
			t.Errorf("%s of %s is %s, want %s", tt.flag, tt.image, got, tt.want)
		}
		if got := layoutNames(t, dir); !slices.Equal(got, []string{tt.name}) {
			t.Errorf("%s of %s is called %q, want %q", tt.flag, tt.image, got, tt.name)
		}
		if n := checkFiles(t, dir); n != 4 {
			t.Errorf("%s of %s has %d blobs", tt.flag, tt.image, n)
		}
		img, err := gcr.Path(dir).Image(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
	}
	_, err = exports(t, mirror, t.TempDir(), "linux/riscv64", multi+":v1", multi+"@"+manifest.Manifests[0].Digest.String())
	want := multi + ":v1: has no image for linux/riscv64; it has linux/amd64, linux/arm/v7, linux/arm64/v8\n" +
		multi + "@" + manifest.Manifests[0].Digest.String() + ": is an image for linux/amd64, not for linux/riscv64"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestExportFailures: each image that can't be had has its line, and the others
// are there.
func TestExportFailures(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	mirror := startNode(t, reg).MirrorAddr()
	if _, err := registry.PushImage(t.Context(), reg, "team/app", "v1", []int64{1000}, 1); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	whole, err := exports(t, mirror, dir, "", fleet.Upstream+"/team/none:v1", "elsewhere.example/x:y", fleet.Upstream+"/team/app:v1")
	if len(whole) != 1 || whole[0].ref.Repository != "team/app" {
		t.Errorf("exported %v", whole)
	}
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], fleet.Upstream+"/team/none:v1: ") || !strings.Contains(lines[1], "elsewhere.example is not configured on this mirror") {
		t.Errorf("%v", err)
	}
	_, err = exports(t, "127.0.0.1:1", dir, "", "alpine")
	if err == nil || !strings.HasPrefix(err.Error(), "docker.io/library/alpine:latest: no mirror answers at 127.0.0.1:1: start one") {
		t.Errorf("%v", err)
	}
}

func TestCreateLayout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, unlock, err := createLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := createLayout(dir); err == nil || !strings.Contains(err.Error(), "another export is writing to "+dir) {
		t.Errorf("a second one at the same time: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	_, unlock, err = createLayout(dir)
	if err != nil {
		t.Fatalf("a second one after it: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "oci-layout")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := createLayout(dir); err == nil || !strings.Contains(err.Error(), "is not an OCI image layout: it has no file oci-layout") {
		t.Errorf("a folder with other things: %v", err)
	}
}

func TestImageList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "list")
	if err := os.WriteFile(file, []byte("# what the branch needs\nalpine:3.20  # small\n\n  ghcr.io/team/app:v1\r\nalpine:3.20\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]string{
		file:                           "docker.io/library/alpine:3.20 ghcr.io/team/app:v1",
		"alpine, ghcr.io/team/app:v1,": "docker.io/library/alpine:latest ghcr.io/team/app:v1",
		",":                            `error: --images: "," has no image in it`,
		"./nothing":                    "error: --images: open ./nothing: no such file or directory",
		dir:                            "error: --images: read " + dir + ": is a directory",
	} {
		refs, err := imageList(list)
		var got []string
		for _, r := range refs {
			got = append(got, imageName(r))
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != want {
			t.Errorf("%s: %s, want %s", list, text, want)
		}
	}
	if _, err := imageList("UPPER,alpine:,a/b:c"); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two mistakes of three: %v", err)
	}
}

// TestSaveEndsWithItsContext: an interrupted export stops at once.
func TestSaveEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	because := errors.New("because")
	cancel(because)
	dir := t.TempDir()
	l, unlock, err := createLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	e := &exporter{layout: l, door: newDoor("127.0.0.1:1"), meter: quiet(), right: make(map[proto.Digest]bool)}
	if _, err := e.run(ctx, []origin.Ref{{Upstream: "docker.io", Repository: "library/alpine", Tag: "3"}}); !errors.Is(err, context.Canceled) && !errors.Is(err, because) {
		t.Errorf("%v", err)
	}
}

func TestMirrorAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range [][3]string{
		{"127.0.0.1:7053", "127.0.0.1:7050", "127.0.0.1:7050"},
		{"10.0.0.7:7053", "[::]:7050", "10.0.0.7:7050"},
		{"node-7:7053", "0.0.0.0:7050", "node-7:7050"},
		{":7053", ":7050", "127.0.0.1:7050"},
		{"[::1]:7053", ":7050", "[::1]:7050"},
		{"127.0.0.1:7053", "10.0.0.7:7050", "10.0.0.7:7050"},
		{"https://10.0.0.7:7053", ":7050", "10.0.0.7:7050"},
		{"https://10.0.0.7:7053", "https://[::]:7050", "https://10.0.0.7:7050"},
		{"unix:/run/a.sock", "https://:7050", "https://127.0.0.1:7050"},
		{"unix:/run/a.sock", "unix:/run/m.sock", "unix:/run/m.sock"},
		{"10.0.0.7:7053", "https://mirror.example:7050", "https://mirror.example:7050"},
	} {
		if got := mirrorAddr(tt[0], tt[1]); got != tt[2] {
			t.Errorf("admin at %s, mirror at %s: %s, want %s", tt[0], tt[1], got, tt[2])
		}
	}
}
