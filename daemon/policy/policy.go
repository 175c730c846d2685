package policy

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

// A Rule decides whether ref may be served: nil, or an error that wraps
// ErrDenied, such as a Denial, and says what to do about it. A ref with neither
// tag nor digest stands for the repository as such (a list of its tags).
type Rule func(ctx context.Context, ref origin.Ref) error

// Config is what a Gate needs. Origin and Index must be set. Nil functions have
// nothing to say.
type Config struct {
	Origin *origin.Client
	Index  *cache.Index
	// Tags resolves tags. Nil asks the origin each time.
	Tags *tags.Resolver

	// Auth returns the mode of an upstream, as Origin.Auth does. Nil: all are
	// anonymous.
	Auth func(upstream string) string
	// Upstreams are the names of those that are configured, with "*".
	Upstreams []string
	// GrantTTL is for how long a passthrough upstream's yes to a caller is
	// believed, and never longer than the caller's token lives. Default, and at
	// most: 60 s.
	GrantTTL func(upstream string) time.Duration

	// Allow are asked in order, before the others. The first refusal counts.
	Allow []Rule
	// Rules are those of the configuration. Nil allows everything.
	Rules *rules.Set
	// AuditOnly is the policy's mode audit, for what is not in Rules:
	// signatures that are required and scans. Nothing is refused for them then.
	AuditOnly bool
	// Blocked says whether a digest is refused everywhere, and why. It is asked
	// for each request and must not block.
	Blocked func(d proto.Digest) (reason string, blocked bool)
	// SignedBy returns the names of the keys that have signed a manifest. Its
	// error means that nobody can say now.
	SignedBy func(ctx context.Context, upstream, repository string, d proto.Digest) ([]string, error)
	// Required returns the names of the keys that all must have signed the
	// manifests of a repository; none if it need not be signed.
	Required func(upstream, repository string) []string
	// Scan returns nil if the scan results of an image let it pass, or a
	// *Denial. Another error means that nobody can say now.
	Scan func(ctx context.Context, upstream, repository string, d proto.Digest) error
	// Read returns the content of a small blob, from here or from where it is
	// from, for what only an image's manifest and config say. It is needed if
	// Rules need content, or Required or Scan is set.
	Read func(ctx context.Context, from proto.Origin, b proto.Blob) ([]byte, error)
	// Published is told of a digest that was Private and is not any more. It
	// must not block.
	Published func(proto.Digest)

	// Log gets a line when the index fails. Nil is silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

// A Gate decides who may have what. Its methods may be called concurrently.
type Gate struct {
	// immutable
	origin    *origin.Client
	index     *cache.Index
	tags      *tags.Resolver // may be nil
	auth      func(string) string
	grantTTL  func(string) time.Duration
	allow     []Rule
	content   content
	blocked   func(proto.Digest) (string, bool)
	published func(proto.Digest)
	named     map[string]bool // upstreams in lower case
	visible   *visibility     // nil: everything is public
	log       *slog.Logger
	metrics   *metrics

	grants memory // of passthrough upstreams, by grantOf

	mu sync.Mutex // protects the fields below
	// lookups that are going on, by key.
	lookups map[string]*lookup
}

// New returns a Gate. If an upstream is not anonymous it reads all links of the
// index first, some 100,000 a second.
func New(cfg Config) *Gate {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gate{
		origin:    cfg.Origin,
		index:     cfg.Index,
		tags:      cfg.Tags,
		auth:      cfg.Auth,
		grantTTL:  cfg.GrantTTL,
		allow:     cfg.Allow,
		blocked:   cfg.Blocked,
		published: cfg.Published,
		named:     make(map[string]bool),
		log:       cfg.Log,
		metrics:   newMetrics(cfg.Registry, cfg.Upstreams),
		lookups:   make(map[string]*lookup),
	}
	g.content = content{
		rules: cfg.Rules, auditOnly: cfg.AuditOnly,
		signedBy: cfg.SignedBy, required: cfg.Required, scan: cfg.Scan, read: cfg.Read,
	}
	g.see(cfg.Upstreams)
	return g
}

// An Admission is what a Gate lets through.
type Admission struct {
	origin.Descriptor
	Ruling
	// Stale says why the origin may have moved the tag meanwhile without this
	// node knowing. It is "" for an answer that is as good as the origin's own,
	// and always for a digest.
	Stale string
	// Age is how long ago the origin said so; 0 for a digest.
	Age time.Duration
}

// Check asks those rules only that need to know no content: all that there are
// for a list, which ref is, or for a job's manifest. Admit does it too. The error
// wraps ErrDenied, or is ctx's.
func (g *Gate) Check(ctx context.Context, ref origin.Ref, who Caller) error {
	kind := rules.KindList
	if who.Door == DoorJob {
		kind = rules.KindManifest
	}
	_, err := g.before(ctx, kind, ref, who)
	return err
}

// before asks the rules that need to know no content.
func (g *Gate) before(ctx context.Context, kind string, ref origin.Ref, who Caller) (Ruling, error) {
	for _, rule := range g.allow {
		if err := rule(ctx, ref); err != nil {
			return Ruling{}, g.refuse(err)
		}
	}
	if err := g.recalled(ref.Digest); err != nil {
		return Ruling{}, g.refuse(err)
	}
	r, err := g.content.early(ctx, kind, ref, who)
	return r, g.refuse(err)
}

// Recalled refuses a digest that is blocked everywhere: for content that does not
// come by Admit. The error wraps ErrDenied.
func (g *Gate) Recalled(d proto.Digest) error { return g.refuse(g.recalled(d)) }

// recalled refuses a digest that is blocked.
func (g *Gate) recalled(d proto.Digest) error {
	if g.blocked == nil || d.IsZero() {
		return nil
	}
	reason, blocked := g.blocked(d)
	if !blocked {
		return nil
	}
	message := d.String() + " is blocked"
	if reason != "" {
		message += ": " + reason
	}
	return &Denial{Rule: ruleBlocklist, Message: message}
}

// Admit returns what ref is if who may have it. It asks the rules; then, of a
// passthrough upstream, whether it lets who read the repository; then, for a
// tag, Config.Tags; for a digest, the links that are remembered and then the
// origin, whose answer it remembers. It blocks for as long as the origin takes
// or until ctx ends. The error wraps ErrDenied, an error of package origin
// (*origin.ChallengeError among them), or ctx's.
//
// With the origin down or not to be asked, a tag is what it named last, with
// Stale set, and a digest that is linked is served as ever. A digest that is
// not is refused, even if its bytes are here, and so is everything that only a
// passthrough upstream could allow.
//
// What rules say of content, Judge asks for a manifest. A blob is admitted if a
// manifest of its repository has passed Judge that names it.
func (g *Gate) Admit(ctx context.Context, ref origin.Ref, who Caller) (Admission, error) {
	kind := rules.KindBlob
	if ref.Manifest {
		kind = rules.KindManifest
	}
	ruling, err := g.before(ctx, kind, ref, who)
	if err != nil {
		return Admission{}, err
	}
	find := g.find
	if g.isPassthrough(ref.Upstream) {
		find = func(ctx context.Context, ref origin.Ref) (Admission, error) { return g.passthrough(ctx, ref, who) }
	}
	a, err := find(ctx, ref)
	if err == nil && ref.Digest.IsZero() {
		err = g.refuse(g.recalled(a.Blob.Digest))
	}
	if err == nil && !ref.Manifest {
		var r Ruling
		r, err = g.judgeBlob(ctx, ref, who)
		ruling = ruling.And(r)
	}
	if err != nil {
		return Admission{}, err
	}
	a.Ruling = ruling
	return a, nil
}

// find returns what ref is as far as its upstream lets this node know.
func (g *Gate) find(ctx context.Context, ref origin.Ref) (Admission, error) {
	if ref.Digest.IsZero() && ref.Manifest && g.tags != nil {
		return g.admitTag(ctx, ref)
	}
	d, ok := g.remembered(ref)
	var err error
	if ok {
		err = admissible(ref, d)
	} else {
		d, err = g.resolve(ctx, ref)
	}
	if err == nil {
		err = g.refuse(g.believable(ref, d.Blob.Digest))
	}
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
	if err := g.refuse(g.believable(ref, a.Blob.Digest)); err != nil {
		return Admission{}, err
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
	g.forgotten(ref.Upstream, ref.Digest)
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

// Link remembers that a repository has something, because somebody has said so
// who is believed: its upstream, or an operator who brings it in.
func (g *Gate) Link(upstream, repository string, ds ...origin.Descriptor) error {
	links := make(map[proto.Digest]cache.Link, len(ds))
	for _, d := range ds {
		links[d.Blob.Digest] = cache.Link{Size: d.Blob.Size, MediaType: d.MediaType}
	}
	if err := g.index.SetLinks(upstream, repository, links); err != nil {
		return fmt.Errorf("link to %s/%s: %w", upstream, repository, err)
	}
	g.noted(upstream, repository, ds)
	return nil
}

func (g *Gate) remember(upstream, repository string, ds ...origin.Descriptor) {
	if err := g.Link(upstream, repository, ds...); err != nil {
		g.log.Warn("links not remembered", "upstream", upstream, "repository", repository, "error", err)
	}
}
