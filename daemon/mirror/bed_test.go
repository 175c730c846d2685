package mirror

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine))
}

// upstream is the name of the bed's registry. It is docker.io as well.
const upstream = "registry.test"

// A bed is a mirror on a real listener, with a real cache and puller, in front
// of a real registry.
type bed struct {
	reg     *registry.Registry
	regURL  string
	down    func() // takes the registry down
	close   func() // ends the mirror's server, with all handlers
	cache   *cache.Cache
	puller  *pull.Puller
	origin  *origin.Client
	gate    *policy.Gate
	handler *Handler
	metrics *prometheus.Registry
	addr    string // of the mirror
	client  *http.Client
	log     *logBuffer
	user    string // and password of who pushes

	mu sync.Mutex // protects the fields below
	// front, if not nil, sees the registry's requests first. True: answered.
	front func(w http.ResponseWriter, r *http.Request) bool
}

type options struct {
	rules    []policy.Rule
	prefetch bool
	// join, if set, is called by each pull that joins its swarm, in which
	// nobody ever answers.
	join   func(d proto.Digest)
	cache  cache.Options
	dir    string        // of the cache; by default one of its own
	config func(*Config) // changes the handler's, if set
	// tags gives the gate a resolver.
	tags bool
	// registry are the registry's options, auth is the mode of upstream.
	registry registry.Options
	auth     string
	// gate changes the configuration of the gate, if set.
	gate func(*policy.Config)
	// abandon has pulls given up that nobody wants.
	abandon bool
	// answer and firstByte replace the handler's, if not 0.
	answer, firstByte time.Duration
}

