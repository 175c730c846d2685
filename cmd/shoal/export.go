package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// blobsAtOnce is how many blobs are copied at a time. One is as fast as the
// disk; a few hide what each takes to begin with.
const blobsAtOnce = 4

type exportCmd struct {
	nodeFlag
	Images   string   `required:"" placeholder:"LIST|FILE" help:"references with commas between, or a file with one on a line; - reads standard input"`
	Output   string   `required:"" short:"o" placeholder:"DIR" help:"folder of the OCI image layout; that of an earlier export is gone on with"`
	Platform platform `placeholder:"OS/ARCH" help:"of an image for several platforms take this one, such as linux/arm64 (default: all)"`
	Mirror   string   `placeholder:"ADDRESS" help:"mirror.listen of the node to read from: HOST:PORT, https://HOST:PORT or unix:PATH (default: what the node at --admin says)"`
	MirrorCA string   `name:"mirror-ca" placeholder:"FILE" help:"PEM file of the CA of the node's mirror.tls, if the system does not have it"`
}

// Help is kong's longer text.
func (exportCmd) Help() string {
	return "Reads images through the node's mirror, so that those that are not in its cache are fetched, and writes them as an OCI image layout, which `shoal cache import`, crane, and skopeo (oci:DIR:REFERENCE, images in OCI's format) read. Every blob is checked, none is converted. What an interrupted export has written is kept, checked and not fetched again."
}

// Run exports all images that can be had, and fails if one can't.
func (c *exportCmd) Run() (err error) {
	refs, err := imageList(c.Images)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := interruptible()
	defer stop()
	addr := c.Mirror
	if addr == "" {
		s, err := c.client().Status(ctx)
		if err != nil {
			return fmt.Errorf("%w; or name the mirror with --mirror", err)
		}
		if s.Mirror == "" {
			return fmt.Errorf("the node at %s has no mirror to read from: set its mirror.listen, or name another one with --mirror", c.Admin)
		}
		addr = s.Mirror
	}
	from := newDoor(mirrorAddr(c.Admin, addr))
	if err := from.trust(c.MirrorCA); err != nil {
		return err
	}
	l, unlock, err := createLayout(c.Output)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	e := &exporter{
		layout: l, door: from, platform: c.Platform,
		meter: newMeter(os.Stderr), right: make(map[proto.Digest]bool),
	}
	defer e.door.close()
	whole, err := e.run(ctx, refs)
	e.meter.close()
	e.meter.say("wrote %s; %s were there", size(e.here-e.there), size(e.there))
	for _, x := range whole {
		fmt.Fprintf(os.Stdout, "%s  %s  %s\n", imageName(x.ref), x.root.Digest, size(x.tree.size()))
	}
	if cut := (interrupted{}); errors.As(context.Cause(ctx), &cut) {
		return fmt.Errorf("%w; the same command goes on with what is in %s", cut, c.Output)
	}
	return err
}

// imageList reads the references of --images: a file, or a list.
func imageList(list string) ([]origin.Ref, error) {
	var texts []string
	data, err := []byte(nil), error(nil)
	if list == "-" {
		data, err = io.ReadAll(os.Stdin)
	} else {
		data, err = os.ReadFile(list)
	}
	switch {
	case err == nil:
		for line := range strings.Lines(string(data)) {
			line, _, _ = strings.Cut(line, "#")
			texts = append(texts, line)
		}
	case errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(list, ".") && !strings.HasPrefix(list, "/"):
		texts = strings.Split(list, ",")
	default:
		return nil, fmt.Errorf("--images: %w", err)
	}
	var refs []origin.Ref
	var errs []error
	for _, text := range texts {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		r, err := jobs.ParseImage(text, dockerHub)
		if err != nil {
			errs = append(errs, fmt.Errorf("--images: %w", err))
		} else if !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	if len(refs) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("--images: %q has no image in it", list))
	}
	return refs, errors.Join(errs...)
}

// dockerHub is the registry of a name that has none.
const dockerHub = "docker.io"

// An exporter copies images from a mirror to a layout.
type exporter struct {
	layout   layout
	door     *door
	platform platform
	meter    *meter

	mu    sync.Mutex            // protects the fields below
	right map[proto.Digest]bool // blobs that have been checked or written
	here  int64                 // bytes of blobs that are in the layout
	there int64                 // of them, those that were there before
	total int64                 // bytes of all blobs
}

