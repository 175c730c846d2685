package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

// ErrDenied is wrapped by what a Rule returns to refuse a request.
var ErrDenied = errors.New("denied by policy")

// A Rule decides whether ref may be served: nil, or an error that wraps
// ErrDenied and says what to do about it. A ref with neither tag nor digest
// stands for the repository as such (a list of its tags).
type Rule func(ctx context.Context, ref origin.Ref) error

// Config is what a Gate needs. Origin and Index must be set.
type Config struct {
	Origin *origin.Client
	Index  *cache.Index
	// Tags resolves tags. Nil asks the origin each time.
	Tags *tags.Resolver
	// Rules are asked in order. The first refusal counts.
	Rules []Rule
	// Log gets a line when the index fails. Nil is silent.
	Log *slog.Logger
}

// A Gate decides who may have what. Its methods may be called concurrently.
type Gate struct {
	// immutable
	origin *origin.Client
	index  *cache.Index
	tags   *tags.Resolver // may be nil
	rules  []Rule
	log    *slog.Logger

	mu sync.Mutex // protects the fields below
	// lookups that are going on, by key.
	lookups map[string]*lookup
}

// New returns a Gate.
func New(cfg Config) *Gate {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Gate{
		origin:  cfg.Origin,
		index:   cfg.Index,
		tags:    cfg.Tags,
		rules:   cfg.Rules,
		log:     cfg.Log,
		lookups: make(map[string]*lookup),
	}
}

// An Admission is what a Gate lets through.
type Admission struct {
	origin.Descriptor
	// Stale says why the origin may have moved the tag meanwhile without this
	// node knowing. It is "" for an answer that is as good as the origin's own,
	// and always for a digest.
	Stale string
	// Age is how long ago the origin said so; 0 for a digest.
	Age time.Duration
}

