package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// A part is what a manifest or an index names.
type part struct {
	proto.Blob
	desc ocispec.Descriptor
	// elsewhere: a layer that need not be where the image is, since it says
	// where else it can be had, or may not be passed on.
	elsewhere bool
}

// isManifest reports whether the part is a manifest or an index itself.
func (p part) isManifest() bool { return policy.IsManifest(p.desc.MediaType) }

// parts returns what a manifest or an index names, in its order: an index's
// manifests, or the config, the layers and the blobs. mediaType is what it was
// served as. Nothing is left out: what can't be read is an error.
func parts(raw []byte, mediaType string) ([]part, error) {
	if !policy.IsManifest(mediaType) {
		return nil, fmt.Errorf("%q is not the type of an image that an OCI layout can hold", mediaType)
	}
	var doc struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Blobs     []ocispec.Descriptor `json:"blobs"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("the manifest does not parse: %w", err)
	}
	if len(doc.Manifests) > 0 && (doc.Config != nil || len(doc.Layers) > 0 || len(doc.Blobs) > 0) {
		return nil, errors.New("the manifest is an image and an index at once") // CVE-2021-41190
	}
	ds := slices.Concat(doc.Manifests, doc.Layers, doc.Blobs)
	if doc.Config != nil {
		ds = append([]ocispec.Descriptor{*doc.Config}, ds...)
	}
	out := make([]part, 0, len(ds))
	for _, d := range ds {
		p, err := newPart(d)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func newPart(d ocispec.Descriptor) (part, error) {
	name, err := proto.ParseDigest(string(d.Digest))
	if err != nil {
		return part{}, err
	}
	p := part{Blob: proto.Blob{Digest: name, Size: d.Size}, desc: d}
	if err := p.Validate(); err != nil {
		return part{}, err
	}
	if p.isManifest() && d.Size > origin.MaxManifest {
		return part{}, fmt.Errorf("%s: %w: %d bytes, and manifests have at most %d", name, origin.ErrTooLarge, d.Size, origin.MaxManifest)
	}
	t := strings.ToLower(d.MediaType)
	p.elsewhere = len(d.URLs) > 0 || strings.Contains(t, ".foreign.") || strings.Contains(t, ".nondistributable.")
	return p, nil
}

// maxDepth bounds how deep an index may hold another one. Nobody is known to go
// beyond two, and what names itself would have no end.
const maxDepth = 4

// A tree is an image as a layout has it: its manifests, those inside an index
// before the index, and the blobs that they name, each digest once.
type tree struct {
	manifests []part
	blobs     []part
	seen      map[proto.Digest]bool
}

// grow adds the manifest root, and all below it. read returns the bytes of a
// manifest, which it has compared with the digest.
func (t *tree) grow(root part, read func(part) ([]byte, error)) error { return t.walk(root, read, 0) }

func (t *tree) walk(m part, read func(part) ([]byte, error), depth int) error {
	if t.seen[m.Digest] {
		return nil
	}
	if t.seen == nil {
		t.seen = make(map[proto.Digest]bool)
	}
	t.seen[m.Digest] = true
	if depth > maxDepth {
		return fmt.Errorf("%s: an index is inside an index more than %d deep", m.Digest, maxDepth)
	}
	raw, err := read(m)
	if err != nil {
		return err
	}
	ps, err := parts(raw, m.desc.MediaType)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Digest, err)
	}
	for _, p := range ps {
		switch {
		case p.isManifest():
			if err := t.walk(p, read, depth+1); err != nil {
				return err
			}
		case !t.seen[p.Digest]:
			t.seen[p.Digest] = true
			t.blobs = append(t.blobs, p)
		}
	}
	t.manifests = append(t.manifests, m)
	return nil
}

// size is that of all blobs and manifests of the image, in bytes.
func (t *tree) size() int64 {
	var n int64
	for _, p := range slices.Concat(t.manifests, t.blobs) {
		n += p.Size
	}
	return n
}

// imageName is how the layout calls the image ref: the whole reference.
func imageName(r origin.Ref) string {
	name := r.Upstream + "/" + r.Repository
	if r.Tag != "" {
		return name + ":" + r.Tag
	}
	return name + "@" + r.Digest.String()
}

// descriptor returns the descriptor of some content.
func descriptor(d proto.Digest, size int64, mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d.String()), Size: size}
}
