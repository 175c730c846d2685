package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// These tests run on the fake clock of testing/synctest, so the registries are
// HTTP servers on pipes: nothing may wait on a real socket.

// A pipeListener hands out one end of each pipe whose other end dial returns.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// startPiped returns a client of the upstream "a.test" with the given URLs,
// which are served by handlers in the same order (nil: nobody listens). It must
// run in a bubble.
func startPiped(t *testing.T, u Upstream, handlers ...http.HandlerFunc) *Client {
	t.Helper()
	listeners := make(map[string]*pipeListener)
	for i, h := range handlers {
		host := fmt.Sprintf("%d.a.test", i)
		u.URLs = append(u.URLs, "http://"+host)
		if h == nil {
			continue
		}
		l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		s := &http.Server{Handler: h}
		served := make(chan struct{})
		go func() { defer close(served); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-served })
		listeners[host+":80"] = l
	}
	c, err := New(Config{Upstreams: map[string]Upstream{"a.test": u}})
	if err != nil {
		t.Fatal(err)
	}
	transport := c.named["a.test"].transport
	transport.Proxy = nil // whatever the environment says
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if l := listeners[addr]; l != nil {
			return l.dial(ctx, network, addr)
		}
		return nil, errors.New("connection refused")
	}
	t.Cleanup(c.Close)
	return c
}

var (
	testContent = bytes.Repeat([]byte("0123456789"), 20_000)
	testBlob    = proto.Blob{Digest: proto.DigestOf(testContent), Size: int64(len(testContent))}
)

func (c *Client) testFetch(ctx context.Context) ([]byte, error) {
	var got bytes.Buffer
	err := c.Source(proto.Origin{Upstream: "a.test", Repository: "app"}).Fetch(ctx, testBlob.Run(), &got)
	return got.Bytes(), err
}

// answering returns a handler that gives the answers in turn, the last one for
// ever.
func answering(answers ...http.HandlerFunc) http.HandlerFunc {
	var n atomic.Int64
	return func(w http.ResponseWriter, req *http.Request) {
		answers[min(int(n.Add(1)), len(answers))-1](w, req)
	}
}

func good(w http.ResponseWriter, req *http.Request) {
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(testContent))
}

func status(code int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(code)
	}
}

func TestWaits(t *testing.T) {
	hangs := func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
	stalls := func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(testContent)))
		_, _ = w.Write(testContent[:100_000])
		<-req.Context().Done()
	}
	date := func(w http.ResponseWriter, req *http.Request) {
		status(429, time.Now().Add(4*time.Second).UTC().Format(http.TimeFormat))(w, req)
	}
	second := time.Second
	for _, tc := range []struct {
		name     string
		handlers []http.HandlerFunc
		err      error
		min, max time.Duration
	}{
		{"nothing", []http.HandlerFunc{good}, nil, 0, 0},
		{"backs off and doubles", []http.HandlerFunc{status(503, "")}, ErrUnavailable, 1400 * 3 / 4 * time.Millisecond, 1400 * 5 / 4 * time.Millisecond},
		{"one backoff", []http.HandlerFunc{answering(status(503, ""), good)}, nil, 150 * time.Millisecond, 250 * time.Millisecond},
		{"no backoff before the next mirror", []http.HandlerFunc{status(503, ""), nil, good}, nil, 0, 0},
		{"as long as it is told", []http.HandlerFunc{answering(status(429, "7"), good)}, nil, 7 * second, 7 * second},
		{"until the date that it is told", []http.HandlerFunc{answering(date, good)}, nil, 3 * second, 4 * second},
		{"not longer than is sensible", []http.HandlerFunc{answering(status(429, "11"), good)}, ErrUnavailable, 0, 0},
		{"on unavailable as well", []http.HandlerFunc{answering(status(503, "3"), good)}, nil, 3 * second, 3 * second},
		{"a stall, then on at once", []http.HandlerFunc{answering(stalls, good)}, nil, 15 * second, 15 * second},
		{"for headers", []http.HandlerFunc{answering(hangs, good)}, nil, 30 * second, 30*second + 250*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startPiped(t, Upstream{}, tc.handlers...)
				start := time.Now()
				got, err := c.testFetch(t.Context())
				took := time.Since(start)
				if !errors.Is(err, tc.err) {
					t.Fatalf("error %v, want %v", err, tc.err)
				}
				if err == nil && !bytes.Equal(got, testContent) {
					t.Errorf("%d bytes, want %d others", len(got), len(testContent))
				}
				if took < tc.min || took > tc.max {
					t.Errorf("it took %s, want %s to %s", took, tc.min, tc.max)
				}
			})
		})
	}
}

