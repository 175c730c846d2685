package tags

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
)

// hold makes the registry keep every question until release is called. Each is
// told of on arrived.
func (s *site) hold(t *testing.T) (arrived <-chan struct{}, release func()) {
	in, held := make(chan struct{}, 1000), make(chan struct{})
	s.setFront(func(_ http.ResponseWriter, r *http.Request) bool {
		in <- struct{}{}
		select {
		case <-held:
		case <-r.Context().Done():
		}
		return false
	})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release) // before the server closes, which waits for its handlers
	return in, release
}

// asked is a context that tells when somebody waits for its end, which in
// Resolve is after joining a lookup.
type asked struct {
	context.Context
	once *sync.Once
	wait chan<- struct{}
}

func (a asked) Done() <-chan struct{} {
	a.once.Do(func() { a.wait <- struct{}{} })
	return a.Context.Done()
}

// crowd starts n askers for a tag and returns when all of them wait.
func (n *node) crowd(ctx context.Context, tag string, count int) <-chan error {
	errs, waiting := make(chan error, count), make(chan struct{}, count)
	for range count {
		go func() {
			_, err := n.Resolve(asked{ctx, new(sync.Once), waiting}, ref(tag))
			errs <- err
		}()
	}
	for range count {
		<-waiting
	}
	return errs
}

func TestOneLookupForAll(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	arrived, release := s.hold(t)
	errs := n.crowd(t.Context(), "latest", 100)
	<-arrived
	release()
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if c := s.reg.Count(); c.ManifestHeads != 1 || c.ManifestGets != 0 {
		t.Errorf("100 askers at once: %+v at the origin, want 1 HEAD", c)
	}
}

// A failure is shared as well: nobody asks a second time for it.
func TestOneFailureForAll(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	arrived, release := s.hold(t)
	s.move("none", "absent")
	errs := n.crowd(t.Context(), "none", 100)
	<-arrived
	release()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
	}
	if got := s.requests(); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
}

func TestLookupOutlivesTheFirstAsker(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	arrived, release := s.hold(t)
	ctx, leave := context.WithCancel(t.Context())
	first := n.crowd(ctx, "latest", 1)
	<-arrived
	others := n.crowd(t.Context(), "latest", 8)
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "registry.test/app:latest") {
		t.Errorf("the one who left: %v, want context.Canceled and the name", err)
	}
	release()
	for range cap(others) {
		if err := <-others; err != nil {
			t.Errorf("one who stayed: %v", err)
		}
	}
	if got := s.requests(); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
}

// Even if all leave, the answer is there for the next who asks.
func TestLookupOutlivesAll(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	arrived, release := s.hold(t)
	ctx, leave := context.WithCancel(t.Context())
	errs := n.crowd(ctx, "latest", 1)
	<-arrived
	leave()
	<-errs
	release()
	n.want(t, "latest", s.one, 1)
}

// Who decided to ask just before a lookup ended finds what it brought.
func TestLookupLooksFirst(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	n.want(t, "latest", s.one, 1)
	s.move("none", "absent")
	if _, err := n.Resolve(t.Context(), ref("none")); !errors.Is(err, origin.ErrNotFound) {
		t.Error(err)
	}
	s.requests()
	for tag, want := range map[string]error{"latest": nil, "none": origin.ErrNotFound} {
		l := n.begin(cache.TagName{Upstream: upstream, Repository: "app", Tag: tag}, false)
		if <-l.done; !errors.Is(l.err, want) {
			t.Errorf("%s: %v, want %v", tag, l.err, want)
		}
	}
	if got := s.requests(); got != 0 {
		t.Errorf("%d requests, want none", got)
	}
}

// An origin that does not answer makes nobody wait longer than the patience if
// there is an older answer, and those after the first not at all. Once it is
// back, it is waited for again.
func TestHangingOrigin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{TTL: -1})
	n.patience = time.Hour
	s.move("other", "1")
	n.want(t, "latest", s.one, 1)
	n.want(t, "other", s.one, 1)
	_, release := s.hold(t)
	n.patience = 10 * time.Millisecond
	if a, err := n.Resolve(t.Context(), ref("latest")); err != nil || !strings.Contains(a.Stale, "no answer yet") {
		t.Fatalf("%+v, %v, want a stale answer", a, err)
	}
	n.patience = time.Hour // nobody waits for this one
	for _, tag := range []string{"other", "latest"} {
		if a, err := n.Resolve(t.Context(), ref(tag)); err != nil || a.Stale == "" {
			t.Fatalf("%s: %+v, %v, want a stale answer", tag, a, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.Resolve(ctx, ref("2")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a tag that is not known: %v, want to wait for it", err)
	}
	release()
	n.wg.Wait()
	s.requests()
	if a := n.want(t, "latest", s.one, 1); a.Stale != "" {
		t.Errorf("stale %q, want to have waited for the answer", a.Stale)
	}
}

// The one who was refused is not given the old answer because the next refusal
// is slow.
func TestSlowRefusalIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{TTL: -1})
	n.want(t, "latest", s.one, 1)
	s.answer(403)
	if _, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrDenied) {
		t.Fatal(err)
	}
	n.setSlow(upstream, time.Now())
	s.setFront(func(w http.ResponseWriter, _ *http.Request) bool {
		time.Sleep(20 * time.Millisecond)
		w.WriteHeader(403)
		return true
	})
	if a, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("%+v, %v, want ErrDenied", a, err)
	}
}

