package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/proto"
)

const (
	// judgedFor is for how long a manifest that was let through vouches for its
	// blobs. Then it is judged again: an age grows, keys and rules of time pass.
	judgedFor = time.Minute
	// maxParents bounds the indexes whose signatures count for an image.
	maxParents = 8
	// maxConfig bounds the config of an image in bytes, of which the platform is
	// read. Docker's own has the same bound as manifests.
	maxConfig = origin.MaxManifest
)

// content is what the Gate knows of the rules that look into content.
type content struct {
	// immutable
	rules     *rules.Set
	auditOnly bool
	signedBy  func(context.Context, string, string, proto.Digest) ([]string, error)
	required  func(string, string) []string
	scan      func(context.Context, string, string, proto.Digest) error
	read      func(context.Context, proto.Origin, proto.Blob) ([]byte, error)

	allowed memory // blobs of manifests that were let through, by blobOf
}

// demands reports whether more than the configuration's rules look at a
// repository's content.
func (c *content) demands(ref origin.Ref) bool {
	return c.scan != nil || len(c.keys(ref)) > 0
}

func (c *content) keys(ref origin.Ref) []string {
	if c.required == nil {
		return nil
	}
	return c.required(ref.Upstream, ref.Repository)
}

// NeedsContent reports whether Judge looks at what a repository has. Then a
// manifest has to be here as a whole before anything of it is said, and content
// that did not come by the Gate must not be let through.
func (g *Gate) NeedsContent(ref origin.Ref) bool {
	return g.content.rules.NeedsContent() || g.content.demands(ref)
}

// early asks the rules of the configuration before there is content.
func (c *content) early(ctx context.Context, kind string, ref origin.Ref, who Caller) (Ruling, error) {
	v, err := c.rules.Judge(ctx, facts(kind, ref, who))
	if err != nil || !v.Decided {
		return Ruling{}, err
	}
	return ruling(v)
}

func facts(kind string, ref origin.Ref, who Caller) rules.Facts {
	f := rules.Facts{
		Kind: kind, Registry: ref.Upstream, Repository: ref.Repository, Tag: ref.Tag,
		Client: rules.Client{Door: who.Door, Address: who.Addr, User: who.User},
	}
	if !ref.Digest.IsZero() {
		f.Digest = ref.Digest.String()
	}
	return f
}

// ruling returns a verdict as what the Gate says.
func ruling(v rules.Verdict) (Ruling, error) {
	d := &Denial{Rule: v.Rule, Message: v.Message, Audit: v.Audit}
	switch {
	case v.Audit:
		return Ruling{Would: d}, nil
	case !v.Allow:
		return Ruling{}, d
	}
	return Ruling{Rule: v.Rule}, nil
}

// Judge asks the rules that look into content about a manifest that Admit let
// through as d, before any of it is told and before its blobs are started. It
// asks whether the digest is blocked, the rules of the configuration, whether a
// key that is required has signed it, and what its scan says. Where nothing
// looks into content it returns at once. It may bring the image's config, and
// what the functions of Config bring. The error wraps ErrDenied, or says why
// nobody can tell now.
func (g *Gate) Judge(ctx context.Context, ref origin.Ref, who Caller, d origin.Descriptor, manifest []byte) (Ruling, error) {
	if err := g.recalled(d.Blob.Digest); err != nil {
		return Ruling{}, g.refuse(err)
	}
	if !g.NeedsContent(ref) {
		return Ruling{}, nil
	}
	r, err := g.judge(ctx, ref, who, d, manifest)
	if r, err = g.soften(ctx, r, err); err != nil {
		return Ruling{}, g.refuse(err)
	}
	if !isIndex(d.MediaType) {
		g.vouch(ref, who, d, manifest)
	}
	return r, nil
}

// soften makes of a refusal, and of not being able to tell, one that was only
// noted, if the policy only audits.
func (g *Gate) soften(ctx context.Context, r Ruling, err error) (Ruling, error) {
	if err == nil || !g.content.auditOnly || ctx.Err() != nil {
		return r, err
	}
	would, ok := errors.AsType[*Denial](err)
	if !ok {
		would = &Denial{Rule: ruleContent, Message: err.Error()}
	}
	noted := *would
	noted.Audit = true
	return r.And(Ruling{Would: &noted}), nil
}

