package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/alecthomas/kong"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/structs"
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
	if err := k.Load(structs.Provider(c, tag), nil); err != nil {
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

// usageError marks a mistake of the person in the command line or the
// configuration; see the exit codes.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
