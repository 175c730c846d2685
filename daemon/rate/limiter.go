package rate

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Quantum is the most that is granted at once, 1 MiB. Each grant may cost a
	// timer and a change of goroutine, and cuts a sendfile in two; see doc.go
	// for what that comes to.
	Quantum = 1 << 20
	// minQuantum is the least that a transfer with more to do is granted, a
	// record of TLS.
	minQuantum = 16 << 10
	// quantumTime is how long the grants of a slow limit last. With as many as
	// 50 transfers at once none is silent for longer than 7 s, so that nobody
	// takes it for stalled.
	quantumTime = 125 * time.Millisecond
	// lateness is how late a timer may come at no loss: what the limit allowed
	// meanwhile is granted then. At 10 Gbit/s a quantum takes less than a
	// millisecond, as long as a busy machine takes to run a goroutine.
	lateness = 5 * time.Millisecond
)

// A Limiter shares a rate between transfers. Those that wait are granted a
// quantum each in turn, so that all go on at the same speed. A nil *Limiter
// has no limit.
type Limiter struct {
	// immutable
	timer *time.Timer

	limited atomic.Bool
	waited  atomic.Int64 // nanoseconds

	// mu protects the fields below.
	mu      sync.Mutex
	rate    Rate
	credit  float64   // bytes that may be granted, as of counted
	counted time.Time // when credit was last brought up to date
	queue   []*waiter // in the order of their grants
}

type waiter struct {
	want    int64
	granted chan int64 // 1-buffered
}

// New returns a Limiter. It needs no closing.
func New(r Rate) *Limiter {
	l := &Limiter{rate: r, counted: time.Now()}
	l.credit = l.depth()
	l.limited.Store(r != Unlimited)
	l.timer = time.AfterFunc(time.Hour, l.turn)
	l.timer.Stop()
	return l
}

// Set changes the limit at once, also for those that wait.
func (l *Limiter) Set(r Rate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r == l.rate {
		return
	}
	l.count()
	l.rate = r
	l.credit = min(l.credit, l.depth())
	l.limited.Store(r != Unlimited)
	l.serve()
}

// Rate returns the limit.
func (l *Limiter) Rate() Rate {
	if l == nil {
		return Unlimited
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// Waited returns how long transfers have waited for the limit, in all.
func (l *Limiter) Waited() time.Duration {
	if l == nil {
		return 0
	}
	return time.Duration(l.waited.Load())
}

// Wait waits until some of the next want bytes of a transfer may be moved, and
// returns how many: at least 1, at most want and, if there is a limit, at most
// Quantum. They count as moved. It fails when ctx ends, with ctx's error. With
// no limit it returns want at once, whatever ctx says, at the cost of reading
// a flag. want must be positive.
func (l *Limiter) Wait(ctx context.Context, want int64) (int64, error) {
	if l == nil || !l.limited.Load() {
		return want, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.count()
	if len(l.queue) == 0 {
		if n, _ := l.grant(want); n > 0 {
			l.mu.Unlock()
			return n, nil
		}
	}
	w := &waiter{want: want, granted: make(chan int64, 1)}
	l.queue = append(l.queue, w)
	start := l.counted
	l.serve()
	l.mu.Unlock()
	defer func() { l.waited.Add(int64(time.Since(start))) }()
	select {
	case n := <-w.granted:
		return n, nil
	case <-ctx.Done():
		return l.leave(w, ctx.Err())
	}
}

// leave takes w out of the queue. A grant that came in the same moment counts.
func (l *Limiter) leave(w *waiter, err error) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			if i == 0 {
				l.count()
				l.serve()
			}
			return 0, err
		}
	}
	return <-w.granted, nil
}

// turn is what the timer does.
func (l *Limiter) turn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count()
	l.serve()
}

// quantum returns how much is granted at once to a transfer that wants more.
func (l *Limiter) quantum() int64 {
	return int64(min(max(float64(l.rate)*quantumTime.Seconds(), minQuantum), Quantum))
}

// most returns the most that is granted at once now.
func (l *Limiter) most() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == Unlimited {
		return math.MaxInt64
	}
	return l.quantum()
}

// depth returns how much credit may gather while nobody wants it.
func (l *Limiter) depth() float64 { return float64(l.quantum()) }

// count brings the credit up to date. It gathers up to depth; while somebody
// waits, the timer's being late does not end it there, and what was wanted in
// that time stays until it is used.
func (l *Limiter) count() {
	now := time.Now()
	most := l.depth()
	if len(l.queue) > 0 {
		most += float64(l.rate) * lateness.Seconds()
	}
	gained := float64(l.rate) * now.Sub(l.counted).Seconds()
	l.credit = max(l.credit, min(l.credit+gained, most))
	l.counted = now
}

// grant takes what a transfer is granted out of the credit. If that does not
// suffice, nothing is granted, and it returns how much is lacking.
func (l *Limiter) grant(want int64) (n int64, lack float64) {
	if l.rate == Unlimited {
		return want, 0
	}
	n = min(want, l.quantum())
	if lack = float64(n) - l.credit; lack > 0 {
		return 0, lack
	}
	l.credit -= float64(n)
	return n, 0
}

// serve grants what the credit allows to those that wait, and sets the timer
// for the next grant.
func (l *Limiter) serve() {
	for len(l.queue) > 0 {
		n, lack := l.grant(l.queue[0].want)
		if n == 0 {
			l.timer.Reset(time.Duration(lack/float64(l.rate)*float64(time.Second)) + 1)
			return
		}
		l.queue[0].granted <- n
		l.queue = l.queue[1:]
	}
	l.queue = nil
	l.timer.Stop()
}
