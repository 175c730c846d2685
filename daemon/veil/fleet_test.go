package veil_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/daemon/veil"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. It is never reached unless
// something is wrong.
const patience = 30 * time.Second

var errDenied = errors.New("the origin does not grant that to this node")

// registryOf is where the private content of these tests comes from.
var registryOf = proto.Origin{Upstream: "registry.example", Repository: "secret-team/secret-app"}

// A fleet is nodes that are members of each other, each with what a daemon has
// between its cache and the others.
type fleet struct {
	nodes   []*node
	content map[proto.Digest][]byte // at the origin

	mu sync.Mutex
	// mu protects the field below.
	heard bytes.Buffer // all that was said on control streams between nodes
}

type node struct {
	fleet  *fleet
	member proto.Member
	cache  *cache.Cache
	host   *peer.Host
	veil   *veil.Veil
	server *scheduler.Server
	client *scheduler.Client
	puller *pull.Puller

	grants   bool         // the origin grants everything to this node
	fetched  atomic.Int64 // bytes from the origin
	declined atomic.Int64 // calls
}

// options alter a node.
type options struct {
	role     proto.Role
	insecure bool
	grants   bool
	sealed   bool // origins are told to seeds
	secrets  [][]byte
	holds    func() []proto.Blob
	sums     func(proto.Digest) []proto.Sum
	real     func(proto.Digest, string, string) (proto.Digest, bool)
	clear    bool // nothing is private
}

func newFleet(contents ...[]byte) *fleet {
	f := &fleet{content: make(map[proto.Digest][]byte)}
	for _, c := range contents {
		f.content[proto.DigestOf(c)] = c
	}
	return f
}

func (f *fleet) node(t *testing.T, o options) *node {
	t.Helper()
	n := &node{fleet: f, grants: o.grants}
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
	if o.secrets == nil {
		o.secrets = [][]byte{[]byte("the cluster secret of these tests")}
	}
	var private func(proto.Digest) bool
	if !o.clear {
		private = func(proto.Digest) bool { return true }
	}
	cfg := peer.Config{Listen: "127.0.0.1:0", Dir: dir, Cache: n.cache, Insecure: o.insecure, StallTimeout: 2 * time.Second,
		Name: func(d proto.Digest) (proto.Digest, string) { return n.veil.Ask(d) },
		Real: func(name proto.Digest, asker, capability string) (proto.Digest, bool) {
			return n.veil.Give(name, asker, capability)
		}}
	if o.real != nil {
		cfg.Real = o.real
	}
	if n.host, err = peer.New(cfg); err != nil {
		t.Fatal(err)
	}
	n.veil = veil.New(veil.Config{Self: n.host.ID(), Private: private, Secrets: func() [][]byte { return o.secrets }})
	n.member = proto.Member{ID: n.host.ID(), Name: "node", Roles: o.role, Addr: n.host.Addr()}
	n.server = scheduler.NewServer(scheduler.ServerConfig{})
	if o.holds == nil {
		o.holds = func() []proto.Blob { return n.veil.Held(n.cache.Blobs()...) }
	}
	if o.sums == nil {
		o.sums = n.sums
	}
	n.client = scheduler.NewClient(scheduler.ClientConfig{Self: n.member, Dial: n.dial, Holds: o.holds, Sums: o.sums, Call: n.call})
	n.puller = pull.New(pull.Config{
		Cache:  n.cache,
		Origin: func(proto.Origin) pull.Source { return originSource{n} },
		Peer:   func(id, addr string) pull.Source { return n.host.Source(id, addr) },
		Cause: func(err error) proto.Cause {
			switch {
			case errors.Is(err, errDenied):
				return proto.CauseDenied
			case errors.Is(err, peer.ErrAbsent):
				return proto.CauseAbsent
			}
			return proto.CauseBroken
		},
		Join: func(d proto.Digest, state func() *proto.Join) pull.Swarm {
			return n.veil.Join(d, state, func(proto.Origin) bool { return o.sealed }, func(name proto.Digest, state func() *proto.Join) veil.Swarm {
				return n.client.Join(name, state)
			})
		},
	})
	n.host.HandleControl(func(ctx context.Context, from string, s io.ReadWriteCloser) { _ = n.server.Serve(ctx, from, s) })
	n.run(t)
	f.nodes = append(f.nodes, n)
	return n
}

