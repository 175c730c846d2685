package tags

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
)

// bubble runs f on a fake clock, with a node in front of a real registry that
// is outside of the bubble.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, s *site, n *node)) {
	t.Helper()
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) { f(t, s, s.start(t, t.TempDir(), cfg)) })
}

func TestFreshThenAgingThenAsked(t *testing.T) {
	t.Parallel()
	bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
		n.want(t, "latest", s.one, 1)
		s.move("latest", "2")
		time.Sleep(time.Minute - 1)
		if a := n.want(t, "latest", s.one, 0); a.Stale != "" || a.Age != time.Minute-1 {
			t.Errorf("within the TTL: stale %q, age %s", a.Stale, a.Age)
		}
		time.Sleep(time.Nanosecond)
		if a, err := n.Resolve(t.Context(), ref("latest")); err != nil || a.Blob != s.one.Manifest || a.Stale != "" {
			t.Errorf("just after the TTL: %+v, %v, want what was known", a, err)
		}
		synctest.Wait() // the question behind it
		n.want(t, "latest", s.two, 1)
		s.move("latest", "1")
		time.Sleep(2 * time.Minute)
		n.want(t, "latest", s.one, 1)
	})
}

func TestTTLOf(t *testing.T) {
	t.Parallel()
	ttl := func(up, tag string) (time.Duration, bool, bool) {
		if up != upstream {
			t.Errorf("TTLOf is asked about %q", up)
		}
		switch tag {
		case "long":
			return 5 * time.Minute, false, true
		case "never":
			return 0, false, true
		case "v1":
			return 0, true, true
		}
		return 0, false, false
	}
	bubble(t, Config{TTLOf: ttl}, func(t *testing.T, s *site, n *node) {
		for _, tag := range []string{"long", "never", "v1", "other"} {
			s.move(tag, "1")
			n.want(t, tag, s.one, 1)
			s.move(tag, "2")
		}
		n.want(t, "never", s.two, 1)
		s.move("never", "1")
		n.want(t, "never", s.one, 1)
		time.Sleep(5*time.Minute - 1)
		n.want(t, "long", s.one, 0)
		n.want(t, "other", s.two, 1)
		n.want(t, "v1", s.one, 0)
		time.Sleep(10 * time.Minute)
		n.want(t, "v1", s.one, 0)
		n.want(t, "long", s.two, 1)
	})
}

func TestNotFoundIsRemembered(t *testing.T) {
	t.Parallel()
	bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
		s.move("new", "absent")
		for i, requests := range []int{1, 0, 0} {
			if _, err := n.Resolve(t.Context(), ref("new")); !errors.Is(err, origin.ErrNotFound) {
				t.Errorf("%d: %v, want ErrNotFound", i, err)
			}
			if got := s.requests(); got != requests {
				t.Errorf("%d: %d requests, want %d", i, got, requests)
			}
			time.Sleep(10*time.Second - 1)
		}
		s.move("new", "1")
		time.Sleep(3 * time.Nanosecond)
		n.want(t, "new", s.one, 1)
	})
}

// A refusal is for nobody else: it is neither remembered nor papered over with
// what the tag named before.
func TestRefusalIsNeitherRememberedNorStale(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
			n.want(t, "latest", s.one, 1)
			s.answer(status)
			time.Sleep(time.Minute)
			// The first within the window gets what is known; the question behind
			// it is refused, and from then on so is everybody.
			if _, err := n.Resolve(t.Context(), ref("latest")); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			s.requests()
			for range 3 {
				if a, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrDenied) {
					t.Errorf("status %d: %+v, %v, want ErrDenied", status, a, err)
				}
				if got := s.requests(); got != 1 {
					t.Errorf("status %d: %d requests, want 1 each time", status, got)
				}
			}
			s.answer(0)
			n.want(t, "latest", s.one, 1)
		})
	}
}

func TestStaleWhenTheOriginFails(t *testing.T) {
	t.Parallel()
	for _, status := range []int{429, 500, 502, 503, 504} {
		bubble(t, Config{MaxStale: 5 * time.Minute}, func(t *testing.T, s *site, n *node) {
			n.want(t, "latest", s.one, 1)
			s.answer(status)
			time.Sleep(4 * time.Minute)
			a := n.want(t, "latest", s.one, 1)
			if !strings.Contains(a.Stale, http.StatusText(status)) || a.Age < 4*time.Minute {
				t.Errorf("status %d: stale %q, age %s", status, a.Stale, a.Age)
			}
			if _, err := n.Resolve(t.Context(), ref("other")); !errors.Is(err, origin.ErrUnavailable) {
				t.Errorf("status %d, a tag that is not known: %v, want ErrUnavailable", status, err)
			}
			time.Sleep(time.Minute + 1)
			if a, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "maxStale") {
				t.Errorf("status %d, older than maxStale: %+v, %v, want ErrUnavailable and the key's name", status, a, err)
			}
			s.answer(0)
			s.move("latest", "2")
			time.Sleep(time.Minute) // a registry that was busy is left alone for a while
			s.requests()
			if a := n.want(t, "latest", s.two, 1); a.Stale != "" {
				t.Errorf("after it: stale %q", a.Stale)
			}
		})
	}
}

// An aging answer is no longer given without a word once the question behind
// it has failed.
func TestFailureEndsTheWindow(t *testing.T) {
	t.Parallel()
	bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
		n.want(t, "latest", s.one, 1)
		s.answer(503)
		time.Sleep(time.Minute)
		if a, err := n.Resolve(t.Context(), ref("latest")); err != nil || a.Stale != "" {
			t.Errorf("%+v, %v", a, err)
		}
		synctest.Wait()
		if a, err := n.Resolve(t.Context(), ref("latest")); err != nil || a.Stale == "" {
			t.Errorf("after a failure: %+v, %v, want a stale answer", a, err)
		}
	})
}

