package main

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"

	"github.com/alecthomas/kong"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// configEnv names the configuration file, as --config does.
const configEnv = "SHOAL_CONFIG"

// settings are the flags of every command that has a configuration: the file
// and a flag for each key.
type settings struct {
	File string `name:"config" short:"c" env:"SHOAL_CONFIG" placeholder:"FILE" help:"configuration file (YAML)"`
	kong.Plugins

	keys  []key
	flags any
}

func newSettings() settings {
	ks := keys()
	flags := flagStruct(ks)
	return settings{Plugins: kong.Plugins{flags}, keys: ks, flags: flags}
}

// load returns the effective configuration of a process with the given role:
// defaults, overridden by the file, by the environment, by flags. Mistakes in
// what was written come back all at once; if there are none, all that the
// values get wrong together.
func (s settings) load(ctx context.Context, role proto.Role) (daemon.Config, error) {
	var layers []map[string]any
	var errs []error
	add := func(layer map[string]any, mistakes []error) {
		layers = append(layers, layer)
		errs = append(errs, mistakes...)
	}
	if s.File != "" {
		data, err := os.ReadFile(s.File)
		if err != nil {
			return daemon.Config{}, usageError{fmt.Errorf("configuration: %w", err)}
		}
		add(fromFile(s.File, data))
	}
	add(fromEnv(os.Environ(), s.keys))
	add(fromFlags(s.flags, s.keys))
	if len(errs) > 0 {
		return daemon.Config{}, usageError{errors.Join(errs...)}
	}
	cfg, err := merge(defaults(role), layers)
	if err != nil {
		return daemon.Config{}, usageError{err}
	}
	cfg, err = cfg.Resolve(ctx)
	if err = errors.Join(err, cfg.Validate()); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

// defaults returns what the layers are laid over. What daemon.Config.Resolve
// derives from the other keys is left out, so that it sees them first.
func defaults(role proto.Role) daemon.Config {
	if role == proto.RoleScheduler {
		return daemon.DefaultScheduler()
	}
	c := daemon.Default()
	c.Peer.Listen, c.Gossip.Listen = "", ""
	return c
}

// merge lays the layers over c, later ones over earlier. Lists and upstreams
// are replaced as a whole: what a layer leaves out is meant to be out.
func merge(c daemon.Config, layers []map[string]any) (daemon.Config, error) {
	k := koanf.New("/")
	if err := k.Load(confmap.Provider(toMap(reflect.ValueOf(c)), ""), nil); err != nil {
		return c, err
	}
	for _, layer := range layers {
		layer = maps.Clone(layer)
		if _, ok := layer["upstreams"]; ok {
			k.Delete("upstreams")
		}
		if err := k.Load(confmap.Provider(layer, ""), nil); err != nil {
			return c, err
		}
	}
	out := daemon.Config{Role: c.Role}
	err := k.UnmarshalWithConf("", &out, koanf.UnmarshalConf{Tag: tag})
	return out, err
}

// toMap returns the keys of the struct v, nested as in the file. Values are as
// parse has them.
func toMap(v reflect.Value) map[string]any {
	out := map[string]any{}
	for name, f := range fields(v.Type()) {
		out[name] = plainValue(v.FieldByIndex(f.Index))
	}
	return out
}

func plainValue(v reflect.Value) any {
	switch {
	case isText(v.Type()):
		text, _ := v.Interface().(encoding.TextMarshaler).MarshalText() // a default, which is valid
		return string(text)
	case v.Kind() == reflect.Struct:
		return toMap(v)
	case v.Kind() == reflect.Map:
		out := map[string]any{}
		for _, name := range v.MapKeys() {
			out[name.String()] = plainValue(v.MapIndex(name))
		}
		return out
	case isNested(v.Type()):
		out := []any{}
		for i := range v.Len() {
			out = append(out, toMap(v.Index(i)))
		}
		return out
	}
	return v.Interface()
}

// usageError marks a mistake of the person in the command line or the
// configuration; see the exit codes.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
