package tags

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
)

// A lookup is one question to the origin, shared by all who ask it meanwhile.
// It belongs to none of them.
type lookup struct {
	done chan struct{} // closed once the fields below are set

	tag cache.Tag
	err error
}

// begin returns the lookup of n that is going on, or starts one. Nobody waits
// for the end of one that goes on behind.
func (r *Resolver) begin(n cache.TagName, behind bool) *lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lookups[n]; l != nil {
		return l
	}
	l := &lookup{done: make(chan struct{})}
	if r.ended {
		l.err = fmt.Errorf("resolve %s: %w", n, errEnded)
		close(l.done)
		return l
	}
	r.lookups[n] = l
	r.wg.Go(func() {
		l.tag, l.err = r.look(n)
		if behind && l.err != nil {
			r.log.Debug("tag not revalidated", "upstream", n.Upstream, "repository", n.Repository, "tag", n.Tag, "error", l.err)
		}
		// What it brought is remembered by now, so whoever comes next finds the
		// one or the other.
		r.mu.Lock()
		delete(r.lookups, n)
		r.mu.Unlock()
		close(l.done)
	})
	return l
}

// look asks the origin for n and remembers what it says.
func (r *Resolver) look(n cache.TagName) (cache.Tag, error) {
	k := r.recall(n)
	switch judge(k, r.terms(n), time.Now()) { // a lookup may have ended while we came
	case fresh:
		return k.tag, nil
	case absent:
		return cache.Tag{}, k.refusal(time.Now())
	}
	start := time.Now()
	d, err := r.ask(n)
	r.took(n.Upstream, start)
	if err != nil {
		r.fail(n, err)
		return cache.Tag{}, err
	}
	if k.known && k.tag.Blob.Digest != d.Blob.Digest {
		r.log.Info("tag has moved", "upstream", n.Upstream, "repository", n.Repository, "tag", n.Tag,
			"digest", d.Blob.Digest, "was", k.tag.Blob.Digest)
	}
	t, err := r.remember(n, k, d)
	if err != nil {
		r.log.Warn("tag not remembered across a restart", "upstream", n.Upstream, "repository", n.Repository,
			"tag", n.Tag, "error", err)
	}
	return t, nil
}

// ask asks the origin, and returns an error of package origin.
func (r *Resolver) ask(n cache.TagName) (origin.Descriptor, error) {
	ctx, cancel := context.WithTimeout(r.ctx, lookupTime)
	defer cancel()
	ref := origin.Ref{Upstream: n.Upstream, Repository: n.Repository, Tag: n.Tag, Manifest: true}
	d, err := r.cfg.Origin.Resolve(ctx, ref)
	switch {
	case err == nil:
		if err := d.Blob.Validate(); err != nil {
			return d, fmt.Errorf("resolve %s: %w: %w", n, origin.ErrProtocol, err)
		}
	case r.ctx.Err() != nil && errors.Is(err, context.Canceled):
		err = fmt.Errorf("resolve %s: %w", n, errEnded)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("resolve %s: %w: no answer within %s", n, origin.ErrUnavailable, lookupTime)
	}
	return d, err
}

// recall returns what is known of n. An index that fails is a reason to ask the
// origin, not to fail.
func (r *Resolver) recall(n cache.TagName) knowledge {
	r.mu.Lock()
	m := r.memos[n]
	r.mu.Unlock()
	k := knowledge{failure: m.failure, at: m.at}
	if m.unsaved != nil {
		k.tag, k.known = *m.unsaved, true
		return k
	}
	t, ok, err := r.cfg.Index.Tag(n.Upstream, n.Repository, n.Tag)
	if err != nil {
		r.log.Warn("tag not read", "upstream", n.Upstream, "repository", n.Repository, "tag", n.Tag, "error", err)
		return k
	}
	k.tag, k.known = t, ok
	return k
}

// remember notes that n names d as of now, where k was known before. What the
// index does not take is kept in memory, and the error says so.
func (r *Resolver) remember(n cache.TagName, k knowledge, d origin.Descriptor) (cache.Tag, error) {
	now := time.Now()
	t := cache.Tag{Blob: d.Blob, MediaType: d.MediaType, Seen: now, Since: now}
	if k.known && k.tag.Blob.Digest == d.Blob.Digest {
		t.Since = k.tag.Since
	}
	return t, r.keep(n, t, memo{})
}

// fail notes that a lookup of n has brought err.
func (r *Resolver) fail(n cache.TagName, err error) {
	m := memo{failure: err, at: time.Now()}
	if k := r.recall(n); k.known && errors.Is(err, origin.ErrNotFound) {
		k.tag.Gone = m.at
		if err := r.keep(n, k.tag, m); err != nil {
			r.log.Warn("tag not forgotten across a restart", "upstream", n.Upstream, "repository", n.Repository,
				"tag", n.Tag, "error", err)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m.unsaved = r.memos[n].unsaved
	r.note(n, m)
}

// keep writes a record to the index, or else to the memo, which is then all
// that is known of n beside the index.
func (r *Resolver) keep(n cache.TagName, t cache.Tag, m memo) error {
	err := r.cfg.Index.SetTag(n.Upstream, n.Repository, n.Tag, t)
	if err != nil {
		m.unsaved = &t
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.failure == nil && m.unsaved == nil {
		delete(r.memos, n)
	} else {
		r.note(n, m)
	}
	return err
}

// note keeps a memo. The caller holds mu.
func (r *Resolver) note(n cache.TagName, m memo) {
	if _, ok := r.memos[n]; !ok && len(r.memos) >= maxMemos {
		for old := range r.memos { // any one: a map has no order
			delete(r.memos, old)
			break
		}
	}
	r.memos[n] = m
}

// terms returns for how long knowledge of n is good.
func (r *Resolver) terms(n cache.TagName) terms {
	t := terms{ttl: r.cfg.TTL, revalidate: r.cfg.Revalidate, notFound: r.cfg.NotFound}
	if r.cfg.TTLOf != nil {
		if ttl, immutable, ok := r.cfg.TTLOf(n.Upstream, n.Tag); ok {
			t.ttl, t.immutable = ttl, immutable
		}
	}
	return t
}

// waitFor returns how long to wait for the upstream if there is an older
// answer to give.
func (r *Resolver) waitFor(upstream string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.slow[upstream]
	if !ok {
		return r.patience
	}
	if now.Before(until) {
		return 0
	}
	delete(r.slow, upstream)
	return r.patience
}

func (r *Resolver) setSlow(upstream string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.slow[upstream]; !ok { // not put off by everybody who does not wait
		r.slow[upstream] = now.Add(slowFor)
	}
}

// took notes how long the upstream has taken to answer, or not to.
func (r *Resolver) took(upstream string, start time.Time) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(start) < r.patience {
		delete(r.slow, upstream)
	} else {
		r.slow[upstream] = now.Add(slowFor)
	}
}
