package signature

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const (
	// unsignedFor is how long an image counts as not signed before the registry
	// is asked again: whoever pushes and then signs waits no longer than that.
	unsignedFor = 30 * time.Second
	// lookedFor is the same for an image that some keys have signed and some
	// have not, which is the common one where there are several keys.
	lookedFor = 5 * time.Minute
	// lookupTime bounds a lookup. A client that waits for a manifest has not
	// given up by then.
	lookupTime = time.Minute
	// rememberedLookups bounds what is kept in memory of images.
	rememberedLookups = 4096
	// parallelScans bounds how many scan results are in memory at once.
	parallelScans = 2
)

// A Verifier says who has signed an image and what a scan of it has found. Its
// methods may be called from several goroutines. It has no goroutines itself.
type Verifier struct {
	// immutable
	origin  *origin.Client
	index   *cache.Index
	log     *slog.Logger
	metrics *metrics
	keys    []*key
	gates   []*gate
	all     string // fingerprint of all keys that sign
	scans   chan struct{}

	signed  lookups[subject, map[string]time.Time] // until when, by name of the key
	scanned lookups[scanKey, scan]
}

// A key is a Key whose files are read.
type key struct {
	name         string
	repositories []string
	// check is the name of the verdict that it has signed something: it changes
	// with all that makes the key what it is.
	check     string
	scansOnly bool
	sigstore  *sigstoreKey
	notation  *notationKey
}

// New returns a Verifier. It reads the files of the keys, and does no network
// I/O. An error says which key or gate is wrong and how to put it right.
func New(c Config) (*Verifier, error) {
	if err := Validate(c.Keys, c.Gates); err != nil {
		return nil, err
	}
	m, err := newMetrics(c.Registry)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		origin:  c.Origin,
		index:   c.Index,
		log:     cmp.Or(c.Log, slog.New(slog.DiscardHandler)),
		metrics: m,
		scans:   make(chan struct{}, parallelScans),
	}
	all := sha256.New()
	for _, k := range c.Keys {
		made, err := newKey(k)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k.Name, err)
		}
		made.scansOnly = len(k.Repositories) == 0 && slices.ContainsFunc(c.Gates, func(g Gate) bool { return g.Key == k.Name })
		if !made.scansOnly {
			all.Write([]byte(made.check))
		}
		v.keys = append(v.keys, made)
	}
	v.all = "looked/" + hex.EncodeToString(all.Sum(nil))
	for _, g := range c.Gates {
		i := slices.IndexFunc(v.keys, func(k *key) bool { return k.name == g.Key })
		v.gates = append(v.gates, newGate(g, v.keys[i]))
	}
	return v, nil
}

func newKey(k Key) (*key, error) {
	made := &key{name: k.Name, repositories: k.Repositories}
	var content []byte
	var err error
	switch {
	case k.isCosign():
		made.sigstore, content, err = newCosign(k.Cosign)
	case k.isKeyless():
		made.sigstore, content, err = newKeyless(k.Keyless)
	default:
		made.notation, content, err = newNotation(k.Notation)
	}
	if err != nil {
		return nil, err
	}
	if made.sigstore != nil {
		made.sigstore.predicates = k.Predicates
	}
	k.Name, k.Repositories = "", nil // the verdict does not depend on them
	made.check = "signed/" + fingerprint(k, content)
	return made, nil
}

// fingerprint returns a name for a configuration and the content of its files.
// The number goes up when what is accepted changes.
func fingerprint(config any, content []byte) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]any{1, config, content}) // of strings and numbers
	return hex.EncodeToString(h.Sum(nil))
}

// Required returns the names of the keys that all have to have signed the
// images of a repository, in the order of the configuration.
func (v *Verifier) Required(upstream, repository string) []string {
	var names []string
	for _, k := range v.keys {
		if matchesAny(k.repositories, upstream, repository) {
			names = append(names, k.name)
		}
	}
	return names
}

// SignedBy returns the names of the keys by which a manifest is signed, in the
// order of the configuration. It asks the registry if it does not know.
//
// An error means that this is not known: the registry failed, and wraps one of
// package origin's, or ctx ended. The names that come with it have signed all
// the same, but others may have too. There is no error, whatever failed, once
// all keys that Required names have been found, or all keys where it names none;
// nor if they were all looked for before and some were found then.
func (v *Verifier) SignedBy(ctx context.Context, upstream, repository string, d proto.Digest) ([]string, error) {
	s := subject{upstream, repository, d}
	looked, err := v.signed.do(ctx, s, func() (map[string]time.Time, bool) {
		found := v.recall(s)
		return found, len(v.missing(found)) == 0
	}, func(ctx context.Context) (map[string]time.Time, time.Duration, error) {
		return v.lookup(ctx, s)
	})
	// What the index has may be newer, from a lookup in another repository.
	found := v.recall(s)
	maps.Copy(found, looked)
	var names []string
	for _, k := range v.keys {
		if until, ok := found[k.name]; ok && valid(until) {
			names = append(names, k.name)
		}
	}
	if err != nil {
		return names, fmt.Errorf("who has signed %s: %w", s, err)
	}
	return names, nil
}

func valid(until time.Time) bool { return until.IsZero() || time.Now().Before(until) }