// Check asks the rules only. Admit does it too.
func (g *Gate) Check(ctx context.Context, ref origin.Ref) error {
	for _, rule := range g.rules {
		if err := rule(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// Admit returns what ref is if it may be served. It asks the rules; then, for a
// tag, Config.Tags; for a digest, the links that are remembered and then the
// origin, whose answer it remembers. It blocks for as long as the origin takes
// or until ctx ends. The error wraps ErrDenied, an error of package origin, or
// ctx's.
//
// With the origin down or not to be asked, a tag is what it named last, with
// Stale set, and a digest that is linked is served as ever. A digest that is
// not is refused, even if its bytes are here.
func (g *Gate) Admit(ctx context.Context, ref origin.Ref) (Admission, error) {
	if err := g.Check(ctx, ref); err != nil {
		return Admission{}, err
	}
	if ref.Digest.IsZero() && ref.Manifest && g.tags != nil {
		return g.admitTag(ctx, ref)
	}
	if d, ok := g.remembered(ref); ok {
		return Admission{Descriptor: d}, admissible(ref, d)
	}
	d, err := g.resolve(ctx, ref)
	return Admission{Descriptor: d}, err
}

// admitTag returns what a tag names, and links that to the repository.
func (g *Gate) admitTag(ctx context.Context, ref origin.Ref) (Admission, error) {
	a, err := g.tags.Resolve(ctx, ref)
	if err != nil {
		return Admission{}, err
	}
	if err := admissible(ref, a.Descriptor); err != nil {
		return Admission{}, err
	}
	linked := ref
	linked.Digest = a.Blob.Digest
	if d, ok := g.remembered(linked); !ok || d != a.Descriptor {
		g.remember(ref.Upstream, ref.Repository, a.Descriptor)
	}
	return Admission{Descriptor: a.Descriptor, Stale: a.Stale, Age: a.Age}, nil
}

// Forget drops what is remembered of ref's digest in ref's repository, so that
// the next Admit of it, or of a tag that names it, asks the origin: for a link
// that turned out wrong.
func (g *Gate) Forget(ref origin.Ref) {
	if ref.Digest.IsZero() {
		return
	}
	if err := g.index.ForgetLink(ref.Upstream, ref.Repository, ref.Digest); err != nil {
		g.log.Warn("link not forgotten", "upstream", ref.Upstream, "repository", ref.Repository,
			"digest", ref.Digest, "error", err)
	}
	if ref.Manifest && g.tags != nil {
		g.tags.Doubt(ref.Upstream, ref.Repository, ref.Digest)
	}
}

// remembered returns what the index knows of ref. A damaged index is a reason
// to ask the origin, not to fail.
func (g *Gate) remembered(ref origin.Ref) (origin.Descriptor, bool) {
	if ref.Digest.IsZero() {
		return origin.Descriptor{}, false
	}
	link, ok, err := g.index.Link(ref.Upstream, ref.Repository, ref.Digest)
	if err != nil {
		g.log.Warn("link not read", "upstream", ref.Upstream, "repository", ref.Repository,
			"digest", ref.Digest, "error", err)
		return origin.Descriptor{}, false
	}
	if !ok || IsManifest(link.MediaType) != ref.Manifest {
		return origin.Descriptor{}, false
	}
	return origin.Descriptor{
		Blob:      proto.Blob{Digest: ref.Digest, Size: link.Size},
		MediaType: link.MediaType,
	}, true
}

func (g *Gate) remember(upstream, repository string, ds ...origin.Descriptor) {
	links := make(map[proto.Digest]cache.Link, len(ds))
	for _, d := range ds {
		links[d.Blob.Digest] = cache.Link{Size: d.Blob.Size, MediaType: d.MediaType}
	}
	if err := g.index.SetLinks(upstream, repository, links); err != nil {
		g.log.Warn("links not remembered", "upstream", upstream, "repository", repository, "error", err)
	}
}

// A lookup is one question to the origin, shared by all who ask it meanwhile.
type lookup struct {
	done chan struct{} // closed once the fields below are set

	descriptor origin.Descriptor
	err        error
	abandoned  bool // the asker's context ended: err says nothing about ref
}

// resolve asks the origin, once however many ask at the same time.
func (g *Gate) resolve(ctx context.Context, ref origin.Ref) (origin.Descriptor, error) {
	for {
		l, ours := g.join(key(ref))
		if ours {
			g.ask(ctx, ref, l)
			return l.descriptor, l.err
		}
		select {
		case <-l.done:
			if l.abandoned && ctx.Err() == nil {
				continue // whoever asked has gone: ask ourselves
			}
			return l.descriptor, l.err
		case <-ctx.Done():
			return origin.Descriptor{}, fmt.Errorf("resolve %s: %w", describe(ref), ctx.Err())
		}
	}
}

// join returns the lookup under k that is going on, or a new one that is the
// caller's to do.
func (g *Gate) join(k string) (l *lookup, ours bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.lookups[k]; l != nil {
		return l, false
	}
	l = &lookup{done: make(chan struct{}), abandoned: true}
	g.lookups[k] = l
	return l, true
}

// ask does the lookup l and remembers its answer before it lets go of l, so
// that whoever comes next finds the one or the other. Should it panic, l stays
// abandoned and nobody hangs.
func (g *Gate) ask(ctx context.Context, ref origin.Ref, l *lookup) {
	defer func() {
		g.mu.Lock()
		delete(g.lookups, key(ref))
		g.mu.Unlock()
		close(l.done)
	}()
	d, ok := g.remembered(ref) // by a lookup that ended while we came
	if !ok {
		d, l.err = g.origin.Resolve(ctx, ref)
	}
	if l.err == nil {
		l.err = admissible(ref, d)
	}
	if l.err == nil {
		l.descriptor = d
		g.remember(ref.Upstream, ref.Repository, d)
	}
	l.abandoned = l.err != nil && ctx.Err() != nil
}

func key(ref origin.Ref) string {
	kind := "blob"
	if ref.Manifest {
		kind = "manifest"
	}
	return kind + " " + describe(ref)
}

// describe names ref as a person would.
func describe(ref origin.Ref) string {
	s := ref.Upstream + "/" + ref.Repository
	if !ref.Digest.IsZero() {
		return s + "@" + ref.Digest.String()
	}
	return s + ":" + ref.Tag
}

// admissible reports whether d can be what ref names.
func admissible(ref origin.Ref, d origin.Descriptor) error {
	if err := d.Blob.Validate(); err != nil {
		return fmt.Errorf("%s: %w: %w", describe(ref), origin.ErrProtocol, err)
	}
	if !ref.Digest.IsZero() && d.Blob.Digest != ref.Digest {
		return fmt.Errorf("%s: %w: it answered with digest %s", describe(ref), origin.ErrProtocol, d.Blob.Digest)
	}
	if ref.Manifest && d.Blob.Size > origin.MaxManifest {
		return fmt.Errorf("%s: %w: the manifest has %d bytes, at most %d are accepted",
			describe(ref), origin.ErrTooLarge, d.Blob.Size, origin.MaxManifest)
	}
	return nil
}
