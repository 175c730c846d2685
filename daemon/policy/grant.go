package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
)

const (
	// maxGrantTTL is for how long the upstream's yes to a caller is believed at
	// most. It is how late a revocation can come.
	maxGrantTTL = time.Minute
	// maxRemembered bounds each of the Gate's memories of what was allowed: at
	// some 60 bytes each, a megabyte. A grant that is forgotten costs a HEAD.
	maxRemembered = 16384
	// lendFor and lendOpaque are for how long package origin may use a caller's
	// token for what the caller asked for: until the token says that it ends,
	// but not for ever, and for one that does not say, as long as tokens live
	// that registries give out. The origin looks at it each time.
	lendFor    = time.Hour
	lendOpaque = 10 * time.Minute
	// maxAsked bounds the manifests that are tried for a blob.
	maxAsked = 16
)

// A hash is a key of a memory. It says nothing about the secret that went in.
type hash [sha256.Size]byte

// hashOf returns a hash of parts, none of which can run into the next.
func hashOf(parts ...string) (h hash) {
	w := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(w, "%d:%s", len(p), p)
	}
	w.Sum(h[:0])
	return h
}

// A memory holds what was allowed, each until a time. Its methods may be called
// concurrently.
type memory struct {
	mu    sync.Mutex // protects the field below
	until map[hash]time.Time
}

func (m *memory) has(k hash, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Before(m.until[k])
}

func (m *memory) add(k hash, until, now time.Time) {
	if !now.Before(until) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = make(map[hash]time.Time)
	}
	if _, ok := m.until[k]; !ok && len(m.until) >= maxRemembered {
		m.makeRoom(now)
	}
	m.until[k] = until
}

func (m *memory) drop(k hash) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.until, k)
}

// makeRoom drops what is over, and an eighth of the rest at least: a scan for
// each entry would make a full memory slow. m.mu is held.
func (m *memory) makeRoom(now time.Time) {
	const enough = maxRemembered - maxRemembered/8
	for k, until := range m.until {
		if !now.Before(until) {
			delete(m.until, k)
		}
	}
	for k := range m.until { // any: a map has no order
		if len(m.until) <= enough {
			return
		}
		delete(m.until, k)
	}
}

// grantOf returns the key of a grant: that the upstream lets an Authorization
// read a repository.
func grantOf(ref origin.Ref, authorization string) hash {
	return hashOf(strings.ToLower(ref.Upstream), ref.Repository, authorization)
}

// MayBring returns why this node may not bring ref by its own: its upstream wants
// the tokens of callers. A job has none, and may not use those that callers
// have left.
func (g *Gate) MayBring(ref origin.Ref) error {
	if !g.isPassthrough(ref.Upstream) {
		return nil
	}
	return fmt.Errorf("%s: %w: registry %s wants its callers' own tokens (auth: passthrough), and a job has none: give this node credentials for it (auth: node) if it is to bring images by itself",
		describe(ref), origin.ErrDenied, ref.Upstream)
}

func (g *Gate) isPassthrough(upstream string) bool {
	return g.auth != nil && g.auth(upstream) == origin.AuthPassthrough
}

// passthrough returns what ref is if the upstream lets who read it. With a grant
// that is live everything is as for other upstreams. Without one the upstream is
// asked, with nothing but who's own Authorization.
func (g *Gate) passthrough(ctx context.Context, ref origin.Ref, who Caller) (Admission, error) {
	if who.Door == DoorJob {
		return Admission{}, g.MayBring(ref)
	}
	if g.grants.has(grantOf(ref, who.Authorization), time.Now()) {
		a, err := g.find(ctx, ref)
		if !errors.Is(err, origin.ErrDenied) {
			return a, err
		}
		// The lookup was made with a token that somebody brought. That it is
		// refused says nothing about this one's.
	}
	if ref.Manifest {
		d, err := g.check(ctx, ref, who)
		return Admission{Descriptor: d}, err
	}
	if err := g.checkPart(ctx, ref, who); err != nil {
		return Admission{}, err
	}
	return g.find(ctx, ref)
}

