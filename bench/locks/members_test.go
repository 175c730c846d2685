package locks_test

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
)

// identify makes the identity of a node that has not been started yet.
func identify(t *testing.T, c daemon.Config) string {
	t.Helper()
	c.Gossip.AllowFile, c.Gossip.Join = "", nil
	d, err := daemon.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.Self().ID
}

// TestAllowList: who is not on the list does not get in, whatever secret he has;
// who is taken off it while all runs is out, and gets no chunk any more; who is
// put on it again is back.
func TestAllowList(t *testing.T) {
	const nodes, stranger = 3, 3
	dir, heard := t.TempDir(), &spy{}
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("members-%d", i)) }
	data := filepath.Join(dir, "fleet")
	ids := make([]string, nodes+1)
	var known sync.Once
	b := startWith(t, registry.AuthToken, daemon.Upstream{Auth: "passthrough"}, heard, fleet.Options{Nodes: nodes, Dir: data, Configure: func(i int, c *daemon.Config) {
		withOpen(c)
		known.Do(func() {
			for k := range ids {
				other := *c
				other.Data = filepath.Join(data, fmt.Sprintf("node-%d", k))
				ids[k] = identify(t, other)
			}
			for k := range ids[:nodes] {
				replace(t, file(k), append([]string{"# the members"}, ids[:nodes]...)...)
			}
			replace(t, file(stranger), ids...) // by his own list he is one
		})
		c.Gossip.AllowFile = file(i)
	}})
	members := func(n *fleet.Node) []string {
		var ids []string
		for _, m := range n.Status().Members {
			ids = append(ids, m.ID)
		}
		slices.Sort(ids)
		return ids
	}
	sees := func(n *fleet.Node, want ...string) bool {
		return slices.Equal(members(n), slices.Sorted(slices.Values(want)))
	}
	// alone pulls an image that the others have: it has to come from the origin.
	alone := func(n *fleet.Node) {
		t.Helper()
		img := b.push(publicRepo)
		if err := b.fetch(b.fleet.Nodes[0], img); err != nil {
			t.Fatal(err)
		}
		was := n.Status().Bytes.Peers()
		if err := b.fetch(n, img); err != nil {
			t.Fatal(err)
		}
		if got := n.Status().Bytes.Peers() - was; got != 0 {
			t.Errorf("%s got %d bytes from peers", n.Config.Name, got)
		}
		if _, most := b.Copies(img.Layers[0].Digest); most != 2 {
			t.Errorf("the layer left the origin %d times, want twice", most)
		}
	}

	n, err := b.fleet.StartNode(stranger)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the stranger to be refused by both", func() bool {
		return heard.count("no join address can be reached", fmt.Sprintf(" at=node-%d ", stranger)) > 0
	})
	alone(n)
	if !sees(n, ids[stranger]) {
		t.Errorf("the stranger sees %v", members(n))
	}
	for _, at := range b.fleet.Nodes {
		if !sees(at, ids[:nodes]...) {
			t.Errorf("%s sees %v with a stranger at the door", at.Config.Name, members(at))
		}
	}
	if err := n.Stop(); err != nil {
		t.Error(err)
	}

	for i := range nodes - 1 {
		replace(t, file(i), ids[:nodes-1]...)
	}
	last := b.fleet.Nodes[nodes-1]
	waitFor(t, "the others to put the last one out", func() bool {
		return sees(b.fleet.Nodes[0], ids[:nodes-1]...) && sees(b.fleet.Nodes[1], ids[:nodes-1]...)
	})
	alone(last)
	for i := range nodes - 1 {
		replace(t, file(i), ids[:nodes]...)
	}
	waitFor(t, "the last one to be back", func() bool { return b.fleet.Converge(t.Context()) == nil })
	img := b.push(publicRepo)
	for _, at := range b.fleet.Nodes {
		if err := b.fetch(at, img); err != nil {
			t.Error(err)
		}
	}
	if _, most := b.Copies(img.Layers[0].Digest); most != 1 {
		t.Errorf("with all of them back the layer left the origin %d times", most)
	}
}

// TestBlocklistEverywhere: what is blocked at one node is refused at all others
// within seconds, also at one that restarts and has nobody to ask, and served
// again everywhere when it is unblocked.
func TestBlocklistEverywhere(t *testing.T) {
	const nodes, within = 3, 10 * time.Second
	apart := false // the node that starts next joins nobody
	b := start(t, registry.AuthToken, nodes, daemon.Upstream{Auth: "passthrough"}, func(_ int, c *daemon.Config) {
		withOpen(c)
		if apart {
			c.Gossip.Join = nil
		}
	})
	img, other := b.push(publicRepo), b.push(publicRepo)
	for _, n := range b.fleet.Nodes {
		if err := errors.Join(b.fetch(n, img), b.fetch(n, other)); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(i int, reference string) (int, string) {
		t.Helper()
		status, body, err := b.read(b.fleet.Nodes[i], publicRepo+"/manifests/"+reference)
		if err != nil {
			t.Fatal(err)
		}
		return status, string(body)
	}
	refused := func(i int) bool {
		t.Helper()
		byTag, why := ask(i, img.Tag)
		byDigest, _ := ask(i, img.Manifest.Digest.String())
		if byTag != http.StatusForbidden || byDigest != http.StatusForbidden {
			return false
		}
		for _, want := range []string{`"DENIED"`, "rule blocklist", "recalled: it phones home"} {
			if !strings.Contains(why, want) {
				t.Errorf("node %d says %s, which has no %s", i, why, want)
			}
		}
		if status, body := ask(i, other.Tag); status != http.StatusOK {
			t.Errorf("another image at node %d: status %d: %s", i, status, body)
		}
		return true
	}
	served := func(i int) bool { return b.fetch(b.fleet.Nodes[i], img) == nil }
	everywhere := func(what string, is func(int) bool) {
		t.Helper()
		begin := time.Now()
		for i := range b.fleet.Nodes {
			waitFor(t, what, func() bool { return is(i) })
		}
		took := time.Since(begin)
		t.Logf("%s everywhere after %s", what, took.Round(time.Millisecond))
		if took > within {
			t.Errorf("%s everywhere after %s, want %s", what, took, within)
		}
	}
	restart := func(i int) {
		t.Helper()
		if err := b.fleet.Nodes[i].Stop(); err != nil {
			t.Error(err)
		}
		n, err := b.fleet.StartNode(i)
		if err != nil {
			t.Fatal(err)
		}
		b.fleet.Nodes[i] = n
		waitFor(t, "the node to be ready", func() bool { return n.Ready() == nil })
	}

	b.block(0, img.Manifest.Digest.String(), "recalled: it phones home")
	if !refused(0) {
		t.Error("not refused where it was blocked")
	}
	everywhere("refused", refused)
	apart = true
	restart(nodes - 1)
	if got := len(b.fleet.Nodes[nodes-1].Status().Members); got != 1 || !refused(nodes-1) {
		t.Errorf("after a restart on its own, with %d members, it is served again", got)
	}
	apart = false
	restart(nodes - 1)
	if err := b.fleet.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.NewClient(b.fleet.Nodes[1].AdminAddr()).Unblock(t.Context(), img.Manifest.Digest.String()); err != nil {
		t.Fatal(err)
	}
	everywhere("served", served)
}
