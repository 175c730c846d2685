//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/time/rate"

	"github.com/shoal-project/shoal/bench/process"
)

// An origin is a docker-registry, and a proxy in front of it that counts what
// leaves it.
type origin struct {
	url      string              // of the proxy
	stop     func()              // ends the proxy: nobody listens any more
	registry string              // host:port of the registry itself, for pushes
	login    authn.Authenticator // for pushes; nil: nobody has to
	limit    *rate.Limiter

	mu    sync.Mutex // protects the fields below
	bytes map[string]int64
}

// startOrigin starts a docker-registry with its content in dir.
func startOrigin(t *testing.T, dir string) *origin {
	t.Helper()
	config := filepath.Join(dir, "registry.yml")
	write(t, config, fmt.Sprintf(`version: 0.1
log: {accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
http: {addr: "127.0.0.1:0"}
`, filepath.Join(dir, "registry")))
	p := start(t, process.Options{
		Name: "docker-registry", Path: "docker-registry", Args: []string{"serve", config},
		Env: []string{"OTEL_TRACES_EXPORTER=none"},
	})
	m := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`).FindStringSubmatch(line(t, p, "listening on"))
	if m == nil {
		t.Fatalf("docker-registry does not say where it listens:\n%s", p.Tail())
	}
	o := &origin{registry: m[1], limit: rate.NewLimiter(rate.Inf, 1<<20), bytes: make(map[string]int64)}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: o.registry})
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) } // a client that left
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy.ServeHTTP(&counter{ResponseWriter: w, origin: o, r: r}, r)
	}))
	t.Cleanup(srv.Close)
	o.url = srv.URL
	o.stop = func() {
		srv.CloseClientConnections()
		srv.Close()
	}
	return o
}

// slow limits what leaves to n bytes a second; 0 is no limit.
func (o *origin) slow(n int) {
	if n == 0 {
		o.limit.SetLimit(rate.Inf)
		return
	}
	o.limit.SetLimit(rate.Limit(n))
}

// left returns how many bytes of one digest have left.
func (o *origin) left(digest string) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes[digest]
}

// total returns how many bytes of blobs and manifests have left.
func (o *origin) total() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	var n int64
	for _, b := range o.bytes {
		n += b
	}
	return n
}

// A counter counts the body of an answer, by what the path ends with: a digest
// or a tag.
type counter struct {
	http.ResponseWriter
	origin *origin
	r      *http.Request
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Write counts before it writes, so that whoever has a byte finds it counted,
// and takes back what was not sent.
func (c *counter) Write(p []byte) (int, error) {
	name := c.r.URL.Path[strings.LastIndexByte(c.r.URL.Path, '/')+1:]
	for done := 0; done < len(p); {
		piece := p[done:min(len(p), done+c.origin.limit.Burst())]
		if err := c.origin.limit.WaitN(c.r.Context(), len(piece)); err != nil {
			return done, err
		}
		c.origin.add(name, len(piece))
		n, err := c.ResponseWriter.Write(piece)
		done += n
		if err != nil {
			c.origin.add(name, n-len(piece))
			return done, err
		}
	}
	return len(p), nil
}

func (o *origin) add(name string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes[name] += int64(n)
}