func TestOffline(t *testing.T) {
	t.Parallel()
	bubble(t, Config{MaxStale: time.Minute}, func(t *testing.T, s *site, n *node) {
		n.want(t, "latest", s.one, 1)
		n.origin.SetOffline(true)
		if a := n.want(t, "latest", s.one, 0); a.Stale != "" {
			t.Errorf("within the TTL: stale %q", a.Stale)
		}
		time.Sleep(10 * time.Minute)
		a := n.want(t, "latest", s.one, 0)
		if !strings.Contains(a.Stale, "offline") || a.Age < 10*time.Minute {
			t.Errorf("stale %q, age %s", a.Stale, a.Age)
		}
		if _, err := n.Resolve(t.Context(), ref("other")); !errors.Is(err, origin.ErrOffline) || !strings.Contains(err.Error(), "offline") {
			t.Errorf("a tag that is not known: %v, want ErrOffline", err)
		}
		if got := s.requests(); got != 0 {
			t.Errorf("%d requests while offline", got)
		}
		n.origin.SetOffline(false)
		s.move("latest", "2")
		if a := n.want(t, "latest", s.two, 1); a.Stale != "" {
			t.Errorf("online again: stale %q", a.Stale)
		}
	})
}

// What the origin has removed is not brought back by the origin's absence, but
// its record stays for pins.
func TestGone(t *testing.T) {
	t.Parallel()
	bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
		n.want(t, "latest", s.one, 1)
		s.move("latest", "absent")
		time.Sleep(5 * time.Minute)
		if _, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
		time.Sleep(time.Minute)
		s.answer(503)
		if a, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "no more") {
			t.Errorf("down: %+v, %v, want ErrUnavailable", a, err)
		}
		n.origin.SetOffline(true)
		if a, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrOffline) {
			t.Errorf("offline: %+v, %v, want ErrOffline", a, err)
		}
		all, err := n.cache.Index().Tags("", "")
		if err != nil || len(all) != 1 {
			t.Errorf("tags in the index: %v, %v, want one", all, err)
		}
		n.origin.SetOffline(false)
		s.answer(0)
		s.move("latest", "1")
		time.Sleep(time.Minute)
		s.requests()
		n.want(t, "latest", s.one, 1)
		n.want(t, "latest", s.one, 0)
	})
}

// Nothing is asked twice just because the first question failed a while ago.
func TestRestartKeepsTags(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		n := s.start(t, dir, Config{})
		n.want(t, "latest", s.one, 1)
		since := time.Now()
		n.stop()
		time.Sleep(30 * time.Second)
		n = s.start(t, dir, Config{})
		if a := n.want(t, "latest", s.one, 0); a.Age != 30*time.Second {
			t.Errorf("age %s after the restart, want 30s", a.Age)
		}
		time.Sleep(5 * time.Minute)
		n.stop()
		s.answer(503)
		n = s.start(t, dir, Config{})
		if a := n.want(t, "latest", s.one, 1); a.Stale == "" {
			t.Error("a stale answer after a restart is not called stale")
		}
		s.answer(0)
		time.Sleep(time.Minute)
		s.requests()
		n.want(t, "latest", s.one, 1)
		tag, _, err := n.cache.Index().Tag(upstream, "app", "latest")
		if err != nil || !tag.Since.Equal(since) || !tag.Seen.Equal(time.Now()) {
			t.Errorf("record %+v, %v: want it to be there since %s", tag, err, since)
		}
	})
}

func TestDoubt(t *testing.T) {
	t.Parallel()
	always := func(string, string) (time.Duration, bool, bool) { return 0, true, true }
	bubble(t, Config{TTLOf: always}, func(t *testing.T, s *site, n *node) {
		s.move("copy", "1")
		n.want(t, "latest", s.one, 1)
		n.want(t, "copy", s.one, 1)
		n.want(t, "2", s.two, 1)
		s.move("latest", "2")
		n.Doubt(strings.ToUpper(upstream), "app", s.one.Manifest.Digest)
		n.want(t, "2", s.two, 0)
		n.want(t, "latest", s.two, 1)
		n.want(t, "latest", s.two, 0)
		s.answer(503)
		if a := n.want(t, "copy", s.one, 1); a.Stale == "" {
			t.Error("what is in doubt is not called stale")
		}
	})
}

func TestSet(t *testing.T) {
	t.Parallel()
	bubble(t, Config{}, func(t *testing.T, s *site, n *node) {
		d := origin.Descriptor{Blob: s.two.Manifest, MediaType: s.two.MediaType}
		n.origin.SetOffline(true)
		if _, err := n.Resolve(t.Context(), ref("imported")); !errors.Is(err, origin.ErrOffline) {
			t.Error(err)
		}
		if err := n.Set(strings.ToUpper(upstream), "app", "imported", d); err != nil {
			t.Fatal(err)
		}
		if a := n.want(t, "imported", s.two, 0); a.Stale != "" {
			t.Errorf("stale %q", a.Stale)
		}
		time.Sleep(5 * time.Minute)
		if a := n.want(t, "imported", s.two, 0); a.Stale == "" {
			t.Error("after five minutes it is not called stale")
		}
		for _, bad := range []origin.Ref{{Repository: "App", Tag: "1"}, {Repository: "app", Tag: "-"}, {Repository: "app"}} {
			if err := n.Set(upstream, bad.Repository, bad.Tag, d); err == nil {
				t.Errorf("Set of %s is accepted", bad)
			}
		}
		if err := n.Set(upstream, "app", "x", origin.Descriptor{}); err == nil {
			t.Error("Set without a digest is accepted")
		}
	})
}
