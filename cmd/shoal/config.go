package main

import (
	"context"
	_ "embed"
	"encoding"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// example is a commented configuration of a server, with every key.
//
//go:embed example.yaml
var example string

const settingsHelp = "Every key of the configuration file is also a flag and an environment variable: mirror.listen is --mirror.listen and SHOAL_MIRROR_LISTEN. Flags win over the environment, it wins over the file. `shoal config --example` prints a commented file, `shoal config` what is in effect."

type configCmd struct {
	Role    string `enum:"daemon,scheduler" default:"daemon" help:"command that the configuration is for: daemon or scheduler"`
	Check   bool   `help:"print nothing but mistakes, all of them, and fail if there are any"`
	Example bool   `help:"print a commented file for a server, with every key"`
	settings
}

// Help is kong's longer text.
func (configCmd) Help() string { return settingsHelp }

// Run prints or checks the effective configuration.
func (c *configCmd) Run() error {
	if c.Example {
		_, err := fmt.Fprint(os.Stdout, example)
		return err
	}
	role := proto.RoleDaemon
	if c.Role == "scheduler" {
		role = proto.RoleScheduler
	}
	cfg, err := c.load(context.Background(), role)
	if err != nil {
		return err
	}
	if c.Check {
		what := "the configuration"
		if c.File != "" {
			what = c.File
		}
		fmt.Fprintf(os.Stderr, "shoal: %s is right\n", what)
		return nil
	}
	enc := yaml.NewEncoder(os.Stdout)
	enc.SetIndent(2)
	if err := enc.Encode(toYAML(reflect.ValueOf(redacted(cfg)))); err != nil {
		return err
	}
	return enc.Close()
}

// redacted returns c without anything secret. Secrets are in files and only
// the files' names are here; a URL with a password in it has been refused, and
// is cut all the same.
func redacted(c daemon.Config) daemon.Config {
	ups := make(map[string]daemon.Upstream, len(c.Upstreams))
	for name, u := range c.Upstreams {
		u.URL = redactURL(u.URL)
		u.URLs = slices.Clone(u.URLs)
		for i := range u.URLs {
			u.URLs[i] = redactURL(u.URLs[i])
		}
		ups[name] = u
	}
	c.Upstreams = ups
	return c
}

func redactURL(raw string) string {
	v, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return v.Redacted()
}

// toYAML returns v with its keys in the order of the struct, which is the
// order of the documentation.
func toYAML(v reflect.Value) *yaml.Node { return node(v, false) }

// node is toYAML. What stands in a list or under a name of its own, such as an
// upstream, is sparse: its empty keys are left out.
func node(v reflect.Value, sparse bool) *yaml.Node {
	switch {
	case isText(v.Type()):
		text, _ := v.Interface().(encoding.TextMarshaler).MarshalText() // of a value that has been read from a text
		return scalar(string(text))
	case v.Type() == reflect.TypeFor[time.Duration]():
		return scalar(v.Interface().(time.Duration).String())
	case v.Kind() == reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for name, f := range fields(v.Type()) {
			if fv := v.FieldByIndex(f.Index); !sparse || !isEmpty(fv) {
				n.Content = append(n.Content, scalar(name), node(fv, sparse))
			}
		}
		return n
	case v.Kind() == reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int {
			return compareNames(a.String(), b.String())
		})
		for _, name := range names {
			n.Content = append(n.Content, scalar(name.String()), node(v.MapIndex(name), true))
		}
		return n
	case isNested(v.Type()):
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, node(v.Index(i), true))
		}
		return n
	}
	n := &yaml.Node{}
	// Only strings, numbers, booleans and lists of strings are left, which encode.
	_ = n.Encode(v.Interface())
	return n
}

func isEmpty(v reflect.Value) bool {
	if v.Kind() == reflect.Map || v.Kind() == reflect.Slice {
		return v.Len() == 0
	}
	return v.IsZero()
}

// scalar returns a string as a node, quoted where YAML needs it.
func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// compareNames sorts upstreams by name with "*" last, as it is applied.
func compareNames(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "*":
		return 1
	case b == "*" || a < b:
		return -1
	}
	return 1
}