// run runs n until the test ends.
func (n *node) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, f := range []func(context.Context) error{n.host.Run, n.server.Run, n.client.Run, n.puller.Run} {
		running.Go(func() {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
}

// meet makes all nodes members of each other.
func (f *fleet) meet(t *testing.T) {
	t.Helper()
	var ms []proto.Member
	for _, n := range f.nodes {
		ms = append(ms, n.member)
	}
	for _, n := range f.nodes {
		n.host.SetMembers(ms)
	}
	for _, n := range f.nodes {
		n.client.SetMembers(ms)
	}
	for _, n := range f.nodes {
		for deadline := time.Now().Add(patience); !n.client.Ready(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no scheduler is found")
			}
		}
	}
}

func (n *node) dial(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
	if m.ID != n.member.ID {
		s, err := n.host.OpenControl(ctx, m)
		return &tapped{s, n.fleet}, err
	}
	near, far := net.Pipe()
	go func() { _ = n.server.Serve(context.Background(), n.member.ID, far) }()
	return near, nil
}

// A tapped stream is heard by its fleet.
type tapped struct {
	io.ReadWriteCloser
	f *fleet
}

func (s *tapped) hear(b []byte) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.heard.Write(b)
}

func (s *tapped) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.hear(p[:n])
	return n, err
}

func (s *tapped) Write(p []byte) (int, error) {
	s.hear(p)
	return s.ReadWriteCloser.Write(p)
}

func (n *node) sums(name proto.Digest) []proto.Sum {
	d, ok := n.veil.Real(name)
	if !ok {
		return nil
	}
	b, ok := n.cache.Known(d)
	if !ok {
		return nil
	}
	defer b.Release()
	return b.Sums()
}

func (n *node) call(b proto.Blob, o proto.Origin) error {
	b, o, err := n.veil.Open(b, o)
	if err != nil {
		n.declined.Add(1)
		return err
	}
	if o != registryOf {
		return fmt.Errorf("called for %v", o)
	}
	return n.puller.Seed(b, o)
}

// originSource is the origin as a node sees it.
type originSource struct{ n *node }

func (s originSource) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	content, ok := s.n.fleet.content[r.Blob.Digest]
	if !ok || !s.n.grants {
		return errDenied
	}
	s.n.fetched.Add(r.Size())
	if _, err := w.Write(content[r.Offset() : r.Offset()+r.Size()]); err != nil {
		return err
	}
	return ctx.Err()
}

// pull brings content to n and checks it.
func (n *node) pull(t *testing.T, content []byte) {
	t.Helper()
	if got, err := n.read(t, content); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d of %d bytes, %v", len(got), len(content), err)
	}
}

// read is what a client of n gets of content.
func (n *node) read(t *testing.T, content []byte) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := n.puller.Open(ctx, proto.Blob{Digest: proto.DigestOf(content), Size: int64(len(content))}, registryOf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

// quiet checks that nothing was said on control streams that names the blob or
// its origin, and that something was said.
func (f *fleet) quiet(t *testing.T, b proto.Blob) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.heard.Len() == 0 {
		t.Error("nothing was said at all")
	}
	for _, secret := range []string{b.Digest.String(), b.Digest.Hex()[:16], registryOf.Upstream, registryOf.Repository} {
		if bytes.Contains(f.heard.Bytes(), []byte(secret)) {
			t.Errorf("%q was said on a control stream", secret)
		}
	}
}

var sizes = map[string]int{"one chunk": 10_000, "many chunks": 20*proto.MinChunk + 17}

// A private blob is brought from the origin once, by a node that may, and the
// others have it from there; nobody hears its name or where it comes from; a
// seed that may not fetch it fetches nothing.
func TestPrivateBlobInAFleet(t *testing.T) {
	t.Parallel()
	for size, length := range sizes {
		for _, security := range []string{"tls", "none"} {
			t.Run(size+" "+security, func(t *testing.T) {
				t.Parallel()
				content, b := pulltest.Content(1, length)
				f := newFleet(content)
				insecure := security == "none"
				seed := f.node(t, options{role: proto.RoleScheduler, insecure: insecure})
				first := f.node(t, options{role: proto.RoleDaemon, insecure: insecure, grants: true})
				next := f.node(t, options{role: proto.RoleDaemon, insecure: insecure, grants: true})
				f.meet(t)
				first.pull(t, content)
				next.pull(t, content)
				if first.fetched.Load() != b.Size || next.fetched.Load() != 0 {
					t.Errorf("%d and %d bytes came from the origin, want %d and none", first.fetched.Load(), next.fetched.Load(), b.Size)
				}
				if _, ok := seed.cache.Whole(b.Digest); ok || seed.fetched.Load() != 0 {
					t.Error("the seed has fetched it")
				}
				if b.Chunks() > 1 && seed.declined.Load() == 0 {
					t.Error("the seed was not asked")
				}
				f.quiet(t, b)
			})
		}
	}
}