// A fetch that waits, for whatever it may be, ends at once with its context.
func TestCancelEndsAWait(t *testing.T) {
	hangs := func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
	for name, h := range map[string]http.HandlerFunc{
		"to try again": status(503, "9"),
		"for headers":  hangs,
		"for a byte": func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			hangs(w, req)
		},
		"for a token": func(w http.ResponseWriter, req *http.Request) {
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
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				errs := make(chan error)
				start := time.Now()
				for range 2 { // of two that want a token one waits for the other
					go func() {
						_, err := c.testFetch(ctx)
						errs <- err
					}()
				}
				for range 2 {
					if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v, want context.DeadlineExceeded", err)
					}
				}
				if took := time.Since(start); took != time.Second {
					t.Errorf("it ended after %s, want 1s", took)
				}
			})
		})
	}
}

// A slow writer is not taken for a registry that stalls.
func TestSlowWriterIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) { asked++; good(w, req) })
		n := 0
		w := writer(func(p []byte) (int, error) {
			time.Sleep(time.Minute)
			n += len(p)
			return len(p), nil
		})
		err := c.Source(proto.Origin{Upstream: "a.test", Repository: "app"}).Fetch(t.Context(), testBlob.Run(), w)
		if err != nil || n != len(testContent) || asked != 1 {
			t.Errorf("%d bytes after %d requests, %v; want all after 1", n, asked, err)
		}
	})
}

type writer func([]byte) (int, error)

func (f writer) Write(p []byte) (int, error) { return f(p) }

// A URL that could not be reached is asked last for a while, and then first
// again.
func TestDownURLIsAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPiped(t, Upstream{}, nil, good)
		up := c.named["a.test"]
		dials := 0
		dial := up.transport.DialContext
		up.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "0.a.test:80" {
				dials++
			}
			return dial(ctx, network, addr)
		}
		for i, want := range []int{1, 1, 2} {
			if i == 2 {
				time.Sleep(downFor)
			}
			if _, err := c.testFetch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if dials != want {
				t.Errorf("fetch %d: %d dials of the dead URL, want %d", i, dials, want)
			}
		}
	})
}

// A token is used until nine tenths of its life are over, and then replaced
// before the registry refuses it.
func TestTokenExpires(t *testing.T) {
	for _, tc := range []struct {
		answer string
		life   time.Duration
	}{
		{`{"token": "t%d", "expires_in": 300}`, 270 * time.Second},
		{`{"access_token": "t%d", "expires_in": 100}`, 90 * time.Second},
		{`{"token": "t%d"}`, 54 * time.Second},
		{`{"token": "t%d", "expires_in": -5}`, 54 * time.Second},
		{`{"token": "t%d", "expires_in": 1000000000000}`, 24 * time.Hour * 9 / 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			tokens, challenges := 0, 0
			c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
				switch {
				case req.URL.Path == "/token":
					tokens++
					_, _ = io.WriteString(w, strings.Replace(tc.answer, "%d", fmt.Sprint(tokens), 1))
				case req.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", tokens) && tokens > 0:
					good(w, req)
				default:
					challenges++
					w.Header().Set("WWW-Authenticate", `Bearer realm="http://0.a.test/token"`)
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			for _, step := range []struct {
				wait   time.Duration
				tokens int
			}{{0, 1}, {tc.life - 1, 1}, {1, 2}, {tc.life - 1, 2}} {
				time.Sleep(step.wait)
				if _, err := c.testFetch(t.Context()); err != nil {
					t.Fatal(err)
				}
				if tokens != step.tokens || challenges != 1 {
					t.Errorf("%s: after %s %d tokens and %d challenges, want %d and 1", tc.answer, step.wait, tokens, challenges, step.tokens)
				}
			}
		})
	}
}

