package runtimes

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// hostsComment is above the table that is put into a hosts.toml.
const hostsComment = "# Written by shoal configure; shoal configure containerd --undo takes it out.\n"

// section is the table of config.toml that has config_path, by the version of
// the file. A file without one is of version 1.
func section(version int64) []string {
	switch {
	case version <= 1:
		return []string{"plugins", "cri", "registry"}
	case version == 2:
		return []string{"plugins", "io.containerd.grpc.v1.cri", "registry"}
	}
	return []string{"plugins", "io.containerd.cri.v1.images", "registry"}
}

// containerdConfig is what matters of a config.toml and what it imports.
type containerdConfig struct {
	src     []byte
	exists  bool
	version int64
	// path is the effective config_path, "" if it is not set.
	path string
	// sections are the imported files that have the CRI plugin's table, without
	// config_path: containerd 1 takes the table of the last file as a whole.
	sections []string
	old      []string // what cannot stand beside config_path
}

// hostDirs are the folders of hosts.toml files, in the order in which they are
// looked into.
func (c containerdConfig) hostDirs() []string {
	var dirs []string
	for _, d := range filepath.SplitList(c.path) {
		if path.IsAbs(d) {
			dirs = append(dirs, path.Clean(d))
		}
	}
	return dirs
}

func readContainerd(v view, o Options) (containerdConfig, error) {
	var c containerdConfig
	var err error
	if c.src, c.exists, err = v.read(o.File); err != nil {
		return c, err
	}
	m, err := parseTOML(c.src)
	if err != nil {
		return c, fmt.Errorf("%s: %w", o.File, err)
	}
	c.version = versionOf(m)
	if !c.exists {
		c.version = 2 // what all releases since 1.3 take
	}
	at := section(c.version)
	c.path, _ = lookup(m, append(at, "config_path")...).(string)
	for _, key := range []string{"mirrors", "configs"} {
		for name, value := range asTable(lookup(m, append(at, key)...)) {
			if t := asTable(value); key == "configs" && t["tls"] == nil {
				continue // credentials alone may stay
			}
			c.old = append(c.old, key+"."+name)
		}
	}
	slices.Sort(c.old)
	imports, err := importsOf(v, o.File, m)
	if err != nil {
		return c, err
	}
	for _, file := range imports {
		data, ok, err := v.read(file)
		if err != nil || !ok {
			continue // containerd's own concern
		}
		m, err := parseTOML(data)
		if err != nil {
			return c, fmt.Errorf("%s: %w", file, err)
		}
		at := section(versionOf(m))
		if p, ok := lookup(m, append(at, "config_path")...).(string); ok && p != "" {
			c.path = p
		} else if lookup(m, at[:2]...) != nil {
			c.sections = append(c.sections, file)
		}
	}
	return c, nil
}

func versionOf(m map[string]any) int64 {
	n, _ := m["version"].(int64)
	return n
}

func asTable(v any) map[string]any {
	t, _ := v.(map[string]any)
	return t
}

// importsOf returns the files that a config.toml imports.
func importsOf(v view, file string, m map[string]any) ([]string, error) {
	list, _ := m["imports"].([]any)
	var files []string
	for _, i := range list {
		pattern, _ := i.(string)
		if pattern == "" {
			continue
		}
		if !path.IsAbs(pattern) {
			pattern = path.Join(path.Dir(file), pattern)
		}
		if !strings.ContainsAny(pattern, "*?[") {
			files = append(files, path.Clean(pattern))
			continue
		}
		names, err := v.list(path.Dir(pattern))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if ok, _ := path.Match(path.Base(pattern), n); ok {
				files = append(files, path.Join(path.Dir(pattern), n))
			}
		}
	}
	return files, nil
}

func planContainerd(v view, o Options) (edits, error) {
	var e edits
	c, err := readContainerd(v, o)
	if err != nil {
		return e, err
	}
	dirs := c.hostDirs()
	if len(dirs) == 0 {
		dir := path.Join(path.Dir(o.File), "certs.d")
		if dirs, err = e.setConfigPath(v, o, c, dir); err != nil {
			return e, err
		}
	}
	for _, r := range o.Registries {
		if err := e.setHosts(v, o, dirs, r); err != nil {
			return e, err
		}
	}
	return e, nil
}

