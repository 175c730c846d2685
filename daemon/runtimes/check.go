package runtimes

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Report says whether a runtime uses the mirror.
type Report struct {
	Kind Kind
	// File is the configuration that was looked at.
	File string
	// Served are the registries that the runtime asks the mirror for first, and
	// Missed those that it does not, each with the reason.
	Served []string
	Missed []Missed
}

// Missed is a registry that the mirror is not used for.
type Missed struct{ Registry, Why string }

// Check reads a runtime's configuration and says for which of the registries of
// o it asks the mirror first, whoever wrote it. What a runtime that has not been
// restarted since knows of it cannot be seen in its files.
func Check(k Kind, o Options) (Report, error) {
	o, err := o.complete(k)
	if err == nil {
		err = o.validate(k)
	}
	if err != nil {
		return Report{}, err
	}
	t, err := openTree(k, o)
	if err != nil {
		return Report{}, err
	}
	defer t.close()
	r := Report{Kind: k, File: t.shown(o.File)}
	var why func(registry string) (string, error)
	switch k {
	case Containerd:
		why, err = checkContainerd(t.disk(), o)
	case Docker:
		why, err = checkDocker(t.disk(), o)
	default:
		why, err = checkContainers(t.disk(), o)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", k, err)
	}
	for _, registry := range o.Registries {
		switch reason, err := why(registry); {
		case err != nil:
			return r, fmt.Errorf("%s: %w", k, err)
		case reason == "":
			r.Served = append(r.Served, registry)
		default:
			r.Missed = append(r.Missed, Missed{registry, reason})
		}
	}
	return r, nil
}

func checkContainerd(v view, o Options) (func(string) (string, error), error) {
	c, err := readContainerd(v, o)
	if err != nil {
		return nil, err
	}
	dirs := c.hostDirs()
	return func(registry string) (string, error) {
		if len(dirs) == 0 {
			return o.File + " sets no config_path", nil
		}
		dir, _, err := hostsOf(v, dirs, registry)
		if err != nil {
			return "", err
		}
		if dir == "" {
			return "there is no folder for it in " + strings.Join(dirs, ", "), nil
		}
		file := path.Join(dir, "hosts.toml")
		src, _, err := v.read(file)
		if err != nil {
			return "", err
		}
		m, err := parseTOML(src)
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		first, err := firstHost(src)
		switch {
		case err != nil:
			return "", err
		case strings.TrimSuffix(first, "/") != o.Mirror:
			return file + " does not name the mirror first", nil
		case !pulls(asTable(lookup(m, "host", first))):
			return file + " names the mirror without the capabilities pull and resolve", nil
		}
		return "", nil
	}, nil
}

func checkDocker(v view, o Options) (func(string) (string, error), error) {
	c, err := readDocker(v, o)
	if err != nil {
		return nil, err
	}
	proxied := o.Proxy != "" && c.proxies["https-proxy"] == o.Proxy
	mirrored := len(c.mirrors) > 0 && strings.TrimSuffix(c.mirrors[0], "/") == o.Mirror
	return func(registry string) (string, error) {
		switch {
		case proxied, registry == dockerHub && mirrored:
			return "", nil
		case registry == dockerHub:
			return o.File + " does not name the mirror first in registry-mirrors", nil
		}
		return "dockerd uses mirrors for docker.io only, and not the node's proxy", nil
	}, nil
}

func checkContainers(v view, o Options) (func(string) (string, error), error) {
	c, err := readContainers(v, o)
	if err != nil {
		return nil, err
	}
	src, _, err := v.read(o.File)
	if err != nil {
		return nil, err
	}
	own, err := parseRegistries(src)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	return func(registry string) (string, error) {
		if registry == Any || hasPort(registry) {
			return unnamed(registry), nil
		}
		t, known := c.tables[registry]
		i := slices.IndexFunc(own, func(t registryTable) bool { return t.prefix() == registry })
		if i >= 0 && c.later[registry] == "" {
			t, known = own[i], true
		}
		switch {
		case !known:
			return "registries.conf and its drop-ins have no table for it", nil
		case t.Blocked:
			return "it is blocked in " + t.file, nil
		case !served(t, o, registry):
			return "its table does not name the mirror " + o.address() + "/" + registry + " first", nil
		}
		return "", nil
	}, nil
}

// Refused reports whether err is about a file that must not be edited by a
// program.
func Refused(err error) bool { return errors.Is(err, ErrRefused) }
