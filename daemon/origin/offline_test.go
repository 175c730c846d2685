package origin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// calls are all ways to ask an upstream.
func (c *Client) calls(ctx context.Context) map[string]func() error {
	return map[string]func() error{
		"Resolve": func() error {
			_, err := c.Resolve(ctx, Ref{Upstream: "a.test", Repository: "app", Tag: "1", Manifest: true})
			return err
		},
		"Resolve of a blob": func() error {
			_, err := c.Resolve(ctx, Ref{Upstream: "a.test", Repository: "app", Digest: testBlob.Digest})
			return err
		},
		"Fetch": func() error {
			_, err := c.testFetch(ctx)
			return err
		},
		"Tags": func() error {
			_, err := c.Tags(ctx, "a.test", "app", "", nil)
			return err
		},
		"Referrers": func() error {
			_, err := c.Referrers(ctx, "a.test", "app", testBlob.Digest, "", nil)
			return err
		},
		"Ping": func() error {
			_, err := c.Ping(ctx, "a.test")
			return err
		},
	}
}

func isOffline(err error) bool {
	return errors.Is(err, ErrOffline) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNotFound) &&
		strings.Contains(err.Error(), "offline: a.test is not contacted")
}

func TestOfflineAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, counted(&asked, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Docker-Content-Digest", testBlob.Digest.String())
			w.Header().Set("Content-Type", indexType)
			if req.Method == http.MethodHead || strings.Contains(req.URL.Path, "/blobs/") {
				good(w, req)
				return
			}
			_, _ = w.Write([]byte("{}"))
		}))
		if c.Offline() {
			t.Error("offline at first")
		}
		for range 2 {
			c.SetOffline(true)
			c.SetOffline(true)
			start := time.Now()
			for name, call := range c.calls(t.Context()) {
				if err := call(); !isOffline(err) {
					t.Errorf("%s: %v, want ErrOffline", name, err)
				}
			}
			if _, err := c.Resolve(t.Context(), Ref{Upstream: "b.test", Repository: "app", Tag: "1", Manifest: true}); !errors.Is(err, ErrUnknownUpstream) {
				t.Errorf("an upstream that is not there: %v", err)
			}
			if !c.Offline() || asked.Load() != 0 || time.Since(start) != 0 {
				t.Errorf("offline %v after %d requests and %s", c.Offline(), asked.Load(), time.Since(start))
			}
			c.SetOffline(false)
			c.SetOffline(false)
			if c.Offline() {
				t.Error("still offline")
			}
			calls := c.calls(t.Context())
			for name, call := range calls {
				if err := call(); err != nil {
					t.Errorf("%s after that: %v", name, err)
				}
			}
			if asked.Load() != int64(len(calls)) {
				t.Errorf("%d requests, want %d", asked.Load(), len(calls))
			}
			asked.Store(0)
		}
	})
}

// Whatever a call waits for, it ends at once when the client goes offline.
func TestOfflineEndsWhatRuns(t *testing.T) {
	hangs := func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
	for name, h := range map[string]http.HandlerFunc{
		"headers":        hangs,
		"a rest":         status(429, "9"),
		"the next try":   status(500, ""),
		"another's news": answering(status(429, "1"), hangs),
		"a byte": func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", "200000")
			_, _ = w.Write(testContent[:100_000])
			_ = http.NewResponseController(w).Flush()
			hangs(w, req)
		},
		"a token": func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				hangs(w, req)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://0.a.test/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startPiped(t, Upstream{}, h)
				errs := make(chan error)
				start := time.Now()
				for range 3 { // of three that want a token two wait for the first
					go func() {
						_, err := c.testFetch(t.Context())
						errs <- err
					}()
				}
				const at = 1300 * time.Millisecond // the third try at "the next try" is over
				time.Sleep(at)
				c.SetOffline(true)
				for range 3 {
					err := <-errs
					if name == "the next try" && errors.Is(err, ErrUnavailable) {
						continue // its tries may be over
					}
					if !isOffline(err) {
						t.Errorf("%v, want ErrOffline", err)
					}
				}
				if took := time.Since(start); took > at {
					t.Errorf("it ended after %s, want %s", took, at)
				}
			})
		})
	}
}

// Going offline for a moment ends what runs, and is not held against the URL.
func TestOfflineForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c := startPiped(t, Upstream{}, answering(func(_ http.ResponseWriter, req *http.Request) {
			<-req.Context().Done()
		}, good), counted(&asked, good))
		errs := make(chan error)
		go func() {
			_, err := c.testFetch(t.Context())
			errs <- err
		}()
		synctest.Wait()
		c.SetOffline(true)
		c.SetOffline(false)
		if err := <-errs; !isOffline(err) {
			t.Errorf("%v, want ErrOffline", err)
		}
		if _, err := c.testFetch(t.Context()); err != nil || asked.Load() != 0 {
			t.Errorf("%v, and %d requests to the second URL", err, asked.Load())
		}
	})
}

// A transport goes on dialling when the request has ended, so it is told apart.
func TestOfflineEndsDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Upstreams: map[string]Upstream{"a.test": {}}})
		if err != nil {
			t.Fatal(err)
		}
		dials := 0
		dial := c.dialOnline(func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials++
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		errs := make(chan error)
		go func() {
			_, err := dial(context.WithoutCancel(t.Context()), "tcp", "a.test:443")
			errs <- err
		}()
		synctest.Wait()
		c.SetOffline(true)
		if err := <-errs; !errors.Is(err, ErrOffline) {
			t.Errorf("%v, want ErrOffline", err)
		}
		if _, err := dial(t.Context(), "tcp", "a.test:443"); !errors.Is(err, ErrOffline) || dials != 1 {
			t.Errorf("%v after %d dials, want ErrOffline and 1", err, dials)
		}
	})
}

// A token server's answer that went offline with it is not kept.
func TestOfflineIsNotTheTokenServersWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			switch {
			case req.URL.Path == "/token":
				if asked++; asked == 1 {
					<-req.Context().Done()
					return
				}
				_, _ = w.Write([]byte(`{"token": "t"}`))
			case req.Header.Get("Authorization") == "Bearer t":
				good(w, req)
			default:
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://0.a.test/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
		errs := make(chan error)
		go func() {
			_, err := c.testFetch(t.Context())
			errs <- err
		}()
		synctest.Wait()
		c.SetOffline(true)
		if err := <-errs; !isOffline(err) {
			t.Errorf("%v, want ErrOffline", err)
		}
		c.SetOffline(false)
		src := c.Source(proto.Origin{Upstream: "a.test", Repository: "app"})
		if err := src.Fetch(t.Context(), testBlob.Run(), writer(func(p []byte) (int, error) { return len(p), nil })); err != nil {
			t.Error(err)
		}
	})
}
