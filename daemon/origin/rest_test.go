package origin

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// What ends a rest, what makes it longer and who may ask when it is over.
func TestRests(t *testing.T) {
	t.Parallel()
	e := new(endpoint)
	r := rests{of: make(map[*endpoint]*rest)}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	throttled := func(asked, now, retryAfter, until int, fresh bool) {
		t.Helper()
		got, isNew := r.throttled(e, at(asked), at(now), time.Duration(retryAfter)*time.Second, time.Second, "429")
		if !got.Equal(at(until)) || isNew != fresh {
			t.Errorf("rests until %s, new: %v; want %s, %v", got, isNew, at(until), fresh)
		}
	}
	enter := func(now int, want string) *probe {
		t.Helper()
		p, resting := r.enter(e, at(now))
		got := "free"
		switch {
		case resting != nil && at(now).Before(resting.until):
			got = "rests"
		case resting != nil:
			got = "probed"
		case p != nil:
			got = "probe"
		}
		if got != want {
			t.Errorf("at %d: %s, want %s", now, got, want)
		}
		return p
	}
	enter(0, "free")
	throttled(0, 1, 10, 11, true)
	throttled(0, 2, 5, 11, false)  // of the same wave, and shorter
	throttled(0, 3, 20, 23, false) // longer
	enter(22, "rests")
	changed := r.watch()
	r.answered(e, at(2)) // was sent before the rest was over
	enter(22, "rests")
	p := enter(23, "probe")
	enter(24, "probed")
	r.leave(e, new(probe)) // somebody else's
	enter(24, "probed")
	r.leave(e, p)
	select {
	case <-changed:
	default:
		t.Error("nobody was told that the probe is back")
	}
	p = enter(24, "probe")
	throttled(24, 25, 10, 35, true)
	r.leave(e, p)
	enter(34, "rests")
	enter(35, "probe")
	changed = r.watch()
	r.answered(e, at(35))
	<-changed
	enter(35, "free")

	// Without a Retry-After it doubles with each strike, not with each answer.
	r.throttled(e, at(40), at(40), 0, 8*time.Second, "429")
	first := r.until(e, at(40))
	if d := first.Sub(at(40)); d < 6*time.Second || d > 10*time.Second {
		t.Errorf("the first rest takes %s, want 6s to 10s", d)
	}
	r.throttled(e, at(40), at(41), 0, 8*time.Second, "429")
	if got := r.until(e, at(41)); !got.Equal(first) {
		t.Errorf("a second answer of the same wave made it %s, want %s", got, first)
	}
	r.throttled(e, first, first, 0, 8*time.Second, "429")
	if d := r.until(e, first).Sub(first); d < 12*time.Second || d > 20*time.Second {
		t.Errorf("the second rest takes %s, want 12s to 20s", d)
	}
	for range 50 {
		now := at(100_000)
		r.of[e].until = now
		r.throttled(e, now, now, 0, 8*time.Second, "429")
		if d := r.until(e, now).Sub(now); d > maxDoubling*5/4 {
			t.Fatalf("a rest of %s, want at most %s", d, maxDoubling*5/4)
		}
	}
}

func (c *Client) testResolve(t *testing.T) error {
	_, err := c.Resolve(t.Context(), Ref{Upstream: "a.test", Repository: "app", Tag: "1", Manifest: true})
	return err
}

// goodManifest answers lookups of manifests.
func goodManifest(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", testBlob.Digest.String())
	w.Header().Set("Content-Length", "2")
}

// counted counts the requests that reach h.
func counted(n *atomic.Int64, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		n.Add(1)
		h(w, req)
	}
}

// While an upstream wants to be left alone nobody asks it, and who asks for a
// tag or a list is told so at once, and until when.
func TestResolveFailsAtOnceWhileResting(t *testing.T) {
	for _, code := range []int{429, 503, 500} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			c := startPiped(t, Upstream{}, counted(&asked, answering(status(code, "60"), goodManifest)))
			start := time.Now()
			until := "left alone until " + start.Add(time.Minute).UTC().Format(time.RFC3339)
			for _, at := range []time.Duration{0, 1, 30 * time.Second, time.Minute - maxShortWait - 1} {
				time.Sleep(time.Until(start.Add(at)))
				err := c.testResolve(t)
				_, listErr := c.Tags(t.Context(), "a.test", "app", "", nil)
				for _, err := range []error{err, listErr} {
					if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), until) {
						t.Errorf("after %s: %v, want ErrUnavailable and %q", at, err, until)
					}
				}
				if got := time.Since(start); got != at || asked.Load() != 1 {
					t.Errorf("it took %s and %d requests, want none and 1", got-at, asked.Load())
				}
				if got := c.resting(time.Now())["a.test"]; got != time.Minute-at {
					t.Errorf("the gauge says %s, want %s", got, time.Minute-at)
				}
			}
			// The last second is waited out.
			time.Sleep(time.Nanosecond)
			if err := c.testResolve(t); err != nil || time.Since(start) != time.Minute || asked.Load() != 2 {
				t.Errorf("after %s and %d requests: %v; want no error after a minute and 2", time.Since(start), asked.Load(), err)
			}
			if got := c.resting(time.Now())["a.test"]; got != 0 {
				t.Errorf("the gauge says %s after the rest", got)
			}
		})
	}
}

