package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/shoal-project/shoal/proto"
)

// ErrNotPinned is Unpin's for a pattern that Pin was not told.
var ErrNotPinned = errors.New("it is not pinned")

// A Pin is a pattern of images that stay, and what of them is here.
type Pin struct {
	Pattern string `json:"pattern"`
	Fixed   bool   `json:"fixed"` // it is from the configuration
	Blobs   int    `json:"blobs"` // that are here, whole or partial
	Bytes   int64  `json:"bytes"` // what they count
}

// pins are the patterns of what stays.
type pins struct {
	// immutable
	file  string
	fixed []PinPattern // from the configuration

	saving sync.Mutex // held while the file is written

	// mu protects the fields below.
	mu      sync.Mutex
	set     []PinPattern // by Pin
	changes uint64       // of set
	changed bool         // the file is behind
	// roots are the manifests that tags named which are pinned. The index has
	// them as well, but an index can be lost, and pins must not be.
	roots map[string]proto.Digest
	// what was last made of all that, at version
	version pinVersion
	valid   bool
	all     map[proto.Digest]struct{}
	parsed  map[proto.Digest][]proto.Digest // parts of manifests that the index did not have
}

// pinsFile is what the file of pins has.
type pinsFile struct {
	Pins  []string                `json:"pins"`
	Roots map[string]proto.Digest `json:"roots"`
}

// loadPins reads the file of pins. A file that cannot be read is an error: to
// go on without it would let go of what somebody wanted to keep.
func loadPins(file string, fixed []string) (*pins, error) {
	p := &pins{file: file, roots: map[string]proto.Digest{}, parsed: map[proto.Digest][]proto.Digest{}}
	for _, s := range fixed {
		pattern, err := ParsePin(s)
		if err != nil {
			return nil, fmt.Errorf("cache.pins: %w", err)
		}
		p.fixed = append(p.fixed, pattern)
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	var f pinsFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("read pins: %w: repair %s, or remove it and pin again what is to stay", err, file)
	}
	for _, s := range f.Pins {
		pattern, err := ParsePin(s)
		if err != nil {
			return nil, fmt.Errorf("read pins from %s: %w", file, err)
		}
		p.set = append(p.set, pattern)
	}
	maps.Copy(p.roots, f.Roots)
	return p, nil
}

// save writes the file of pins if it is behind: all or nothing of it, also if
// the power fails.
func (p *pins) save() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	if !p.changed {
		p.mu.Unlock()
		return nil
	}
	p.changed = false
	f := pinsFile{Pins: []string{}, Roots: maps.Clone(p.roots)}
	for _, s := range p.set {
		f.Pins = append(f.Pins, s.text)
	}
	p.mu.Unlock()
	data, err := json.MarshalIndent(f, "", "\t")
	if err == nil {
		err = replaceFile(p.file, append(data, '\n'))
	}
	if err != nil {
		p.mu.Lock()
		p.changed = true
		p.mu.Unlock()
		return fmt.Errorf("keep pins: %w", err)
	}
	return nil
}

// replaceFile writes a file beside path, syncs it, and renames it over path.
func replaceFile(path string, data []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, remove(next))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Pin keeps what pattern is of from being evicted, from now on and after a
// restart: blobs that are here, and those that come. See ParsePin. To pin what
// is pinned is no error. When it returns without one, the pin is on the disk.
func (c *Cache) Pin(pattern string) error {
	p, err := ParsePin(pattern)
	if err != nil {
		return err
	}
	c.pins.mu.Lock()
	if !slices.ContainsFunc(c.pins.set, p.same) {
		c.pins.set = append(c.pins.set, p)
		c.pins.changes++
		c.pins.changed = true
	}
	c.pins.mu.Unlock()
	if _, _, err := c.pinned(); err != nil { // so that what it reaches is in the file
		return fmt.Errorf("pin %s: %w", pattern, err)
	}
	if err := c.pins.save(); err != nil {
		return fmt.Errorf("pin %s: %w", pattern, err)
	}
	return nil
}

func (p PinPattern) same(q PinPattern) bool { return p.text == q.text }

// Unpin takes back a Pin. The error wraps ErrNotPinned if there was none, or it
// is from the configuration.
func (c *Cache) Unpin(pattern string) error {
	pattern = strings.TrimSpace(pattern)
	is := func(p PinPattern) bool { return p.text == pattern }
	c.pins.mu.Lock()
	at := slices.IndexFunc(c.pins.set, is)
	fixed := slices.ContainsFunc(c.pins.fixed, is)
	if at < 0 {
		c.pins.mu.Unlock()
		if fixed {
			return fmt.Errorf("unpin %s: %w here but in the configuration: take it out of cache.pins there", pattern, ErrNotPinned)
		}
		return fmt.Errorf("unpin %s: %w", pattern, ErrNotPinned)
	}
	c.pins.set = slices.Delete(c.pins.set, at, at+1)
	c.pins.changes++
	c.pins.changed = true
	c.pins.mu.Unlock()
	if err := c.pins.save(); err != nil {
		return fmt.Errorf("unpin %s: %w", pattern, err)
	}
	return nil
}

// Pins returns the pins, those of the configuration first.
func (c *Cache) Pins() []Pin {
	c.pins.mu.Lock()
	patterns := slices.Concat(c.pins.fixed, c.pins.set)
	fixed := len(c.pins.fixed)
	c.pins.mu.Unlock()
	list := []Pin{}
	for i, p := range patterns {
		reached, _, err := c.reach([]PinPattern{p})
		if err != nil {
			c.log.Warn("pin cannot be followed", "pattern", p.text, "error", err)
		}
		pin := Pin{Pattern: p.text, Fixed: i < fixed}
		c.mu.Lock()
		pin.Blobs, pin.Bytes = c.sizeOf(reached)
		c.mu.Unlock()
		list = append(list, pin)
	}
	return list
}

