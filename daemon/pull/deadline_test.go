package pull

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// A lease's deadline counts the time that the source takes, not the time for
// which this node's own limit makes it wait.
func TestDeadlineWithoutPauses(t *testing.T) {
	t.Parallel()
	const s = time.Second
	blob := proto.Blob{Digest: proto.DigestOf(nil), Size: 4 * proto.MinChunk}
	for _, tt := range []struct {
		name     string
		pauses   [][2]time.Duration // when each begins and ends
		received int64              // at 9 s
		ends     time.Duration      // with a deadline of 10 s
	}{
		{"none", nil, 0, 10 * s},
		{"one", [][2]time.Duration{{1 * s, 3 * s}}, 0, 12 * s},
		{"several", [][2]time.Duration{{1 * s, 3 * s}, {4 * s, 5 * s}, {11 * s, 12 * s}}, 0, 14 * s},
		{"under way at the deadline", [][2]time.Duration{{8 * s, 100 * s}}, 0, 102 * s},
		{"half was here", nil, blob.Size / 2, 20 * s},
		{"half was here, and a pause after it", [][2]time.Duration{{1 * s, 3 * s}, {15 * s, 18 * s}}, blob.Size / 2, 25 * s},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				a := &assembler{}
				f := &flight{run: blob.Run(), cancel: cancel}
				start := time.Now()
				for _, p := range tt.pauses {
					time.AfterFunc(p[0], a.pauses.begin)
					time.AfterFunc(p[1], a.pauses.end)
				}
				time.AfterFunc(9*s, func() { a.received.Store(tt.received) })
				defer (&pull{}).watchDeadline(f, &proto.Lease{Within: 10 * s}, a)()
				<-ctx.Done()
				if took := time.Since(start); took != tt.ends || context.Cause(ctx) != errStalled {
					t.Errorf("ended after %s with %v, want %s", took, context.Cause(ctx), tt.ends)
				}
			})
		})
	}
}

// Nor does the time count for which this process had no CPU.
func TestDeadlineOfAStarvedProcess(t *testing.T) {
	t.Parallel()
	const s = time.Second
	start := time.Now()
	d := deadline{within: 2 * s, at: start.Add(2 * s)}
	for i, step := range []struct {
		at   time.Duration // when the timer rings
		half bool
		want time.Duration
	}{
		{3500 * time.Millisecond, false, 1500 * time.Millisecond}, // due at 2 s
		{65 * s, true, 2 * s},                 // due at 5 s; never more than the lease's time
		{67*s + starved - 1, true, 2 * s},     // as good as in time: for the half
		{69*s + starved - 1, true, 0},         // once
		{69*s + 2*starved, true, starved + 1}, // had it rung later
	} {
		if got := d.passed(start.Add(step.at), 0, step.half); got != step.want {
			t.Errorf("step %d: %s more, want %s", i, got, step.want)
		}
	}
}
