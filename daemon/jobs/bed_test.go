package jobs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/proto"
)

// upstream is what the nodes call the registry.
const upstream = "registry.test"

// patience bounds every wait of these tests. It is never reached unless
// something is wrong.
const patience = 30 * time.Second

// A bed is a real registry and some nodes with real caches, origin clients and
// peer hosts, all on loopback.
type bed struct {
	reg *registry.Registry
	url string

	mu    sync.Mutex // protects the fields below
	nodes []*node    // that there ever were
	// members are those of the fleet that are alive.
	members []proto.Member
}

// A node is one of them.
type node struct {
	bed   *bed
	name  string
	cfg   Config
	cache *cache.Cache
	host  *peer.Host
	jobs  *Jobs
	tags  *names

	stopJobs, stopHost, stopPuller func()
}

// names is what SetTag was told.
type names struct {
	mu   sync.Mutex // protects the field below
	tags map[string]proto.Digest
}

func (n *names) set(upstream, repository, tag string, d origin.Descriptor) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tags[upstream+"/"+repository+":"+tag] = d.Blob.Digest
	return nil
}

func (n *names) get(name string) proto.Digest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tags[name]
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{reg: registry.New(registry.Options{})}
	t.Cleanup(b.reg.Close)
	server := httptest.NewServer(b.reg)
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

// node adds a daemon to the bed. change alters its configuration.
func (b *bed) node(t *testing.T, name, zone string, change ...func(*Config)) *node {
	t.Helper()
	n := &node{bed: b, name: name, tags: &names{tags: map[string]proto.Digest{}}}
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	var err error
	if n.cache, err = cache.Open(filepath.Join(dir, "cache"), cache.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{upstream: {URLs: []string{b.url}}},
		Backoff:   time.Millisecond, Tries: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	puller := pull.New(pull.Config{
		Cache:  n.cache,
		Origin: func(o proto.Origin) pull.Source { return client.Source(o) },
		Peer:   func(string, string) pull.Source { return nil },
		Log:    log,
	})
	n.stopPuller = background(t, puller.Run)
	n.host, err = peer.New(peer.Config{Listen: "127.0.0.1:0", Dir: dir, Cache: n.cache})
	if err != nil {
		t.Fatal(err)
	}
	n.cfg = Config{
		Dir:     filepath.Join(dir, "jobs"),
		Gate:    policy.New(policy.Config{Origin: client, Index: n.cache.Index()}),
		Puller:  puller,
		Origin:  client,
		Cache:   n.cache,
		SetTag:  n.tags.set,
		Default: upstream,
		Self:    proto.Member{ID: n.host.ID(), Name: name, Zone: zone, Roles: proto.RoleDaemon, Addr: n.host.Addr()},
		Members: b.alive,
		Open:    n.host.OpenJob,
		Sample:  10 * time.Millisecond,
	}
	for _, f := range change {
		f(&n.cfg)
	}
	n.host.HandleJobs(func(ctx context.Context, from string, s io.ReadWriteCloser) {
		_ = n.jobs.Serve(ctx, from, s) // the asker says what went wrong
	})
	n.open(t)
	n.stopHost = background(t, n.host.Run)
	n.run(t)
	b.join(n)
	return n
}

// join makes n a member of the fleet.
func (b *bed) join(n *node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes = append(b.nodes, n)
	b.members = append(b.members[:len(b.members):len(b.members)], n.cfg.Self)
	for _, n := range b.nodes {
		n.host.SetMembers(b.members)
	}
}

// background runs f until the test ends or what is returned is called, which
// waits.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// open makes the node's Jobs, run runs them.
func (n *node) open(t *testing.T) {
	t.Helper()
	var err error
	if n.jobs, err = New(n.cfg); err != nil {
		t.Fatal(err)
	}
}

func (n *node) run(t *testing.T) { n.stopJobs = background(t, n.jobs.Run) }

// leave takes the node out of the fleet.
func (n *node) leave() {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	for i, m := range n.bed.members {
		if m.ID == n.cfg.Self.ID {
			n.bed.members = append(n.bed.members[:i:i], n.bed.members[i+1:]...)
			return
		}
	}
}

func (b *bed) alive() []proto.Member {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.members
}

// push pushes an image.
func (b *bed) push(t *testing.T, repository, tag string, layers ...int64) registry.Image {
	t.Helper()
	img, err := registry.PushImage(t.Context(), b.url, repository, tag, layers, uint64(len(repository)))
	if err != nil {
		t.Fatal(err)
	}
	b.reg.Reset()
	return img
}

// pushIndex pushes an index with an image for each platform, and one with an
// attestation as docker's builder makes them. It returns the images by
// platform.
func (b *bed) pushIndex(t *testing.T, repository, tag string, platforms ...string) (proto.Digest, map[string]v1.Image) {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	images := map[string]v1.Image{}
	for _, p := range append(platforms, "unknown/unknown") {
		img, err := random.Image(20_000, 2)
		if err != nil {
			t.Fatal(err)
		}
		img = mutate.MediaType(img, types.OCIManifestSchema1)
		images[p] = img
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	ref, err := name.ParseReference(strings.TrimPrefix(b.url, "http://")+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	if err := remote.WriteIndex(ref, index, remote.WithTransport(transport), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	h, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b.reg.Reset()
	return digest(t, h), images
}

func digest(t *testing.T, h v1.Hash) proto.Digest {
	t.Helper()
	d, err := proto.ParseDigest(h.String())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// has reports whether all blobs of an image are whole at n.
func (n *node) has(t *testing.T, img v1.Image) bool {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range append([]v1.Hash{h, m.Config.Digest}, m.Layers[0].Digest, m.Layers[1].Digest) {
		if _, ok := n.cache.Whole(digest(t, h)); !ok {
			return false
		}
	}
	return true
}

// whole checks that all of an image is at n.
func (n *node) whole(t *testing.T, img registry.Image) {
	t.Helper()
	for _, b := range append(img.Blobs(), img.Manifest) {
		if _, ok := n.cache.Whole(b.Digest); !ok {
			t.Errorf("%s has not all of %s: %s is missing", n.name, img.Repository, b.Digest)
		}
	}
}

// start starts a job at n.
func (n *node) start(t *testing.T, s Spec) Job {
	t.Helper()
	job, err := n.jobs.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// ended waits until a job has ended, and returns it.
func (n *node) ended(t *testing.T, id string) Job {
	t.Helper()
	return n.until(t, id, func(j Job) bool { return j.State.Ended() })
}

// until waits until a job is as f wants it.
func (n *node) until(t *testing.T, id string, f func(Job) bool) Job {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, errors.New("the job did not get that far"))
	defer cancel()
	var last Job
	for j := range n.jobs.Watch(ctx, id) {
		if last = j; f(j) {
			return j
		}
	}
	t.Fatalf("job %s: %v, %+v", id, context.Cause(ctx), last)
	return Job{}
}
