package policy

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// A visibility says which digests anybody may see, and through which repository
// the others came. Of each name it keeps 8 bytes under a random seed, so that a
// node with 100,000 links needs a few megabytes. Its methods may be called
// concurrently; on nil, everything is public.
type visibility struct {
	// immutable
	seed maphash.Seed

	mu sync.Mutex // protects the fields below
	// public are digests that an upstream has which anybody may read; the value
	// is false if all who say so are upstreams that nobody has configured by
	// name.
	public map[uint64]bool
	// hidden has where a digest came from that has come through an upstream
	// which not anybody may read.
	hidden map[uint64]place
}

// A place is an upstream and a repository of it, or several of either.
type place struct{ upstream, repository uint64 }

// several stands for more than one.
const several = 0

func newVisibility() *visibility {
	return &visibility{seed: maphash.MakeSeed(), public: make(map[uint64]bool), hidden: make(map[uint64]place)}
}

func (v *visibility) hash(s string) uint64 { return max(maphash.String(v.seed, s), several+1) }

func (v *visibility) place(upstream, repository string) place {
	upstream = strings.ToLower(upstream)
	return place{v.hash(upstream), v.hash(upstream + "\x00" + repository)}
}

// add notes that a repository has d, and reports whether d has become public by
// that.
func (v *visibility) add(upstream, repository string, anonymous, named bool, d proto.Digest) (published bool) {
	k := v.hash(d.String())
	v.mu.Lock()
	defer v.mu.Unlock()
	if anonymous {
		was := v.shown(k)
		v.public[k] = v.public[k] || named
		return !was && v.shown(k)
	}
	at := v.place(upstream, repository)
	if before, ok := v.hidden[k]; ok {
		if before.upstream != at.upstream {
			at.upstream = several
		}
		if before.repository != at.repository {
			at.repository = several
		}
	}
	v.hidden[k] = at
	return false
}

// shown reports whether a digest is public. The word of an upstream that nobody
// has named is not enough for one that is hidden. v.mu is held.
func (v *visibility) shown(k uint64) bool {
	named, public := v.public[k]
	_, hidden := v.hidden[k]
	return public && (named || !hidden)
}

// isPublic reports whether anybody may see d.
func (v *visibility) isPublic(d proto.Digest) bool {
	if v == nil {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.shown(v.hash(d.String()))
}

// hide takes back that d is public.
func (v *visibility) hide(d proto.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.public, v.hash(d.String()))
}

// elsewhere reports whether d is hidden and has come through another repository
// than this one, and through another upstream.
func (v *visibility) elsewhere(upstream, repository string, d proto.Digest) (otherRepository, otherUpstream bool) {
	if v == nil {
		return false, false
	}
	k := v.hash(d.String())
	v.mu.Lock()
	defer v.mu.Unlock()
	from, hidden := v.hidden[k]
	if !hidden || v.shown(k) {
		return false, false
	}
	at := v.place(upstream, repository)
	return from.repository != at.repository, from.upstream != at.upstream
}

// Private reports whether d may be shown to those only who have been let in: no
// upstream that anybody may read is known to have it, and there is one at least
// that not anybody may. What nothing is known of is private. It does not block.
func (g *Gate) Private(d proto.Digest) bool { return !g.visible.isPublic(d) }

// anonymous reports whether anybody may read an upstream. One that is no longer
// configured is not known to be so.
func (g *Gate) anonymous(upstream string) bool {
	return g.auth == nil || g.auth(upstream) == origin.AuthAnonymous
}

// see reads from the index what is visible, if there is an upstream that not
// anybody may read.
func (g *Gate) see(upstreams []string) {
	guarded := false
	for _, name := range upstreams {
		g.named[strings.ToLower(name)] = true
		guarded = guarded || !g.anonymous(name)
	}
	if !guarded {
		return
	}
	g.visible = newVisibility()
	err := g.index.Links(func(l cache.Linked, d proto.Digest) error {
		g.visible.add(l.Upstream, l.Repository, g.anonymous(l.Upstream), g.isNamed(l.Upstream), d)
		return nil
	})
	if err != nil {
		g.log.Warn("not all links were read: what they are of is private until it is pulled again", "error", err)
	}
}

// isNamed reports whether an upstream is configured by its name, and not under
// "*", where anybody can run one.
func (g *Gate) isNamed(upstream string) bool { return g.named[strings.ToLower(upstream)] }

// noted notes that links were remembered.
func (g *Gate) noted(upstream, repository string, ds []origin.Descriptor) {
	if g.visible == nil {
		return
	}
	anonymous, named := g.anonymous(upstream), g.isNamed(upstream)
	for _, d := range ds {
		if g.visible.add(upstream, repository, anonymous, named, d.Blob.Digest) && g.published != nil {
			g.published(d.Blob.Digest)
		}
	}
}

// forgotten notes that a link of an upstream to d was forgotten.
func (g *Gate) forgotten(upstream string, d proto.Digest) {
	if g.visible == nil || !g.anonymous(upstream) || !g.visible.isPublic(d) {
		return
	}
	left, err := g.index.LinkedFrom(d)
	if err != nil {
		g.log.Warn("links not read", "digest", d, "error", err)
	}
	g.visible.hide(d)
	for _, l := range left {
		if g.anonymous(l.Upstream) {
			g.visible.add(l.Upstream, l.Repository, true, g.isNamed(l.Upstream), d)
		}
	}
}

// claimed returns which of what a manifest names may be linked to its repository
// by the manifest's word alone. A digest that came through other repositories
// only, which not anybody may read, is not among them: whoever can push a
// manifest could name it. The upstream is asked for it when it is wanted.
func (g *Gate) claimed(upstream, repository string, ds []origin.Descriptor) []origin.Descriptor {
	if g.visible == nil {
		return ds
	}
	kept := make([]origin.Descriptor, 0, len(ds))
	for _, d := range ds {
		if other, _ := g.visible.elsewhere(upstream, repository, d.Blob.Digest); other {
			if _, ok, err := g.index.Link(upstream, repository, d.Blob.Digest); !ok || err != nil {
				continue
			}
		}
		kept = append(kept, d)
	}
	return kept
}

// believable returns why an upstream's word that it has d is not taken: it is one
// that nobody has named, anybody could run it, and d is hidden and came from
// another one.
func (g *Gate) believable(ref origin.Ref, d proto.Digest) error {
	if g.isNamed(ref.Upstream) {
		return nil
	}
	if _, other := g.visible.elsewhere(ref.Upstream, ref.Repository, d); other {
		return &Denial{Rule: rulePrivate, Message: fmt.Sprintf(
			"%s is here of a private repository of another registry, and %s is only known as one of \"*\": add upstreams.%q to the configuration to believe it",
			d, ref.Upstream, ref.Upstream)}
	}
	return nil
}