func newBed(t testing.TB, o options) *bed {
	t.Helper()
	b := &bed{reg: registry.New(o.registry), metrics: prometheus.NewRegistry(), log: new(logBuffer)}
	t.Cleanup(b.reg.Close)
	regServer := httptest.NewServer(http.HandlerFunc(b.serveOrigin))
	b.regURL, b.down = regServer.URL, sync.OnceFunc(regServer.Close)
	t.Cleanup(b.down)
	b.build(t, o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	server := b.handler.Server()
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	b.close = sync.OnceFunc(func() {
		_ = server.Shutdown(context.Background())
		_ = server.Close()
		serving.Wait()
	})
	t.Cleanup(b.close)
	transport := &http.Transport{DisableCompression: true}
	b.client = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	return b
}

// build makes everything behind the mirror's listener.
func (b *bed) build(t testing.TB, o options) {
	t.Helper()
	client, err := origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{
			upstream:    {URLs: []string{b.regURL}, Auth: o.auth},
			"docker.io": {URLs: []string{b.regURL}},
		},
		Backoff: time.Millisecond,
		Tries:   2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	b.origin = client
	if b.cache, err = cache.Open(cmp.Or(o.dir, t.TempDir()), o.cache); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	config := pull.Config{
		Cache:    b.cache,
		Origin:   func(o proto.Origin) pull.Source { return client.Source(o) },
		Patience: 10 * time.Millisecond,
		Abandon:  o.abandon,
	}
	if o.join != nil {
		config.Join = func(d proto.Digest, _ func() *proto.Join) pull.Swarm {
			o.join(d)
			return silence{}
		}
	}
	b.puller = pull.New(config)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = b.puller.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	rules := policy.Config{Origin: client, Index: b.cache.Index(), Allow: o.rules}
	if o.tags {
		rules.Tags = b.resolver(t)
	}
	rules.Auth, rules.Upstreams, rules.Read = client.Auth, []string{upstream, "docker.io"}, b.readSmall
	if o.gate != nil {
		o.gate(&rules)
	}
	b.gate = policy.New(rules)
	handler := Config{
		Gate: b.gate, Puller: b.puller, Origin: client, Cache: b.cache,
		Default: "docker.io", Prefetch: o.prefetch, Upstreams: []string{upstream},
		Log:      slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registry: b.metrics,
	}
	if o.config != nil {
		o.config(&handler)
	}
	b.handler = New(handler)
	b.handler.answer = cmp.Or(o.answer, b.handler.answer)
	b.handler.firstByte = cmp.Or(o.firstByte, b.handler.firstByte)
}

// readSmall is for policy.Config.Read.
func (b *bed) readSmall(ctx context.Context, from proto.Origin, blob proto.Blob) ([]byte, error) {
	reader, err := b.puller.Open(ctx, blob, from)
	if err != nil {
		return nil, err
	}
	defer reader.Close() // nothing was written
	return io.ReadAll(reader)
}

// resolver returns a resolver of tags that asks the origin again each time.
func (b *bed) resolver(t testing.TB) *tags.Resolver {
	t.Helper()
	r := tags.New(tags.Config{
		Origin: b.origin, Index: b.cache.Index(),
		TTL: time.Nanosecond, Revalidate: time.Nanosecond, NotFound: time.Nanosecond,
	})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = r.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return r
}

// silence is a swarm without a scheduler.
type silence struct{}

func (silence) Events() <-chan proto.Message { return nil }
func (silence) Report(proto.Message)         {}
func (silence) Close(proto.Blob, bool)       {}

func (b *bed) serveOrigin(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	front := b.front
	b.mu.Unlock()
	if front == nil || !front(w, r) {
		b.reg.ServeHTTP(w, r)
	}
}

func (b *bed) setFront(front func(w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.front = front
}

func (b *bed) push(t testing.TB, repository, tag string, layers ...int64) registry.Image {
	t.Helper()
	as := b.regURL
	if b.user != "" {
		as = strings.Replace(as, "http://", "http://"+b.user+"@", 1)
	}
	img, err := registry.PushImage(t.Context(), as, repository, tag, layers, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.reg.Reset()
	return img
}

// content returns a blob as the registry has it, without the mirror.
func (b *bed) content(t testing.TB, repository string, d proto.Digest) []byte {
	t.Helper()
	resp, err := b.client.Get(b.regURL + "/v2/" + repository + "/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || proto.DigestOf(data) != d {
		t.Fatalf("read %s from the registry: %v", d, err)
	}
	b.reg.Reset()
	return data
}

// An answer is a response with its body.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // that ended the body
}

// ask sends a request to the mirror. Headers are "Name: value".
func (b *bed) ask(t testing.TB, method, path string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+b.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		if name, value, ok := strings.Cut(h, ": "); ok {
			req.Header.Set(name, value)
		}
	}
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

func (b *bed) get(t testing.TB, path string, headers ...string) answer {
	t.Helper()
	return b.ask(t, http.MethodGet, path, headers...)
}

// want fails the test unless a is an error in OCI form with this status and
// code. It returns the message.
func (a answer) want(t testing.TB, status int, code string) string {
	t.Helper()
	var body errorBody
	if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) != 1 {
		t.Errorf("got %d %q, want %d with an OCI error %s", a.status, a.body, status, code)
		return ""
	}
	e := body.Errors[0]
	if a.status != status || e.Code != code || e.Message == "" {
		t.Errorf("got %d %s (%s), want %d %s", a.status, e.Code, e.Message, status, code)
	}
	if !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") {
		t.Errorf("Content-Type of an error = %q", a.header.Get("Content-Type"))
	}
	for _, name := range []string{"Docker-Content-Digest", "Etag", "Accept-Ranges", "Www-Authenticate"} {
		if a.header.Get(name) != "" {
			t.Errorf("an error has the header %s: %s", name, a.header.Get(name))
		}
	}
	return e.Message
}

// blobPath and manifestPath return paths on the mirror, with ns.
func blobPath(repository string, d proto.Digest) string {
	return fmt.Sprintf("/v2/%s/blobs/%s?ns=%s", repository, d, upstream)
}

func manifestPath(repository, reference string) string {
	return fmt.Sprintf("/v2/%s/manifests/%s?ns=%s", repository, reference, upstream)
}

// A logBuffer keeps what is logged.
type logBuffer struct {
	mu sync.Mutex // protects the fields below
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
