package origin

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// When a rest is over, one of all who wait asks; the others follow when it has
// been answered.
func TestOneProbe(t *testing.T) {
	const n = 50
	for _, again := range []int{0, 1, 2} { // answered with 429 after the first
		t.Run(fmt.Sprint(again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var mu sync.Mutex
				var times []time.Duration
				c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
					mu.Lock()
					times = append(times, time.Since(start))
					k := len(times)
					mu.Unlock()
					if k <= 1+again {
						status(429, "5")(w, req)
						return
					}
					if k == 2+again { // the probe that brings the good news takes its time
						time.Sleep(time.Second)
					}
					good(w, req)
				})
				if err := c.testResolve(t); !errors.Is(err, ErrUnavailable) {
					t.Fatal(err)
				}
				errs := make(chan error)
				for range n {
					go func() {
						_, err := c.testFetch(t.Context())
						errs <- err
					}()
				}
				for range n {
					if err := <-errs; err != nil {
						t.Error(err)
					}
				}
				if len(times) != 1+again+n {
					t.Fatalf("%d requests, want %d", len(times), 1+again+n)
				}
				for i, at := range times {
					want := time.Duration(min(i, 1+again)) * 5 * time.Second
					if i > 1+again {
						want += time.Second
					}
					if at != want {
						t.Errorf("request %d after %s, want %s", i, at, want)
					}
				}
			})
		})
	}
}

// However many wait, a registry that never has enough is asked so often and no
// more, and everybody is told in the end.
func TestWaitersShareTheTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, status(429, "5")))
		start := time.Now()
		errs := make(chan error)
		const n = 20
		for range n {
			go func() {
				_, err := c.testFetch(t.Context())
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		}
		// The first wave has all of them in it, if they come at once.
		if took := time.Since(start); asked.Load() > n+5 || took > 30*time.Second {
			t.Errorf("%d requests in %s", asked.Load(), took)
		}
	})
}

// A probe that never comes back is not waited for longer than a rest would be.
func TestLostProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, answering(status(429, "5"), func(_ http.ResponseWriter, req *http.Request) {
			<-req.Context().Done()
		}, good)))
		_ = c.testResolve(t)
		time.Sleep(5 * time.Second)
		probe := make(chan error)
		go func() { _, err := c.testFetch(t.Context()); probe <- err }()
		synctest.Wait()
		start := time.Now()
		if err := c.testResolve(t); !errors.Is(err, ErrUnavailable) || time.Since(start) != maxShortWait || !strings.Contains(err.Error(), "another request finds out") {
			t.Errorf("Resolve after %s: %v", time.Since(start), err)
		}
		if _, err := c.testFetch(t.Context()); !errors.Is(err, ErrUnavailable) || time.Since(start) != 11*time.Second || asked.Load() != 2 {
			t.Errorf("Fetch after %s and %d requests: %v", time.Since(start), asked.Load(), err)
		}
		if err := <-probe; err != nil { // the first timed out, the second was good
			t.Error(err)
		}
		if asked.Load() != 3 {
			t.Errorf("%d requests, want 3", asked.Load())
		}
	})
}
