package policy

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

func desc(text string) origin.Descriptor {
	return origin.Descriptor{Blob: proto.Blob{Digest: proto.DigestOf([]byte(text)), Size: int64(len(text))}}
}

// What an upstream has that anybody may read is public, and nothing else is,
// after a restart too.
func TestPrivate(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var published []proto.Digest
	g, _ := newGuarded(t, func(c *Config) {
		c.Published = func(d proto.Digest) {
			mu.Lock()
			defer mu.Unlock()
			published = append(published, d)
		}
	})
	open, hidden, both, unknown := desc("open"), desc("hidden"), desc("both"), desc("unknown")
	look := func(when string, gate *Gate) {
		t.Helper()
		for d, want := range map[origin.Descriptor]bool{open: false, hidden: true, both: false, unknown: true} {
			if got := gate.Private(d.Blob.Digest); got != want {
				t.Errorf("%s: %s is private: %v", when, d.Blob.Digest, got)
			}
		}
	}
	for _, err := range []error{
		g.gate.Link(secret, private, hidden, both),
		g.gate.Link(upstream, "team/app", open),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !g.gate.Private(both.Blob.Digest) {
		t.Error("what only a passthrough upstream has is public")
	}
	if err := g.gate.Link(upstream, "team/app", open, both); err != nil {
		t.Fatal(err)
	}
	look("learnt", g.gate)
	look("after a restart", New(g.cfg))
	if want := []proto.Digest{open.Blob.Digest, both.Blob.Digest}; !slices.Equal(published, want) {
		t.Errorf("published %v, want %v", published, want)
	}
	// A link that turned out wrong makes nothing public.
	g.gate.Forget(origin.Ref{Upstream: upstream, Repository: "team/app", Digest: both.Blob.Digest})
	if !g.gate.Private(both.Blob.Digest) {
		t.Error("after its only public link was forgotten it is still public")
	}
	// Where all is public nobody keeps a list.
	all := g.cfg
	all.Upstreams = []string{upstream}
	if New(all).Private(hidden.Blob.Digest) {
		t.Error("something is private where all upstreams are anonymous")
	}
}

// A manifest that names a private digest of another repository gives no right to
// it: the registry has to say that it has it.
func TestAManifestsWordIsNotEnough(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	g.pulled(t, img, g.good(time.Minute, private))
	layer := img.Layers[0].Digest
	// Somebody who may push to a public repository pushes the same manifest.
	for _, to := range []struct{ upstream, repository string }{{upstream, "evil/app"}, {secret, other}} {
		ds, err := g.gate.Learn(to.upstream, to.repository, img.Raw, img.MediaType)
		if err != nil || len(ds) != 2 {
			t.Fatalf("%v, %v", ds, err)
		}
	}
	if got := links(t, g.index, layer); got != secret+"/"+private {
		t.Errorf("the layer is linked to %s", got)
	}
	if !g.gate.Private(layer) {
		t.Error("a manifest of an anonymous upstream has made it public")
	}
	if a, err := g.gate.Admit(t.Context(), origin.Ref{Upstream: upstream, Repository: "evil/app", Digest: layer}, g.as("")); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("%+v, %v, want the registry's 404", a, err)
	}
	// The registry's word is: it has the same layer there.
	b := g.push(t, "base/app", "1", 1002)
	if b.Layers[0].Digest != layer {
		t.Fatal("the test's registries have different layers")
	}
	if _, err := g.gate.Learn(upstream, "base/app", b.Raw, b.MediaType); err != nil {
		t.Fatal(err)
	}
	if _, err := g.gate.Admit(t.Context(), origin.Ref{Upstream: upstream, Repository: "base/app", Digest: layer}, g.as("")); err != nil {
		t.Error(err)
	}
	if g.gate.Private(layer) {
		t.Error("what a public registry has is private")
	}
}

// Under "*" anybody can run a registry, and say of it that it has anything.
func TestAnUnnamedRegistrysWordIsNotEnough(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"the registry's", "the private repository's"} {
		g, img := newGuarded(t, func(c *Config) { c.Upstreams = []string{secret, "*"} }) // upstream is one of *
		evil := g.push(t, "evil/app", "1", 1002)
		layer := img.Layers[0].Digest
		if evil.Layers[0].Digest != layer {
			t.Fatal("the test's registries have different layers")
		}
		claim := func() {
			if _, err := g.gate.Learn(upstream, "evil/app", evil.Raw, evil.MediaType); err != nil {
				t.Fatal(err)
			}
		}
		if first == "the registry's" {
			claim()
			if g.gate.Private(layer) {
				t.Error("what nobody has hidden is private")
			}
		}
		g.pulled(t, img, g.good(time.Minute, private))
		claim()
		_, err := g.gate.Admit(t.Context(), origin.Ref{Upstream: upstream, Repository: "evil/app", Digest: layer}, g.as(""))
		if d := (*Denial)(nil); !errors.As(err, &d) || d.Rule != rulePrivate {
			t.Errorf("%s word first: %v, want a denial", first, err)
		}
		if !g.gate.Private(layer) {
			t.Errorf("%s word first: the private layer is public", first)
		}
		named := g.cfg
		named.Upstreams = []string{secret, upstream, "*"}
		if _, err := New(named).Admit(t.Context(), origin.Ref{Upstream: upstream, Repository: "evil/app", Digest: layer}, g.as("")); err != nil {
			t.Errorf("once the registry is configured by name: %v", err)
		}
	}
}
