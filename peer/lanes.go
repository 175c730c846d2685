package peer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// soon is how long an answer may still take for its connection to be waited
	// for. The next lease on a source is granted when the last one nears its end,
	// and without the wait every second pair of nodes had two connections: each
	// is two round trips, behind full queues, three milliseconds of CPU time in
	// handshakes, and a congestion window that begins small.
	soon = 50 * time.Millisecond
	// soonMost is how long it is waited for if it does not end after all.
	soonMost = 2 * soon
	// lanesMost is how many lanes there may be before those are dropped of which
	// all connections have been closed by now.
	lanesMost = 1024
)

// lanes says what is under way on the connections to each peer, so that a fetch
// can wait for one that is about to be free. http.Transport dials at once.
type lanes struct {
	mu sync.Mutex
	// mu protects the field below and all lanes in it.
	of map[string]*lane // by pool key
}

// A lane is the connections to one peer.
type lane struct {
	busy  []*turn
	conns int       // that are open, as far as one can tell
	since time.Time // when none was busy any more
}

// A turn is one response on a connection of a lane.
type turn struct {
	size  int64
	came  atomic.Int64 // bytes of it
	start atomic.Int64 // when the first bytes came, in nanoseconds of time.Time.UnixNano
	over  chan struct{}
}

// count says that n more bytes came.
func (a *turn) count(n int) {
	if a.came.Add(int64(n)) == int64(n) {
		a.start.Store(time.Now().UnixNano())
	}
}

// endsSoon reports whether a will be over soon at the rate so far, but not before
// half of it has come.
func (a *turn) endsSoon(now time.Time) bool {
	came, start := a.came.Load(), a.start.Load()
	left := a.size - came
	return start > 0 && left <= came && float64(left)*float64(now.UnixNano()-start) <= float64(came)*float64(soon)
}

// enter begins a turn of so many bytes on a connection to a peer, which is to
// be ended with leave. If all are busy and one is free soon, it waits for that. It
// fails if ctx ends meanwhile, with its cause.
func (ls *lanes) enter(ctx context.Context, key string, size int64) (*turn, error) {
	a := &turn{size: size, over: make(chan struct{})}
	free := ls.join(key, a, true)
	if free == nil {
		return a, nil
	}
	most := time.NewTimer(soonMost)
	defer most.Stop()
	for wait := true; free != nil; free = ls.join(key, a, wait) {
		select {
		case <-free:
		case <-most.C:
			wait = false
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return a, nil
}

// join enters a, or, if it may wait and there is a connection worth waiting for,
// returns what is closed when that is free.
func (ls *lanes) join(key string, a *turn, wait bool) <-chan struct{} {
	now := time.Now()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.of[key]
	if l == nil || len(l.busy) == 0 && now.Sub(l.since) > idleWithin {
		ls.prune(now)
		l = new(lane)
		ls.of[key] = l
	}
	if len(l.busy) >= l.conns {
		for _, other := range l.busy {
			if wait && other.endsSoon(now) {
				return other.over
			}
		}
		l.conns++
	}
	l.busy = append(l.busy, a)
	return nil
}

// leave ends a turn. kept says that its connection is still open.
func (ls *lanes) leave(key string, a *turn, kept bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.of[key] // prune leaves those with busy connections
	for i, other := range l.busy {
		if other == a {
			l.busy = append(l.busy[:i], l.busy[i+1:]...)
			break
		}
	}
	if !kept {
		l.conns--
	}
	if len(l.busy) == 0 {
		l.since = time.Now()
	}
	close(a.over)
}

// prune drops lanes whose connections are closed by now, if there are many. The
// caller holds ls.mu.
func (ls *lanes) prune(now time.Time) {
	if len(ls.of) < lanesMost {
		return
	}
	for key, l := range ls.of {
		if len(l.busy) == 0 && now.Sub(l.since) > idleWithin {
			delete(ls.of, key)
		}
	}
}
