package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

var someDigest = "sha256:" + strings.Repeat("ab", 32)

func TestParsePin(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern string
		is      []string // tags that it is of
		not     []string
	}{
		{someDigest, nil, []string{"docker.io/library/alpine:3.20"}},
		{"docker.io/library/alpine@" + someDigest, nil, []string{"docker.io/library/alpine:3.20"}},
		{"docker.io/library/alpine:3.20@" + someDigest, nil, []string{"docker.io/library/alpine:3.20"}},
		{"docker.io/library/alpine:3.20", []string{"docker.io/library/alpine:3.20"},
			[]string{"docker.io/library/alpine:3.2", "docker.io/alpine:3.20", "ghcr.io/library/alpine:3.20", "docker.io/library/alpine/x:3.20"}},
		{"docker.io/library/alpine", []string{"docker.io/library/alpine:3.20", "docker.io/library/alpine:latest"}, []string{"docker.io/library/alpinex:1"}},
		{"docker.io/library/*:v*", []string{"docker.io/library/a:v1", "docker.io/library/b:v"}, []string{"docker.io/library/a:1", "docker.io/library/a/b:v1"}},
		{"ghcr.io/team/**", []string{"ghcr.io/team/a:1", "ghcr.io/team/a/b/c:1"}, []string{"ghcr.io/teams/a:1", "ghcr.io/other:1"}},
		{"ghcr.io/**/web:v[0-9]*", []string{"ghcr.io/a/b/web:v1.2", "ghcr.io/web:v1"}, []string{"ghcr.io/a/web/x:v1", "ghcr.io/a/web:vx"}},
		{"ghcr.io/**/a/**/b", []string{"ghcr.io/a/b:1", "ghcr.io/x/a/a/y/b:1"}, []string{"ghcr.io/b/a:1"}},
		{"**/alpine", []string{"docker.io/library/alpine:1", "localhost:5000/alpine:1"}, []string{"docker.io/alpine/x:1"}},
		{"localhost:5000/x:1", []string{"localhost:5000/x:1"}, []string{"localhost:5000/x:2"}},
		{"*.example.com/x", []string{"a.example.com/x:1"}, []string{"example.com/x:1"}},
	} {
		p, err := ParsePin(tt.pattern)
		if err != nil {
			t.Error(err)
			continue
		}
		if p.String() != tt.pattern {
			t.Errorf("%q is %q", tt.pattern, p)
		}
		for _, s := range append(tt.is, tt.not...) {
			n, ok := parseTagName(s)
			if !ok || n.String() != s {
				t.Fatalf("%q is %v", s, n)
			}
			if got, want := p.Matches(n), slices.Contains(tt.is, s); got != want {
				t.Errorf("%q is of %q: %v", tt.pattern, s, got)
			}
		}
	}
	for pattern, want := range map[string]string{
		"":                         "empty",
		"alpine":                   "does not begin with a registry",
		"alpine:3.20":              "write docker.io/library/alpine:3.20",
		"library/alpine":           "does not begin with a registry",
		"sha256:abcd":              "does not begin with a registry",
		"docker.io/x@sha256:abcd":  "hexadecimal",
		"docker.io/x@":             "algorithm",
		"docker.io//x":             "part of the name is empty",
		"docker.io/x:":             "no tag",
		"docker.io/[x":             "not a pattern",
		"docker.io/x:[":            "not a pattern",
		"docker.io/x y":            "blanks",
		"docker.io/x\x00y":         "blanks",
		strings.Repeat("a.", 1000): "longer",
	} {
		if _, err := ParsePin(pattern); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "pin ") {
			t.Errorf("ParsePin(%q): %v, want %q", pattern, err, want)
		}
	}
}