func (g *Gate) judge(ctx context.Context, ref origin.Ref, who Caller, d origin.Descriptor, manifest []byte) (Ruling, error) {
	c := &g.content
	s := &signers{gate: g, ref: ref, digest: d.Blob.Digest}
	var r Ruling
	if c.rules.NeedsContent() {
		f := facts(rules.KindManifest, ref, who)
		f.Digest = d.Blob.Digest.String()
		if err := g.describeImage(ctx, ref, d, manifest, &f); err != nil {
			return r, err
		}
		f.SignedBy = func() ([]string, error) { return s.all(ctx) }
		v, err := c.rules.Judge(ctx, f)
		if err == nil {
			r, err = ruling(v)
		}
		if err != nil {
			return r, err
		}
	}
	err := s.have(ctx, c.keys(ref))
	r.Unsigned = s.none()
	if err != nil {
		return r, err
	}
	if c.scan == nil || isIndex(d.MediaType) {
		return r, nil // of an index its images are scanned
	}
	return r, c.scan(ctx, ref.Upstream, ref.Repository, d.Blob.Digest)
}

// An image is what the rules want to know of a manifest.
type image struct {
	Config      *descriptor       `json:"config"`
	Annotations map[string]string `json:"annotations"`
}

// A config is what the rules want to know of the config of an image
// (image-spec, config.md).
type config struct {
	Created      *time.Time `json:"created"`
	OS           string     `json:"os"`
	Architecture string     `json:"architecture"`
	Variant      string     `json:"variant"`
}

// annotationCreated is when an image was made (image-spec, annotations.md).
const annotationCreated = "org.opencontainers.image.created"

// Media types of the configs of images; those of other things say nothing of a
// platform.
const (
	typeOCIConfig    = "application/vnd.oci.image.config.v1+json"
	typeDockerConfig = "application/vnd.docker.container.image.v1+json"
)

// describeImage sets what is only known of content.
func (g *Gate) describeImage(ctx context.Context, ref origin.Ref, d origin.Descriptor, manifest []byte, f *rules.Facts) error {
	f.HasContent, f.Age = true, -1
	f.MediaType = essence(d.MediaType)
	var doc image
	if err := json.Unmarshal(manifest, &doc); err != nil {
		return fmt.Errorf("%s: %w: manifest: %w", describe(ref), origin.ErrProtocol, err)
	}
	f.Annotations = doc.Annotations
	created, err := time.Parse(time.RFC3339, doc.Annotations[annotationCreated])
	known := err == nil
	if doc.Config != nil && !isIndex(d.MediaType) {
		c, err := g.config(ctx, ref, *doc.Config)
		if err != nil {
			return fmt.Errorf("%s: read its config, which rules need: %w", describe(ref), err)
		}
		f.Platform = c.platform()
		if c.Created != nil {
			created, known = *c.Created, true
		}
	}
	if known {
		f.Age = max(time.Since(created), 0)
	}
	return nil
}

func (c config) platform() string {
	if c.OS == "" || c.Architecture == "" {
		return ""
	}
	s := c.OS + "/" + c.Architecture
	if c.Variant != "" {
		s += "/" + c.Variant
	}
	return s
}

// config reads the config of an image; of what is no image it is empty.
func (g *Gate) config(ctx context.Context, ref origin.Ref, d descriptor) (c config, err error) {
	if t := essence(d.MediaType); t != typeOCIConfig && t != typeDockerConfig || g.content.read == nil {
		return c, nil
	}
	var l list
	if err := l.take(d); err != nil {
		return c, fmt.Errorf("%w: %w", origin.ErrProtocol, err)
	}
	b := l.found[0].Blob
	if b.Size > maxConfig {
		return c, fmt.Errorf("%w: %d bytes, at most %d are read", origin.ErrTooLarge, b.Size, maxConfig)
	}
	data, err := g.content.read(ctx, proto.Origin{Upstream: ref.Upstream, Repository: ref.Repository}, b)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("%w: %w", origin.ErrProtocol, err)
	}
	return c, nil
}

// signers are the keys that have signed a manifest, or an index that has it as
// a part. They are looked for once, when somebody wants to know.
type signers struct {
	gate   *Gate
	ref    origin.Ref
	digest proto.Digest

	asked bool
	names []string
	err   error
}

// all returns the names. They are all that there are if there is no error.
func (s *signers) all(ctx context.Context) ([]string, error) {
	g := s.gate
	if s.asked || g.content.signedBy == nil {
		return s.names, s.err
	}
	s.asked = true
	parents, err := g.indexesOf(s.ref, s.digest)
	s.err = err
	for _, d := range append([]proto.Digest{s.digest}, parents...) {
		names, err := g.content.signedBy(ctx, s.ref.Upstream, s.ref.Repository, d)
		s.err = errors.Join(s.err, err)
		for _, n := range names {
			if !slices.Contains(s.names, n) {
				s.names = append(s.names, n)
			}
		}
	}
	return s.names, s.err
}

