package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/containerd/platforms"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

const (
	// imagesAtOnce and blobsAtOnce are how much of a job is on its way to one
	// node: enough that small blobs do not make a link wait, and little enough
	// that a job which is cancelled soon stops.
	imagesAtOnce = 3
	blobsAtOnce  = 6
	// maxDepth bounds indexes in indexes.
	maxDepth = 4
	// maxManifests bounds the manifests of one image, over all its indexes.
	maxManifests = 1000
)

// caller is who asks the gate: nobody, since a job has an operator's word only.
var caller = policy.Caller{Door: policy.DoorJob}

// An order asks one node to bring images to itself.
type order struct {
	Job          string       `json:"job"`
	Images       []orderImage `json:"images"`
	Platforms    []string     `json:"platforms,omitempty"`
	AllPlatforms bool         `json:"allPlatforms,omitempty"`
}

// An orderImage is one of them. Its digest is what is brought; its tag, if it
// has one, names that afterwards.
type orderImage struct {
	Image      string       `json:"image"`
	Upstream   string       `json:"upstream"`
	Repository string       `json:"repository"`
	Tag        string       `json:"tag,omitempty"`
	Digest     proto.Digest `json:"digest"`
}

func (o orderImage) ref() origin.Ref {
	return origin.Ref{Upstream: o.Upstream, Repository: o.Repository, Digest: o.Digest, Manifest: true}
}

// check returns what is wrong with an order that came from another node.
func (o order) check() error {
	if len(o.Images) == 0 || len(o.Images) > maxImages {
		return fmt.Errorf("%d images, 1 to %d are taken", len(o.Images), maxImages)
	}
	for _, i := range o.Images {
		if len(i.Image) > maxReference {
			return fmt.Errorf("an image with a name of %d bytes", len(i.Image))
		}
		if !hostGrammar.MatchString(i.Upstream) || i.Digest.IsZero() {
			return fmt.Errorf("image %q of registry %q has no digest or no registry", i.Image, i.Upstream)
		}
		if _, err := origin.ParseRepository(i.Repository); err != nil {
			return err
		}
		if i.Tag != "" {
			if _, err := origin.ParseTag(i.Tag); err != nil {
				return err
			}
		}
	}
	return nil
}

// work is an order that is being done here.
type work struct {
	jobs   *Jobs
	filter filter
	slots  chan struct{} // of blobs on their way
	images []*tracker
	kick   chan struct{} // 1-buffered: there is news
	cut    atomic.Bool   // this node is shutting down: what failed did not
}

// newWork reads an order.
func (j *Jobs) newWork(o order) (*work, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	f, err := newFilter(o.Platforms, o.AllPlatforms, platforms.DefaultSpec())
	if err != nil {
		return nil, err
	}
	w := &work{jobs: j, filter: f, slots: make(chan struct{}, blobsAtOnce), kick: make(chan struct{}, 1)}
	for _, i := range o.Images {
		w.images = append(w.images, &tracker{image: i, kick: w.kick, blobs: map[proto.Digest]*tracked{}, state: Waiting})
	}
	return w, nil
}

// run brings all images and returns when each is here or has failed.
func (w *work) run(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(imagesAtOnce)
	for _, t := range w.images {
		g.Go(func() error {
			t.begin()
			err := w.bring(ctx, t)
			if errors.Is(err, pull.ErrClosed) || errors.Is(err, cache.ErrClosed) {
				w.cut.Store(true)
				return nil
			}
			t.end(err)
			return nil
		})
	}
	_ = g.Wait() // each image has its own error
}

// bring brings one image. It ends with the first thing that fails: a half is of
// no use.
func (w *work) bring(ctx context.Context, t *tracker) error {
	g, all := errgroup.WithContext(ctx)
	g.Go(func() error { return w.manifest(all, g, t, t.image.ref(), 0) })
	if err := g.Wait(); err != nil {
		return err
	}
	if t.image.Tag == "" || w.jobs.cfg.SetTag == nil {
		return nil
	}
	a, err := w.jobs.cfg.Gate.Admit(ctx, t.image.ref(), caller)
	if err == nil {
		err = w.jobs.cfg.SetTag(t.image.Upstream, t.image.Repository, t.image.Tag, a.Descriptor)
	}
	if err != nil {
		return fmt.Errorf("the image is here, but not known by its tag: %w", err)
	}
	return nil
}

