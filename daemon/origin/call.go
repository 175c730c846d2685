package origin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// maxBackoff bounds the doubling of Config.Backoff.
const maxBackoff = 5 * time.Second

// A call is one question, which is put to the endpoints of an upstream until
// one of them answers it.
type call struct {
	up   *upstream
	what string
	// patience is how long a rest may last that is waited out.
	patience time.Duration
	attempt  func(context.Context, *endpoint) (progress bool, err error)
	online   context.Context // ends when the client goes offline
	failed   failure
	left     []*candidate // those that may still be asked, in order
	// spread is this call's share of the spread of its waits. Being one for all
	// of them, it keeps the URLs in order from round to round.
	spread float64
}

// A candidate is an endpoint that a call may ask.
type candidate struct {
	*endpoint
	tries int       // in a row, without progress; those of other calls' probes too
	after time.Time // not to be asked before
	// pause is the wait that begins when the round is over; then it becomes
	// part of after.
	pause   time.Duration
	resting time.Time // the end of the rest that is being waited out
	// deadline is until when to wait for the probe of another call; zero while
	// there is nothing of the kind to wait for.
	deadline time.Time
}

// What became of a candidate.
type outcome int

const (
	succeeded outcome = iota
	atOnce            // to be asked again now
	later             // to be asked again when its time has come
	dropped
)

// try calls attempt for each URL in order until one succeeds, and again after a
// growing wait for those that may do better the next time. An attempt that
// failed after progress is repeated at the same URL at once. URLs that asked to
// be left alone are not asked until that is over; rests of more than patience
// are not waited for.
func (up *upstream) try(ctx context.Context, what string, patience time.Duration, attempt func(context.Context, *endpoint) (progress bool, err error)) error {
	c := &call{
		up: up, what: what, patience: patience, attempt: attempt, online: up.client.onlineNow(),
		failed: failure{what: what}, spread: rand.Float64(),
	}
	for _, e := range up.inOrder(time.Now()) {
		c.left = append(c.left, &candidate{endpoint: e})
	}
	for {
		if c.online.Err() != nil {
			return c.offline()
		}
		changed := up.rests.watch() // before the look, so that no change is missed
		done, err := c.round(ctx)
		if done || err != nil {
			return err
		}
		if len(c.left) == 0 {
			return &c.failed
		}
		t := time.NewTimer(time.Until(c.next()))
		select {
		case <-t.C:
		case <-changed:
		case <-c.online.Done():
		case <-ctx.Done():
			err = fmt.Errorf("%s: %w", what, ctx.Err())
		}
		t.Stop()
		if err != nil {
			return err
		}
	}
}

func (c *call) offline() error {
	return fmt.Errorf("%s: %w: %s is not contacted", c.what, ErrOffline, c.up.name)
}