// A 503 that does not ask for a rest concerns what was asked for, and nothing
// else.
func TestErrorsOfOneBlobAreNoRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/blobs/") {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			goodManifest(w, req)
		})
		for range 10 {
			if _, err := c.testFetch(t.Context()); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := c.testResolve(t); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// Fetches wait for a short rest that somebody else met with, and fail at once
// for a long one.
func TestFetchWaitsForAShortRest(t *testing.T) {
	for _, tc := range []struct {
		retryAfter string
		err        error
		took       time.Duration
		asked      int64
	}{
		{"7", nil, 7 * time.Second, 2},
		{"10", nil, 10 * time.Second, 2},
		{"11", ErrUnavailable, 0, 1},
		{"3600", ErrUnavailable, 0, 1},
		{"99999999999", ErrUnavailable, 0, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			c := startPiped(t, Upstream{}, counted(&asked, answering(status(429, tc.retryAfter), good)))
			if err := c.testResolve(t); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			start := time.Now()
			_, err := c.testFetch(t.Context())
			if took := time.Since(start); !errors.Is(err, tc.err) || took != tc.took || asked.Load() != tc.asked {
				t.Errorf("Retry-After %s: %v after %s and %d requests, want %v after %s and %d",
					tc.retryAfter, err, took, asked.Load(), tc.err, tc.took, tc.asked)
			}
		})
	}
}

// Without a Retry-After the rest doubles; what is short enough is waited out.
func TestRestDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, status(429, "")))
		start := time.Now()
		for asked.Load() < 12 {
			before, now := asked.Load(), time.Now()
			if err := c.testResolve(t); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			left := c.resting(time.Now())["a.test"]
			if asked.Load() == before && time.Since(now) > 0 {
				t.Fatalf("it took %s to ask nobody", time.Since(now))
			}
			if left == 0 {
				t.Fatal("not left alone after a refusal")
			}
			time.Sleep(left)
		}
		// 0.2 s twice as long each time, a minute at most, for 12 requests.
		if took := time.Since(start); took < 200*time.Second*3/4 || took > 300*time.Second*5/4 {
			t.Errorf("12 requests in %s", took)
		}
	})
}

// One URL's rest is no reason to wait where there is another.
func TestRestOfOneURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked [2]atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked[0], status(429, "3")), counted(&asked[1], goodManifest))
		start := time.Now()
		for range 3 {
			if err := c.testResolve(t); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 || asked[0].Load() != 1 || asked[1].Load() != 3 {
			t.Errorf("%d and %d requests in %s, want 1 and 3 at once", asked[0].Load(), asked[1].Load(), took)
		}
		if got := c.resting(time.Now())["a.test"]; got != 0 {
			t.Errorf("the gauge says %s while one URL answers", got)
		}
	})
}

// Object storage that is asked too much says nothing about the registry; a
// token server does.
func TestWhoseRestItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/blobs/") {
				http.Redirect(w, req, "http://1.a.test/blob", http.StatusTemporaryRedirect)
				return
			}
			goodManifest(w, req)
		}, status(429, "60"))
		c.named["a.test"].endpoints = c.named["a.test"].endpoints[:1]
		if _, err := c.testFetch(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "left alone until") {
			t.Errorf("Fetch: %v", err)
		}
		if err := c.testResolve(t); err != nil {
			t.Errorf("Resolve: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				status(429, "60")(w, req)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://0.a.test/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		for range 3 {
			if err := c.testResolve(t); !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		}
		if asked.Load() != 2 {
			t.Errorf("%d requests, want 2: the challenge and the token", asked.Load())
		}
	})
}

