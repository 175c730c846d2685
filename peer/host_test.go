package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// patience bounds every wait of these tests. It is never reached unless
// something is wrong.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	// More tests run at once than there are CPUs: they mostly wait.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// A node is a Host that runs, with a cache of its own.
type node struct {
	*Host
	cache    *cache.Cache
	log      *logs
	registry *prometheus.Registry
	stop     context.CancelFunc
	done     chan struct{}
	err      error // of Run, once done
}

// newNode makes a node that listens on loopback; change alters its
// configuration.
func newNode(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	n := &node{log: newLogs(), registry: prometheus.NewRegistry(), done: make(chan struct{})}
	dir := t.TempDir()
	var err error
	if n.cache, err = cache.Open(filepath.Join(dir, "cache"), cache.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{
		Listen: "127.0.0.1:0", Dir: dir, Cache: n.cache, Registry: n.registry,
		Log: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	if n.Host, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

func insecure(c *Config) { c.Insecure = true }

// run runs n until the test ends or n.stop is called.
func (n *node) run(t testing.TB) *node {
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		defer close(n.done)
		n.err = n.Run(ctx)
	}()
	t.Cleanup(func() { n.end(t) })
	return n
}

// end stops n and waits.
func (n *node) end(t testing.TB) {
	t.Helper()
	n.stop()
	select {
	case <-n.done:
		if n.err != nil {
			t.Errorf("Run = %v", n.err)
		}
	case <-time.After(patience):
		t.Fatal("Run did not end")
	}
}

func (n *node) member() proto.Member { return proto.Member{ID: n.ID(), Addr: n.Addr()} }

// fleet makes the nodes members of each other.
func fleet(nodes ...*node) {
	var ms []proto.Member
	for _, n := range nodes {
		ms = append(ms, n.member())
	}
	for _, n := range nodes {
		n.SetMembers(ms)
	}
}

// hold returns the blob in n's cache.
func (n *node) hold(t testing.TB, b proto.Blob) *cache.Blob {
	t.Helper()
	held, err := n.cache.Blob(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(held.Release)
	return held
}

// put puts chunks of content into n's cache, all of them if none are named.
func (n *node) put(t testing.TB, b proto.Blob, content []byte, chunks ...int) *cache.Blob {
	t.Helper()
	held := n.hold(t, b)
	if chunks == nil {
		for i := range b.Chunks() {
			chunks = append(chunks, i)
		}
	}
	for _, i := range chunks {
		c := b.Chunk(i)
		if err := held.Put(i, content[c.Offset:c.Offset+c.Size]); err != nil {
			t.Fatal(err)
		}
	}
	return held
}

// logs is a log that tests can wait on.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newLogs() *logs { return &logs{more: make(chan struct{})} }

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) await(t testing.TB, words string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		found, more := strings.Contains(l.text.String(), words), l.more
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the log never said %q:\n%s", words, l)
		}
	}
}