// have returns nil if all of the keys have signed.
func (s *signers) have(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	names, err := s.all(ctx)
	missing := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return slices.Contains(names, k) })
	switch {
	case len(missing) == 0:
		return nil
	case err != nil:
		return err
	}
	return &Denial{Rule: ruleSignature, Message: fmt.Sprintf("%s/%s@%s is not signed by %s, as this repository's images must be",
		s.ref.Upstream, s.ref.Repository, s.digest, strings.Join(missing, ", "))}
}

// none reports whether it was found out that nobody has signed.
func (s *signers) none() bool { return s.asked && s.err == nil && len(s.names) == 0 }

// indexesOf returns the indexes of the repository, as far as they are known
// here, that have a manifest as a part.
func (g *Gate) indexesOf(ref origin.Ref, manifest proto.Digest) ([]proto.Digest, error) {
	all, err := g.index.PartOf(ref.Upstream, ref.Repository, manifest)
	if err != nil {
		return nil, err
	}
	var found []proto.Digest
	for _, d := range all {
		link, ok, err := g.index.Link(ref.Upstream, ref.Repository, d)
		if err != nil {
			return nil, err
		}
		if ok && isIndex(link.MediaType) && len(found) < maxParents {
			found = append(found, d)
		}
	}
	return found, nil
}

// blobOf returns the key of a blob that a client may have.
func blobOf(ref origin.Ref, who Caller, d proto.Digest) hash {
	return hashOf(strings.ToLower(ref.Upstream), ref.Repository, d.String(), who.Door, who.Addr, who.User)
}

// vouch remembers that who may have the blobs of a manifest.
func (g *Gate) vouch(ref origin.Ref, who Caller, d origin.Descriptor, manifest []byte) {
	parts, _ := parseManifest(manifest, d.MediaType) // Learn says what is wrong with it
	now := time.Now()
	for _, p := range parts {
		g.content.allowed.add(blobOf(ref, who, p.Blob.Digest), now.Add(judgedFor), now)
	}
}

// judgeBlob returns nil if a manifest of the repository that has the blob as a
// part may be served to who. That the rules have nothing against the blob itself
// is not enough: they mostly speak of manifests.
func (g *Gate) judgeBlob(ctx context.Context, ref origin.Ref, who Caller) (Ruling, error) {
	c := &g.content
	if !g.NeedsContent(ref) || c.allowed.has(blobOf(ref, who, ref.Digest), time.Now()) {
		return Ruling{}, nil
	}
	r, err := g.judgeOwners(ctx, ref, who)
	return g.soften(ctx, r, err)
}

// judgeOwners judges the manifests that have a blob as a part, until one passes.
func (g *Gate) judgeOwners(ctx context.Context, ref origin.Ref, who Caller) (Ruling, error) {
	owners, err := g.index.PartOf(ref.Upstream, ref.Repository, ref.Digest)
	if err != nil {
		return Ruling{}, fmt.Errorf("%s: %w", describe(ref), err)
	}
	var refused, failed error
	for _, d := range owners[:min(len(owners), maxAsked)] {
		owner := ref
		owner.Digest, owner.Manifest = d, true
		r, err := g.judgeKnown(ctx, owner, who)
		switch {
		case err == nil:
			return r, nil
		case errors.Is(err, ErrDenied):
			refused = err
		default:
			failed = err
		}
	}
	switch {
	case failed != nil:
		return Ruling{}, failed // the refusal of another one is no answer to that
	case refused != nil:
		return Ruling{}, refused
	}
	return Ruling{}, g.refuse(&Denial{Rule: ruleContent, Message: describe(ref) +
		" is of no image that the policy has let through here: ask this mirror for the image's manifest first"})
}

// judgeKnown judges a manifest that this node knows.
func (g *Gate) judgeKnown(ctx context.Context, ref origin.Ref, who Caller) (Ruling, error) {
	d, ok := g.remembered(ref)
	if !ok || isIndex(d.MediaType) || g.content.read == nil {
		return Ruling{}, &Denial{Rule: ruleContent, Message: describe(ref) + " does not say what its blobs may be used for"}
	}
	from := proto.Origin{Upstream: ref.Upstream, Repository: ref.Repository, Manifest: true}
	data, err := g.content.read(ctx, from, d.Blob)
	if err != nil {
		return Ruling{}, fmt.Errorf("judge %s: %w", describe(ref), err)
	}
	return g.Judge(ctx, ref, who, d, data)
}