// An exported is one image on its way.
type exported struct {
	ref  origin.Ref // as the layout names it
	root part
	tree tree
}

// run returns the images that are in the layout. The error has a line for each
// of the others.
func (e *exporter) run(ctx context.Context, refs []origin.Ref) (whole []exported, err error) {
	var found []exported
	var errs []error
	counted := make(map[proto.Digest]bool)
	for _, r := range refs {
		x, err := e.resolve(ctx, r)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", imageName(r), err))
			continue
		}
		found = append(found, x)
		for _, b := range x.tree.blobs {
			if !counted[b.Digest] {
				counted[b.Digest] = true
				e.tell(0, b.Size)
			}
		}
	}
	for _, x := range found {
		if err := e.copy(ctx, x); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", imageName(x.ref), err))
			continue
		}
		whole = append(whole, x)
	}
	return whole, errors.Join(errs...)
}

// tell shows that more bytes are here, and more wanted.
func (e *exporter) tell(here, wanted int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.here += here
	e.total += wanted
	e.meter.show("export", e.here, e.total)
}

// resolve brings the manifests of an image into the layout.
func (e *exporter) resolve(ctx context.Context, ref origin.Ref) (exported, error) {
	root, raw, stale, err := e.door.manifest(ctx, ref)
	if err != nil {
		return exported{}, err
	}
	if stale != "" {
		e.meter.say("%s may be out of date: %s", imageName(ref), stale)
	}
	if root, err = e.platform.choose(root, raw); err != nil {
		return exported{}, err
	}
	ref.Digest = root.Digest
	x := exported{ref: ref, root: root}
	err = x.tree.grow(root, func(p part) ([]byte, error) {
		raw, err := e.manifest(ctx, ref, p)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", p.Digest, err)
		}
		return raw, nil
	})
	return x, err
}

// manifest returns the bytes of a manifest of ref's repository, which the
// layout has then.
func (e *exporter) manifest(ctx context.Context, ref origin.Ref, p part) ([]byte, error) {
	if e.layout.check(ctx, p.Blob) == nil {
		return os.ReadFile(e.layout.blob(p.Digest))
	}
	ref.Digest = p.Digest
	m, raw, _, err := e.door.manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	if m.Size != p.Size {
		return nil, fmt.Errorf("has %d bytes, and %d in the index that names it", m.Size, p.Size)
	}
	return raw, e.layout.save(ctx, p.Blob, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[from:])), nil
	}, func(int64) {})
}

// copy brings the blobs of an image, whose manifests are there, and names it.
func (e *exporter) copy(ctx context.Context, x exported) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(blobsAtOnce)
	for _, b := range x.tree.blobs {
		group.Go(func() error {
			if err := e.blob(gctx, x.ref, b); err != nil {
				return fmt.Errorf("%s: %w", b.Digest, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := e.platform.confirm(e.layout, x.tree); err != nil {
		return err
	}
	return e.layout.add(imageName(x.ref), x.root.desc)
}

// blob brings one blob, unless the layout has it already.
func (e *exporter) blob(ctx context.Context, ref origin.Ref, b part) error {
	e.mu.Lock()
	right := e.right[b.Digest]
	e.right[b.Digest] = true // if it is not, the error ends this image
	e.mu.Unlock()
	if right {
		return nil
	}
	if e.layout.check(ctx, b.Blob) == nil {
		e.tell(b.Size, 0)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.there += b.Size
		return nil
	}
	var told int64
	err := e.layout.save(ctx, b.Blob, func(ctx context.Context, from int64) (io.ReadCloser, error) {
		return e.door.blob(ctx, ref, b.Digest, from)
	}, func(n int64) {
		told += n
		e.tell(n, 0)
	})
	if err == nil {
		return nil
	}
	e.tell(-told, 0) // another image may come for it
	e.mu.Lock()
	delete(e.right, b.Digest)
	e.mu.Unlock()
	var no refusal
	if b.elsewhere && errors.As(err, &no) && no.status == http.StatusNotFound {
		e.meter.say("%s is left out: it is to be had elsewhere, and the registry of %s does not give it", b.Digest, imageName(ref))
		e.tell(0, -b.Size)
		return nil
	}
	return err
}
