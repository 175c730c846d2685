package policy

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// Media types of manifests: OCI image-spec, docker's schema 2 (distribution,
// "Image Manifest V 2, Schema 2"), and the artifact manifest that was in the
// release candidates of OCI 1.1.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeOCIArtifact    = "application/vnd.oci.artifact.manifest.v1+json"
)

// maxMediaType bounds a media type in bytes: two names of RFC 6838, section
// 4.2, of at most 127 characters each and the slash.
const maxMediaType = 255

// IsManifest reports whether mediaType is one of a manifest or an index, which
// registries serve under /manifests/ and not under /blobs/.
func IsManifest(mediaType string) bool {
	switch essence(mediaType) {
	case typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList, typeOCIArtifact:
		return true
	}
	return false
}

// isIndex reports whether mediaType is one of an index, whose parts are manifests.
func isIndex(mediaType string) bool {
	t := essence(mediaType)
	return t == typeOCIIndex || t == typeDockerList
}

// essence returns mediaType without its parameters.
func essence(mediaType string) string {
	s, _, _ := strings.Cut(mediaType, ";")
	return strings.ToLower(strings.TrimSpace(s))
}

// Learn reads a manifest that the repository has and remembers what it names
// as part of that repository. It returns, each digest once, the config and the
// layers of an image in the order of its manifest, the blobs of an artifact,
// or the manifests of an index. IsManifest tells the last ones apart. Layers
// with URLs and non-distributable ones are left out, and so is the subject,
// which nothing says is there.
//
// The manifest is not trusted. What can't be used is left out, and the error
// says what and why; the rest is learned and returned along with the error. A
// document of another kind has nothing to learn from and is no error.
//
// What a manifest names is remembered under its digest as well (Index.Parts).
//
// The manifest's word is not enough for a digest that is Private and came
// through other repositories only: Admit asks the origin for it.
func (g *Gate) Learn(upstream, repository string, manifest []byte, mediaType string) ([]origin.Descriptor, error) {
	return g.learn(upstream, repository, manifest, mediaType, g.claimed)
}

// Import is Learn for an image that an operator brings in: its manifest is
// believed, since no origin may have it.
func (g *Gate) Import(upstream, repository string, manifest []byte, mediaType string) ([]origin.Descriptor, error) {
	return g.learn(upstream, repository, manifest, mediaType, func(_, _ string, ds []origin.Descriptor) []origin.Descriptor { return ds })
}

func (g *Gate) learn(upstream, repository string, manifest []byte, mediaType string,
	believed func(upstream, repository string, ds []origin.Descriptor) []origin.Descriptor) ([]origin.Descriptor, error) {
	ds, err := parseManifest(manifest, mediaType)
	if len(ds) > 0 {
		if linked := believed(upstream, repository, ds); len(linked) > 0 {
			g.remember(upstream, repository, linked...)
		}
		g.setParts(g.nameOf(upstream, repository, manifest), ds)
	}
	return ds, err
}

// nameOf returns the digest by which the repository has the manifest: sha256's
// unless only that of sha512 is linked. It is computed and not a parameter, so
// that nothing wrong can be remembered of another manifest.
func (g *Gate) nameOf(upstream, repository string, manifest []byte) proto.Digest {
	name := proto.DigestOf(manifest)
	if _, ok, err := g.index.Link(upstream, repository, name); ok || err != nil {
		return name
	}
	sum := sha512.Sum512(manifest)
	long, err := proto.ParseDigest("sha512:" + hex.EncodeToString(sum[:]))
	if err != nil {
		return name
	}
	if _, ok, err := g.index.Link(upstream, repository, long); !ok || err != nil {
		return name
	}
	return long
}

// setParts remembers which digests a manifest names, unless it is remembered
// already: a manifest is served again and again.
func (g *Gate) setParts(manifest proto.Digest, ds []origin.Descriptor) {
	parts := make([]proto.Digest, len(ds))
	for i, d := range ds {
		parts[i] = d.Blob.Digest
	}
	if known, err := g.index.Parts(manifest); err == nil && slices.Equal(known, parts) {
		return
	}
	if err := g.index.SetParts(manifest, parts); err != nil {
		g.log.Warn("parts not remembered", "digest", manifest, "error", err)
	}
}

