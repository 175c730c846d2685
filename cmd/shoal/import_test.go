package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	gcr "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// newLayout writes a layout as crane does, with an image of three layers and
// these annotations, and returns the image.
func newLayout(t *testing.T, dir string, annotations map[string]string) v1.Image {
	t.Helper()
	path, err := gcr.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, gcr.WithAnnotations(annotations)); err != nil {
		t.Fatal(err)
	}
	return img
}

// opened reads a layout as shoal cache import does before it sends anything.
func opened(dir, as string) ([]imported, error) {
	l, err := openLayout(dir)
	if err != nil {
		return nil, err
	}
	images, err := l.named(as)
	if err != nil {
		return nil, err
	}
	for i := range images {
		if err := images[i].read(l); err != nil {
			return nil, err
		}
	}
	return images, nil
}

const appName = "registry.test/team/app:v1"

// TestLayoutMistakes: a layout that is not whole is refused, with what is wrong
// with which file. A row of it for each way.
func TestLayoutMistakes(t *testing.T) {
	t.Parallel()
	manifestOf := func(t *testing.T, img v1.Image) *v1.Manifest {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	file := func(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }
	index := func(t *testing.T, dir string, change func(*ocispec.Index)) {
		l := layout{dir}
		ds, err := l.images()
		if err != nil {
			t.Fatal(err)
		}
		i := ocispec.Index{Manifests: ds}
		change(&i)
		if err := l.setImages(i.Manifests); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string, img v1.Image) error
		want  string // DIR, LAYER, CONFIG and MANIFEST stand for the paths
	}{
		{"nothing", func(t *testing.T, dir string, _ v1.Image) error { return nil }, ""},
		{"no folder", func(t *testing.T, dir string, _ v1.Image) error { return os.RemoveAll(dir) },
			"DIR is not an OCI image layout: it has no file oci-layout; name the folder that an export wrote"},
		{"no index", func(t *testing.T, dir string, _ v1.Image) error { return os.Remove(filepath.Join(dir, "index.json")) },
			"DIR has no index.json, so nothing says which images are in it: the copy or the export of it is not complete"},
		{"an index that is cut", func(t *testing.T, dir string, _ v1.Image) error {
			return os.Truncate(filepath.Join(dir, "index.json"), 20)
		}, "DIR/index.json: unexpected end of JSON input"},
		{"no image", func(t *testing.T, dir string, _ v1.Image) error { return layout{dir}.setImages(nil) },
			"DIR has no image in it"},
		{"another version", func(t *testing.T, dir string, _ v1.Image) error {
			return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o644)
		}, `DIR/oci-layout: has version "2.0.0" of the image layout, and only 1.0.0 is known`},
		{"a missing layer", func(t *testing.T, dir string, img v1.Image) error {
			return os.Remove(file(dir, manifestOf(t, img).Layers[1].Digest))
		}, "LAYER is missing"},
		{"a missing layer and a short config", func(t *testing.T, dir string, img v1.Image) error {
			if err := os.Truncate(file(dir, manifestOf(t, img).Config.Digest), 3); err != nil {
				return err
			}
			return os.Remove(file(dir, manifestOf(t, img).Layers[1].Digest))
		}, "CONFIG has 3 bytes instead of CONFIGSIZE\nLAYER is missing"},
		{"a missing manifest", func(t *testing.T, dir string, img v1.Image) error {
			h, err := img.Digest()
			if err != nil {
				return err
			}
			return os.Remove(file(dir, h))
		}, "MANIFEST is missing"},
		{"a damaged manifest", func(t *testing.T, dir string, img v1.Image) error {
			h, err := img.Digest()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(file(dir, h))
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(file(dir, h), data, 0o644)
		}, "MANIFEST is damaged: its bytes are not those that its name says"},
		{"a layer that is a folder", func(t *testing.T, dir string, img v1.Image) error {
			f := file(dir, manifestOf(t, img).Layers[1].Digest)
			if err := os.Remove(f); err != nil {
				return err
			}
			return os.Mkdir(f, 0o755)
		}, "LAYER is not a file"},
		{"no name", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) { i.Manifests[0].Annotations = nil })
			return nil
		}, "DIR: DIGEST: the image has no name; say with --as which one it is, such as --as docker.io/library/alpine:3.20"},
		{"a tag alone", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) {
				i.Manifests[0].Annotations = map[string]string{"org.opencontainers.image.ref.name": "v1"}
			})
			return nil
		}, `DIR: DIGEST: the image has only "v1" for a name; say with --as which one it is, such as --as docker.io/library/alpine:3.20`},
		{"a name of another digest", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) {
				i.Manifests[0].Annotations = map[string]string{"org.opencontainers.image.ref.name": "registry.test/team/app@" + proto.DigestOf(nil).String()}
			})
			return nil
		}, "DIR: DIGEST: its name is that of another digest: registry.test/team/app@" + proto.DigestOf(nil).String()},
		{"two of one name", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) { i.Manifests = append(i.Manifests, i.Manifests[0]) })
			return nil
		}, "DIR: two images have the name " + appName},
		{"a digest that is none", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) { i.Manifests[0].Digest = "sha256:../../../etc/passwd" })
			return nil
		}, "DIR/index.json: manifests[0]: digest"},
		{"something that is no image", func(t *testing.T, dir string, _ v1.Image) error {
			index(t, dir, func(i *ocispec.Index) { i.Manifests[0].MediaType = "text/plain" })
			return nil
		}, `DIR/index.json: manifests[0]: "text/plain" is not the type of an image`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "in")
			img := newLayout(t, dir, map[string]string{"org.opencontainers.image.ref.name": appName})
			m := manifestOf(t, img)
			digest, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			size, err := json.Marshal(m.Config.Size)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(t, dir, img); err != nil {
				t.Fatal(err)
			}
			images, err := opened(dir, "")
			got := ""
			if err != nil {
				got = strings.NewReplacer(file(dir, m.Layers[1].Digest), "LAYER", file(dir, m.Config.Digest), "CONFIG",
					file(dir, digest), "MANIFEST", dir, "DIR", digest.String(), "DIGEST").Replace(err.Error())
			}
			want := strings.ReplaceAll(tt.want, "CONFIGSIZE", string(size))
			if got != want && !(strings.HasSuffix(want, ": digest") && strings.HasPrefix(got, want)) {
				t.Errorf("%s\nwant %s", got, want)
			}
			if err == nil && (len(images) != 1 || imageName(images[0].ref) != appName || len(images[0].tree.blobs) != 4 || len(images[0].tree.manifests) != 1) {
				t.Errorf("read %+v", images)
			}
		})
	}
}

