package runtimes

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// registryTable is one [[registry]] of a registries.conf (containers-registries.conf(5)).
type registryTable struct {
	Prefix   string        `toml:"prefix"`
	Location string        `toml:"location"`
	Insecure bool          `toml:"insecure"`
	Blocked  bool          `toml:"blocked"`
	ByDigest bool          `toml:"mirror-by-digest-only"`
	Mirrors  []mirrorTable `toml:"mirror"`
	file     string
}

type mirrorTable struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	From     string `toml:"pull-from-mirror"`
}

func (r registryTable) prefix() string {
	if r.Prefix != "" {
		return r.Prefix
	}
	return r.Location
}

// containersConfig is what registries.conf and its drop-ins say.
type containersConfig struct {
	tables map[string]registryTable // by prefix; the last file counts
	later  map[string]string        // prefix → the file after ours that has it
}

// readContainers reads registries.conf and all drop-ins but ours.
func readContainers(v view, o Options) (containersConfig, error) {
	c := containersConfig{tables: make(map[string]registryTable), later: make(map[string]string)}
	dir, own := path.Dir(o.File), path.Base(o.File)
	names, err := v.list(dir)
	if err != nil {
		return c, err
	}
	files := []string{path.Join(path.Dir(dir), "registries.conf")}
	for _, n := range names {
		if strings.HasSuffix(n, ".conf") && n != own {
			files = append(files, path.Join(dir, n))
		}
	}
	for i, f := range files {
		src, ok, err := v.read(f)
		if err != nil {
			return c, err
		}
		if !ok {
			continue
		}
		tables, err := parseRegistries(src)
		if err != nil {
			return c, fmt.Errorf("%s: %w", f, err)
		}
		for _, t := range tables {
			t.file = f
			c.tables[t.prefix()] = t
			if i > 0 && path.Base(f) > own {
				c.later[t.prefix()] = f
			}
		}
	}
	return c, nil
}

func parseRegistries(src []byte) ([]registryTable, error) {
	var file struct {
		Registry   []registryTable `toml:"registry"`
		Registries any             `toml:"registries"`
	}
	if err := toml.Unmarshal(src, &file); err != nil {
		return nil, fmt.Errorf("not valid TOML: %w: %w", err, ErrRefused)
	}
	if file.Registries != nil {
		return nil, fmt.Errorf("it is in the form of before 2019 ([registries.search]), which drop-ins cannot stand beside: write it anew with unqualified-search-registries and [[registry]]: %w", ErrRefused)
	}
	return file.Registry, nil
}

// planContainers plans for podman and CRI-O.
func planContainers(v view, o Options) (edits, error) {
	var e edits
	c, err := readContainers(v, o)
	if err != nil {
		return e, err
	}
	text := "# Written by shoal configure; shoal configure podman --undo, or crio, takes it away.\n" +
		"# A table here takes the place of one for the same registry in other files, so\n# it repeats what that one says.\n"
	written := 0
	for _, r := range slices.Compact(slices.Sorted(slices.Values(o.Registries))) {
		t, known := c.tables[r]
		switch {
		case r == Any, hasPort(r):
			e.note("%s: %s", r, unnamed(r))
			continue
		case c.later[r] != "":
			return e, fmt.Errorf("%s has %s and is read after %s, so it counts: put the mirror %s/%s there, or rename it: %w", c.later[r], r, o.File, o.address(), r, ErrRefused)
		case known && t.Blocked:
			e.note("%s is blocked in %s, and stays so", r, t.file)
			continue
		case !known:
			t = registryTable{Location: r}
		}
		for prefix, other := range c.tables {
			if strings.HasPrefix(prefix, r+"/") {
				e.note("%s has its own table in %s, which counts for what it names", prefix, other.file)
			}
		}
		if served(t, o, r) {
			continue
		}
		written++
		text += "\n" + o.table(t, r)
	}
	slices.Sort(e.notes)
	old, exists, err := v.read(o.File)
	if err != nil {
		return e, err
	}
	if exists && string(old) != text {
		return e, fmt.Errorf("%s has been written or edited by somebody else: move what is theirs to another file there and remove it: %w", o.File, ErrRefused)
	}
	if written > 0 {
		err = e.set(v, o.File, []byte(text))
	}
	if err == nil {
		err = e.certificates(v, path.Join(path.Dir(path.Dir(o.File)), "certs.d"), o.address(), o.CA)
	}
	return e, err
}

// hasPort reports whether a registry is named with a port. The name would become
// part of the mirror's path, where references have no colon: containers/image
// fails every pull from such a registry, without trying another way.
func hasPort(registry string) bool { return strings.Contains(registry, ":") }

// unnamed says why a registry cannot be given a mirror in registries.conf.
func unnamed(registry string) string {
	if registry == Any {
		return "registries.conf has no entry for all registries: name them with --registries"
	}
	return "a mirror for a registry with a port cannot be written in registries.conf"
}

// Takes reports whether a runtime can be told to use the mirror for a registry.
func Takes(k Kind, registry string) bool {
	switch k {
	case Containerd:
		return true
	case Docker:
		return registry == dockerHub
	}
	return registry != Any && !hasPort(registry)
}

// served reports whether the first mirror of a registry is this node's.
func served(t registryTable, o Options, registry string) bool {
	return len(t.Mirrors) > 0 && t.Mirrors[0].Location == o.address()+"/"+registry &&
		(t.Mirrors[0].Insecure || strings.HasPrefix(o.Mirror, "https:"))
}

// table writes a registry's table with the mirror before its others.
func (o Options) table(t registryTable, registry string) string {
	var b strings.Builder
	b.WriteString("[[registry]]\n")
	str := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s = %s\n", key, quote(value))
		}
	}
	yes := func(key string, value bool) {
		if value {
			fmt.Fprintf(&b, "%s = true\n", key)
		}
	}
	str("prefix", t.Prefix)
	str("location", t.Location)
	yes("insecure", t.Insecure)
	yes("mirror-by-digest-only", t.ByDigest)
	own := mirrorTable{Location: o.address() + "/" + registry, Insecure: strings.HasPrefix(o.Mirror, "http:")}
	mirrors := slices.DeleteFunc(slices.Clone(t.Mirrors), func(m mirrorTable) bool { return m.Location == own.Location })
	for _, m := range slices.Insert(mirrors, 0, own) {
		b.WriteString("\n[[registry.mirror]]\n")
		str("location", m.Location)
		yes("insecure", m.Insecure)
		str("pull-from-mirror", m.From)
	}
	return b.String()
}
