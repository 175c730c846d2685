package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/proxy"
	"github.com/shoal-project/shoal/proto"
)

// caCmd are the commands for the CA of the forward proxy. They work on files:
// nobody has to run, and nothing is sent anywhere.
type caCmd struct {
	Config string `name:"config" short:"c" env:"SHOAL_CONFIG" placeholder:"FILE" help:"configuration file of the node (YAML)"`

	Init  caInitCmd  `cmd:"" help:"make the CA that the forward proxy shows to runtimes"`
	Show  caShowCmd  `cmd:"" help:"show what the CA is good for, and until when"`
	Hints caHintsCmd `cmd:"" help:"print what each runtime needs to use the proxy and to trust its CA"`
}

// load returns the configuration of the node, and where its CA is.
func (c *caCmd) load() (cfg daemon.Config, cert, key string, err error) {
	s := newSettings()
	s.File = c.Config
	if cfg, err = s.load(context.Background(), proto.RoleDaemon); err != nil {
		return cfg, "", "", err
	}
	if cert = cfg.Proxy.CA; cert == "" {
		cert = filepath.Join(cfg.Data, "ca.crt")
	}
	if key = cfg.Proxy.Key; key == "" {
		key = filepath.Join(cfg.Data, "ca.key")
	}
	return cfg, cert, key, nil
}

type caInitCmd struct {
	Hosts []string `arg:"" optional:"" name:"host" help:"what the CA may be used for: hosts, *.domains, or * for any host (default: proxy.intercept of the configuration, else all its upstreams)"`
	Force bool     `help:"replace the CA that there is: whatever trusts that has to be told of the new one"`
}

// Help is kong's longer text.
func (caInitCmd) Help() string {
	return "Writes the files that proxy.ca and proxy.key name, ca.crt and ca.key in the data folder by default. Clients that trust the CA believe it for the hosts that it was made for and for no others. Run it as the user of the daemon: the key can be read by that user alone."
}

// Run makes the CA.
func (c *caInitCmd) Run(parent *caCmd) error {
	cfg, cert, key, err := parent.load()
	if err != nil {
		return err
	}
	if len(c.Hosts) == 0 {
		c.Hosts = interceptedHosts(cfg)
	}
	if len(c.Hosts) == 0 {
		return usageError{errors.New("which hosts? the configuration has neither proxy.intercept nor upstreams: name them, such as `shoal ca init ghcr.io '*.gcr.io'`")}
	}
	ca, err := proxy.InitCA(proxy.InitOptions{CertFile: cert, KeyFile: key, Hosts: c.Hosts, Node: cfg.Name, Force: c.Force})
	if err != nil {
		return err
	}
	fmt.Printf("made %s and its key %s\n\n", cert, key)
	if err := printCA(os.Stdout, ca, cert, key); err != nil {
		return err
	}
	_, err = fmt.Println("\nnext: `shoal ca hints` says how runtimes come to trust it; a daemon that runs takes it with its next start")
	return err
}

// interceptedHosts returns the hosts that the proxy of a node intercepts.
func interceptedHosts(cfg daemon.Config) []string {
	if len(cfg.Proxy.Intercept) > 0 {
		return cfg.Proxy.Intercept
	}
	var hosts []string
	for name, u := range cfg.Upstreams {
		hosts = append(hosts, name)
		for _, address := range u.Addresses() {
			if v, err := url.Parse(address); err == nil && v.Host != "" {
				hosts = append(hosts, v.Host)
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

type caShowCmd struct{}

// Run shows the CA.
func (caShowCmd) Run(parent *caCmd) error {
	_, cert, key, err := parent.load()
	if err != nil {
		return err
	}
	ca, err := proxy.LoadCA(cert, key)
	if err != nil {
		return err
	}
	return printCA(os.Stdout, ca, cert, key)
}

func printCA(w io.Writer, ca *proxy.CA, cert, key string) error {
	hosts := "any host: whoever has the key can be any host to whoever trusts the CA"
	if only := ca.Hosts(); len(only) > 0 {
		hosts = strings.Join(only, ", ") + ", and what is below these names"
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "name\t%s\n", ca.Name())
	fmt.Fprintf(tw, "certificate\t%s\n", cert)
	fmt.Fprintf(tw, "key\t%s\n", key)
	fmt.Fprintf(tw, "sha-256\t%s\n", ca.Fingerprint())
	fmt.Fprintf(tw, "good for\t%s\n", hosts)
	fmt.Fprintf(tw, "until\t%s\n", ca.Expires().Format(time.DateOnly))
	for _, p := range ca.Problems(time.Now()) {
		fmt.Fprintf(tw, "problem\t%s\n", p)
	}
	return tw.Flush()
}

type caHintsCmd struct{}

// Run prints the hints.
func (caHintsCmd) Run(parent *caCmd) error {
	cfg, cert, _, err := parent.load()
	if err != nil {
		return err
	}
	listen := cfg.Proxy.Listen
	if listen == "" {
		listen = "127.0.0.1:7054"
		fmt.Printf("The node has no forward proxy yet: set proxy.listen to %s, say, and start it again.\n\n", listen)
	}
	host := "HOST"
	for _, h := range interceptedHosts(cfg) {
		if !strings.Contains(h, "*") {
			host = h
			break
		}
	}
	if abs, err := filepath.Abs(cert); err == nil {
		cert = abs
	}
	_, err = fmt.Printf(caHints, "http://"+reachable(listen), cert, host)
	return err
}

// caHints are for the proxy's URL, the CA's file and a host.
const caHints = `Every program that is to pull through the proxy needs two things: the proxy, and
trust in its CA. Each is read when the program starts.

The CA, for all programs of this machine:
  Debian, Ubuntu  cp %[2]s /usr/local/share/ca-certificates/shoal.crt && update-ca-certificates
  Fedora, RHEL    cp %[2]s /etc/pki/ca-trust/source/anchors/shoal.crt && update-ca-trust
  Alpine          cp %[2]s /usr/local/share/ca-certificates/shoal.crt && update-ca-certificates

The CA, for one registry, which needs no restart:
  dockerd         mkdir -p /etc/docker/certs.d/%[3]s && cp %[2]s /etc/docker/certs.d/%[3]s/ca.crt
  podman, CRI-O   mkdir -p /etc/containers/certs.d/%[3]s && cp %[2]s /etc/containers/certs.d/%[3]s/ca.crt
  containerd      ca = "%[2]s" in /etc/containerd/certs.d/%[3]s/hosts.toml

The proxy:
  dockerd 23 on   "proxies": {"http-proxy": "%[1]s", "https-proxy": "%[1]s"} in /etc/docker/daemon.json
                  (shoal configure docker --proxy writes it), and a restart
  dockerd before  Environment=HTTP_PROXY=%[1]s HTTPS_PROXY=%[1]s in the [Service] of
                  /etc/systemd/system/docker.service.d/proxy.conf, and a restart
  containerd      the same in /etc/systemd/system/containerd.service.d/proxy.conf; a mirror in
                  hosts.toml (shoal configure containerd) does the same without a CA
  podman          HTTPS_PROXY=%[1]s podman pull …

SSL_CERT_FILE works for programs in Go too, but replaces the system's CAs: give it a file
that has both. Registries that shall not go through the proxy are listed in NO_PROXY.
`
