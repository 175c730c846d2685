package main

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-project/shoal/daemon"
)

// tag is the struct tag with the name of a key, as koanf calls it.
const tag = "koanf"

// A key is one setting: a field of daemon.Config that is not itself a group of
// settings.
type key struct {
	path []string // as nested in the file
	typ  reflect.Type
	help string
}

// name is the key for people and as a flag: mirror.listen.
func (k key) name() string { return strings.Join(k.path, ".") }

// env is the key's environment variable: SHOAL_MIRROR_LISTEN.
func (k key) env() string { return "SHOAL_" + strings.ToUpper(strings.Join(k.path, "_")) }

// keys returns all settings in the order of the struct.
func keys() []key { return keysOf(reflect.TypeFor[daemon.Config](), nil) }

func keysOf(t reflect.Type, path []string) []key {
	var out []key
	for name, f := range fields(t) {
		p := append(path[:len(path):len(path)], name)
		if isGroup(f.Type) {
			out = append(out, keysOf(f.Type, p)...)
			continue
		}
		out = append(out, key{path: p, typ: f.Type, help: f.Tag.Get("help")})
	}
	return out
}

// isGroup reports whether t is a group of keys, not a value: a struct that does
// not read itself from a text.
func isGroup(t reflect.Type) bool { return t.Kind() == reflect.Struct && !isText(t) }

// isText reports whether a value of t reads itself from a text.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isNested reports whether a value of t has keys inside, so that in a flag or a
// variable it is written in YAML: a mapping, or a list of mappings.
func isNested(t reflect.Type) bool {
	return t.Kind() == reflect.Map || t.Kind() == reflect.Slice && isGroup(t.Elem())
}

// fields yields the fields of a struct that are keys or groups, by their names
// in the file.
func fields(t reflect.Type) func(yield func(string, reflect.StructField) bool) {
	return func(yield func(string, reflect.StructField) bool) {
		for i := range t.NumField() {
			name, ok := t.Field(i).Tag.Lookup(tag)
			if ok && name != "-" && !yield(name, t.Field(i)) {
				return
			}
		}
	}
}

// parse turns the text of a flag, a variable or a scalar of the file into what
// koanf makes a value of t from: a string, bool or time.Duration, the text of
// what reads itself from one, a comma-separated list, or what isNested in YAML.
func parse(text string, t reflect.Type, path []string) (any, error) {
	switch {
	case isText(t):
		// koanf copies what it is given, without the unexported fields of
		// structs. A text survives that.
		return text, reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	case t == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a duration; write a number with its unit, such as 20s or 2m", text)
		}
		return d, nil
	case t.Kind() == reflect.String:
		return text, nil
	case t.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return b, nil
	case t.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return n, nil
	case isNested(t):
		return parseNested(text, t, path)
	case t.Kind() == reflect.Slice:
		list := []string{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		return list, nil
	}
	panic("shoal: a key of a type that parse does not know: " + t.String())
}

// parseNested parses what stands in a flag or a variable for a value of t that
// isNested.
func parseNested(text string, t reflect.Type, path []string) (any, error) {
	what, empty := "a mapping", any(map[string]any{})
	if t.Kind() == reflect.Slice {
		what, empty = "a list", []any{}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("not %s in YAML: %w", what, err)
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return empty, nil
	}
	d := decoder{}
	return d.value(doc.Content[0], t, path), errors.Join(d.errs...)
}

// kubelet matches what the kubelet sets in each container for a Service called
// shoal or shoal-something, and for each of its ports.
var kubelet = regexp.MustCompile(`^SHOAL_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// fromEnv returns what the environment sets, nested as in the file, and the
// mistakes in it. An empty variable counts as set, to "".
func fromEnv(environ []string, ks []key) (map[string]any, []error) {
	byEnv := make(map[string]key, len(ks))
	known := []string{configEnv}
	for _, k := range ks {
		byEnv[k.env()] = k
		known = append(known, k.env())
	}
	out := map[string]any{}
	var errs []error
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "SHOAL_") || name == configEnv || slices.Contains(clientEnv, name) {
			continue
		}
		k, ok := byEnv[name]
		if !ok {
			if !kubelet.MatchString(name) {
				errs = append(errs, fmt.Errorf("the environment variable %s is not a setting; %s", name, suggest(name, known)))
			}
			continue
		}
		v, err := parse(text, k.typ, k.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		set(out, k.path, v)
	}
	return out, errs
}

// flagStruct returns a pointer to a struct for kong with a flag for each key.
func flagStruct(ks []key) any {
	var fs []reflect.StructField
	for i, k := range ks {
		t := reflect.TypeFor[*string]()
		extra := fmt.Sprintf(` placeholder:%q`, placeholder(k.typ))
		if k.typ.Kind() == reflect.Bool {
			t, extra = reflect.TypeFor[*bool](), ` negatable:""`
		}
		fs = append(fs, reflect.StructField{
			Name: "Key" + strconv.Itoa(i),
			Type: t,
			Tag:  reflect.StructTag(fmt.Sprintf(`name:%q help:%q`, k.name(), k.help) + extra),
		})
	}
	return reflect.New(reflect.StructOf(fs)).Interface()
}

func placeholder(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "DURATION"
	case t.Kind() == reflect.Float64:
		return "RATE"
	case t.Kind() == reflect.Int:
		return "N"
	case isNested(t):
		return "YAML"
	case t.Kind() == reflect.Slice:
		return "A,B,…"
	}
	return "TEXT"
}

// fromFlags returns what a struct of flagStruct was given, nested as in the
// file, and the mistakes in it.
func fromFlags(flags any, ks []key) (map[string]any, []error) {
	out := map[string]any{}
	var errs []error
	for i, k := range ks {
		f := reflect.ValueOf(flags).Elem().Field(i)
		if f.IsNil() {
			continue
		}
		if b, ok := f.Interface().(*bool); ok {
			set(out, k.path, *b)
			continue
		}
		v, err := parse(f.Elem().String(), k.typ, k.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", k.name(), err))
			continue
		}
		set(out, k.path, v)
	}
	return out, errs
}

// set puts v at path in nested maps.
func set(m map[string]any, path []string, v any) {
	for _, p := range path[:len(path)-1] {
		sub, ok := m[p].(map[string]any)
		if !ok {
			sub = map[string]any{}
			m[p] = sub
		}
		m = sub
	}
	m[path[len(path)-1]] = v
}
