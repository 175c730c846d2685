package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestLanes: a fetch waits for a connection that is about to be free, and for no
// other.
func TestLanes(t *testing.T) {
	const size = 1000
	// A connection has been busy for so long with an answer of which so much came.
	for _, tc := range []struct {
		name   string
		came   int
		during time.Duration
		ends   time.Duration // when it ends; 0: never
		waits  time.Duration
	}{
		{"the last tenth, soon", 900, 90 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond},
		{"the last tenth, not soon", 900, 900 * time.Millisecond, 100 * time.Millisecond, 0},
		{"under half", 400, time.Millisecond, time.Millisecond, 0},
		{"nothing yet", 0, time.Millisecond, time.Millisecond, 0},
		{"the end does not come", 900, 90 * time.Millisecond, 0, soonMost},
		{"all is there but the end", 1000, time.Second, time.Millisecond, time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ls := lanes{of: make(map[string]*lane)}
				enter := func() (*turn, time.Duration) {
					start := time.Now()
					a, err := ls.enter(t.Context(), "peer", size)
					if err != nil {
						t.Fatal(err)
					}
					return a, time.Since(start)
				}
				first, _ := enter()
				if tc.came > 0 {
					first.count(1)
				}
				time.Sleep(tc.during)
				if tc.came > 0 {
					first.count(tc.came - 1)
				}
				if tc.ends > 0 {
					time.AfterFunc(tc.ends, func() { ls.leave("peer", first, true) })
				}
				second, waited := enter()
				if waited != tc.waits {
					t.Errorf("it waited for %s, want %s", waited, tc.waits)
				}
				ls.leave("peer", second, true)
			})
		})
	}
}

// TestLanesOfAFreeConnection: nobody waits if there is one, or if there would be
// if its end had not closed it meanwhile.
func TestLanesOfAFreeConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ls := lanes{of: make(map[string]*lane)}
		enter := func(ctx context.Context) (*turn, error) { return ls.enter(ctx, "peer", 1000) }
		a, _ := enter(t.Context())
		b, _ := enter(t.Context()) // nothing of a has come
		a.count(1)
		time.Sleep(10 * time.Millisecond)
		a.count(998)
		ls.leave("peer", b, true)
		start := time.Now()
		c, _ := enter(t.Context()) // on the connection of b
		if waited := time.Since(start); waited != 0 {
			t.Errorf("it waited for %s though a connection was free", waited)
		}
		ls.leave("peer", c, false) // which is closed now
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it did not wait for the only connection: %v", err)
		}
		ls.leave("peer", a, true)

		time.Sleep(idleWithin + time.Second) // http.Transport has closed it
		d, _ := enter(t.Context())
		d.count(1)
		time.Sleep(10 * time.Millisecond)
		d.count(998)
		start = time.Now()
		time.AfterFunc(time.Millisecond, func() { ls.leave("peer", d, true) })
		e, _ := enter(t.Context())
		if waited := time.Since(start); waited != time.Millisecond {
			t.Errorf("after a long pause it waited for %s, want until the only connection was free", waited)
		}
		ls.leave("peer", e, true)
	})
}

// TestLanesAreFewEnough: peers that are no more are forgotten.
func TestLanesAreFewEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ls := lanes{of: make(map[string]*lane)}
		visit := func(key string) {
			a, err := ls.enter(t.Context(), key, 1)
			if err != nil {
				t.Fatal(err)
			}
			ls.leave(key, a, true)
		}
		for i := range 2 * lanesMost {
			visit(time.Duration(i).String())
		}
		time.Sleep(idleWithin + time.Second)
		visit("another")
		if len(ls.of) != 1 {
			t.Errorf("%d lanes are left, want 1", len(ls.of))
		}
	})
}
