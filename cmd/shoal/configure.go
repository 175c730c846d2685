package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/runtimes"
	"github.com/shoal-project/shoal/proto"
)

// runtimeFlags say what a runtime shall use, and where its files are.
type runtimeFlags struct {
	Config     string   `short:"c" env:"SHOAL_CONFIG" placeholder:"FILE" help:"configuration file of the node, which says where its mirror is and which registries it serves"`
	Registries []string `placeholder:"HOST" help:"registries to use the mirror for, such as docker.io,ghcr.io (default: the node's upstreams)"`
	Mirror     string   `placeholder:"URL" help:"address of the mirror, such as http://127.0.0.1:7050 (default: that of the node's configuration)"`
	MirrorCA   string   `name:"mirror-ca" placeholder:"FILE" help:"PEM file of the CA that signed the certificate of a mirror over https (default: the system's)"`
	Root       string   `default:"/" placeholder:"DIR" help:"folder that the runtime's files are below, such as that of an image being built (default: ${default})"`
}

type configureCmd struct {
	Runtime string `arg:"" enum:"containerd,docker,podman,crio" help:"containerd, docker, podman (with skopeo and buildah) or crio"`
	runtimeFlags
	File   string `placeholder:"FILE" help:"the runtime's configuration file, if it is elsewhere: config.toml, daemon.json, or a drop-in of registries.conf.d"`
	Proxy  bool   `help:"have dockerd 23 or later use the node's forward proxy, the only way for other registries than docker.io"`
	DryRun bool   `help:"print what would change, as a diff, and change nothing"`
	Undo   bool   `help:"put back what was there before"`
	Force  bool   `help:"with --undo: lose what was edited since"`
}

// Help is kong's longer text.
func (configureCmd) Help() string {
	return "Writes into the runtime's configuration that images of the given registries are asked for at the node's mirror first. What is there is kept, to the byte, and beside each file that is changed what it was before. What would be lost or cannot be edited is refused, with what to write by hand. Nothing is restarted: the command says what needs to be."
}

// Run configures a runtime or undoes that.
func (c *configureCmd) Run() error {
	if c.Force && !c.Undo {
		return usageError{errors.New("--force goes with --undo")}
	}
	k := runtimes.Kind(c.Runtime)
	o := runtimes.Options{Root: c.Root, File: c.File}
	var p *runtimes.Plan
	var err error
	if c.Undo {
		p, err = runtimes.Undo(k, o, c.Force)
	} else if o, err = c.options(); err == nil {
		p, err = runtimes.New(k, o)
	}
	if err != nil {
		return err
	}
	if c.DryRun {
		fmt.Print(p.Diff())
		return c.tell(os.Stderr, p)
	}
	if err := p.Apply(); err != nil {
		return err
	}
	return c.tell(os.Stdout, p)
}

// tell says what was done, or would be, and what is left to do.
func (c *configureCmd) tell(w io.Writer, p *runtimes.Plan) error {
	would := ""
	if c.DryRun {
		would = "would be "
	}
	for _, f := range p.Changes {
		what := "changed"
		switch {
		case f.Before == nil:
			what = "written"
		case f.After == nil:
			what = "removed"
		}
		fmt.Fprintf(w, "%s%s: %s\n", would, what, filepath.Join(c.Root, f.Path))
	}
	switch {
	case len(p.Changes) > 0:
	case c.Undo:
		fmt.Fprintf(w, "%s: there is nothing to undo\n", c.Runtime)
	default:
		fmt.Fprintf(w, "%s is configured already\n", c.Runtime)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if p.Restart != "" {
		fmt.Fprintf(w, "to do: %s\n", p.Restart)
	}
	return nil
}

// options returns what the runtime shall use: what the flags say, and for the
// rest what the node's configuration does.
func (c *configureCmd) options() (runtimes.Options, error) {
	cfg, err := c.node()
	if err != nil {
		return runtimes.Options{}, err
	}
	o, err := c.of(cfg)
	o.File = c.File
	if err != nil || !c.Proxy {
		return o, err
	}
	if c.Runtime != "docker" {
		return o, usageError{fmt.Errorf("--proxy is for docker: %s uses the mirror for every registry", c.Runtime)}
	}
	if cfg.Proxy.Listen == "" {
		return o, errors.New("the node has no forward proxy: set proxy.listen in its configuration, such as to 127.0.0.1:7054")
	}
	if v, known := dockerVersion(); known && v < 23 && c.Root == "/" {
		return o, fmt.Errorf("dockerd %d does not start with proxies in daemon.json, which is for 23 and later: write Environment=HTTP_PROXY=%s HTTPS_PROXY=%[2]s into the [Service] of /etc/systemd/system/docker.service.d/proxy.conf", v, "http://"+reachable(cfg.Proxy.Listen))
	}
	o.Proxy = "http://" + reachable(cfg.Proxy.Listen)
	file := cfg.Proxy.CA
	if file == "" {
		file = filepath.Join(cfg.Data, "ca.crt")
	}
	if o.ProxyCA, err = os.ReadFile(file); err != nil {
		err = fmt.Errorf("the proxy's CA, which dockerd must trust: %w; make it: shoal ca init", err)
	}
	return o, err
}

// node returns the configuration of the node that the runtime shall use.
func (f runtimeFlags) node() (daemon.Config, error) {
	s := newSettings()
	s.File = f.Config
	return s.load(context.Background(), proto.RoleDaemon)
}

// of returns what the flags say, and for the rest what cfg does.
func (f runtimeFlags) of(cfg daemon.Config) (runtimes.Options, error) {
	o := runtimes.Options{Root: f.Root, Mirror: f.Mirror, Registries: f.Registries}
	if o.Mirror == "" {
		switch l := cfg.Mirror.Listen; {
		case l == "":
			return o, errors.New("the node's configuration has no mirror: set mirror.listen")
		case strings.HasPrefix(l, "unix:"):
			return o, errors.New("no runtime can be told of a mirror on a socket: set mirror.listen to an address such as 127.0.0.1:7050")
		case cfg.Mirror.TLS.Cert != "":
			o.Mirror = "https://" + reachable(l)
		default:
			o.Mirror = "http://" + reachable(l)
		}
	}
	if len(o.Registries) == 0 {
		for name := range cfg.Upstreams {
			o.Registries = append(o.Registries, name)
		}
		slices.SortFunc(o.Registries, compareNames)
	}
	if f.MirrorCA == "" {
		return o, nil
	}
	var err error
	if o.CAFile, err = filepath.Abs(f.MirrorCA); err == nil {
		o.CA, err = os.ReadFile(o.CAFile)
	}
	return o, err
}

// reachable returns the address at which this machine reaches a listener.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// dockerVersion returns the first number of dockerd's version, if there is a
// dockerd in the PATH.
func dockerVersion() (int, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "dockerd", "--version").Output()
	m := regexp.MustCompile(`version ([0-9]+)\.`).FindSubmatch(out)
	if err != nil || m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(string(m[1]))
	return n, err == nil
}
