package daemon

import (
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/policy/signature"
	"github.com/shoal-project/shoal/daemon/proxy"
)

// roles are those of the admin API, from the least to the most.
var roles = []string{"view", "operate", "admin"}

// doors checks what each door asks of those who come.
func (m *mistakes) doors(c Config) {
	m.pair("mirror.tls", c.Mirror.TLS)
	m.networks("mirror.allowFrom", c.Mirror.AllowFrom)
	if c.Mirror.MaxConnections < 1 {
		m.add("mirror.maxConnections", "%d lets nobody in; write a number such as 8192", c.Mirror.MaxConnections)
	}
	if c.Mirror.MaxRequests < 1 {
		m.add("mirror.maxRequests", "%d answers nothing; write a number such as 256", c.Mirror.MaxRequests)
	}
	m.proxy(c)
	m.admin(c.Admin)
	if c.Audit.MaxSize < 1 {
		m.add("audit.maxSize", "%d is no size; write mebibytes, such as 100", c.Audit.MaxSize)
	}
	if c.Audit.KeepDays < 0 {
		m.add("audit.keepDays", "%d is less than nothing; write days, or 0 for ever", c.Audit.KeepDays)
	}
}

func (m *mistakes) pair(key string, t TLSConfig) {
	if (t.Cert == "") != (t.Key == "") {
		m.add(key, "cert and key go together; give both, or neither for plain http")
	}
}

func (m *mistakes) networks(key string, texts []string) {
	if _, err := prefixes(key, texts); err != nil {
		m.errs = append(m.errs, err)
	}
}

// proxy checks the forward proxy.
func (m *mistakes) proxy(c Config) {
	p := c.Proxy
	_, any := c.Upstreams["*"]
	for _, host := range p.Intercept {
		if err := proxy.CheckPattern(host); err != nil {
			m.add("proxy.intercept", "%w", err)
		} else if !any && !strings.HasPrefix(host, "*.") && !slices.Contains(hostsOf(c), host) {
			m.add("proxy.intercept", "%q is no configured upstream nor the host of one's url; add it to upstreams, or leave it out to have it passed on unread", host)
		}
	}
	for _, port := range p.Ports {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			m.add("proxy.ports", "%q is not a port; write numbers such as 443", port)
		}
	}
	m.networks("proxy.allowFrom", p.AllowFrom)
	if host, _, err := splitAddr(p.Listen); p.Listen != "" && err == nil && !loopback(host) && len(p.AllowFrom) == 0 && p.Tunnel {
		m.add("proxy.allowFrom", "proxy.listen (%s) can be reached from other machines, and with proxy.tunnel whoever reaches it can use this machine's connections; list the networks that may, or set proxy.tunnel: false", p.Listen)
	}
}

// hostsOf returns the names of the upstreams and the hosts of their URLs.
func hostsOf(c Config) []string {
	var hosts []string
	for name, u := range c.Upstreams {
		hosts = append(hosts, name)
		for _, address := range u.Addresses() {
			_, rest, _ := strings.Cut(address, "://")
			host, _, _ := strings.Cut(rest, "/")
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// admin checks who may do what at the admin door.
func (m *mistakes) admin(a AdminConfig) {
	m.pair("admin.tls", a.TLS)
	m.oneOf("admin.localRole", a.LocalRole, append([]string{"none"}, roles...)...)
	for _, t := range a.Tokens {
		if t.Name == "" || t.File == "" {
			m.add("admin.tokens", "an entry lacks its name or its file; write {name: prometheus, role: view, file: /etc/shoal/view.token}")
		}
		m.oneOf("admin.tokens.role", t.Role, roles...)
	}
	for _, c := range a.Certificates {
		if c.Name == "" {
			m.add("admin.certificates", "an entry has no name; write the certificate's common name, or \"*\" for any that clientCA has signed")
		}
		m.oneOf("admin.certificates.role", c.Role, roles...)
	}
	if (a.ClientCA == "") != (len(a.Certificates) == 0) {
		m.add("admin.clientCA", "clientCA and certificates go together; give both, or neither")
	}
	if a.ClientCA != "" && !a.TLS.on() {
		m.add("admin.clientCA", "client certificates need admin.tls; give cert and key")
	}
	host, _, err := splitAddr(a.Listen)
	switch {
	case a.Listen == "" || strings.HasPrefix(a.Listen, unixPrefix) || err != nil || loopback(host):
	case len(a.Tokens) == 0 && len(a.Certificates) == 0 && !a.OpenMetrics:
		m.add("admin.listen", "%s can be reached from other machines, and the admin API commands this node; give admin.tokens or admin.certificates, admin.openMetrics for nothing but the metrics, or listen at 127.0.0.1:7053 or unix:/run/shoal/admin.sock", a.Listen)
	case len(a.Tokens) > 0 && !a.TLS.on():
		m.add("admin.tls", "admin.listen (%s) can be reached from other machines, and a token that travels there in the clear is everybody's; give cert and key", a.Listen)
	}
}

// unixPrefix begins the address of a socket.
const unixPrefix = "unix:"

var errNoPath = errors.New("unix: needs the absolute path of a socket, such as unix:/run/shoal/admin.sock")

// splitDoor is splitAddr for a door that may be a socket: then the host is its
// path and there is no port.
func splitDoor(addr string) (host string, port int, err error) {
	if p, ok := strings.CutPrefix(addr, unixPrefix); ok {
		if !path.IsAbs(p) {
			return "", 0, errNoPath
		}
		return addr, 0, nil
	}
	return splitAddr(addr)
}

// policy checks the rules.
func (m *mistakes) policy(c Config) {
	if set, err := rules.Compile(c.Policy.rules()); err != nil {
		m.errs = append(m.errs, err)
	} else if set.NeedsSignatures() && len(c.Policy.Signatures) == 0 {
		m.add("policy.signatures", "rules ask who has signed, and no key is configured; add the keys, such as {name: release, cosign: {key: /etc/shoal/cosign.pub}}")
	}
	if err := signature.Validate(c.Policy.Signatures, c.Policy.Scans); err != nil {
		m.add("policy.signatures", "%w", err)
	}
}

// passthrough checks what goes with auth: passthrough.
func (m *mistakes) passthrough(key string, u Upstream) {
	if u.GrantTTL < 0 || u.GrantTTL > maxGrant {
		m.add(key+".grantTTL", "%s is not from 0s to %s: for so long a token that was revoked is still good here", u.GrantTTL, maxGrant)
	}
	if u.Auth == "passthrough" {
		return
	}
	if u.Basic {
		m.add(key+".basic", "is about callers' own passwords; write auth: passthrough, or leave it out")
	}
	if u.GrantTTL != 0 {
		m.add(key+".grantTTL", "is about callers' own tokens; write auth: passthrough, or leave it out")
	}
}
