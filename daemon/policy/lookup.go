package policy

import (
	"context"
	"fmt"

	"github.com/shoal-project/shoal/daemon/origin"
)

// A lookup is one question to the origin, shared by all who ask it meanwhile.
type lookup struct {
	done chan struct{} // closed once the fields below are set

	descriptor origin.Descriptor
	err        error
	abandoned  bool // the asker's context ended: err says nothing about ref
}

// resolve asks the origin what ref is, once however many ask at the same time,
// and remembers the answer.
func (g *Gate) resolve(ctx context.Context, ref origin.Ref) (origin.Descriptor, error) {
	return g.once(ctx, "resolve "+key(ref), describe(ref), func(ctx context.Context) (origin.Descriptor, error) {
		if d, ok := g.remembered(ref); ok { // by a lookup that ended while we came
			return d, admissible(ref, d)
		}
		d, err := g.origin.Resolve(ctx, ref)
		if err == nil {
			err = admissible(ref, d)
		}
		if err != nil {
			return origin.Descriptor{}, err
		}
		g.remember(ref.Upstream, ref.Repository, d)
		return d, nil
	})
}

// once has the first who asks under k do the asking, and the others wait for
// its answer. ask has to remember what it learned before it returns, so that
// whoever comes next finds the one or the other.
func (g *Gate) once(ctx context.Context, k, what string, ask func(context.Context) (origin.Descriptor, error)) (origin.Descriptor, error) {
	for {
		l, ours := g.join(k)
		if ours {
			g.ask(ctx, k, l, ask)
			return l.descriptor, l.err
		}
		select {
		case <-l.done:
			if l.abandoned && ctx.Err() == nil {
				continue // whoever asked has gone: ask ourselves
			}
			return l.descriptor, l.err
		case <-ctx.Done():
			return origin.Descriptor{}, fmt.Errorf("resolve %s: %w", what, ctx.Err())
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

// ask does the lookup l. Should it panic, l stays abandoned and nobody hangs.
func (g *Gate) ask(ctx context.Context, k string, l *lookup, ask func(context.Context) (origin.Descriptor, error)) {
	defer func() {
		g.mu.Lock()
		delete(g.lookups, k)
		g.mu.Unlock()
		close(l.done)
	}()
	l.descriptor, l.err = ask(ctx)
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