// rogue is a listener with an identity that does with its connections what a
// test says. With tls, the connections are past the handshake.
func rogue(t *testing.T, secure bool, do func(net.Conn)) proto.Member {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := libp2ppeer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := libp2ptls.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if secure {
				config, _ := identity.ConfigForPeer("")
				config.NextProtos = []string{alpn}
				c = tls.Server(c, config)
			}
			conns.Go(func() {
				defer c.Close()
				do(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		conns.Wait()
	})
	return proto.Member{ID: id.String(), Addr: ln.Addr().String()}
}

func TestIdentityIsKept(t *testing.T) {
	t.Parallel()
	a := newNode(t)
	dir := ""
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := newNode(t, func(c *Config) { dir = c.Dir })
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v, want mode 0600", info, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := newNode(t, func(c *Config) { c.Dir = dir })
	defer again.Close()
	if again.ID() != b.ID() || a.ID() == b.ID() {
		t.Errorf("IDs %s, then %s, another %s", b.ID(), again.ID(), a.ID())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, keyFile+".*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestDamagedIdentity(t *testing.T) {
	t.Parallel()
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rsa := "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n"
	for name, text := range map[string]string{"empty": "", "text": "hello", "cut": rsa[:60], "another kind": rsa} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, keyFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := New(Config{Listen: "127.0.0.1:0", Dir: dir, Cache: c})
		if err == nil {
			_ = h.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), dir) ||
			!strings.Contains(err.Error(), "delete it") {
			t.Errorf("%s: New = %v, want what is damaged and what to do", name, err)
		}
		if kept, err := os.ReadFile(filepath.Join(dir, keyFile)); err != nil || string(kept) != text {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestIdentityThatOthersCanRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := newKey(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, func(c *Config) { c.Dir = dir })
	defer n.Close()
	n.log.await(t, "chmod 600")
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	a := newNode(t)
	defer a.Close()
	_, port, err := net.SplitHostPort(a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Listen: a.Addr(), Dir: t.TempDir(), Cache: a.cache})
	if err == nil {
		_ = h.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "peer.listen: port "+port+" is in use") {
		t.Errorf("New = %v, want an error with the key and the port", err)
	}
}

func TestAddr(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ listen, advertise, want string }{
		{"127.0.0.1:0", "", "127.0.0.1"},
		{":0", "", "127.0.0.1"},
		{"0.0.0.0:0", "", "127.0.0.1"},
		{":0", "10.1.2.3", "10.1.2.3"},
		{"127.0.0.1:0", "node-1.example", "node-1.example"},
		{"[::1]:0", "", "::1"},
		{":0", "2001:db8::7", "2001:db8::7"},
	} {
		n := newNode(t, func(c *Config) { c.Listen, c.Advertise = tc.listen, tc.advertise })
		host, port, err := net.SplitHostPort(n.Addr())
		if err != nil || host != tc.want || port == "0" || port == "" {
			t.Errorf("listening on %s, advertising %q: address %s", tc.listen, tc.advertise, n.Addr())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	defer n.Close()
	for name, tc := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no cache":            {func(c *Config) { c.Cache = nil }, "no cache"},
		"listen":              {func(c *Config) { c.Listen = "nonsense" }, "peer.listen"},
		"advertise with port": {func(c *Config) { c.Advertise = "10.0.0.1:7051" }, "without a port"},
		"metrics twice":       {func(c *Config) { c.Registry = n.registry }, "metrics"},
		"no directory":        {func(c *Config) { c.Dir = "/dev/null/x" }, "identity key"},
	} {
		cfg := Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), Cache: n.cache}
		tc.spoil(&cfg)
		h, err := New(cfg)
		if err == nil {
			_ = h.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: New = %v, want %q", name, err, tc.want)
		}
	}
}

func TestRunsOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t).run(t)
	n.end(t)
	if err := n.Run(t.Context()); err == nil {
		t.Error("a second Run is no error")
	}
	closed := newNode(t)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if err := closed.Run(t.Context()); err == nil {
		t.Error("Run after Close is no error")
	}
	content, b := pulltest.Content(1, 10)
	_ = content
	if err := closed.Source(n.ID(), n.Addr()).Fetch(t.Context(), b.Run(), io.Discard); !errors.Is(err, errClosed) {
		t.Errorf("Fetch after Close = %v", err)
	}
	if _, err := closed.OpenControl(t.Context(), n.member()); !errors.Is(err, errClosed) {
		t.Errorf("OpenControl after Close = %v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	a, b := newNode(t).run(t), newNode(t).run(t)
	fleet(a, b)
	content, blob := pulltest.Content(1, proto.MinChunk+5)
	a.put(t, blob, content)
	if err := b.Source(a.ID(), a.Addr()).Fetch(t.Context(), blob.Run(), io.Discard); err != nil {
		t.Fatal(err)
	}
	_, other := pulltest.Content(2, 10)
	if err := b.Source(a.ID(), a.Addr()).Fetch(t.Context(), other.Run(), io.Discard); !errors.Is(err, ErrAbsent) {
		t.Fatal(err)
	}
	want := `
# HELP shoal_peer_connections Connections that peers have opened to this node, by what they carry.
# TYPE shoal_peer_connections gauge
shoal_peer_connections{kind="control"} 0
shoal_peer_connections{kind="data"} 1
# HELP shoal_peer_requests_total Requests of peers for chunks, by the status code of the answer.
# TYPE shoal_peer_requests_total counter
shoal_peer_requests_total{code="206"} 1
shoal_peer_requests_total{code="404"} 1
# HELP shoal_peer_served_bytes_total Bytes of blobs that this node has sent to its peers.
# TYPE shoal_peer_served_bytes_total counter
shoal_peer_served_bytes_total 262149
`
	if err := testutil.GatherAndCompare(a.registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