// manifest brings a manifest and starts, in its order, what it names.
func (w *work) manifest(ctx context.Context, g *errgroup.Group, t *tracker, ref origin.Ref, depth int) error {
	if depth > maxDepth || t.manifests >= maxManifests {
		return fmt.Errorf("%s: more than %d manifests, or indexes %d deep", ref, maxManifests, maxDepth)
	}
	t.manifests++
	data, d, err := w.read(ctx, t, ref)
	if err != nil {
		return err
	}
	if _, err := w.jobs.cfg.Gate.Judge(ctx, ref, caller, d, data); err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	parts, err := w.jobs.cfg.Gate.Learn(ref.Upstream, ref.Repository, data, d.MediaType)
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	if !isIndex(data) {
		return w.start(ctx, g, t, ref, parts)
	}
	chosen, err := w.filter.choose(data)
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	for _, child := range chosen {
		next := ref
		next.Digest = child
		if err := w.manifest(ctx, g, t, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// start starts the blobs of an image in the order of its manifest, some at a
// time.
func (w *work) start(ctx context.Context, g *errgroup.Group, t *tracker, ref origin.Ref, parts []origin.Descriptor) error {
	for _, p := range parts {
		t.add(p.Blob)
	}
	for _, p := range parts {
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		one := origin.Ref{Upstream: ref.Upstream, Repository: ref.Repository, Digest: p.Blob.Digest}
		reader, err := w.part(ctx, one, p)
		if err != nil {
			<-w.slots
			return fmt.Errorf("%s: %w", one, err)
		}
		g.Go(func() error {
			defer func() { <-w.slots }()
			defer reader.Close() // nothing was written
			if err := await(reader); err != nil {
				w.reconsider(one, err)
				return fmt.Errorf("%s: %w", one, err)
			}
			t.here(p.Blob)
			return nil
		})
	}
	return nil
}

// part opens a blob of an image. The gate is asked for it now, when the origin
// can tell that the repository has what came here through another one, and not
// only when somebody pulls it, perhaps without the origin.
func (w *work) part(ctx context.Context, ref origin.Ref, p origin.Descriptor) (*cache.Reader, error) {
	if _, err := w.jobs.cfg.Gate.Admit(ctx, ref, caller); err != nil {
		return nil, err
	}
	reader, _, err := w.open(ctx, ref, p)
	return reader, err
}

// await waits until all of a blob is here: its last byte is not given out
// before the digest was right.
func await(r *cache.Reader) error {
	if r.Size() == 0 {
		return nil
	}
	if _, err := r.Seek(-1, io.SeekEnd); err != nil {
		return err
	}
	_, err := io.ReadFull(r, make([]byte, 1))
	return err
}

// read brings a manifest and returns it.
func (w *work) read(ctx context.Context, t *tracker, ref origin.Ref) ([]byte, origin.Descriptor, error) {
	a, err := w.jobs.cfg.Gate.Admit(ctx, ref, caller)
	if err != nil {
		return nil, origin.Descriptor{}, err
	}
	t.add(a.Blob)
	reader, d, err := w.open(ctx, ref, a.Descriptor)
	if err != nil {
		return nil, d, fmt.Errorf("%s: %w", ref, err)
	}
	defer reader.Close() // nothing was written
	data := make([]byte, reader.Size())
	if _, err := io.ReadFull(reader, data); err != nil {
		w.reconsider(ref, err)
		return nil, d, fmt.Errorf("%s: %w", ref, err)
	}
	t.here(a.Blob)
	return data, d, nil
}

// open opens what is known as d. If this node has it with another size, the
// one who said d is doubted and the origin asked once more.
func (w *work) open(ctx context.Context, ref origin.Ref, d origin.Descriptor) (*cache.Reader, origin.Descriptor, error) {
	from := proto.Origin{Upstream: ref.Upstream, Repository: ref.Repository, Manifest: ref.Manifest}
	reader, err := w.jobs.cfg.Puller.Open(ctx, d.Blob, from)
	if !errors.Is(err, cache.ErrSize) {
		return reader, d, err
	}
	w.jobs.cfg.Gate.Forget(ref)
	a, err := w.jobs.cfg.Gate.Admit(ctx, ref, caller)
	if err != nil {
		return nil, d, err
	}
	reader, err = w.jobs.cfg.Puller.Open(ctx, a.Blob, from)
	return reader, a.Descriptor, err
}

// reconsider forgets that a repository has something if it turned out that it
// has not.
func (w *work) reconsider(ref origin.Ref, err error) {
	for _, doubt := range []error{origin.ErrNotFound, origin.ErrDenied, origin.ErrProtocol, cache.ErrDigest, cache.ErrCorrupt} {
		if errors.Is(err, doubt) {
			w.jobs.cfg.Gate.Forget(ref)
			return
		}
	}
}

// A tracker counts what of one image is here.
type tracker struct {
	// immutable
	image orderImage
	kick  chan struct{}

	manifests int // of the goroutine that brings the image

	// mu protects the fields below.
	mu    sync.Mutex
	state State
	err   error
	blobs map[proto.Digest]*tracked
}

type tracked struct {
	blob proto.Blob
	here bool
}

func (t *tracker) change(f func()) {
	t.mu.Lock()
	f()
	t.mu.Unlock()
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *tracker) begin() { t.change(func() { t.state = Running }) }

func (t *tracker) end(err error) {
	t.change(func() {
		t.state, t.err = Done, err
		if err != nil {
			t.state = Failed
		}
	})
}

// add makes b one of the image's blobs.
func (t *tracker) add(b proto.Blob) {
	t.change(func() {
		if t.blobs[b.Digest] == nil {
			t.blobs[b.Digest] = &tracked{blob: b}
		}
	})
}

// here notes that all of b is here.
func (t *tracker) here(b proto.Blob) { t.change(func() { t.blobs[b.Digest].here = true }) }

// progress returns how far the image is. have says how much of a blob that is
// on its way is here.
func (t *tracker) progress(have func(proto.Digest) int64) ImageProgress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := ImageProgress{Image: t.image.Image, Digest: t.image.Digest, State: t.state, Blobs: len(t.blobs)}
	if t.err != nil {
		p.Error = t.err.Error()
	}
	for d, b := range t.blobs {
		p.Bytes += b.blob.Size
		if b.here {
			p.BlobsDone++
			p.BytesDone += b.blob.Size
			continue
		}
		p.BytesDone += min(have(d), b.blob.Size)
	}
	return p
}
