package runtimes

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// A Kind is a runtime that can be configured.
type Kind string

// The runtimes. Podman stands for all that reads registries.conf, skopeo and
// buildah among them; CRI-O does too, and is another kind for how it is told.
const (
	Containerd Kind = "containerd"
	Docker     Kind = "docker"
	Podman     Kind = "podman"
	CRIO       Kind = "crio"
)

// Kinds are all of them.
var Kinds = []Kind{Containerd, Docker, Podman, CRIO}

// Any stands for all registries in Options.Registries.
const Any = "*"

// Options say what a runtime shall use.
type Options struct {
	// Root is the folder that paths are below. Default: /.
	Root string
	// File is the runtime's configuration file, absolute below Root.
	// Default: /etc/containerd/config.toml, /etc/docker/daemon.json, or
	// /etc/containers/registries.conf.d/zz-shoal.conf, which is written as a
	// whole.
	File string
	// Mirror is the URL of the mirror, http or https, without a path.
	Mirror string
	// CAFile is the absolute path of the certificates that a mirror over https
	// is checked with, and CA what is in it. containerd reads the file, the
	// others get a copy. Default: the system's.
	CAFile string
	CA     []byte
	// Registries are the hosts that images are named with, or Any.
	Registries []string
	// Proxy is the URL of the forward proxy, which dockerd (23 and later) shall
	// use, and ProxyCA the certificates that the proxy signs with. Docker only.
	Proxy   string
	ProxyCA []byte
}

// ErrRefused is wrapped by errors about files that must not be edited by a
// program. The text says what to do by hand.
var ErrRefused = errors.New("not edited")

// ErrEdited is wrapped by the error of an undo that would lose edits.
var ErrEdited = errors.New("edited since")

// host is what registries are called: a DNS name, or an IPv4 address, with or
// without a port. It becomes part of paths.
var host = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$`)

// complete returns o with its defaults, or what is wrong with it.
func (o Options) complete(k Kind) (Options, error) {
	if !slices.Contains(Kinds, k) {
		return o, fmt.Errorf("%q is no runtime that can be configured; write containerd, docker, podman or crio", k)
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.File == "" {
		o.File = map[Kind]string{
			Containerd: "/etc/containerd/config.toml", Docker: "/etc/docker/daemon.json",
		}[k]
		if o.File == "" {
			o.File = "/etc/containers/registries.conf.d/zz-shoal.conf"
		}
	}
	if !path.IsAbs(o.File) || path.Clean(o.File) != o.File {
		return o, fmt.Errorf("%q is not the absolute path of a file", o.File)
	}
	return o, nil
}

// validate checks what New and Check need beside.
func (o Options) validate(k Kind) error {
	if err := bareURL("mirror", o.Mirror, "http", "https"); err != nil {
		return err
	}
	if o.CAFile != "" && !path.IsAbs(o.CAFile) {
		return fmt.Errorf("the CA file %q is not an absolute path", o.CAFile)
	}
	if len(o.Registries) == 0 {
		return errors.New("no registry is named: say which ones the mirror is for")
	}
	for _, r := range o.Registries {
		if r != Any && !host.MatchString(r) {
			return fmt.Errorf("%q is not the host of a registry; write it as images are named, such as docker.io or registry.local:5000", r)
		}
	}
	if o.Proxy == "" {
		return nil
	}
	if k != Docker {
		return fmt.Errorf("%s takes no proxy from its configuration, and needs none: it uses the mirror for every registry", k)
	}
	return bareURL("proxy", o.Proxy, "http", "https")
}

// bareURL checks a URL that has a host and nothing after it.
func bareURL(what, raw string, schemes ...string) error {
	u, err := url.Parse(raw)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("the %s %q is not a URL such as http://127.0.0.1:7050, without a path", what, raw)
	}
	return nil
}

// address is the mirror without its scheme.
func (o Options) address() string {
	_, rest, _ := strings.Cut(o.Mirror, "://")
	return rest
}

// A Change is one file as it is and as it shall be.
type Change struct {
	// Path below Root, absolute.
	Path string
	// Before and After are the content; nil is no file.
	Before, After []byte
}

// A Plan is what has to change.
type Plan struct {
	Kind    Kind
	Changes []Change // sorted by path; none if all is as it shall be
	// Restart is the command that makes the runtime see the changes, or "" if
	// it sees them by itself.
	Restart string
	// Notes are what a person should know of it.
	Notes []string

	o    Options
	undo bool
}

// edits are the files that a runtime needs, by path.
type edits struct {
	files   map[string][]byte
	restart string
	notes   []string
}

// set sets a file, if it is another one.
func (e *edits) set(v view, file string, content []byte) error {
	old, ok, err := v.read(file)
	if err != nil {
		return err
	}
	if !ok || string(old) != string(content) {
		if e.files == nil {
			e.files = make(map[string][]byte)
		}
		e.files[file] = content
	}
	return nil
}

func (e *edits) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(e.notes, n) {
		e.notes = append(e.notes, n)
	}
}

// New plans what makes a runtime use the mirror. It changes nothing.
func New(k Kind, o Options) (*Plan, error) {
	o, err := o.complete(k)
	if err == nil {
		err = o.validate(k)
	}
	if err != nil {
		return nil, err
	}
	t, err := openTree(k, o)
	if err != nil {
		return nil, err
	}
	defer t.close()
	var e edits
	v := t.original()
	switch k {
	case Containerd:
		e, err = planContainerd(v, o)
	case Docker:
		e, err = planDocker(v, o)
	default:
		e, err = planContainers(v, o)
	}
	if err != nil {
		return nil, fmt.Errorf("configure %s: %w", k, err)
	}
	p := &Plan{Kind: k, Notes: e.notes, o: o}
	if err := t.compare(p, e); err != nil {
		return nil, fmt.Errorf("configure %s: %w", k, err)
	}
	if len(p.Changes) > 0 {
		p.Restart = e.restart
		if e.restart == "" {
			p.Restart = t.restartOf(k, p.Changes)
		}
	}
	return p, nil
}

// restarts are the commands for the files that need one.
const (
	restartContainerd = "systemctl restart containerd"
	reloadDocker      = "systemctl reload docker"
	restartDocker     = "systemctl restart docker"
	reloadCRIO        = "systemctl reload crio"
)

// restartOf returns the command for changes of files.
func (t *tree) restartOf(k Kind, changes []Change) string {
	for _, c := range changes {
		switch {
		case k == Containerd && c.Path == t.o.File:
			return restartContainerd
		case k == Docker && c.Path == t.o.File:
			if proxiesDiffer(c.Before, c.After) {
				return restartDocker
			}
			return reloadDocker
		case k == CRIO:
			return reloadCRIO
		}
	}
	return ""
}