// Those who wait for a token share the failure too, instead of asking a dead
// token server one after the other.
func TestWaitersShareTokenFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				asked++
				time.Sleep(time.Second)
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://0.a.test/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
		const n = 10
		errs := make(chan error, n)
		for range n {
			go func() {
				_, err := c.testFetch(t.Context())
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; !errors.Is(err, ErrDenied) {
				t.Errorf("%v, want ErrDenied", err)
			}
		}
		if asked != 1 {
			t.Errorf("the token server was asked %d times, want once", asked)
		}
	})
}

// A redirect's target is used again for RedirectTTL only.
func TestRedirectIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := startPiped(t, Upstream{}, func(w http.ResponseWriter, req *http.Request) {
			asked++
			http.Redirect(w, req, "http://1.a.test"+req.URL.Path, http.StatusTemporaryRedirect)
		}, good)
		for i, want := range []int{1, 1, 2} {
			if i == 2 {
				time.Sleep(time.Minute)
			}
			if _, err := c.testFetch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if asked != want {
				t.Errorf("fetch %d: the registry was asked %d times, want %d", i, asked, want)
			}
		}
	})
}

// Authorization goes nowhere but to the registry itself, and loops end.
func TestRedirects(t *testing.T) {
	for _, tc := range []struct {
		name, location string
		err            error
		authorized     bool // the second request
	}{
		{"same host", "http://0.a.test/elsewhere", nil, true},
		{"same host, with port", "http://0.a.test:80/elsewhere", nil, true},
		{"relative", "/elsewhere", nil, true},
		{"another port", "http://0.a.test:81/elsewhere", nil, false},
		{"another host", "http://1.a.test/elsewhere", nil, false},
		{"subdomain", "http://x.0.a.test/elsewhere", nil, false},
		{"itself", "", ErrProtocol, false},
		{"user name", "http://x:y@1.a.test/elsewhere", ErrProtocol, false},
		{"no scheme", "file:///etc/passwd", ErrProtocol, false},
		{"not an address", "http://%zz", ErrProtocol, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var authorized []bool
				asked := 0
				c := startPiped(t, Upstream{Auth: AuthNode, Username: "ann", Password: "s3cret"}, func(w http.ResponseWriter, req *http.Request) {
					asked++
					switch {
					case req.URL.Path == "/elsewhere":
						authorized = append(authorized, req.Header.Get("Authorization") != "")
						good(w, req)
					case req.Header.Get("Authorization") == "":
						w.Header().Set("WWW-Authenticate", "Basic")
						w.WriteHeader(http.StatusUnauthorized)
					default:
						location := tc.location
						if location == "" {
							location = req.URL.Path
						}
						w.Header().Set("Location", location)
						w.WriteHeader(http.StatusTemporaryRedirect)
					}
				})
				up := c.named["a.test"]
				dial := up.transport.DialContext
				up.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return dial(ctx, network, "0.a.test:80") // all names are one server
				}
				_, err := c.testFetch(t.Context())
				if !errors.Is(err, tc.err) {
					t.Fatalf("error %v, want %v", err, tc.err)
				}
				if asked > 1+1+maxHops {
					t.Errorf("%d requests, want %d at most", asked, 1+1+maxHops)
				}
				if err == nil && (len(authorized) != 1 || authorized[0] != tc.authorized) {
					t.Errorf("Authorization at the target: %v, want %v", authorized, tc.authorized)
				}
			})
		})
	}
}

// The memory for hosts that "*" stands for is bounded.
func TestOthersAreBounded(t *testing.T) {
	c, err := New(Config{Upstreams: map[string]Upstream{"*": {}}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxOthers {
		up, err := c.upstream(fmt.Sprintf("%d.example.com", i))
		if err != nil {
			t.Fatal(err)
		}
		if !publicOnly(up) {
			t.Fatalf("%s may be reached at a private address", up.name)
		}
	}
	if n := len(c.others); n != maxOthers {
		t.Errorf("%d hosts are kept, want %d", n, maxOthers)
	}
}

// publicOnly reports whether up's transport refuses to connect to loopback.
func publicOnly(up *upstream) bool {
	_, err := up.transport.DialContext(context.Background(), "tcp", "127.0.0.1:1")
	var private *privateAddrError
	proxied := up.transport.Proxy != nil
	return errors.As(err, &private) && !proxied && up.endpoints[0].base.Scheme == "https"
}