// Distrust forgets that the upstream of ref let who read its repository, so that
// it is asked the next time: for a caller whose token has been refused since.
func (g *Gate) Distrust(ref origin.Ref, who Caller) { g.grants.drop(grantOf(ref, who.Authorization)) }

// checkPart asks the upstream whether who may read a repository, of which the
// blob ref must be a part: with a manifest of it that names the blob.
func (g *Gate) checkPart(ctx context.Context, ref origin.Ref, who Caller) error {
	manifests, err := g.index.PartOf(ref.Upstream, ref.Repository, ref.Digest)
	if err != nil {
		return fmt.Errorf("%s: %w", describe(ref), err)
	}
	gone := fmt.Errorf("%s: %w: no manifest of this repository that is known here names it; ask for the manifest first", describe(ref), origin.ErrNotFound)
	for _, d := range manifests[:min(len(manifests), maxAsked)] {
		manifest := ref
		manifest.Digest, manifest.Manifest = d, true
		_, err := g.check(ctx, manifest, who)
		if err != nil && !errors.Is(err, origin.ErrNotFound) {
			return &discreet{describe(ref) + ": whether its caller may read the repository: " + verdictOf(err), err}
		}
		if err == nil {
			return nil
		}
	}
	return gone
}

// A discreet error does not say what it wraps: that names manifests, whose digests
// are not for who may not read the repository.
type discreet struct {
	text string
	err  error
}

func (d *discreet) Error() string { return d.text }
func (d *discreet) Unwrap() error { return d.err }

func verdictOf(err error) string {
	if errors.Is(err, origin.ErrDenied) {
		return "the registry says no"
	}
	return "the registry has not said"
}

// check asks the upstream for a manifest with who's Authorization, once however
// many ask the same with it. A yes is remembered, as a grant and as what the
// manifest is. Nothing else is.
func (g *Gate) check(ctx context.Context, ref origin.Ref, who Caller) (origin.Descriptor, error) {
	grant := grantOf(ref, who.Authorization)
	return g.once(ctx, "check "+string(grant[:])+key(ref), describe(ref), func(ctx context.Context) (origin.Descriptor, error) {
		d, err := g.origin.Resolve(origin.WithAuthorization(ctx, who.Authorization), ref)
		if err == nil {
			err = admissible(ref, d)
		}
		if err != nil {
			return origin.Descriptor{}, err
		}
		g.remember(ref.Upstream, ref.Repository, d)
		if ref.Digest.IsZero() && g.tags != nil {
			if err := g.tags.Set(ref.Upstream, ref.Repository, ref.Tag, d); err != nil {
				g.log.Warn("tag not remembered", "upstream", ref.Upstream, "repository", ref.Repository, "tag", ref.Tag, "error", err)
			}
		}
		now := time.Now()
		until, lend := g.terms(ref.Upstream, who.Authorization, now)
		g.grants.add(grant, until, now)
		g.origin.Grant(ref.Upstream, ref.Repository, who.Authorization, lend)
		return d, nil
	})
}

// terms returns until when the upstream's yes is believed, and until when the
// token may be used for what was asked for with it.
func (g *Gate) terms(upstream, authorization string, now time.Time) (until, lend time.Time) {
	ttl := maxGrantTTL
	if g.grantTTL != nil {
		ttl = min(cmp.Or(max(g.grantTTL(upstream), 0), maxGrantTTL), maxGrantTTL)
	}
	until, lend = now.Add(ttl), now.Add(lendOpaque)
	if exp := expiryOf(authorization); !exp.IsZero() {
		if exp.Before(until) {
			until = exp
		}
		lend = exp
		if most := now.Add(lendFor); lend.After(most) {
			lend = most
		}
		// The upstream has just taken it, whatever this node's clock says.
		if least := now.Add(maxGrantTTL / 4); lend.Before(least) {
			lend = least
		}
	}
	return until, lend
}