// A registry that takes longer than its client's patience is one that is down.
func TestTimeout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{TTL: -1})
	n.want(t, "latest", s.one, 1)
	client, err := origin.New(origin.Config{
		Upstreams:     map[string]origin.Upstream{upstream: {URLs: []string{s.url}}},
		HeaderTimeout: 20 * time.Millisecond, Tries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	n.cfg.Origin = client
	s.hold(t)
	if a, err := n.Resolve(t.Context(), ref("latest")); err != nil || !strings.Contains(a.Stale, "timeout") {
		t.Errorf("%+v, %v, want a stale answer after a timeout", a, err)
	}
	if _, err := n.Resolve(t.Context(), ref("2")); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("a tag that is not known: %v, want ErrUnavailable", err)
	}
}

func TestDownOrigin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{TTL: -1})
	n.want(t, "latest", s.one, 1)
	s.server.Close()
	if a := n.want(t, "latest", s.one, 0); !strings.Contains(a.Stale, "refused") {
		t.Errorf("stale %q, want the refused connection", a.Stale)
	}
	if _, err := n.Resolve(t.Context(), ref("2")); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("a tag that is not known: %v, want ErrUnavailable", err)
	}
}

func TestRunEndsLookups(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{TTL: -1})
	n.want(t, "1", s.one, 1)
	arrived, _ := s.hold(t)
	known := n.crowd(t.Context(), "1", 1)
	unknown := n.crowd(t.Context(), "2", 1)
	<-arrived
	<-arrived
	go n.stop()
	if err := <-known; err != nil {
		t.Errorf("a tag that is known: %v, want a stale answer", err)
	}
	if err := <-unknown; !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("a tag that is not known: %v, want ErrUnavailable", err)
	}
	n.stop()
	if _, err := n.Resolve(t.Context(), ref("2")); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("after the end: %v, want ErrUnavailable", err)
	}
}

func TestRunWaitsForLookups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		r.wg.Add(1) // a lookup that takes its time to end
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		cancel()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("Run returned %v while a lookup was going on", err)
		default:
		}
		l := r.begin(cache.TagName{Upstream: upstream, Repository: "app", Tag: "1"}, false)
		select {
		case <-l.done:
		default:
			t.Error("a lookup was started after the end")
		}
		r.wg.Done()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// What the index does not take is kept in memory, and can be doubted and gone
// as well.
func TestIndexFails(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	broken, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	n.cfg.Index = broken.Index() // every call of it fails
	n.want(t, "latest", s.one, 1)
	n.want(t, "latest", s.one, 0)
	n.Doubt(upstream, "app", s.one.Manifest.Digest)
	s.answer(500)
	if a := n.want(t, "latest", s.one, 1); a.Stale == "" {
		t.Error("an answer from memory is not called stale")
	}
	s.answer(0)
	s.move("latest", "absent")
	if _, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	n.mu.Lock()
	m := n.memos[cache.TagName{Upstream: upstream, Repository: "app", Tag: "latest"}]
	n.mu.Unlock()
	if m.unsaved == nil || m.unsaved.Gone.IsZero() {
		t.Errorf("memo %+v, want the record that the tag is gone", m)
	}
	d := origin.Descriptor{Blob: s.one.Manifest, MediaType: s.one.MediaType}
	if err := n.Set(upstream, "app", "latest", d); !errors.Is(err, cache.ErrClosed) {
		t.Errorf("Set = %v, want to be told", err)
	}
}

func TestMemosAreBounded(t *testing.T) {
	t.Parallel()
	n := New(Config{})
	for i := range 2 * maxMemos {
		n.note(cache.TagName{Tag: fmt.Sprint(i)}, memo{failure: errDoubt})
	}
	if len(n.memos) != maxMemos {
		t.Errorf("%d memos, want %d", len(n.memos), maxMemos)
	}
}

