package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

type importCmd struct {
	nodeFlag
	Dir string `arg:"" help:"folder of an OCI image layout, of shoal cache export, skopeo (oci:DIR) or crane (pull --format oci)"`
	As  string `name:"as" placeholder:"REF" help:"name of an image that the layout has no whole name for, such as ghcr.io/team/app:v1"`
}

// Help is kong's longer text.
func (importCmd) Help() string {
	return "Gives the images of a layout to the node's cache, which serves them as if they had come from their registries. Every blob is checked before it is sent, and by the node again. What the node has already is not sent."
}

// Run imports all images that are whole, and fails if one is not.
func (c *importCmd) Run() error {
	ctx, stop := interruptible()
	defer stop()
	l, err := openLayout(c.Dir)
	if err != nil {
		return err
	}
	images, err := l.named(c.As)
	if err != nil {
		return err
	}
	var errs []error
	for i := range images {
		if err := images[i].read(l); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", imageName(images[i].ref), err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(append(errs, fmt.Errorf("%s is not complete, and nothing of it was imported; export or copy it anew", c.Dir))...)
	}
	m := &importer{layout: l, client: c.client(), meter: newMeter(os.Stderr), sent: make(map[proto.Digest]bool)}
	whole, err := m.run(ctx, images)
	m.meter.close()
	m.meter.say("sent %s; the node had %s", size(m.went), size(m.here-m.went))
	for _, x := range whole {
		fmt.Fprintf(os.Stdout, "%s  %s  %s\n", imageName(x.ref), x.root.Digest, size(x.tree.size()))
	}
	return orCut(ctx, err)
}

// An imported is one image of a layout.
type imported struct {
	ref  origin.Ref
	root part
	tree tree
}

// named returns the images of the layout with their names. as is the name of
// those that have none, as --as is.
func (l layout) named(as string) ([]imported, error) {
	ds, err := l.images()
	if err != nil {
		return nil, err
	}
	if len(ds) == 0 {
		return nil, fmt.Errorf("%s has no image in it", l.dir)
	}
	var out []imported
	var errs []error
	for i, d := range ds {
		root, err := newPart(d)
		if err == nil && !root.isManifest() {
			err = fmt.Errorf("%q is not the type of an image", d.MediaType)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: manifests[%d]: %w", l.path(ocispec.ImageIndexFile), i, err))
			continue
		}
		ref, err := refOf(d, as, len(ds) == 1)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", l.dir, d.Digest, err))
			continue
		}
		ref.Digest = root.Digest
		if slices.ContainsFunc(out, func(o imported) bool { return imageName(o.ref) == imageName(ref) }) {
			errs = append(errs, fmt.Errorf("%s: two images have the name %s", l.dir, imageName(ref)))
			continue
		}
		out = append(out, imported{ref: ref, root: root})
	}
	return out, errors.Join(errs...)
}

// refOf returns the name of an image of a layout from its annotations. A name
// has a slash in it: what skopeo writes by itself is the tag alone. as is
// for an image that has no name, with its tag if as has none; for the only one
// of a layout it comes before the name that it has.
func refOf(d ocispec.Descriptor, as string, only bool) (origin.Ref, error) {
	tag := d.Annotations[ocispec.AnnotationRefName]
	for _, name := range []string{d.Annotations[containerdName], tag} {
		if strings.Contains(name, "/") && (as == "" || !only) {
			ref, err := jobs.ParseImage(name, dockerHub)
			if err == nil && !ref.Digest.IsZero() && ref.Digest.String() != string(d.Digest) {
				err = fmt.Errorf("its name is that of another digest: %s", name)
			}
			return ref, err
		}
	}
	if as == "" {
		has := "no name"
		if tag != "" {
			has = fmt.Sprintf("only %q for a name", tag)
		}
		return origin.Ref{}, fmt.Errorf("the image has %s; say with --as which one it is, such as --as docker.io/library/alpine:3.20", has)
	}
	bare := !strings.Contains(as[strings.LastIndexByte(as, '/')+1:], ":") && !strings.Contains(as, "@")
	if _, err := origin.ParseTag(tag); bare && err == nil {
		as += ":" + tag
	}
	ref, err := jobs.ParseImage(as, dockerHub)
	if err == nil && !ref.Digest.IsZero() && ref.Digest.String() != string(d.Digest) {
		err = errors.New("--as names another digest")
	}
	if err != nil {
		return ref, usageError{err}
	}
	return ref, nil
}

// read reads the manifests of an image, and finds out whether all of its blobs
// are in the layout, each with the right length.
func (x *imported) read(l layout) error {
	err := x.tree.grow(x.root, func(p part) ([]byte, error) {
		if err := l.check(context.Background(), p.Blob); err != nil {
			return nil, err
		}
		return os.ReadFile(l.blob(p.Digest))
	})
	if err != nil {
		return err
	}
	var errs []error
	x.tree.blobs = slices.DeleteFunc(x.tree.blobs, func(b part) bool {
		err := l.stat(b.Blob)
		if gone := (missing{}); b.elsewhere && errors.As(err, &gone) {
			return true
		}
		errs = append(errs, err)
		return false
	})
	return errors.Join(errs...)
}

// An importer sends images to a node.
type importer struct {
	layout layout
	client *admin.Client
	meter  *meter

	mu    sync.Mutex // protects the fields below
	sent  map[proto.Digest]bool
	here  int64 // bytes that the node has
	went  int64 // of them, those that were sent
	total int64 // bytes of all blobs
}

// run returns the images that the node has then. The error has a line for each
// of the others.
func (m *importer) run(ctx context.Context, images []imported) (whole []imported, err error) {
	counted := make(map[proto.Digest]bool)
	for _, x := range images {
		for _, b := range slices.Concat(x.tree.blobs, x.tree.manifests) {
			if !counted[b.Digest] {
				counted[b.Digest] = true
				m.total += b.Size
			}
		}
	}
	var errs []error
	for _, x := range images {
		if err := m.image(ctx, x); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", imageName(x.ref), err))
			continue
		}
		whole = append(whole, x)
	}
	return whole, errors.Join(errs...)
}

// image sends one image: its blobs, then its manifests, then its name.
func (m *importer) image(ctx context.Context, x imported) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(blobsAtOnce)
	for _, b := range slices.Concat(x.tree.blobs, x.tree.manifests) {
		group.Go(func() error { return m.blob(gctx, b.Blob) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return m.client.PutImage(ctx, jobs.Image{
		Upstream: x.ref.Upstream, Repository: x.ref.Repository, Tag: x.ref.Tag,
		Digest: x.root.Digest, Size: x.root.Size, MediaType: x.root.desc.MediaType,
	})
}

// blob checks a blob and sends it, once.
func (m *importer) blob(ctx context.Context, b proto.Blob) error {
	m.mu.Lock()
	sent := m.sent[b.Digest]
	m.mu.Unlock()
	if sent {
		return nil
	}
	if err := m.layout.check(ctx, b); err != nil {
		return err
	}
	f, err := os.Open(m.layout.blob(b.Digest))
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	var told int64
	if err := m.client.PutBlob(ctx, b, io.TeeReader(f, countWriter(func(n int64) {
		told += n
		m.tell(n)
	}))); err != nil {
		return fmt.Errorf("%s: %w", b.Digest, err)
	}
	m.tell(b.Size - told) // what the node had, and did not read
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent[b.Digest] = true
	m.went += told
	return nil
}

// tell shows that the node has more bytes.
func (m *importer) tell(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.here += n
	m.meter.show("import", m.here, m.total)
}