// With a sealed note a seed brings what its own credentials allow, and nobody
// else hears of it.
func TestSeedOfAPrivateBlob(t *testing.T) {
	t.Parallel()
	content, b := pulltest.Content(2, sizes["many chunks"])
	f := newFleet(content)
	// The seed knows no private upstream by itself: the note tells.
	seed := f.node(t, options{role: proto.RoleScheduler, grants: true, clear: true})
	one := f.node(t, options{role: proto.RoleDaemon, grants: true, sealed: true})
	f.meet(t)
	one.pull(t, content)
	if seed.fetched.Load() == 0 {
		t.Error("the seed has brought nothing")
	}
	if n := seed.fetched.Load() + one.fetched.Load(); n != b.Size {
		t.Errorf("%d bytes came from the origin, want %d", n, b.Size)
	}
	f.quiet(t, b)
}

// A member's machine without the secret, or with another one, is given nothing
// that is private, whatever it asks for.
func TestWithoutTheSecret(t *testing.T) {
	t.Parallel()
	for _, security := range []string{"tls", "none"} {
		t.Run(security, func(t *testing.T) {
			t.Parallel()
			content, b := pulltest.Content(3, sizes["many chunks"])
			f := newFleet(content)
			insecure := security == "none"
			holder := f.node(t, options{role: proto.RoleDaemon, insecure: insecure, grants: true})
			other := f.node(t, options{role: proto.RoleDaemon, insecure: insecure, secrets: [][]byte{[]byte("another secret")}})
			plain := f.node(t, options{role: proto.RoleDaemon, insecure: insecure, clear: true})
			f.meet(t)
			holder.pull(t, content)
			for name, n := range map[string]*node{"another secret": other, "in the clear": plain} {
				var got bytes.Buffer
				err := n.host.Source(holder.member.ID, holder.member.Addr).Fetch(t.Context(), b.Run(), &got)
				if !errors.Is(err, peer.ErrAbsent) || got.Len() > 0 {
					t.Errorf("%s: got %d bytes, %v", name, got.Len(), err)
				}
			}
			// By its alias too, without a capability.
			alias := proto.Blob{Digest: holder.veil.Name(b.Digest), Size: b.Size}
			var got bytes.Buffer
			err := plain.host.Source(holder.member.ID, holder.member.Addr).Fetch(t.Context(), alias.Run(), &got)
			if !errors.Is(err, peer.ErrAbsent) || got.Len() > 0 {
				t.Errorf("by its alias: got %d bytes, %v", got.Len(), err)
			}
		})
	}
}

// Members that say they hold what they do not, or serve other bytes and sums
// for it, do not keep a pull from ending right. Sums that fit are found out at
// the end only: who reads then is told so, before the last chunk, and who reads
// after that gets what the origin has.
func TestLiars(t *testing.T) {
	t.Parallel()
	for size, length := range sizes {
		for _, lie := range []string{"has nothing", "serves other bytes", "serves other bytes and sums"} {
			t.Run(size+" "+lie, func(t *testing.T) {
				t.Parallel()
				content, b := pulltest.Content(4, length)
				garbage, wrong := pulltest.Content(5, length)
				f := newFleet(content)
				name := func() proto.Blob { return proto.Blob{Digest: f.nodes[0].veil.Name(b.Digest), Size: b.Size} }
				var liar *node
				o := options{role: proto.RoleDaemon, holds: func() []proto.Blob { return []proto.Blob{name()} }}
				if lie != "has nothing" {
					o.real = func(proto.Digest, string, string) (proto.Digest, bool) { return wrong.Digest, true }
				}
				sums := func(proto.Digest) []proto.Sum { return make([]proto.Sum, b.Chunks()) }
				o.sums = func(d proto.Digest) []proto.Sum { return sums(d) }
				honest := f.node(t, options{role: proto.RoleDaemon, grants: true})
				liar = f.node(t, o)
				held, err := liar.cache.Blob(wrong)
				if err != nil {
					t.Fatal(err)
				}
				defer held.Release()
				for i := range wrong.Chunks() {
					c := wrong.Chunk(i)
					if err := held.Put(i, garbage[c.Offset:c.Offset+c.Size]); err != nil {
						t.Fatal(err)
					}
				}
				if lie == "serves other bytes and sums" {
					sums = func(proto.Digest) []proto.Sum { return held.Sums() }
				}
				f.meet(t)
				got, err := honest.read(t, content)
				if err == nil && !bytes.Equal(got, content) || err != nil && len(got) >= len(content) {
					t.Errorf("read %d bytes that are wrong, %v", len(got), err)
				}
				if err != nil && (lie != "serves other bytes and sums" || !errors.Is(err, cache.ErrDigest)) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				honest.pull(t, content)
				if _, ok := honest.cache.Whole(b.Digest); !ok {
					t.Error("it is not whole")
				}
			})
		}
	}
}