// recall returns what the index has of the keys that have signed s.
func (v *Verifier) recall(s subject) map[string]time.Time {
	found := map[string]time.Time{}
	for _, k := range v.keys {
		verdict, ok, err := v.index.Verdict(k.check, s.digest)
		if err != nil {
			v.log.Warn("a verdict cannot be read: the signature is verified again", "digest", s.digest, "key", k.name, "error", err)
		}
		if ok && !k.scansOnly && valid(verdict.Until) {
			found[k.name] = verdict.Until
		}
	}
	return found
}

// missing returns the keys that sign and are not in found.
func (v *Verifier) missing(found map[string]time.Time) []*key {
	var missing []*key
	for _, k := range v.keys {
		if _, ok := found[k.name]; !ok && !k.scansOnly {
			missing = append(missing, k)
		}
	}
	return missing
}

// lookup asks the registry, and returns for how long the answer is good.
func (v *Verifier) lookup(ctx context.Context, s subject) (map[string]time.Time, time.Duration, error) {
	found := v.recall(s)
	missing := v.missing(found)
	var failed error // beside the search
	var desc *ocispec.Descriptor
	find := &search{
		origin: v.origin, subject: s, suffix: ".sig", maxLayer: maxLayer, skipped: v.skipped(s),
		wants: func(k kind, predicate string) bool {
			return slices.ContainsFunc(missing, func(m *key) bool { return m.wants(k, predicate) })
		},
	}
	find.visit = func(it item) bool {
		if it.kind == kindNotation && desc == nil {
			if failed == nil { // one try: it has its own retries
				desc, failed = v.describe(ctx, s)
			}
			if failed != nil {
				return true
			}
		}
		missing = slices.DeleteFunc(missing, func(k *key) bool {
			until, err := k.signed(ctx, it, s, desc)
			if err != nil {
				v.log.Debug("signature is not accepted", "digest", s.digest, "upstream", s.upstream,
					"repository", s.repository, "key", k.name, "kind", it.kind, "error", err)
				return false
			}
			found[k.name] = until
			v.remember(k.check, s, cache.Verdict{At: time.Now().UTC(), Until: until})
			return true
		})
		return len(missing) > 0
	}
	err := errors.Join(find.run(ctx), failed)
	return found, v.goodFor(s, found, err), v.judge(s, found, err)
}

// goodFor returns how long a lookup needs no other one.
func (v *Verifier) goodFor(s subject, found map[string]time.Time, err error) time.Duration {
	if err != nil || len(found) == 0 {
		v.metrics.lookup(err, len(found))
		return unsignedFor
	}
	v.metrics.lookup(nil, len(found))
	v.remember(v.all, s, cache.Verdict{At: time.Now().UTC()})
	return lookedFor
}

// judge returns err unless what is found is enough without what has failed.
func (v *Verifier) judge(s subject, found map[string]time.Time, err error) error {
	if err == nil || len(v.missing(found)) == 0 {
		return nil
	}
	required := v.Required(s.upstream, s.repository)
	for _, name := range required {
		if _, ok := found[name]; !ok {
			return err
		}
	}
	if len(required) > 0 {
		return nil
	}
	if _, looked, _ := v.index.Verdict(v.all, s.digest); looked && len(found) > 0 {
		v.log.Debug("the registry cannot be asked for further signatures", "digest", s.digest, "upstream", s.upstream,
			"repository", s.repository, "error", err)
		return nil
	}
	return err
}

// remember keeps a verdict. One that is lost costs another lookup.
func (v *Verifier) remember(check string, s subject, verdict cache.Verdict) {
	if err := v.index.SetVerdict(check, s.digest, verdict); err != nil {
		v.log.Warn("a verdict is not remembered", "digest", s.digest, "error", err)
	}
}

func (v *Verifier) skipped(s subject) func(string, error) {
	return func(what string, why error) {
		v.log.Debug("passed over what may be a signature", "digest", s.digest, "upstream", s.upstream,
			"repository", s.repository, "what", what, "error", why)
	}
}

// describe returns the image's descriptor as the registry has it.
func (v *Verifier) describe(ctx context.Context, s subject) (*ocispec.Descriptor, error) {
	link, ok, err := v.index.Link(s.upstream, s.repository, s.digest)
	if err == nil && ok && link.MediaType != "" && link.Size > 0 {
		return new(s.describe(link.MediaType, link.Size)), nil
	}
	d, err := v.origin.Resolve(ctx, origin.Ref{Upstream: s.upstream, Repository: s.repository, Digest: s.digest, Manifest: true})
	if err != nil {
		return nil, err
	}
	return new(s.describe(d.MediaType, d.Blob.Size)), nil
}

func (k *key) wants(kd kind, predicate string) bool {
	if k.notation != nil {
		return k.notation.wants(kd, predicate)
	}
	return k.sigstore.wants(kd, predicate)
}

// signed returns until when it is a valid signature of s by k, or why it is
// none. What is parsed here came from the network, and goes through a good many
// libraries: a panic of one of them refuses the signature, not the service.
func (k *key) signed(ctx context.Context, it item, s subject, desc *ocispec.Descriptor) (until time.Time, err error) {
	defer recovered(&err)
	switch {
	case !k.wants(it.kind, it.predicate):
		return time.Time{}, errors.New("it is of another kind")
	case k.notation != nil:
		return k.notation.signed(ctx, it, *desc)
	}
	return time.Time{}, k.sigstore.signed(it, s.digest)
}

func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v", p)
	}
}
