package locks_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/veil"
	"github.com/shoal-project/shoal/proto"
)

// openRegistry is the registry as it is for everybody, with publicRepo only.
const openRegistry = "open.test"

// withOpen adds it.
func withOpen(c *daemon.Config) {
	up := c.Upstreams[fleet.Upstream]
	up.Auth, up.GrantTTL = "anonymous", 0
	c.Upstreams[openRegistry] = up
}

// fleetSecret is what package fleet gives its fleets.
const fleetSecret = "the secret of a test fleet"

// waitFor waits until nodes, which are looked at from outside, have got somewhere.
func waitFor(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.After(40 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// fetch pulls all of an image of openRegistry through a node, as one that is not a test
// by itself may: from any goroutine.
func (b *bed) fetch(n *fleet.Node, img registry.Image) error {
	for _, blob := range append([]proto.Blob{img.Manifest}, img.Blobs()...) {
		kind := "blobs"
		if blob == img.Manifest {
			kind = "manifests"
		}
		status, body, err := b.read(n, img.Repository+"/"+kind+"/"+blob.Digest.String())
		if err == nil && (status != http.StatusOK || proto.DigestOf(body) != blob.Digest) {
			err = fmt.Errorf("status %d, %d bytes: %.300s", status, len(body), body[:min(300, len(body))])
		}
		if err != nil {
			return fmt.Errorf("%s of %s at %s: %w", kind, img.Tag, n.Config.Name, err)
		}
	}
	return nil
}

// read gets something of openRegistry from a node's mirror.
func (b *bed) read(n *fleet.Node, path string) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.MirrorURL()+"/v2/"+path+"?ns="+openRegistry, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// chunk asks a node's peers' port for the first bytes of a blob, in plain HTTP,
// from the address that all members have.
func (b *bed) chunk(i int, name proto.Digest, capability string) answer {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, "http://"+b.fleet.Nodes[i].Self().Addr+"/v1/blobs/"+name.String(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-99")
	req.Header.Set("Shoal-Within", "100")
	if capability != "" {
		req.Header.Set("Shoal-Capability", capability)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Header.Del("Date")
	body = bytes.ReplaceAll(body, []byte(name.Hex()), []byte("NAME")) // it is told what it has asked for
	return answer{resp.StatusCode, resp.Header, body}
}

// TestPrivateAtPeerPort: where every program on a member's machine can ask for
// chunks, since security is none, it gets those of public blobs; of private ones
// it takes the cluster secret, and who has not got that is told the same as of a
// blob that nobody has.
func TestPrivateAtPeerPort(t *testing.T) {
	b := start(t, registry.AuthToken, 2, daemon.Upstream{Auth: "passthrough"}, func(_ int, c *daemon.Config) {
		c.Peer.Security = "none"
		withOpen(c)
	})
	img, public := b.pushSecret(), b.push(publicRepo)
	ann := b.as("ann", secretRepo)
	for i := range b.fleet.Nodes { // the second one from the first one
		b.pull(i, img.Image, ann)
		if err := b.fetch(b.fleet.Nodes[i], public); err != nil {
			t.Fatal(err)
		}
	}
	member := b.fleet.Nodes[1].Self().ID
	knows := func(secret string) *veil.Veil {
		return veil.New(veil.Config{
			Self: member, Secrets: func() [][]byte { return [][]byte{[]byte(secret)} }, Private: func(proto.Digest) bool { return true },
		})
	}
	insider, outsider := knows(fleetSecret), knows("a guess at the secret")
	absent := b.chunk(0, proto.DigestOf([]byte("nobody has this")), "")
	if absent.status != http.StatusNotFound {
		t.Errorf("of a blob that is not there: status %d", absent.status)
	}
	for _, blob := range append(img.Blobs(), img.Manifest) {
		d := blob.Digest
		for how, a := range map[string]answer{
			"its digest":                              b.chunk(0, d, ""),
			"its digest and a capability":             b.chunk(0, d, insider.Capability(d)),
			"its alias":                               b.chunk(0, insider.Name(d), ""),
			"its alias and a capability of another":   b.chunk(0, insider.Name(d), insider.Capability(public.Layers[0].Digest)),
			"its alias and a capability by a guess":   b.chunk(0, insider.Name(d), outsider.Capability(d)),
			"its alias and nonsense for a capability": b.chunk(0, insider.Name(d), "1."+member+".9999999999.AAAA"),
			"an alias by a guess":                     b.chunk(0, outsider.Name(d), outsider.Capability(d)),
		} {
			if a.status != absent.status || !bytes.Equal(a.body, absent.body) || fmt.Sprint(a.header) != fmt.Sprint(absent.header) {
				t.Errorf("with %s: %d %v %q, and of what is not there %d %v %q", how, a.status, a.header, a.body, absent.status, absent.header, absent.body)
			}
			if what := img.leaked(a, d.String()); what != "" {
				t.Errorf("with %s: got %s", how, what)
			}
		}
	}
	layer := img.Layers[0].Digest
	if a := b.chunk(0, insider.Name(layer), insider.Capability(layer)); a.status != http.StatusPartialContent || !bytes.Equal(a.body, img.layer[:100]) {
		t.Errorf("a member's own way: status %d, %d bytes", a.status, len(a.body))
	}
	if a := b.chunk(0, public.Layers[0].Digest, ""); a.status != http.StatusPartialContent || len(a.body) != 100 {
		t.Errorf("public: status %d, %d bytes", a.status, len(a.body))
	}
}

// TestPrivateFromPeer: private content comes from a peer like any other, for a
// caller whom the upstream has said yes to, and not one byte of it from the
// origin.
func TestPrivateFromPeer(t *testing.T) {
	for _, security := range []string{"tls", "none"} {
		t.Run(security, func(t *testing.T) {
			b := start(t, registry.AuthToken, 2, daemon.Upstream{Auth: "passthrough"}, func(_ int, c *daemon.Config) { c.Peer.Security = security })
			img := b.pushSecret()
			b.pull(0, img.Image, b.as("ann", secretRepo))
			b.SetFaults(registry.Faults{Status: http.StatusServiceUnavailable})
			b.Reset()
			if a := b.ask(1, "GET", secretRepo+"/blobs/"+img.Layers[0].Digest.String(), b.as("bob", otherRepo)); a.status < 400 || img.leaked(a, img.Layers[0].Digest.String()) != "" {
				t.Errorf("who may not have it: status %d, %s", a.status, img.leaked(a, img.Layers[0].Digest.String()))
			}
			b.pull(1, img.Image, b.as("ann", secretRepo))
			if c := b.Count(); c.BlobGets != 0 || c.BlobBytes != 0 {
				t.Errorf("the origin was asked for blobs %d times and sent %d bytes of them", c.BlobGets, c.BlobBytes)
			}
			var layers int64
			for _, l := range img.Blobs() {
				layers += l.Size
			}
			if got := b.fleet.Nodes[1].Status().Bytes.Peers(); got < layers {
				t.Errorf("%d bytes came from the peer, want at least %d", got, layers)
			}
		})
	}
}

// TestSchedulerLearnsNoDigest: the scheduler process plans the pull of a private
// image without its digests: they are in nothing that it says or keeps. Those of
// a public one are, or this would show nothing.
func TestSchedulerLearnsNoDigest(t *testing.T) {
	heard := &spy{}
	b := startWith(t, registry.AuthToken, daemon.Upstream{Auth: "passthrough"}, heard, fleet.Options{
		Nodes: 2, Scheduler: true, Configure: func(_ int, c *daemon.Config) { withOpen(c) },
	})
	img, public := b.pushSecret(), b.push(publicRepo)
	scheduler := b.fleet.Scheduler
	b.Reset()
	for i, n := range b.fleet.Nodes {
		b.pull(i, img.Image, b.as("ann", secretRepo))
		if err := b.fetch(n, public); err != nil {
			t.Fatal(err)
		}
	}
	if _, most := b.Copies(img.Layers[0].Digest); most != 1 {
		t.Errorf("the private layer left the origin %d times, want once: was it scheduled at all?", most)
	}
	said := &spy{}
	for _, path := range []string{"/metrics", "/v1/status", "/v1/cache", "/v1/jobs", "/v1/checks"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+scheduler.AdminAddr()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		said.hears(path, b.dump(req))
	}
	if err := scheduler.Stop(); err != nil {
		t.Fatal(err)
	}
	b.hearsFiles(said, scheduler.Config.Data)
	for line := range bytes.Lines(heard.all()) {
		if bytes.Contains(line, []byte(" at=scheduler")) {
			said.hears("log", line)
		}
	}
	known := func(b proto.Blob) bool { return bytes.Contains(said.all(), []byte(b.Digest.Hex())) }
	for _, blob := range append(img.Blobs(), img.Manifest) {
		if known(blob) {
			t.Errorf("the scheduler knows the private %s", blob.Digest)
		}
	}
	if what := img.leaked(answer{body: said.all()}, ""); what != "" {
		t.Errorf("the scheduler has %s", what)
	}
	if !slices.ContainsFunc(public.Layers, known) {
		t.Errorf("the scheduler knows none of the public layers either, in %d bytes", len(said.all()))
	}
}

// all returns what has been heard until now.
func (s *spy) all() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.text.Bytes())
}

// count returns how many lines have all of words.
func (s *spy) count(words ...string) (n int) {
	for line := range strings.Lines(string(s.all())) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}
