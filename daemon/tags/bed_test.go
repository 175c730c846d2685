package tags

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
)

const upstream = "registry.test"

// A site is a real registry with two images, behind a handler that says which
// of them a tag is. It lives outside of any bubble, and closes each connection
// after one request: a client's idle one would keep the bubble's clock still.
type site struct {
	reg    *registry.Registry
	url    string
	server *httptest.Server
	one    registry.Image // tag "1", of repository "app", as "2" is
	two    registry.Image

	mu sync.Mutex // protects the fields below
	// moved are tags that are served as another.
	moved map[string]string
	// front, if not nil, sees requests first. True: answered.
	front func(w http.ResponseWriter, r *http.Request) bool
	asked int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{reg: registry.New(registry.Options{}), moved: map[string]string{"latest": "1"}}
	t.Cleanup(s.reg.Close)
	s.server = httptest.NewUnstartedServer(s)
	s.server.Config.SetKeepAlivesEnabled(false)
	s.server.Start()
	t.Cleanup(s.server.Close)
	s.url = s.server.URL
	var err error
	if s.one, err = registry.PushImage(t.Context(), s.url, "app", "1", []int64{100}, 1); err != nil {
		t.Fatal(err)
	}
	if s.two, err = registry.PushImage(t.Context(), s.url, "app", "2", []int64{100}, 2); err != nil {
		t.Fatal(err)
	}
	s.reg.Reset()
	s.asked = 0
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked++
	front := s.front
	for tag, as := range s.moved {
		if path, ok := strings.CutSuffix(r.URL.Path, "/manifests/"+tag); ok {
			r.URL.Path = path + "/manifests/" + as
		}
	}
	s.mu.Unlock()
	if front == nil || !front(w, r) {
		s.reg.ServeHTTP(w, r)
	}
}

// move makes a tag another; "" is one that is not there.
func (s *site) move(tag, as string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[tag] = as
}

func (s *site) setFront(front func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.front = front
}

// answer makes the registry answer everything with a status; 0 ends that.
func (s *site) answer(status int) {
	if status == 0 {
		s.setFront(nil)
		return
	}
	s.setFront(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		return true
	})
}

// requests returns how many there were since the last time.
func (s *site) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	s.asked = 0
	return n
}

// A node has a Resolver in front of a site, with a real index.
type node struct {
	*Resolver
	site   *site
	origin *origin.Client
	cache  *cache.Cache
	stop   func() // ends Run and closes the cache; done by the test's cleanup too
}

// start starts a node whose index is in dir.
func (s *site) start(t *testing.T, dir string, cfg Config) *node {
	t.Helper()
	client, err := origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{upstream: {URLs: []string{s.url}}},
		Backoff:   time.Millisecond,
		Tries:     1,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Origin, cfg.Index, cfg.Upstreams = client, c.Index(), []string{upstream}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewPedanticRegistry()
	}
	n := &node{Resolver: New(cfg), site: s, origin: client, cache: c}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		client.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func ref(tag string) origin.Ref {
	return origin.Ref{Upstream: upstream, Repository: "app", Tag: tag, Manifest: true}
}

// want resolves a tag and checks the image, and how many requests the registry
// got for that and since it was last asked about.
func (n *node) want(t *testing.T, tag string, img registry.Image, requests int) Answer {
	t.Helper()
	a, err := n.Resolve(t.Context(), ref(tag))
	if err != nil {
		t.Fatalf("%s: %v", tag, err)
	}
	if a.Blob != img.Manifest || a.MediaType != img.MediaType {
		t.Errorf("%s is %v of type %s, want %v of type %s", tag, a.Blob, a.MediaType, img.Manifest, img.MediaType)
	}
	if got := n.site.requests(); got != requests {
		t.Errorf("%s: %d requests at the origin, want %d", tag, got, requests)
	}
	return a
}
