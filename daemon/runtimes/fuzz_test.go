package runtimes

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// FuzzSetString: an edit of any TOML either sets the key and nothing else, or is
// refused.
func FuzzSetString(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("version = 2\n[plugins]\n  [plugins.\"a.b\"]\n    [plugins.\"a.b\".registry]\n      config_path = ''\n"))
	f.Add([]byte("plugins.\"a.b\".registry.config_path = \"\"\"\nx\"\"\" # c"))
	f.Add([]byte("plugins = {\"a.b\" = {registry = {config_path = 'x'}}}"))
	f.Add([]byte("[[plugins]]\n[plugins.\"a.b\"]\n"))
	f.Add([]byte("[plugins.'a.b'.registry]\r\n\tz = 1\r\n"))
	at := []string{"plugins", "a.b", "registry", "config_path"}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := setString(src, at, `/etc/"x"`)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Error(err)
			}
			return
		}
		m, err := parseTOML(out)
		if err != nil || lookup(m, at...) != `/etc/"x"` {
			t.Errorf("%q became %q: %v", src, out, err)
		}
		again, err := setString(out, at, `/etc/"x"`)
		if err != nil || string(again) != string(out) {
			t.Errorf("%q became %q the second time: %v", out, again, err)
		}
	})
}

// FuzzHosts: the mirror becomes the first host of any hosts.toml, or is refused,
// and is taken out again.
func FuzzHosts(f *testing.F) {
	f.Add([]byte("server = \"https://a.example\"\n\n# c\n[host.\"https://b.example\"]\n  ca = 'x'\n"))
	f.Add([]byte("[host]\n[host.a]\n[host.a.header]\nb = 'c'"))
	f.Add([]byte("host.a.capabilities = ['pull']\n"))
	f.Add([]byte("[[host.a]]\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		o := Options{Mirror: mirror}
		out, note, err := withHost(src, o)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Error(err)
			}
			return
		}
		if first, err := firstHost(out); note == "" && (err != nil || first != mirror) {
			t.Errorf("%q became %q, where %q is first: %v", src, out, first, err)
		}
		was, err := parseTOML(src)
		if err != nil || asTable(was["host"])[mirror] != nil {
			return
		}
		gone, err := parseTOML(withoutTable(out, "host", mirror))
		if was["host"] == nil {
			delete(gone, "host")
		}
		if err != nil || !reflect.DeepEqual(gone, was) {
			t.Errorf("%q became %q and that %v: %v", src, out, gone, err)
		}
	})
}

// FuzzSetMember: an edit of any JSON object either sets the key and nothing
// else, or is refused.
func FuzzSetMember(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("{}"))
	f.Add([]byte(`{"a": [1, {"k": "}"}], "k": "x\","}`))
	f.Add([]byte("{\n\t\"a,{\": true }\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := setChecked("f", src, "k", `["v"]`, []any{"v"})
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Error(err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal(out, &m); err != nil || !reflect.DeepEqual(m["k"], []any{"v"}) {
			t.Errorf("%q became %q: %v", src, out, err)
		}
		withoutMirror("daemon.json", src, "v")
	})
}