// setConfigPath tells containerd of dir, and returns the folders that it looks
// into then.
func (e *edits) setConfigPath(v view, o Options, c containerdConfig, dir string) ([]string, error) {
	at := section(c.version)
	key := strings.Join(at, ".")
	if bytes.Contains(c.src, []byte("DO NOT EDIT")) {
		return nil, fmt.Errorf("%s is made by another program, which would undo it: let that one set %s.config_path to %q: %w", o.File, key, dir, ErrRefused)
	}
	if len(c.old) > 0 {
		return nil, fmt.Errorf("%s sets %s of %s, which containerd does not take beside config_path: move them to hosts.toml files in %s first: %w", o.File, strings.Join(c.old, ", "), key, dir, ErrRefused)
	}
	if len(c.sections) > 0 {
		return nil, fmt.Errorf("%s is imported and may take the place of what %s says: set registry.config_path to %q there: %w", strings.Join(c.sections, ", "), o.File, dir, ErrRefused)
	}
	list := []string{dir}
	if (c.version >= 3 || !c.exists) && path.Dir(o.File) == "/etc/containerd" {
		// containerd 2.2 and later look there unless they are told where to look.
		list = append(list, "/etc/docker/certs.d")
	}
	src := c.src
	if !c.exists {
		src = []byte("version = 2\n")
		// containerd 2.2 and later import these where there is no file.
		names, err := v.list(path.Join(path.Dir(o.File), "conf.d"))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(names, func(n string) bool { return path.Ext(n) == ".toml" }) {
			src = fmt.Appendf(src, "imports = [%s]\n", quote(path.Join(path.Dir(o.File), "conf.d", "*.toml")))
		}
	}
	out, err := setString(src, append(at, "config_path"), strings.Join(list, ":"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	return list, e.set(v, o.File, out)
}

// hostNames are the names of a registry's folder, in the order in which
// containerd looks for them.
func hostNames(registry string) []string {
	if registry == Any {
		return []string{"_default"}
	}
	if name, port, ok := strings.Cut(registry, ":"); ok {
		return []string{name + "_" + port + "_", registry}
	}
	return []string{registry}
}

// hostsOf returns the folder that containerd takes for a registry: its own or,
// if there is none, _default, or "".
func hostsOf(v view, dirs []string, registry string) (dir string, names []string, err error) {
	for _, d := range dirs {
		here, err := v.list(d)
		if err != nil {
			return "", nil, err
		}
		for _, n := range append(hostNames(registry), "_default") {
			if !slices.Contains(here, n) {
				continue
			}
			names, err := v.list(path.Join(d, n))
			return path.Join(d, n), names, err
		}
	}
	return "", nil, nil
}

// setHosts puts the mirror before the other hosts of a registry.
func (e *edits) setHosts(v view, o Options, dirs []string, registry string) error {
	dir, names, err := hostsOf(v, dirs, registry)
	if err != nil {
		return err
	}
	if dir == "" {
		names := hostNames(registry)
		dir = path.Join(dirs[0], names[len(names)-1])
	}
	file := path.Join(dir, "hosts.toml")
	src, ok, err := v.read(file)
	if err != nil {
		return err
	}
	if planned, is := e.files[file]; is {
		src = planned // _default, for another registry
	}
	if certificates := slices.ContainsFunc(names, func(n string) bool {
		return slices.Contains([]string{".crt", ".cert", ".key"}, path.Ext(n))
	}); !ok && certificates {
		return fmt.Errorf("%s has certificates, which containerd takes only as long as there is no hosts.toml: name them in one (ca, client) and run this again: %w", dir, ErrRefused)
	}
	out, note, err := withHost(src, o)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if note != "" {
		e.note("%s: %s", file, note)
	}
	return e.set(v, file, out)
}

// withHost returns a hosts.toml with the mirror as the first host.
func withHost(src []byte, o Options) (out []byte, note string, err error) {
	before, err := parseTOML(src)
	if err != nil {
		return nil, "", err
	}
	first, err := firstHost(src)
	if err != nil {
		return nil, "", err
	}
	if t := asTable(lookup(before, "host", o.Mirror)); t != nil {
		switch {
		case first != o.Mirror:
			return src, fmt.Sprintf("%s is asked before %s, as somebody wrote it", first, o.Mirror), nil
		case !pulls(t):
			return src, "the mirror is there without the capabilities pull and resolve, as somebody wrote it", nil
		}
		return src, "", nil
	}
	text := hostsComment + "[host." + quote(o.Mirror) + "]\n  capabilities = [\"pull\", \"resolve\"]\n"
	table := map[string]any{"capabilities": []any{"pull", "resolve"}}
	if o.CAFile != "" {
		text += "  ca = " + quote(o.CAFile) + "\n"
		table["ca"] = o.CAFile
	}
	all, err := statements(src)
	if err != nil {
		return nil, "", err
	}
	at := len(src)
	if i := slices.IndexFunc(all, func(s statement) bool { return s.table }); i >= 0 {
		at, text = aboveComments(src, all[i].start), text+"\n"
	} else if len(src) > 0 {
		text = "\n" + text
	}
	out = insert(src, at, text)
	want, err := setIn(before, []string{"host", o.Mirror}, table)
	after, perr := parseTOML(out)
	if err != nil || perr != nil || !reflect.DeepEqual(after, want) {
		return nil, "", fmt.Errorf("its hosts are written in a form that this program does not edit; write above them:\n%s%w", text, ErrRefused)
	}
	return out, "", nil
}

// firstHost returns the host of a hosts.toml that containerd asks first, or "".
func firstHost(src []byte) (string, error) {
	all, err := statements(src)
	for _, s := range all {
		if s.table && len(s.path) >= 2 && s.path[0] == "host" {
			return s.path[1], err
		}
	}
	return "", err
}

// pulls reports whether a host is asked for tags and content.
func pulls(host map[string]any) bool {
	list, ok := host["capabilities"].([]any)
	return !ok || slices.Contains(list, any("pull")) && slices.Contains(list, any("resolve"))
}
