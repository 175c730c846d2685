package origin

import (
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxGranted bounds what is remembered per repository. One would do, but
	// tokens end, and the others' are at hand then.
	maxGranted = 8
	// maxGrants and maxGrantBytes bound what is remembered in all. A registry
	// that takes any token for a public repository would let a caller fill the
	// memory with invented ones.
	maxGrants     = 4096
	maxGrantBytes = 8 << 20
	// maxAuthorization is the length of the longest Authorization that is
	// remembered, in bytes. Registries' tokens have up to some 4 KiB.
	maxAuthorization = 16 << 10
	// sweepEvery is how often what is over is looked for.
	sweepEvery = time.Minute
)

// grants are the Authorizations that passthrough upstreams have taken. They are
// never written anywhere.
type grants struct {
	mu    sync.Mutex // protects the fields below
	of    map[grantKey][]*granted
	order *list.List // of *granted, the newest last
	bytes int        // of all of them
	last  uint64     // number that was given out
	swept time.Time
}

type grantKey struct{ upstream, repository string }

// A granted is an Authorization that gives access to a repository until a time.
type granted struct {
	// immutable
	key           grantKey
	number        uint64 // of this Authorization, not 0
	authorization string // empty: none is needed
	until         time.Time

	at *list.Element // in order; nil once it was dropped; grants.mu protects it
}

func (g *grants) init() {
	g.of = make(map[grantKey][]*granted)
	g.order = list.New()
}

// Grant remembers until a time, in memory only, that a passthrough upstream has
// taken an Authorization for a repository; "" means that it wanted none. Source
// and Resolve use the newest one that is live. What the upstream refuses later is
// forgotten. For upstreams that are not passthrough it does nothing.
func (c *Client) Grant(upstream, repository, authorization string, until time.Time) {
	up, err := c.upstream(upstream)
	if err != nil || !up.passthrough || len(authorization) > maxAuthorization {
		return
	}
	c.grants.add(grantKey{up.name, repository}, authorization, until, time.Now())
}

// Granted reports whether Grant's word for a repository still holds: whether
// this client can fetch from it without a caller.
func (c *Client) Granted(upstream, repository string) bool {
	return len(c.grants.live(strings.ToLower(upstream), repository, time.Now())) > 0
}

func (g *grants) add(key grantKey, authorization string, until, now time.Time) {
	if !now.Before(until) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	added := &granted{key: key, authorization: authorization, until: until}
	for _, old := range g.of[key] {
		if old.authorization == authorization {
			added.number = old.number
			g.remove(old)
			break
		}
	}
	if added.number == 0 {
		g.last++
		added.number = g.last
	}
	if same := g.of[key]; len(same) >= maxGranted {
		g.remove(same[0])
	}
	added.at = g.order.PushBack(added)
	g.of[key] = append(g.of[key], added)
	g.bytes += len(authorization)
	if now.Sub(g.swept) >= sweepEvery {
		g.sweep(now)
	}
	for g.order.Len() > maxGrants || g.bytes > maxGrantBytes {
		g.remove(g.order.Front().Value.(*granted))
	}
}

// sweep forgets what is over: secrets should not lie about. mu is held.
func (g *grants) sweep(now time.Time) {
	g.swept = now
	for at := g.order.Front(); at != nil; {
		x := at.Value.(*granted)
		at = at.Next()
		if !now.Before(x.until) {
			g.remove(x)
		}
	}
}

// live returns what holds for a repository, the newest first.
func (g *grants) live(upstream, repository string, now time.Time) []*granted {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := grantKey{upstream, repository}
	for _, x := range slices.Clone(g.of[key]) {
		if !now.Before(x.until) {
			g.remove(x)
		}
	}
	all := slices.Clone(g.of[key])
	slices.Reverse(all)
	return all
}

// drop forgets x.
func (g *grants) drop(x *granted) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(x)
}

// remove forgets x if it is still known; mu is held.
func (g *grants) remove(x *granted) {
	if x.at == nil {
		return
	}
	g.order.Remove(x.at)
	x.at = nil
	g.bytes -= len(x.authorization)
	rest := slices.DeleteFunc(g.of[x.key], func(y *granted) bool { return y == x })
	if g.of[x.key] = rest; len(rest) == 0 {
		delete(g.of, x.key)
	}
}
