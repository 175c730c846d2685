package locks_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// Media types of what the tests make themselves.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// A descriptor is one as it stands in a manifest.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, data []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: proto.DigestOf(data).String(), Size: int64(len(data))}
}

// An image is one that can be named in a policy before there is a registry that
// has it.
type image struct {
	registry.Image
	blobs [][]byte // config and layer
}

// traits are what rules ask of an image.
type traits struct {
	architecture string // of linux; default amd64
	mediaType    string // default that of OCI
	annotations  map[string]string
	created      time.Time
	layer        string // images with the same one share it; default none
}

// newImage makes an image with a layer of several chunks that no other one has.
func newImage(t *testing.T, repository, tag string, x traits) image {
	t.Helper()
	if x.architecture == "" {
		x.architecture = "amd64"
	}
	if x.mediaType == "" {
		x.mediaType = ociManifest
	}
	if x.layer == "" {
		x.layer = repository + ":" + tag
	}
	layer := randomBytes(x.layer, 300_000)
	config := map[string]any{
		"os": "linux", "architecture": x.architecture,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{proto.DigestOf(layer).String()}},
	}
	if !x.created.IsZero() {
		config["created"] = x.created.UTC().Format(time.RFC3339)
	}
	described := marshal(t, config)
	return sealed(repository, tag, x.mediaType, marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": x.mediaType, "annotations": x.annotations,
		"config": describe(ociConfig, described), "layers": []descriptor{describe(ociLayer, layer)},
	}), described, layer)
}

// newIndex makes an index of images.
func newIndex(t *testing.T, repository, tag string, images ...image) image {
	t.Helper()
	var manifests []descriptor
	for _, i := range images {
		manifests = append(manifests, describe(i.MediaType, i.Raw))
	}
	return sealed(repository, tag, ociIndex, marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": ociIndex, "manifests": manifests, "annotations": map[string]string{"of": tag},
	}))
}

// sealed returns the image that a manifest is, with its config and layers.
func sealed(repository, tag, mediaType string, raw []byte, blobs ...[]byte) image {
	i := image{Image: registry.Image{Repository: repository, Tag: tag, MediaType: mediaType, Raw: raw, Manifest: blobOf(raw)}, blobs: blobs}
	for n, data := range blobs {
		if n == 0 {
			i.Config = blobOf(data)
		} else {
			i.Layers = append(i.Layers, blobOf(data))
		}
	}
	return i
}

func blobOf(data []byte) proto.Blob {
	return proto.Blob{Digest: proto.DigestOf(data), Size: int64(len(data))}
}

func randomBytes(seed string, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(seed), uint64(n)))).Read(data)
	return data
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// put pushes images as root.
func (b *bed) put(images ...image) {
	b.t.Helper()
	as := strings.Replace(b.url, "http://", "http://root:"+passwords["root"]+"@", 1)
	for _, i := range images {
		for _, data := range i.blobs {
			if err := registry.PushBlob(b.t.Context(), as, i.Repository, data); err != nil {
				b.t.Fatal(err)
			}
		}
		if err := registry.PushManifest(b.t.Context(), as, i.Repository, i.Tag, i.MediaType, i.Raw); err != nil {
			b.t.Fatal(err)
		}
	}
}

// paths are the ways to ask for what an image is of; byTag is the first.
func paths(i registry.Image) []string {
	all := []string{i.Repository + "/manifests/" + i.Tag, i.Repository + "/manifests/" + i.Manifest.Digest.String()}
	if i.Config.Size > 0 {
		for _, blob := range i.Blobs() {
			all = append(all, i.Repository+"/blobs/"+blob.Digest.String())
		}
	}
	return all
}

// both asks with HEAD and GET, which must agree, and returns what GET got. HEAD
// goes first, so that it is not told what a GET has found out.
func (b *bed) both(path, authorization string) answer {
	b.t.Helper()
	head := b.ask(0, "HEAD", path, authorization)
	get := b.ask(0, "GET", path, authorization)
	if head.status != get.status || len(head.body) > 0 {
		b.t.Errorf("%s: HEAD says %d with %d bytes, GET %d", path, head.status, len(head.body), get.status)
	}
	if get.status == http.StatusOK {
		for _, name := range []string{"Docker-Content-Digest", "Content-Type", "Content-Length", "Etag"} {
			if head.header.Get(name) != get.header.Get(name) || get.header.Get(name) == "" {
				b.t.Errorf("%s: %s is %q of HEAD and %q of GET", path, name, head.header.Get(name), get.header.Get(name))
			}
		}
	}
	return get
}

// gets asks for all of an image, by HEAD and GET, and wants every byte of it as
// the registry has it.
func (b *bed) gets(i image, authorization string) {
	b.t.Helper()
	for _, path := range paths(i.Image) {
		want := i.Raw
		if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
			want = i.blob(digest)
		}
		if a := b.both(path, authorization); a.status != http.StatusOK || !bytes.Equal(a.body, want) {
			b.t.Errorf("%s: status %d, %d bytes that are not the registry's: %.300s", path, a.status, len(a.body), a.body[:min(len(a.body), 300)])
		}
	}
}

func (i image) blob(digest string) []byte {
	for _, data := range i.blobs {
		if proto.DigestOf(data).String() == digest {
			return data
		}
	}
	return nil
}

// forbidden asks for paths of an image, by HEAD and GET, and wants a refusal by a
// rule for each: by that one, or for blobs by another if their image has been
// refused before it was known what it is of.
func (b *bed) forbidden(paths []string, authorization, rule, message string) {
	b.t.Helper()
	for _, path := range paths {
		a := b.both(path, authorization)
		var body struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(a.body, &body); err != nil || a.status != http.StatusForbidden || len(body.Errors) != 1 || body.Errors[0].Code != "DENIED" {
			b.t.Errorf("%s: status %d, not a refusal in OCI's form: %.300s", path, a.status, a.body)
			continue
		}
		if kind := a.header.Get("Content-Type"); !strings.HasPrefix(kind, "application/json") {
			b.t.Errorf("%s: the refusal is of type %q", path, kind)
		}
		if d := a.header.Get("Docker-Content-Digest"); d != "" {
			b.t.Errorf("%s: the refusal tells the digest %s", path, d)
		}
		said := body.Errors[0].Message
		if strings.Contains(path, "/blobs/") && strings.Contains(said, "rule content: ") {
			continue
		}
		if !strings.Contains(said, "rule "+rule+": ") || !strings.Contains(said, message) {
			b.t.Errorf("%s: refused with %q, want rule %s and %q", path, said, rule, message)
		}
	}
}

// untouched wants that nothing of the images' layers has left the registry since
// Reset.
func (b *bed) untouched(images ...image) {
	b.t.Helper()
	for _, i := range images {
		for _, l := range i.Layers {
			if _, most := b.Copies(l.Digest); most > 0 {
				b.t.Errorf("a layer of %s:%s was fetched although nobody may have it", i.Repository, i.Tag)
			}
		}
	}
}
