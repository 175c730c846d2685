package signature

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
)

// lookups remembers for a while what lookups came to, and lets only one of a
// kind run at a time. The zero value is ready.
type lookups[K comparable, V any] struct {
	mu      sync.Mutex // protects the fields below
	entries map[K]entry[V]
	running map[K]*running[V]
}

type entry[V any] struct {
	value V
	until time.Time
}

type running[V any] struct {
	done  chan struct{} // closed when it is over
	value V
	err   error
}

// do returns what known says, if that is enough, or what is remembered, or what
// look finds out. look says for how long that is good; what comes with an error
// is returned and not remembered. It runs in the goroutine of one caller, for at
// most lookupTime, and the others wait for it; when it fails for a reason that
// was that caller's own, the next one tries.
func (l *lookups[K, V]) do(ctx context.Context, k K, known func() (V, bool), look func(context.Context) (V, time.Duration, error)) (V, error) {
	for {
		if v, enough := known(); enough {
			return v, nil
		}
		v, r, mine := l.join(k)
		switch {
		case r == nil:
			return v, nil
		case mine:
			l.run(ctx, k, r, look)
			return r.value, r.err
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return v, ctx.Err()
		}
		own := errors.Is(r.err, context.Canceled) || errors.Is(r.err, context.DeadlineExceeded) || errors.Is(r.err, origin.ErrDenied)
		if !own {
			return r.value, r.err
		}
	}
}

// join returns what is remembered of k, or the lookup that is running and
// whether the caller has to run it.
func (l *lookups[K, V]) join(k K) (v V, r *running[V], mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.entries[k]; ok && time.Now().Before(e.until) {
		return e.value, nil, false
	}
	if r := l.running[k]; r != nil {
		return v, r, false
	}
	if l.running == nil {
		l.running = map[K]*running[V]{}
	}
	r = &running[V]{done: make(chan struct{})}
	l.running[k] = r
	return v, r, true
}

func (l *lookups[K, V]) run(ctx context.Context, k K, r *running[V], look func(context.Context) (V, time.Duration, error)) {
	var good time.Duration
	r.err = errors.New("the lookup did not end") // if look panics
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if r.err == nil {
			l.remember(k, entry[V]{r.value, time.Now().Add(good)})
		}
		delete(l.running, k)
		close(r.done)
	}()
	bounded, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	r.value, good, r.err = look(bounded)
	if r.err != nil && bounded.Err() != nil && ctx.Err() == nil {
		r.err = fmt.Errorf("not answered within %s: %w", lookupTime, origin.ErrUnavailable)
	}
}

// remember adds an entry, in the place of others if there are too many. Call it
// with mu held.
func (l *lookups[K, V]) remember(k K, e entry[V]) {
	if l.entries == nil {
		l.entries = map[K]entry[V]{}
	}
	if len(l.entries) >= rememberedLookups {
		now := time.Now()
		for old, o := range l.entries {
			if now.After(o.until) {
				delete(l.entries, old)
			}
		}
		for old := range l.entries { // any: a map has no order
			if len(l.entries) < rememberedLookups {
				break
			}
			delete(l.entries, old)
		}
	}
	l.entries[k] = e
}
