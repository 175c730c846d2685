package runtimes

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A statement is a table header, or a key with its value outside of inline
// tables, in a TOML document.
type statement struct {
	table bool     // a header
	path  []string // of a key with that of its table
	start int      // of the first key's name
	end   int      // of the header's last key, or of the value
	// value is where the value begins, if it is a string that text is.
	value    int
	isString bool
	text     string
}

// statements returns those of a document that is valid TOML.
func statements(src []byte) ([]statement, error) {
	var all []statement
	var table []string
	p := unstable.Parser{}
	p.Reset(src)
	for p.NextExpression() {
		n := p.Expression()
		if n.Kind != unstable.Table && n.Kind != unstable.ArrayTable && n.Kind != unstable.KeyValue {
			continue
		}
		s := statement{table: n.Kind != unstable.KeyValue, start: -1}
		for it := n.Key(); it.Next(); {
			k := it.Node()
			s.path = append(s.path, string(k.Data))
			if s.start < 0 {
				s.start = int(k.Raw.Offset)
			}
			s.end = int(k.Raw.Offset + k.Raw.Length)
		}
		if s.table {
			table = s.path
			if n.Kind == unstable.ArrayTable {
				table = append(slices.Clone(s.path), "[]") // one of a list is no one's path
			}
		} else {
			s.path = append(slices.Clone(table), s.path...)
			if v := n.Value(); v.Kind == unstable.String {
				s.value, s.isString, s.text = int(v.Raw.Offset), true, string(v.Data)
				s.end = int(v.Raw.Offset + v.Raw.Length)
			}
		}
		all = append(all, s)
	}
	return all, p.Error()
}

// lineStart returns where the line of an offset begins, lineEnd where the next
// one does.
func lineStart(src []byte, at int) int { return bytes.LastIndexByte(src[:at], '\n') + 1 }

func lineEnd(src []byte, at int) int {
	if i := bytes.IndexByte(src[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(src)
}

// insert puts text into src, on lines of its own.
func insert(src []byte, at int, text string) []byte {
	if at > 0 && src[at-1] != '\n' {
		text = "\n" + text
	}
	return slices.Concat(src[:at], []byte(text), src[at:])
}

// setString returns src with the key at path set to value, and all else as it
// was, or an error that wraps ErrRefused if that cannot be done by an edit of the
// text.
func setString(src []byte, path []string, value string) ([]byte, error) {
	before, err := parseTOML(src)
	if err != nil {
		return nil, err
	}
	all, err := statements(src)
	if err != nil {
		return nil, err
	}
	out := editString(src, all, path, value)
	want, err := setIn(before, path, value)
	if err == nil {
		var after map[string]any
		if after, err = parseTOML(out); err == nil && !reflect.DeepEqual(after, want) {
			err = fmt.Errorf("it is written in a form that this program does not edit")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be set: %w; set it to %q by hand: %w", strings.Join(path, "."), err, value, ErrRefused)
	}
	return out, nil
}

// editString does what setString promises where it can.
func editString(src []byte, all []statement, path []string, value string) []byte {
	table, key := path[:len(path)-1], path[len(path)-1]
	for _, s := range all {
		if !s.table && s.isString && slices.Equal(s.path, path) {
			return slices.Concat(src[:s.value], []byte(quote(value)), src[s.end:])
		}
	}
	for i, s := range all {
		if !s.table || !slices.Equal(s.path, table) {
			continue
		}
		indent := string(src[lineStart(src, s.start):s.start])
		indent = indent[:len(indent)-len(strings.TrimLeft(indent, " \t"))] + "  "
		if i+1 < len(all) && !all[i+1].table {
			next := all[i+1].start
			indent = string(src[lineStart(src, next):next])
		}
		return insert(src, lineEnd(src, s.end), indent+key+" = "+quote(value)+"\n")
	}
	text := "[" + dotted(table) + "]\n  " + key + " = " + quote(value) + "\n"
	if len(src) > 0 {
		text = "\n" + text
	}
	return insert(src, len(src), text)
}

// setIn returns a copy of m with the key at path set.
func setIn(m map[string]any, path []string, value any) (map[string]any, error) {
	out := make(map[string]any, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	if len(path) == 1 {
		out[path[0]] = value
		return out, nil
	}
	sub, ok := out[path[0]].(map[string]any)
	if _, there := out[path[0]]; there && !ok {
		return nil, fmt.Errorf("%s is not a table", path[0])
	}
	sub, err := setIn(sub, path[1:], value)
	out[path[0]] = sub
	return out, err
}

func parseTOML(src []byte) (map[string]any, error) {
	m := map[string]any{}
	if err := toml.Unmarshal(src, &m); err != nil {
		return nil, fmt.Errorf("not valid TOML: %w: %w", err, ErrRefused)
	}
	return m, nil
}

// lookup returns what is at a path of nested tables, or nil.
func lookup(m map[string]any, path ...string) any {
	var at any = m
	for _, p := range path {
		t, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = t[p]
	}
	return at
}

// quote writes a TOML string. What is written here has no control characters.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// dotted writes a table's name, with quotes where they are needed.
func dotted(path []string) string {
	var parts []string
	for _, p := range path {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			p = quote(p)
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, ".")
}

// withoutTable returns src without a table and the tables below it, and the
// comments right above its header if they are ours.
func withoutTable(src []byte, path ...string) []byte {
	all, err := statements(src)
	if err != nil {
		return src
	}
	for i, s := range all {
		if !s.table || !slices.Equal(s.path, path) {
			continue
		}
		from, to := lineStart(src, s.start), len(src)
		if at := bytes.LastIndex(src[:from], []byte(hostsComment)); at >= 0 && at+len(hostsComment) == from {
			from = at
		}
		for _, next := range all[i+1:] {
			if next.table && (len(next.path) < len(path) || !slices.Equal(next.path[:len(path)], path)) {
				to = aboveComments(src, next.start)
				break
			}
		}
		return slices.Concat(src[:from], src[to:])
	}
	return src
}

// aboveComments returns where the line of a header begins, or that of the
// comments that are right above it.
func aboveComments(src []byte, at int) int {
	at = lineStart(src, at)
	for at > 0 {
		above := lineStart(src, at-1)
		if !bytes.HasPrefix(bytes.TrimLeft(src[above:at], " \t"), []byte("#")) {
			break
		}
		at = above
	}
	return at
}
