package daemon

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
)

// TLSConfig is the certificate of a door. The files are read anew when they
// change, so that a certificate can be renewed under a running daemon.
type TLSConfig struct {
	// Cert is a PEM file with the certificate and what leads to its CA, Key one
	// with its private key. Default: none, plain http.
	Cert string `koanf:"cert" help:"PEM file of the door's certificate chain (default: none, plain http)"`
	Key  string `koanf:"key" help:"PEM file of the certificate's private key"`
}

// on reports whether there is a certificate.
func (t TLSConfig) on() bool { return t.Cert != "" || t.Key != "" }

// ProxyConfig is the door for who uses the node as HTTP(S)_PROXY.
type ProxyConfig struct {
	// Listen is the address of the forward proxy; "" is none. Whoever reaches it
	// can reach what this machine reaches, if Tunnel is on.
	// Default: none, since it needs a CA that the runtimes trust.
	Listen string `koanf:"listen" help:"address of the forward proxy, such as 127.0.0.1:7054; empty for none"`

	// Intercept lists hosts whose TLS is opened with the proxy's own CA, so that
	// their manifests and blobs come through the cache: names, or patterns with
	// a first label of "*". Only hosts of configured upstreams count. Default:
	// all configured upstreams.
	Intercept []string `koanf:"intercept" help:"hosts of upstreams to intercept, such as ghcr.io or *.gcr.io (default: all upstreams)"`

	// Tunnel passes connections to other hosts on unread. Without it they are
	// refused. Default: true: a runtime that has a proxy sends it everything.
	Tunnel bool `koanf:"tunnel" help:"pass connections to other hosts on unread; refused without"`

	// Ports are those that may be connected to. Default: 443, and the ports of
	// configured upstreams: a proxy that connects anywhere is a way around
	// firewalls, and to mail servers.
	Ports []string `koanf:"ports" help:"ports of other hosts that may be connected to (default: 443)"`

	// CA and Key are the files that `shoal ca init` makes. Default: ca.crt and
	// ca.key in the data folder.
	CA  string `koanf:"ca" help:"file of the proxy's CA certificate (default: ca.crt in data)"`
	Key string `koanf:"key" help:"file of the CA's private key (default: ca.key in data)"`

	// AllowFrom lists networks whose clients are let in. Default: all.
	AllowFrom []string `koanf:"allowFrom" help:"networks whose clients are let in, such as 10.0.0.0/8 (default: all)"`
}

// files returns where the CA is.
func (p ProxyConfig) files(data string) (cert, key string) {
	cert, key = p.CA, p.Key
	if cert == "" {
		cert = filepath.Join(data, "ca.crt")
	}
	if key == "" {
		key = filepath.Join(data, "ca.key")
	}
	return cert, key
}

// ports returns Ports as numbers. They have been checked.
func (p ProxyConfig) ports() []int {
	var ports []int
	for _, text := range p.Ports {
		if n, err := strconv.Atoi(text); err == nil {
			ports = append(ports, n)
		}
	}
	return ports
}

// AdminConfig is the door for operators.
type AdminConfig struct {
	// Listen is the address of /metrics, /healthz, /readyz and the admin API,
	// host:port or unix:/path; "" is none. On loopback and on a socket whoever
	// reaches it is let in with LocalRole; elsewhere it takes a token or a
	// client's certificate. Default: 127.0.0.1:7053.
	Listen string `koanf:"listen" help:"address of /metrics, /healthz, /readyz and the admin API, host:port or unix:/path; empty for none"`

	// LocalRole is what who comes without a token over loopback or the socket
	// may do: view, operate, admin, or none. Default: admin, since only this
	// machine's users get there; set it to view where those are not all
	// operators.
	LocalRole string `koanf:"localRole" help:"what local callers without a token may do: none, view, operate or admin"`

	TLS TLSConfig `koanf:"tls"`

	// ClientCA is a PEM file of the CAs whose certificates Certificates is
	// about. Default: none, no client certificates.
	ClientCA string `koanf:"clientCA" help:"PEM file of the CAs of clients' certificates"`

	// Tokens let in who sends one as Authorization: Bearer. Default: none.
	Tokens []AdminToken `koanf:"tokens" help:"tokens that let in, as YAML: [{name: prometheus, role: view, file: /etc/shoal/view.token}]"`

	// Certificates let in who shows one of ClientCA with a common name. "*" is
	// any name. Default: none.
	Certificates []AdminCertificate `koanf:"certificates" help:"client certificates that let in, as YAML: [{name: ops, role: operate}]"`

	// OpenMetrics answers /metrics to everybody. Default: false: they tell which
	// registries are used, and a scraper can send a token.
	OpenMetrics bool `koanf:"openMetrics" help:"answer /metrics without a token"`
}

// AdminToken is one way in.
type AdminToken struct {
	// Name is for the log.
	Name string `koanf:"name"`
	// Role is view, operate or admin.
	Role string `koanf:"role"`
	// File holds the token, at least MinSecret bytes.
	File string `koanf:"file"`
}

// AdminCertificate says what the owner of a certificate may do.
type AdminCertificate struct {
	// Name is the certificate's common name, or "*".
	Name string `koanf:"name"`
	// Role is view, operate or admin.
	Role string `koanf:"role"`
}

// certificates returns them as the admin door has them.
func (a AdminConfig) certificates() []admin.Certificate {
	var certificates []admin.Certificate
	for _, c := range a.Certificates {
		certificates = append(certificates, admin.Certificate{Name: c.Name, Role: admin.Role(c.Role)})
	}
	return certificates
}

// AuditConfig is the log of who pulled what.
type AuditConfig struct {
	// File gets one JSON line per pull that was admitted or denied; "" is none.
	// Default: none.
	File string `koanf:"file" help:"file that gets a JSON line per admitted or denied pull; empty for none"`

	// MaxSize is the size in MiB at which the file is set aside and a new one
	// begun. Default: 100.
	MaxSize int `koanf:"maxSize" help:"size in MiB at which a new file is begun"`

	// KeepDays is for how many days files that were set aside are kept; 0 is for
	// ever. Default: 30.
	KeepDays int `koanf:"keepDays" help:"days that old files are kept; 0 for ever"`
}

// prefixes reads networks; a bare address is a network of one.
func prefixes(key string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a network; write one such as 10.0.0.0/8, or an address", key, text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// maxGrant is the longest that an upstream's word on a caller is believed.
const maxGrant = time.Minute
