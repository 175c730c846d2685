package rate

import (
	"context"
	"log/slog"
	"time"
)

// lookAgain is the longest that the clock is not looked at while a schedule
// is followed. Timers do not run while a machine sleeps and do not see a clock
// that is set, so one that is due in ten hours can be hours late.
const lookAgain = 10 * time.Minute

// Limits are the limits of a node.
type Limits struct {
	// Upload, Download and Origin limit by kind. What comes from an origin
	// counts for Download too; Receive sees to that.
	Upload, Download, Origin *Limiter

	plan Plan
	log  *slog.Logger
}

// NewLimits returns the limits that hold now by the plan. They follow its
// windows while Run runs. Log gets a line when they change; nil is nowhere.
func NewLimits(p Plan, log *slog.Logger) *Limits {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := p.At(time.Now())
	return &Limits{Upload: New(r.Upload), Download: New(r.Download), Origin: New(r.Origin), plan: p, log: log}
}

// Receive waits as Limiter.Wait does until some of the next want bytes may come
// in from a peer or an origin.
func (l *Limits) Receive(ctx context.Context, origin bool, want int64) (int64, error) {
	if !origin {
		return l.Download.Wait(ctx, want)
	}
	// No more than both grant at once, or the one that comes first would be
	// waited for again and again before a byte moves.
	n, err := l.Origin.Wait(ctx, min(want, l.Origin.most(), l.Download.most()))
	if err != nil {
		return 0, err
	}
	for left := n; left > 0; {
		k, err := l.Download.Wait(ctx, left)
		if err != nil {
			return 0, err
		}
		left -= k
	}
	return n, nil
}

// Run changes the limits when the plan says so, until ctx ends, and returns
// nil.
func (l *Limits) Run(ctx context.Context) error {
	if len(l.plan.Windows) > 0 {
		// In a container local time is often UTC, and nobody knows.
		now := time.Now()
		l.log.Info("limits follow the schedule", "windows", len(l.plan.Windows), "local", now.Format("Mon 15:04 MST"), "next", l.plan.Next(now))
	}
	for {
		now := time.Now()
		l.apply(l.plan.At(now))
		// Without its monotonic reading, the time left is that on the wall.
		next := l.plan.Next(now.Round(0))
		if next.IsZero() {
			<-ctx.Done()
			return nil
		}
		t := time.NewTimer(min(next.Sub(now.Round(0)), lookAgain))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (l *Limits) apply(r Rates) {
	if now := (Rates{l.Upload.Rate(), l.Download.Rate(), l.Origin.Rate()}); r != now {
		l.log.Info("limits change", "upload", r.Upload.String(), "download", r.Download.String(), "origin", r.Origin.String())
	}
	l.Upload.Set(r.Upload)
	l.Download.Set(r.Download)
	l.Origin.Set(r.Origin)
}