// A pinVersion is another one whenever pinned may return something else: how
// often the pins have changed, what the index has of images, and what is here.
type pinVersion struct{ pins, index, small uint64 }

func (c *Cache) pinVersion() pinVersion {
	c.mu.Lock()
	v := pinVersion{index: c.index.changes.Load(), small: c.space.small}
	c.mu.Unlock()
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	v.pins = c.pins.changes
	if len(c.pins.fixed)+len(c.pins.set) == 0 {
		return pinVersion{pins: v.pins}
	}
	return v
}

// pinned returns the digests that are pinned, which the caller must not change,
// and the version that this is.
func (c *Cache) pinned() (map[proto.Digest]struct{}, pinVersion, error) {
	version := c.pinVersion()
	c.pins.mu.Lock()
	if c.pins.valid && c.pins.version == version {
		defer c.pins.mu.Unlock()
		return c.pins.all, version, nil
	}
	patterns := slices.Concat(c.pins.fixed, c.pins.set)
	c.pins.mu.Unlock()

	all, roots, err := c.reach(patterns)
	if err != nil {
		return nil, version, err
	}
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	c.pins.all, c.pins.version, c.pins.valid = all, version, true
	if !maps.Equal(roots, c.pins.roots) {
		c.pins.roots = roots
		c.pins.changed = true
	}
	return all, version, nil
}

// reach returns all digests that the patterns reach, from tags to manifests to
// their parts, and the manifests that it began with, by the tags' names.
func (c *Cache) reach(patterns []PinPattern) (all map[proto.Digest]struct{}, roots map[string]proto.Digest, err error) {
	all, roots = map[proto.Digest]struct{}{}, map[string]proto.Digest{}
	if len(patterns) == 0 {
		return all, roots, nil
	}
	tags, err := c.index.Tags("", "")
	if err != nil {
		return nil, nil, err
	}
	matches := func(n TagName) bool {
		return slices.ContainsFunc(patterns, func(p PinPattern) bool { return p.Matches(n) })
	}
	c.pins.mu.Lock()
	for name, d := range c.pins.roots {
		if n, ok := parseTagName(name); ok && matches(n) {
			roots[name] = d
		}
	}
	c.pins.mu.Unlock()
	for n, t := range tags {
		if matches(n) {
			roots[n.String()] = t.Blob.Digest
		}
	}
	var todo []proto.Digest
	for _, p := range patterns {
		if !p.digest.IsZero() {
			todo = append(todo, p.digest)
		}
	}
	for _, d := range roots {
		todo = append(todo, d)
	}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, seen := all[d]; seen {
			continue
		}
		all[d] = struct{}{}
		parts, err := c.parts(d)
		if err != nil {
			return nil, nil, err
		}
		todo = append(todo, parts...)
	}
	return all, roots, nil
}

// parseTagName reads what TagName.String writes.
func parseTagName(s string) (TagName, bool) {
	upstream, rest, ok := strings.Cut(s, "/")
	colon := strings.LastIndexByte(rest, ':')
	if !ok || colon < 0 {
		return TagName{}, false
	}
	return TagName{upstream, rest[:colon], rest[colon+1:]}, true
}

// parts returns the digests that d names if it is a manifest or an index: what
// the index of the cache has of it, or what it says itself.
func (c *Cache) parts(d proto.Digest) ([]proto.Digest, error) {
	parts, err := c.index.Parts(d)
	if err != nil || parts != nil {
		return parts, err
	}
	c.mu.Lock()
	size, whole := c.whole[d]
	c.mu.Unlock()
	if !whole || size > maxManifest {
		return nil, nil
	}
	c.pins.mu.Lock()
	parts, done := c.pins.parsed[d]
	c.pins.mu.Unlock()
	if done {
		return parts, nil
	}
	f, err := os.Open(c.layout.blob(d))
	if err != nil {
		return nil, nil // it has just gone, or is damaged: then nothing can be reached through it
	}
	defer f.Close()
	parts = partsOf(f)
	c.pins.mu.Lock()
	c.pins.parsed[d] = parts
	c.pins.mu.Unlock()
	return parts, nil
}

// maxManifest is the size, in bytes, up to which registries take manifests
// (distribution-spec, "Pushing Manifests").
const maxManifest = 4 << 20

// partsOf returns the digests that a manifest or an index names, or none if r
// is something else.
func partsOf(r io.Reader) (parts []proto.Digest) {
	head := make([]byte, 1)
	if _, err := io.ReadFull(r, head); err != nil || head[0] != '{' {
		return nil // a layer
	}
	var m struct {
		SchemaVersion int `json:"schemaVersion"`
		Config        struct {
			Digest proto.Digest `json:"digest"`
		} `json:"config"`
		Layers, Manifests, Blobs []struct {
			Digest proto.Digest `json:"digest"`
		}
	}
	rest := io.MultiReader(strings.NewReader("{"), io.LimitReader(r, maxManifest))
	if err := json.NewDecoder(rest).Decode(&m); err != nil || m.SchemaVersion != 2 {
		return nil
	}
	if !m.Config.Digest.IsZero() {
		parts = append(parts, m.Config.Digest)
	}
	for _, list := range [...][]struct {
		Digest proto.Digest `json:"digest"`
	}{m.Layers, m.Manifests, m.Blobs} {
		for _, e := range list {
			if !e.Digest.IsZero() {
				parts = append(parts, e.Digest)
			}
		}
	}
	return parts
}