func TestNamesAreChecked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	for _, bad := range []origin.Ref{
		{Upstream: upstream, Repository: "App", Tag: "1"},
		{Upstream: upstream, Repository: "app", Tag: "a\x00b"},
		{Upstream: upstream, Repository: "app"},
		{Upstream: "nowhere.test", Repository: "app", Tag: "1"},
	} {
		if a, err := n.Resolve(t.Context(), bad); err == nil {
			t.Errorf("%s is %v", bad, a)
		}
	}
	if got := s.requests(); got != 0 {
		t.Errorf("%d requests", got)
	}
	// The case of an upstream's name makes no difference.
	n.want(t, "latest", s.one, 1)
	r := ref("latest")
	r.Upstream = strings.ToUpper(upstream)
	if _, err := n.Resolve(t.Context(), r); err != nil || s.requests() != 0 {
		t.Errorf("%s is asked for again: %v", r, err)
	}
}

// A registry that says nothing usable is an error, and nothing of it is kept.
func TestNonsense(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start(t, t.TempDir(), Config{})
	s.answer(http.StatusTeapot)
	if _, err := n.Resolve(t.Context(), ref("latest")); !errors.Is(err, origin.ErrProtocol) {
		t.Errorf("%v, want ErrProtocol", err)
	}
	s.answer(0)
	s.requests()
	n.want(t, "latest", s.one, 1)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	bubble(t, Config{Registry: reg}, func(t *testing.T, s *site, n *node) {
		n.want(t, "latest", s.one, 1) // origin
		n.want(t, "latest", s.one, 0) // fresh
		time.Sleep(time.Minute)
		if _, err := n.Resolve(t.Context(), ref("latest")); err != nil { // revalidated
			t.Error(err)
		}
		synctest.Wait()
		s.move("none", "absent")
		for range 3 { // origin, negative, negative
			_, _ = n.Resolve(t.Context(), ref("none"))
		}
		s.answer(503)
		time.Sleep(5 * time.Minute)
		_, _ = n.Resolve(t.Context(), ref("latest")) // stale
		_, _ = n.Resolve(t.Context(), ref("2"))      // error
		_, _ = n.Resolve(t.Context(), origin.Ref{Upstream: "made.up", Repository: "app", Tag: "1"})
	})
	want, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(string(want))); err != nil {
		t.Error(err)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ago := func(d time.Duration) cache.Tag { return cache.Tag{Seen: now.Add(-d)} }
	gone := ago(0)
	gone.Gone = now
	absentAgo := func(d time.Duration) knowledge {
		return knowledge{failure: fmt.Errorf("x: %w", origin.ErrNotFound), at: now.Add(-d)}
	}
	usual := terms{ttl: time.Minute, revalidate: time.Minute, notFound: 30 * time.Second}
	with := func(f func(*terms)) terms { t := usual; f(&t); return t }
	for _, test := range []struct {
		name string
		k    knowledge
		t    terms
		want verdict
	}{
		{"nothing", knowledge{}, usual, unknown},
		{"new", knowledge{tag: ago(0), known: true}, usual, fresh},
		{"last moment", knowledge{tag: ago(time.Minute - 1), known: true}, usual, fresh},
		{"expired", knowledge{tag: ago(time.Minute), known: true}, usual, aging},
		{"last moment of the window", knowledge{tag: ago(2*time.Minute - 1), known: true}, usual, aging},
		{"old", knowledge{tag: ago(2 * time.Minute), known: true}, usual, unknown},
		{"no window", knowledge{tag: ago(time.Minute), known: true}, with(func(t *terms) { t.revalidate = -1 }), unknown},
		{"no TTL, no window", knowledge{tag: ago(0), known: true}, with(func(t *terms) { t.ttl = 0 }), unknown},
		{"negative TTL", knowledge{tag: ago(0), known: true}, with(func(t *terms) { t.ttl = -1 }), unknown},
		{"immutable", knowledge{tag: ago(ever), known: true}, with(func(t *terms) { t.immutable = true }), fresh},
		{"immutable, not known", knowledge{}, with(func(t *terms) { t.immutable = true }), unknown},
		{"immutable, gone", knowledge{tag: gone, known: true}, with(func(t *terms) { t.immutable = true }), unknown},
		{"immutable, in doubt", knowledge{tag: ago(0), known: true, failure: errDoubt, at: now}, with(func(t *terms) { t.immutable = true }), unknown},
		{"from a clock that was ahead", knowledge{tag: ago(-time.Second), known: true}, usual, unknown},
		{"gone", knowledge{tag: gone, known: true}, usual, unknown},
		{"in doubt", knowledge{tag: ago(0), known: true, failure: errDoubt, at: now}, usual, unknown},
		{"refused", knowledge{failure: origin.ErrDenied, at: now}, usual, unknown},
		{"absent", absentAgo(0), usual, absent},
		{"absent for long", absentAgo(30 * time.Second), usual, unknown},
		{"absent, clock ahead", absentAgo(-time.Second), usual, unknown},
		{"absent, not remembered", absentAgo(0), with(func(t *terms) { t.notFound = -1 }), unknown},
	} {
		if got := judge(test.k, test.t, now); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