// A probe that is refused shows as well that the rest is over.
func TestDeniedEndsARest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{}, answering(status(429, "60"), status(401, ""), status(403, ""), goodManifest))
		_ = c.testResolve(t)
		time.Sleep(time.Minute)
		if err := c.testResolve(t); !errors.Is(err, ErrDenied) {
			t.Errorf("%v, want ErrDenied", err)
		}
		if n := len(c.named["a.test"].rests.of); n != 0 {
			t.Errorf("%d URLs rest", n)
		}
	})
}

// A transfer that is cut and then told to wait goes on where it was.
func TestResumeAfterARest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ranges []string
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			ranges = append(ranges, req.Header.Get("Range"))
			switch len(ranges) {
			case 1:
				w.Header().Set("Content-Length", fmt.Sprint(len(testContent)))
				_, _ = w.Write(testContent[:100_000])
			case 2:
				status(429, "3")(w, req)
			default:
				good(w, req)
			}
		})
		start := time.Now()
		got, err := c.testFetch(t.Context())
		if err != nil || string(got) != string(testContent) || time.Since(start) != 3*time.Second {
			t.Errorf("%d bytes after %s, %v", len(got), time.Since(start), err)
		}
		rest := fmt.Sprintf("bytes=100000-%d", len(testContent)-1)
		if want := []string{"", rest, rest}; fmt.Sprint(ranges) != fmt.Sprint(want) {
			t.Errorf("ranges %q, want %q", ranges, want)
		}
	})
}

// Progress makes up for the failures before it.
func TestProgressResetsTheTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		step := func(n int) http.HandlerFunc { // n bytes of what is asked for, and a cut
			return func(w http.ResponseWriter, req *http.Request) {
				from := 0
				_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
				code := http.StatusOK
				if from > 0 {
					code = http.StatusPartialContent
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(testContent)-1, len(testContent)))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(testContent)-from))
				w.WriteHeader(code)
				_, _ = w.Write(testContent[from : from+n])
			}
		}
		bad := status(500, "")
		c := startPiped(t, Upstream{}, answering(bad, bad, bad, step(70_000), bad, bad, bad, step(70_000), bad, bad, bad, good))
		if got, err := c.testFetch(t.Context()); err != nil || string(got) != string(testContent) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// The target of a redirect that is remembered is no way past a rest.
func TestRestHoldsForRedirects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, stored atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, func(w http.ResponseWriter, req *http.Request) {
			switch {
			case !strings.Contains(req.URL.Path, "/blobs/"):
				status(429, "3")(w, req)
			default:
				http.Redirect(w, req, "http://1.a.test/blob", http.StatusTemporaryRedirect)
			}
		}), counted(&stored, good))
		c.named["a.test"].endpoints = c.named["a.test"].endpoints[:1]
		step := func(wantAsked, wantStored int64, wantTook time.Duration) {
			t.Helper()
			start := time.Now()
			if _, err := c.testFetch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != wantTook || asked.Load() != wantAsked || stored.Load() != wantStored {
				t.Errorf("%d requests and %d at the storage after %s, want %d and %d after %s", asked.Load(), stored.Load(), took, wantAsked, wantStored, wantTook)
			}
		}
		step(1, 1, 0)
		step(1, 2, 0) // remembered
		_ = c.testResolve(t)
		step(3, 3, 3*time.Second)
		step(3, 4, 0)
	})
}

// A fetch of a manifest's bytes waits like that of a blob's.
func TestManifestFetchWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{}, answering(status(429, "7"), good))
		start := time.Now()
		src := c.Source(proto.Origin{Upstream: "a.test", Repository: "app", Manifest: true})
		err := src.Fetch(t.Context(), testBlob.Run(), writer(func(p []byte) (int, error) { return len(p), nil }))
		if err != nil || time.Since(start) != 7*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// A call that has no token to send learns nothing about a rest, and ends none.
func TestLackOfATokenEndsNoRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{Auth: AuthPassthrough}, status(429, "10"))
		ref := Ref{Upstream: "a.test", Repository: "app", Tag: "1", Manifest: true}
		if _, err := c.Resolve(WithAuthorization(t.Context(), "Bearer x"), ref); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		if _, err := c.Resolve(t.Context(), ref); !errors.Is(err, ErrDenied) {
			t.Errorf("%v, want ErrDenied", err)
		}
		up := c.named["a.test"]
		if up.rests.of[up.endpoints[0]] == nil {
			t.Error("the rest was ended by a call that did not ask")
		}
	})
}