// TestImport: an image with a blob that is damaged in a way that only its digest
// shows is not imported, and the others of the layout are. What the node has is
// not sent to it once more.
func TestImport(t *testing.T) {
	t.Parallel()
	node := startNode(t, startRegistry(t))
	dir := t.TempDir()
	bad := newLayout(t, dir, map[string]string{"org.opencontainers.image.ref.name": fleet.Upstream + "/team/bad:v1"})
	good, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := gcr.Path(dir).AppendImage(good, gcr.WithAnnotations(map[string]string{containerdName: fleet.Upstream + "/team/good:v1"})); err != nil {
		t.Fatal(err)
	}
	m, err := bad.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	h := m.Layers[1].Digest
	file := filepath.Join(dir, "blobs", h.Algorithm, h.Hex)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	imports := func() (*importer, []imported, error) {
		images, err := opened(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		im := &importer{layout: layout{dir}, client: admin.NewClient(node.AdminAddr()), meter: quiet(), sent: make(map[proto.Digest]bool)}
		whole, err := im.run(t.Context(), images)
		return im, whole, err
	}
	im, whole, err := imports()
	if err == nil || err.Error() != fleet.Upstream+"/team/bad:v1: "+file+" is damaged: its bytes are not those that its name says" {
		t.Errorf("%v", err)
	}
	if len(whole) != 1 || imageName(whole[0].ref) != fleet.Upstream+"/team/good:v1" || im.went == 0 {
		t.Errorf("imported %v, %d bytes", whole, im.went)
	}
	d := newDoor(node.MirrorAddr())
	defer d.close()
	for name, there := range map[string]bool{"good": true, "bad": false} {
		_, _, _, err := d.manifest(t.Context(), origin.Ref{Upstream: fleet.Upstream, Repository: "team/" + name, Tag: "v1"})
		if (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if im, whole, err = imports(); err != nil || len(whole) != 2 {
		t.Errorf("imported %v, %v", whole, err)
	}
	if im.went == 0 {
		t.Error("nothing was sent of an image that was not there")
	}
	if im, _, err = imports(); err != nil || im.went != 0 {
		t.Errorf("%d bytes were sent a second time, %v", im.went, err)
	}
}

// TestNamesOfImages: what an image of a layout is called, by its annotations and
// --as.
func TestNamesOfImages(t *testing.T) {
	t.Parallel()
	const none = "error"
	for _, tt := range []struct {
		ref, containerd, as string
		only                bool
		want                string
	}{
		{"registry.test/team/app:v1", "", "", true, "registry.test/team/app:v1"},
		{"library/alpine:3", "", "", true, "docker.io/library/alpine:3"},
		{"3.20", "docker.io/library/alpine:3.20", "", true, "docker.io/library/alpine:3.20"}, // docker save
		{"3.20", "", "", true, none},
		{"alpine:3.20", "", "", true, none}, // may be what skopeo was told to call it
		{"", "", "", true, none},
		{"3.20", "", "alpine", true, "docker.io/library/alpine:3.20"},
		{"3.20", "", "registry.test:5000/team/app", false, "registry.test:5000/team/app:3.20"},
		{"3.20", "", "alpine:3", true, "docker.io/library/alpine:3"},
		{"", "", "alpine", true, "docker.io/library/alpine:latest"},
		{"", "", "al pine", true, none},
		{"registry.test/team/app:v1", "", "registry.test/team/other:v2", true, "registry.test/team/other:v2"},
		{"registry.test/team/app:v1", "", "registry.test/team/other:v2", false, "registry.test/team/app:v1"},
		{"UPPER/x:y", "", "", true, none},
	} {
		d := ocispec.Descriptor{Annotations: map[string]string{}}
		if tt.ref != "" {
			d.Annotations["org.opencontainers.image.ref.name"] = tt.ref
		}
		if tt.containerd != "" {
			d.Annotations[containerdName] = tt.containerd
		}
		ref, err := refOf(d, tt.as, tt.only)
		got := imageName(ref)
		if err != nil {
			got = none
		}
		if got != tt.want {
			t.Errorf("%+v: %s, %v", tt, got, err)
		}
	}
}

// TestLayersElsewhere: a layer that is to be had elsewhere need not be there.
func TestLayersElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, unlock, err := createLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	put := func(data string) proto.Digest {
		d := proto.DigestOf([]byte(data))
		if err := os.MkdirAll(filepath.Dir(l.blob(d)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.blob(d), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	foreign := proto.DigestOf([]byte("foreign")).String()
	manifest := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + put("{}").String() + `","size":2},"layers":[` +
		`{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"` + foreign + `","size":7,"urls":["https://example.com/layer"]}]}`
	d := put(manifest)
	if err := l.add(appName, descriptor(d, int64(len(manifest)), ocispec.MediaTypeImageManifest)); err != nil {
		t.Fatal(err)
	}
	images, err := opened(dir, "")
	if err != nil || len(images) != 1 || len(images[0].tree.blobs) != 1 {
		t.Errorf("%+v, %v", images, err)
	}
}

// TestStrangeManifests: an index can't name itself, but one that is many deep, and
// one that is an image as well, are refused.
func TestStrangeManifests(t *testing.T) {
	t.Parallel()
	deep := map[proto.Digest]string{}
	raw := `{"schemaVersion":2,"layers":[]}`
	mediaType := ocispec.MediaTypeImageManifest
	var root part
	for range maxDepth + 2 {
		d := proto.DigestOf([]byte(raw))
		deep[d] = raw
		root = part{Blob: proto.Blob{Digest: d, Size: int64(len(raw))}, desc: descriptor(d, int64(len(raw)), mediaType)}
		text, err := json.Marshal(root.desc)
		if err != nil {
			t.Fatal(err)
		}
		raw, mediaType = `{"schemaVersion":2,"manifests":[`+string(text)+`]}`, ocispec.MediaTypeImageIndex
	}
	var tr tree
	err := tr.grow(root, func(p part) ([]byte, error) { return []byte(deep[p.Digest]), nil })
	if err == nil || !strings.Contains(err.Error(), "more than 4 deep") {
		t.Errorf("a deep one: %v", err)
	}
	for raw, want := range map[string]string{
		`{"manifests":[{}],"layers":[{}]}`:                                                  "an image and an index at once",
		`{"layers":[{"digest":"sha256:x","size":1}]}`:                                       "digest",
		`{"layers":[{"digest":"` + proto.DigestOf(nil).String() + `","size":-1}]}`:          "size",
		`{"config":{"digest":"` + proto.DigestOf(nil).String() + `","size":1},"layers":{}}`: "does not parse",
		`[]`: "does not parse",
	} {
		if _, err := parts([]byte(raw), ocispec.MediaTypeImageManifest); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", raw, err, want)
		}
	}
	if _, err := parts([]byte(`{}`), "application/vnd.docker.distribution.manifest.v1+prettyjws"); err == nil {
		t.Error("docker's schema 1 is taken")
	}
}

// FuzzParts: what a layout or a mirror has for a manifest is read or refused.
func FuzzParts(f *testing.F) {
	manifest, _ := artifact("x")
	f.Add([]byte(manifest), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"manifests":[{"mediaType":"`+ocispec.MediaTypeImageIndex+`","digest":"`+proto.DigestOf(nil).String()+`","size":3,"platform":{"os":"linux"}}]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		ps, err := parts(raw, mediaType)
		if err != nil && len(ps) > 0 {
			t.Error("an error and parts")
		}
		for _, p := range ps {
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
		}
		root := part{desc: descriptor(proto.Digest{}, 0, mediaType)}
		want := platform{}
		if err := want.UnmarshalText([]byte("linux/arm64")); err != nil {
			t.Fatal(err)
		}
		if _, err := want.choose(root, raw); err != nil && err.Error() == "" {
			t.Error("an error that says nothing")
		}
	})
}
