package pull

import (
	"context"
	"io"
	"sync"
	"time"
)

// portion is how much of a transfer the limit is asked for at a time: little
// enough that a limit that begins now holds for what is under way.
const portion = 1 << 20

// limited returns the writer for a source that sends size bytes to a: a itself,
// or, if there is a limit, one that lets them through at its pace. While it
// waits the source's connection fills up and the sender slows down. The wait is
// neither the source's fault nor counted against its lease.
func (a *assembler) limited(ctx context.Context, size int64) io.Writer {
	if a.pull.puller.cfg.Limit == nil {
		return a
	}
	return &throttle{to: a, ctx: ctx, left: size}
}

// A throttle is a writer that waits for Config.Limit, once for a portion rather
// than for each write.
type throttle struct {
	to      *assembler
	ctx     context.Context
	left    int64 // of what the source sends, beyond what was granted
	granted int64 // and not written yet
}

// Write implements io.Writer for a Source.
func (t *throttle) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if t.granted == 0 {
			if err := t.wait(min(max(t.left, int64(len(p)-n)), portion)); err != nil {
				return n, err
			}
		}
		m, err := t.to.Write(p[n : n+int(min(t.granted, int64(len(p)-n)))])
		n += m
		t.granted -= int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (t *throttle) wait(want int64) error {
	t.to.pauses.begin()
	defer t.to.pauses.end()
	n, err := t.to.pull.puller.cfg.Limit(t.ctx, t.to.lease.FromOrigin(), want)
	t.granted = n
	t.left -= n
	return err
}

// pauses adds up the time that a flight has waited for this node's own limit.
type pauses struct {
	// mu protects the fields below.
	mu    sync.Mutex
	total time.Duration
	since time.Time // of the wait under way; zero: none
}

func (p *pauses) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Now()
}

func (p *pauses) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total += time.Since(p.since)
	p.since = time.Time{}
}

// sum returns how long the waits have been so far.
func (p *pauses) sum() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		return p.total
	}
	return p.total + time.Since(p.since)
}
