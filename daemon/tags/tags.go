package tags

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// Config is what a Resolver needs. Origin and Index must be set. Of the
// durations, zero is the default and a negative one is none at all.
type Config struct {
	Origin *origin.Client
	Index  *cache.Index

	// TTL is for how long an answer is as good as the origin's own. Default
	// 60 s.
	TTL time.Duration
	// NotFound is for how long a 404 is. Default 30 s.
	NotFound time.Duration
	// Revalidate is for how long after that an answer is still given at once,
	// while the origin is asked behind it. Default 60 s.
	Revalidate time.Duration
	// MaxStale is how old an answer may be that is given because the origin
	// does not answer. Default 168 h. While offline there is no such bound.
	MaxStale time.Duration
	// TTLOf, if not nil, has the TTL of a tag where ok is true. A ttl of 0 asks
	// the origin each time; an immutable tag is asked for once. The upstream's
	// name comes in lower case.
	TTLOf func(upstream, tag string) (ttl time.Duration, immutable bool, ok bool)

	// Upstreams are those that metrics call by name; all others are "other".
	Upstreams []string
	// Log gets a line when a tag has moved and when the index fails. Nil is
	// silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

const (
	// patience is how long an asker waits for the origin if there is an older
	// answer to give. A connect that loses its SYN twice still makes it (1 s
	// and 3 s), and the least patient client, dockerd, gives up after 16 s.
	patience = 5 * time.Second
	// slowFor is for how long after that nobody waits for the same upstream.
	slowFor = 30 * time.Second
	// lookupTime bounds a lookup, which no client may be waiting for any more.
	lookupTime = time.Minute
	// maxMemos bounds the memory that requests for invented tags can take: at
	// some 500 bytes each, 2 MB.
	maxMemos = 4096
)

// An Answer is what a tag names.
type Answer struct {
	origin.Descriptor
	// Stale says why the origin may have moved the tag meanwhile: it was asked
	// and did not answer. It is "" if the answer is as good as the origin's.
	Stale string
	// Age is how long ago the origin said so.
	Age time.Duration
}

// A Resolver resolves tags and remembers what they name. Its methods may be
// called concurrently.
type Resolver struct {
	// immutable
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	patience time.Duration
	ctx      context.Context // of lookups; ended by Run
	cancel   context.CancelFunc

	wg sync.WaitGroup // lookups

	mu sync.Mutex // protects the fields below
	// lookups that are going on.
	lookups map[cache.TagName]*lookup
	// memos are what is known beside the index.
	memos map[cache.TagName]memo
	// slow are upstreams that were waited for in vain, and until when that
	// counts.
	slow  map[string]time.Time
	ended bool // by Run: no new lookups
}

// A memo is what is known of a tag beside what the index has.
type memo struct {
	// failure is why the last lookup has brought nothing, or why what is
	// remembered is in doubt; nil if neither is so.
	failure error
	at      time.Time // of the failure
	// unsaved is a record that the index could not take, or nil.
	unsaved *cache.Tag
}

var (
	errDoubt = errors.New("what it named could not be had")
	errEnded = fmt.Errorf("%w: this node is shutting down", origin.ErrUnavailable)
)

// New returns a Resolver. It starts nothing.
func New(cfg Config) *Resolver {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.TTL = cmp.Or(cfg.TTL, time.Minute)
	cfg.NotFound = cmp.Or(cfg.NotFound, 30*time.Second)
	cfg.Revalidate = cmp.Or(cfg.Revalidate, time.Minute)
	cfg.MaxStale = cmp.Or(cfg.MaxStale, 168*time.Hour)
	r := &Resolver{
		cfg:      cfg,
		log:      cfg.Log,
		metrics:  newMetrics(cfg.Registry, cfg.Upstreams),
		patience: patience,
		lookups:  make(map[cache.TagName]*lookup),
		memos:    make(map[cache.TagName]memo),
		slow:     make(map[string]time.Time),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Run blocks until ctx ends, and then ends the lookups that are going on and
// waits for them. From then on only what is remembered is given.
func (r *Resolver) Run(ctx context.Context) error {
	<-ctx.Done()
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// Resolve returns what ref's Tag names; its Digest is not looked at. It asks
// the origin if nothing fresh is remembered, once however many ask at the same
// time, and blocks until it has answered or ctx ends. An older answer is given,
// with Stale set, if the origin is unavailable, does not answer within 5 s, or
// may not be asked (offline), but never if it refuses.
//
// The error wraps one of package origin, or ctx's.
func (r *Resolver) Resolve(ctx context.Context, ref origin.Ref) (Answer, error) {
	n, err := nameOf(ref.Upstream, ref.Repository, ref.Tag)
	if err != nil {
		return Answer{}, err
	}
	a, result, err := r.resolve(ctx, n)
	r.metrics.resolved(n.Upstream, result)
	return a, err
}

// resolve returns the result as metrics name it as well.
func (r *Resolver) resolve(ctx context.Context, n cache.TagName) (Answer, string, error) {
	now := time.Now()
	k := r.recall(n)
	switch judge(k, r.terms(n), now) {
	case fresh:
		return k.answer(now), resultFresh, nil
	case absent:
		return Answer{}, resultNegative, k.refusal(now)
	case aging:
		r.begin(n, true)
		return k.answer(now), resultRevalidated, nil
	}
	l := r.begin(n, false)
	var late <-chan time.Time
	// One who was refused a moment ago is not given the old answer just because
	// the next refusal takes its time.
	if k.servable(now, r.cfg.MaxStale) && !errors.Is(k.failure, origin.ErrDenied) {
		t := time.NewTimer(r.waitFor(n.Upstream, now))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-l.done:
		if l.err == nil {
			k := knowledge{tag: l.tag, known: true}
			return k.answer(time.Now()), resultOrigin, nil
		}
		return r.instead(n, k, l.err)
	case <-late:
		r.setSlow(n.Upstream, time.Now())
		return r.instead(n, k, fmt.Errorf("resolve %s: %w: no answer yet", n, origin.ErrUnavailable))
	case <-ctx.Done():
		return Answer{}, resultError, fmt.Errorf("resolve %s: %w", n, ctx.Err())
	}
}

// instead returns what is given in place of an answer that err is the lack of.
func (r *Resolver) instead(n cache.TagName, k knowledge, err error) (Answer, string, error) {
	now := time.Now()
	bound := r.cfg.MaxStale
	switch {
	case errors.Is(err, origin.ErrOffline):
		bound = ever
	case errors.Is(err, origin.ErrUnavailable):
	case errors.Is(err, origin.ErrNotFound):
		return Answer{}, resultOrigin, err // which is an answer
	default:
		return Answer{}, resultError, err
	}
	if k.servable(now, bound) {
		a := k.answer(now)
		a.Stale = err.Error()
		r.metrics.stale.WithLabelValues(r.metrics.label(n.Upstream)).Inc()
		return a, resultStale, nil
	}
	switch {
	case k.known && !k.tag.Gone.IsZero():
		err = fmt.Errorf("%w (%s ago it said that the tag is no more)", err, age(k.tag.Gone, now))
	case k.known:
		err = fmt.Errorf("%w (what it said %s ago is too old to be served: see tags.maxStale)", err, age(k.tag.Seen, now))
	}
	return Answer{}, resultError, err
}

// Set remembers that the tag names d, as if the origin had just said so: for an
// import, or for a job whose coordinator has asked.
func (r *Resolver) Set(upstream, repository, tag string, d origin.Descriptor) error {
	n, err := nameOf(upstream, repository, tag)
	if err != nil {
		return err
	}
	if err := d.Blob.Validate(); err != nil {
		return fmt.Errorf("set %s: %w", n, err)
	}
	_, err = r.remember(n, r.recall(n), d)
	return err
}

// Doubt says that d could not be had from the repository, or was not what it
// had been said to be. The origin is asked anew for tags that are remembered to
// name it, immutable ones too.
func (r *Resolver) Doubt(upstream, repository string, d proto.Digest) {
	upstream = strings.ToLower(upstream)
	found, err := r.cfg.Index.Tags(upstream, repository)
	if err != nil {
		r.log.Warn("tags not read", "upstream", upstream, "repository", repository, "error", err)
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, t := range found {
		if m := r.memos[n]; t.Blob.Digest == d && m.unsaved == nil {
			r.note(n, memo{failure: errDoubt, at: now})
		}
	}
	for n, m := range r.memos {
		if n.Upstream == upstream && n.Repository == repository && m.unsaved != nil && m.unsaved.Blob.Digest == d {
			m.failure, m.at = errDoubt, now
			r.memos[n] = m
		}
	}
}

// nameOf returns where a tag is remembered. Names of upstreams are the same in
// any case, as in package origin.
func nameOf(upstream, repository, tag string) (cache.TagName, error) {
	if _, err := origin.ParseRepository(repository); err != nil {
		return cache.TagName{}, err
	}
	if _, err := origin.ParseTag(tag); err != nil {
		return cache.TagName{}, err
	}
	return cache.TagName{Upstream: strings.ToLower(upstream), Repository: repository, Tag: tag}, nil
}