func FuzzParsePin(f *testing.F) {
	for _, s := range []string{"docker.io/library/*:v*", "ghcr.io/**/a/**", someDigest, "x.y/z@" + someDigest, "localhost:5000/x:1"} {
		f.Add(s, "ghcr.io/a/b:1")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, err := ParsePin(pattern)
		if err != nil {
			return
		}
		again, err := ParsePin(p.String())
		if err != nil || !again.same(p) {
			t.Errorf("%q: %v", p, err)
		}
		if n, ok := parseTagName(name); ok && p.Matches(n) != again.Matches(n) {
			t.Errorf("%q matches now and then", p)
		}
		if n, ok := parseTagName(pattern); ok && p.digest.IsZero() && p.tag != "" && !strings.ContainsAny(pattern, `*?[\`) && !p.Matches(n) {
			t.Errorf("%q does not match itself", p)
		}
	})
}

// An image is a manifest with its config and layers, in a cache.
type image struct {
	manifest proto.Blob
	parts    []proto.Blob
}

// putImage stores an image of two layers, and a manifest that names them.
func putImage(t testing.TB, c *Cache, seed uint64) (m image) {
	t.Helper()
	type descriptor struct {
		Digest proto.Digest `json:"digest"`
		Size   int64        `json:"size"`
	}
	var ds []descriptor
	for i, size := range []int{300, 2 * chunk, 2*chunk + 5} {
		b, data := content(seed*10+uint64(i), size)
		store(t, c, b, data)
		m.parts = append(m.parts, b)
		ds = append(ds, descriptor{b.Digest, b.Size})
	}
	text, err := json.Marshal(map[string]any{"schemaVersion": 2, "config": ds[0], "layers": ds[1:]})
	if err != nil {
		t.Fatal(err)
	}
	m.manifest = proto.Blob{Digest: proto.DigestOf(text), Size: int64(len(text))}
	store(t, c, m.manifest, text)
	return m
}

func (m image) here(c *Cache) bool {
	return len(wholes(c, append(m.parts, m.manifest)...)) == len(m.parts)+1
}

// learn has the index know of an image what a pull of it would.
func learn(t testing.TB, c *Cache, n TagName, m image) {
	t.Helper()
	var parts []proto.Digest
	for _, p := range m.parts {
		parts = append(parts, p.Digest)
	}
	if err := errors.Join(
		c.Index().SetParts(m.manifest.Digest, parts),
		c.Index().SetTag(n.Upstream, n.Repository, n.Tag, Tag{Blob: m.manifest}),
	); err != nil {
		t.Fatal(err)
	}
}

// squeeze evicts all that may go.
func squeeze(t testing.TB, c *Cache, k *clock) {
	t.Helper()
	k.after(1e4 * hour)
	if _, err := c.evict(func(_ limits, used, _ int64) int64 { return used }, false); err != nil {
		t.Fatal(err)
	}
	audit(t, c)
}

const hour = 3600e9

// Each kind of pin holds on to all of its image, and to nothing else, also
// after a restart, and after the index was lost.
func TestPins(t *testing.T) {
	t.Parallel()
	name := TagName{"docker.io", "library/alpine", "3.20"}
	for _, kind := range []string{"docker.io/library/alpine:3.20", "docker.io/library/*", "docker.io/**:3*", "digest", "by digest"} {
		for _, after := range []string{"", "restart", "index lost", "crash"} {
			t.Run(kind+" "+after, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				c, k := openSpace(t, dir, Options{})
				wanted, other := putImage(t, c, 1), putImage(t, c, 2)
				learn(t, c, name, wanted)
				learn(t, c, TagName{"ghcr.io", "other", "3.20"}, other)
				pattern := kind
				switch kind {
				case "digest":
					pattern = wanted.manifest.Digest.String()
				case "by digest":
					pattern = "docker.io/library/alpine@" + wanted.manifest.Digest.String()
				}
				if err := c.Pin(pattern); err != nil {
					t.Fatal(err)
				}
				switch after {
				case "restart", "index lost":
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
				case "crash":
					dir = crashed(t, dir)
				}
				if after == "index lost" {
					if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
						t.Fatal(err)
					}
				}
				if after != "" {
					c, k = openSpace(t, dir, Options{})
				}
				squeeze(t, c, k)
				if !wanted.here(c) {
					t.Error("not all of what is pinned is here")
				}
				if n := len(wholes(c, append(other.parts, other.manifest)...)); n != 0 {
					t.Errorf("%d blobs of another image are here", n)
				}
				size := wanted.manifest.Size + 300 + 4*chunk + 5
				if got, want := c.Pins(), []Pin{{Pattern: pattern, Blobs: 4, Bytes: size}}; !slices.Equal(got, want) {
					t.Errorf("pins are %+v, want %+v", got, want)
				}
				if u := c.Use(); u.Pinned != 4 || u.PinnedBytes != size {
					t.Errorf("use is %+v", u)
				}
				if err := c.Unpin(pattern); err != nil {
					t.Fatal(err)
				}
				squeeze(t, c, k)
				if n := len(c.Blobs()); n != 0 || len(c.Pins()) != 0 {
					t.Errorf("%d blobs are here, and pins %v", n, c.Pins())
				}
			})
		}
	}
}

// A pin of a tag follows the tag; one of an index holds what the index names.
func TestPinFollows(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{Pins: []string{"docker.io/library/alpine:3.20"}})
	before, now := putImage(t, c, 1), putImage(t, c, 2)
	text := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q,"size":%d}]}`, now.manifest.Digest, now.manifest.Size)
	list := proto.Blob{Digest: proto.DigestOf([]byte(text)), Size: int64(len(text))}
	store(t, c, list, []byte(text))
	name := TagName{"docker.io", "library/alpine", "3.20"}
	learn(t, c, name, before)
	if u := c.Use(); u.Pinned != 4 {
		t.Errorf("use is %+v", u)
	}
	learn(t, c, name, image{manifest: list, parts: []proto.Blob{now.manifest}})
	squeeze(t, c, k)
	if !now.here(c) || len(wholes(c, list)) != 1 || len(c.Blobs()) != 5 {
		t.Errorf("%d blobs are here, want the 5 that the tag names now", len(c.Blobs()))
	}
}

func TestPinErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, _ := openSpace(t, dir, Options{Pins: []string{"docker.io/library/alpine"}})
	if err := c.Pin("alpine"); err == nil {
		t.Error("a pin without a registry is taken")
	}
	if err := c.Unpin("ghcr.io/x"); !errors.Is(err, ErrNotPinned) {
		t.Errorf("Unpin: %v", err)
	}
	if err := c.Unpin("docker.io/library/alpine"); !errors.Is(err, ErrNotPinned) || !strings.Contains(err.Error(), "configuration") {
		t.Errorf("Unpin of a fixed one: %v", err)
	}
	for range 2 {
		if err := c.Pin(" ghcr.io/x "); err != nil {
			t.Error(err)
		}
	}
	if got, want := c.Pins(), []Pin{{Pattern: "docker.io/library/alpine", Fixed: true}, {Pattern: "ghcr.io/x"}}; !slices.Equal(got, want) {
		t.Errorf("pins are %+v", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pins.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Open(dir, Options{})
	if err == nil {
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "pins.json")) {
		t.Errorf("Open with damaged pins: %v", err)
	}
}
