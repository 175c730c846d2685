package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-project/shoal/daemon"
)

// fromFile returns what a configuration file sets, nested as it stands there,
// and all mistakes in it, each with the file's name and the line.
func fromFile(name string, data []byte) (map[string]any, []error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return map[string]any{}, nil
	case err != nil:
		hint := ""
		if bytes.Contains(data, []byte("\n  *:")) {
			hint = `; write "*" in quotes`
		}
		return nil, []error{fmt.Errorf("%s: %w%s", name, err, hint)}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, []error{fmt.Errorf("%s: has more than one YAML document; keep the first", name)}
	}
	d := decoder{where: name}
	root := doc.Content[0]
	if isNull(root) {
		return map[string]any{}, nil
	}
	v, ok := d.value(root, reflect.TypeFor[daemon.Config](), nil).(map[string]any)
	if !ok {
		v = map[string]any{}
	}
	return v, d.errs
}

// A decoder turns YAML nodes into what koanf merges, checking every key and
// value against the Go type that it is for.
type decoder struct {
	where string // the file's name, or "" for a flag or a variable
	errs  []error
}

func (d *decoder) add(n *yaml.Node, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if d.where != "" {
		err = fmt.Errorf("%s:%d: %w", d.where, n.Line, err)
	}
	d.errs = append(d.errs, err)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// value returns n as a value of t. It is nil after a mistake.
func (d *decoder) value(n *yaml.Node, t reflect.Type, path []string) any {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case isGroup(t) || t.Kind() == reflect.Map:
		return d.mapping(n, t, path)
	case isNested(t):
		return d.mappings(n, t.Elem(), path)
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		return d.list(n, path)
	}
	if n.Kind != yaml.ScalarNode {
		d.add(n, "%s is %s; write a single value", strings.Join(path, "."), kindName(n))
		return nil
	}
	v, err := parse(n.Value, t, path)
	if err != nil {
		d.add(n, "%s: %w", strings.Join(path, "."), err)
		return nil
	}
	return v
}

func (d *decoder) list(n *yaml.Node, path []string) any {
	list := []string{}
	for _, item := range n.Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if item.Kind != yaml.ScalarNode || isNull(item) {
			d.add(item, "%s has %s in its list; write single values", strings.Join(path, "."), kindName(item))
			continue
		}
		list = append(list, item.Value)
	}
	return list
}

// mappings returns n as a list of nested maps, each for a struct t.
func (d *decoder) mappings(n *yaml.Node, t reflect.Type, path []string) any {
	list := []any{}
	if n.Kind != yaml.SequenceNode {
		d.add(n, "%s is %s; write a list, such as [{key: value}]", strings.Join(path, "."), kindName(n))
		return nil
	}
	for _, item := range n.Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if isNull(item) {
			d.add(item, "%s has an entry with nothing in it; write keys and values, such as {key: value}", strings.Join(path, "."))
			continue
		}
		if item.Kind != yaml.MappingNode {
			d.add(item, "%s has %s in its list; write keys and values, such as {key: value}", strings.Join(path, "."), kindName(item))
			continue
		}
		if m := d.mapping(item, t, path); m != nil {
			list = append(list, m)
		}
	}
	return list
}

// mapping returns n as nested maps: a struct's known keys, or a map's own.
func (d *decoder) mapping(n *yaml.Node, t reflect.Type, path []string) any {
	out := map[string]any{}
	seen := map[string]bool{}
	if isNull(n) {
		return out // "docker.io:" with nothing after it
	}
	if n.Kind != yaml.MappingNode {
		what := strings.Join(path, ".")
		if what == "" {
			what = "the configuration"
		}
		d.add(n, "%s is %s; write keys and values, such as {key: value}", what, kindName(n))
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := append(path[:len(path):len(path)], k.Value)
		elem, ok := element(t, k.Value)
		if !ok {
			d.unknown(k, t, path)
			continue
		}
		if seen[k.Value] {
			d.add(k, "%s is there twice; keep one", strings.Join(p, "."))
			continue
		}
		seen[k.Value] = true
		if isNull(v) && !isGroup(elem) {
			continue // "zone:" with nothing after it is left at its default
		}
		if val := d.value(v, elem, p); val != nil {
			out[k.Value] = val
		}
	}
	return out
}

// element returns the type of what stands under key in a struct or a map.
func element(t reflect.Type, key string) (reflect.Type, bool) {
	if t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	for name, f := range fields(t) {
		if name == key {
			return f.Type, true
		}
	}
	return nil, false
}

// unknown reports a key that is not one, found in a mapping for t at path, with
// the nearest that is.
func (d *decoder) unknown(n *yaml.Node, t reflect.Type, path []string) {
	known := names(reflect.TypeFor[daemon.Config](), nil)
	for _, k := range names(t, path) {
		if !slices.Contains(known, k) {
			known = append(known, k)
		}
	}
	if len(path) == 0 && slices.Contains(known, n.Value) {
		group, rest, _ := strings.Cut(n.Value, ".")
		d.add(n, "%s is nested in the file; write %s: {%s: …}", n.Value, group, rest)
		return
	}
	full := strings.Join(append(path[:len(path):len(path)], n.Value), ".")
	d.add(n, "%s is not a key; %s", full, suggest(full, known))
}

// names returns all keys and groups of the struct t that stands at path.
func names(t reflect.Type, path []string) []string {
	var out []string
	for name, f := range fields(t) {
		p := append(path[:len(path):len(path)], name)
		out = append(out, strings.Join(p, "."))
		if isGroup(f.Type) {
			out = append(out, names(f.Type, p)...)
		}
	}
	return out
}

func kindName(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "empty"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}