// next returns when the first candidate's time has come.
func (c *call) next() time.Time {
	var first time.Time
	for _, x := range c.left {
		t := x.after
		if !x.deadline.IsZero() {
			t = x.deadline
		}
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first
}

// round asks the candidates whose time has come, in order, until one succeeds.
// It leaves those that may be asked again.
func (c *call) round(ctx context.Context) (done bool, err error) {
	var again []*candidate
	for i := 0; i < len(c.left); i++ {
		x := c.left[i]
		if time.Now().Before(x.after) {
			again = append(again, x)
			continue
		}
		o, err := c.ask(ctx, x)
		switch {
		case err != nil:
			return false, err
		case o == succeeded:
			return true, nil
		case o == atOnce:
			i--
		case o == later:
			again = append(again, x)
		}
	}
	now := time.Now()
	for _, x := range again {
		if x.pause > 0 {
			x.after, x.pause = now.Add(x.pause), 0
		}
	}
	c.left = again
	return false, nil
}

// ask asks x if it does not rest. An error ends the call.
func (c *call) ask(ctx context.Context, x *candidate) (outcome, error) {
	probe, resting := c.up.rests.enter(x.endpoint, time.Now())
	if resting != nil {
		return c.postpone(x, resting), nil
	}
	x.deadline, x.resting = time.Time{}, time.Time{}
	progress, err := c.attempt(ctx, x.endpoint)
	c.up.rests.leave(x.endpoint, probe)
	if err == nil {
		x.setDown(false)
		return succeeded, nil
	}
	a, err := c.note(ctx, x.endpoint, err)
	if err != nil {
		return dropped, err
	}
	cfg := &c.up.client.cfg
	now := time.Now()
	until := c.up.rests.until(x.endpoint, now)
	if until.IsZero() && a.retryAfter > 0 {
		until = now.Add(a.retryAfter) // object storage: the registry does not rest for that
	}
	x.tries++
	switch {
	case a.final:
	case until.Sub(now) > c.patience:
		return c.drop(x, a.text+", "+leftAlone(until)), nil
	case progress:
		x.tries = 0
		c.failed.add(x.base.Host, a)
		return atOnce, nil
	case x.tries < cfg.Tries:
		x.after = until
		if until.IsZero() {
			x.pause = backoff(cfg.Backoff, x.tries, maxBackoff, c.spread)
		}
		c.failed.add(x.base.Host, a)
		return later, nil
	}
	c.failed.add(x.base.Host, a)
	return dropped, nil
}

// postpone puts x off until its rest is over, or gives it up if that takes too
// long.
func (c *call) postpone(x *candidate, resting *rest) outcome {
	now := time.Now()
	if now.Before(resting.until) {
		if resting.until.Sub(now) > c.patience {
			return c.drop(x, leftAlone(resting.until)+" since it answered "+resting.why)
		}
		if !x.resting.IsZero() && resting.until.After(x.resting) {
			x.tries++ // the probe was for all who waited
		}
		if x.tries >= c.up.client.cfg.Tries {
			return c.drop(x, leftAlone(resting.until)+" since it answered "+resting.why+" again")
		}
		x.after, x.resting, x.deadline = resting.until, resting.until, time.Time{}
		return later
	}
	if x.deadline.IsZero() {
		x.deadline = now.Add(c.patience)
	}
	if !now.Before(x.deadline) {
		return c.drop(x, "another request finds out whether it answers again, after "+resting.why)
	}
	return later
}

func leftAlone(until time.Time) string {
	return "left alone until " + until.UTC().Format(time.RFC3339)
}

// drop gives x up, for a reason that may be over soon.
func (c *call) drop(x *candidate, text string) outcome {
	c.failed.add(x.base.Host, &attemptError{class: ErrUnavailable, text: text})
	return dropped
}

// note logs and returns why an attempt failed, or the error with which the
// whole call ends.
func (c *call) note(ctx context.Context, e *endpoint, err error) (*attemptError, error) {
	if abort, ok := errors.AsType[*abortError](err); ok {
		return nil, fmt.Errorf("%s: %w", c.what, abort.err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", c.what, ctx.Err())
	}
	if c.online.Err() != nil {
		return nil, c.offline() // it was cancelled, and says nothing about e
	}
	a, ok := errors.AsType[*attemptError](err)
	if !ok {
		a = &attemptError{class: ErrUnavailable, text: err.Error()}
	}
	e.setDown(a.down)
	c.up.client.log.Debug("upstream attempt failed", "upstream", c.up.name, "host", e.base.Host, "what", c.what, "error", a.text)
	return a, nil
}

// backoff returns the wait after the given failure, counted from 1: base and
// then twice as much each time, up to most, and from a quarter less to a
// quarter more as spread goes from 0 to 1.
func backoff(base time.Duration, n int, most time.Duration, spread float64) time.Duration {
	d := min(base<<min(n-1, 16), max(base, most))
	return d*3/4 + time.Duration(spread*float64(d/2))
}