// A document is any of the manifests.
type document struct {
	MediaType string       `json:"mediaType"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
	Blobs     []descriptor `json:"blobs"`
	Manifests []descriptor `json:"manifests"`
}

// A descriptor is one of image-spec, descriptor.md.
type descriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      *int64   `json:"size"`
	URLs      []string `json:"urls"`
}

// parseManifest returns what a manifest names, as Learn says.
func parseManifest(data []byte, mediaType string) ([]origin.Descriptor, error) {
	if len(data) > origin.MaxManifest {
		return nil, fmt.Errorf("manifest: %w: %d bytes, at most %d are accepted", origin.ErrTooLarge, len(data), origin.MaxManifest)
	}
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		if !IsManifest(mediaType) {
			return nil, nil
		}
		return nil, fmt.Errorf("manifest of type %s: %w", essence(mediaType), err)
	}
	kind := essence(mediaType)
	if !IsManifest(kind) {
		kind = essence(doc.MediaType)
	}
	// A document that reads as an image and as an index means different things
	// to different clients (CVE-2021-41190), so nothing is believed of it.
	if len(doc.Manifests) > 0 && (doc.Config != nil || len(doc.Layers) > 0 || len(doc.Blobs) > 0) {
		return nil, errors.New("manifest is an image and an index at once")
	}
	var l list
	switch kind {
	case typeOCIManifest, typeDockerManifest:
		if doc.Config != nil {
			l.add("config", 0, *doc.Config)
		}
		l.addAll("layers", doc.Layers)
	case typeOCIArtifact:
		l.addAll("blobs", doc.Blobs)
	case typeOCIIndex, typeDockerList:
		l.addAll("manifests", doc.Manifests)
	}
	return l.found, errors.Join(l.errs...)
}

// A list collects descriptors, each digest once.
type list struct {
	found []origin.Descriptor
	sizes map[proto.Digest]int64
	errs  []error
}

func (l *list) addAll(field string, ds []descriptor) {
	for i, d := range ds {
		l.add(field, i, d)
	}
}

// maxComplaints bounds how much a hostile manifest can make a log line say.
const maxComplaints = 8

func (l *list) add(field string, i int, d descriptor) {
	if len(d.URLs) > 0 || nonDistributable(d.MediaType) {
		return
	}
	if err := l.take(d); err != nil && len(l.errs) < maxComplaints {
		l.errs = append(l.errs, fmt.Errorf("manifest: %s[%d]: %w", field, i, err))
	}
}

func (l *list) take(d descriptor) error {
	digest, err := proto.ParseDigest(d.Digest)
	if err != nil {
		return err
	}
	if d.Size == nil {
		return errors.New("no size")
	}
	if len(d.MediaType) > maxMediaType {
		return fmt.Errorf("media type of %d bytes", len(d.MediaType))
	}
	blob := proto.Blob{Digest: digest, Size: *d.Size}
	if err := blob.Validate(); err != nil {
		return err
	}
	if size, ok := l.sizes[digest]; ok {
		if size != blob.Size {
			return fmt.Errorf("%s has a size of %d and of %d bytes", digest, size, blob.Size)
		}
		return nil
	}
	if l.sizes == nil {
		l.sizes = make(map[proto.Digest]int64)
	}
	l.sizes[digest] = blob.Size
	l.found = append(l.found, origin.Descriptor{Blob: blob, MediaType: d.MediaType})
	return nil
}

// nonDistributable reports whether a layer of this type is meant to be fetched
// elsewhere (image-spec, layer.md, "Non-Distributable Layers"; docker's
// "foreign" layers).
func nonDistributable(mediaType string) bool {
	t := essence(mediaType)
	return strings.HasPrefix(t, "application/vnd.docker.image.rootfs.foreign.") ||
		strings.HasPrefix(t, "application/vnd.oci.image.layer.nondistributable.")
}
