package origin

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// An upstream is one registry: its URLs, which share a connection pool.
type upstream struct {
	client    *Client
	name      string // lower case
	label     string // of metrics: the configured name, or "*"
	transport *http.Transport
	endpoints []*endpoint
	rests     rests
	// authMode is Upstream.Auth with its default; passthrough and relayBasic
	// are what follows from it.
	authMode                string
	passthrough, relayBasic bool
	welcome                 welcome
}

// downFor is how long a URL that could not be reached comes after the others.
const downFor = 30 * time.Second

// An endpoint is one URL of an upstream, and what was learned of it.
type endpoint struct {
	// immutable
	up   *upstream
	base *url.URL // its path ends where repositories begin
	auth *authenticator

	mu        sync.Mutex // protects the fields below
	downUntil time.Time
	targets   map[string]target // redirects of blobs, by path
}

func (u Upstream) validate() error {
	switch auth := cmp.Or(u.Auth, AuthAnonymous); auth {
	case AuthAnonymous, AuthPassthrough:
		if u.Username != "" || u.Password != "" || u.PasswordFile != "" || u.CredentialsFile != "" {
			return fmt.Errorf("it has credentials that auth: %s never uses: set auth: %s, or remove them", auth, AuthNode)
		}
	case AuthNode:
		if err := u.validateLogin(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("auth %.40q is not known: use %s, %s or %s", u.Auth, AuthAnonymous, AuthNode, AuthPassthrough)
	}
	if u.Basic && u.Auth != AuthPassthrough {
		return fmt.Errorf("basic: true is for auth: %s only: nobody is asked for a password otherwise", AuthPassthrough)
	}
	if u.CA != "" {
		if _, err := rootCAs(u.CA); err != nil {
			return err
		}
	}
	return nil
}

// validateLogin checks the credentials of AuthNode.
func (u Upstream) validateLogin() error {
	switch {
	case u.Password != "" && u.PasswordFile != "":
		return errors.New("it has both password and passwordFile: keep one")
	case u.CredentialsFile != "" && (u.Username != "" || u.PasswordFile != ""):
		return errors.New("it has both credentialsFile and username: keep one")
	case u.CredentialsFile != "":
		_, err := readDockerConfig(u.CredentialsFile)
		return err
	case u.Username == "" || u.Password == "" && u.PasswordFile == "":
		return fmt.Errorf("auth: %s needs credentialsFile, or username and passwordFile", AuthNode)
	case u.PasswordFile != "":
		_, err := readPassword(u.PasswordFile)
		return err
	}
	return nil
}

// newUpstream makes the upstream with the given lower-case name.
func (c *Client) newUpstream(name, label string, u Upstream) (*upstream, error) {
	if err := u.validate(); err != nil {
		return nil, err
	}
	if h, err := url.Parse("https://" + name); err != nil || h.Host != name || h.Hostname() == "" {
		return nil, errors.New("the name is not a registry host, such as docker.io or registry.local:5000")
	}
	urls := u.URLs
	if len(urls) == 0 {
		urls = []string{defaultURL(name)}
	}
	transport, err := c.newTransport(u)
	if err != nil {
		return nil, err
	}
	up := &upstream{
		client: c, name: name, label: label, transport: transport,
		authMode:    cmp.Or(u.Auth, AuthAnonymous),
		passthrough: u.Auth == AuthPassthrough,
		relayBasic:  u.Basic,
	}
	up.rests.of = make(map[*endpoint]*rest)
	up.welcome.turn = make(chan struct{}, 1)
	up.welcome.turn <- struct{}{}
	for _, text := range urls {
		base, err := parseBase(text)
		if err != nil {
			return nil, err
		}
		if u.Public && base.Scheme != "https" {
			return nil, fmt.Errorf("url %s is not https", base)
		}
		if first := up.endpoints; up.passthrough && len(first) > 0 && !sameRegistry(first[0].base, base) {
			return nil, fmt.Errorf("its urls are of different domains, %s and %s: with auth: %s a caller's token would be shown to both, so keep one",
				first[0].base.Host, base.Host, AuthPassthrough)
		}
		e := &endpoint{up: up, base: base, targets: make(map[string]target)}
		e.auth = newAuthenticator(e, u)
		up.endpoints = append(up.endpoints, e)
	}
	return up, nil
}

// defaultURL returns where the registry with the given name is. Docker Hub is
// the only one whose API has another host than its image references.
func defaultURL(name string) string {
	if name == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return "https://" + name
}

// parseBase reads one of Upstream.URLs. Errors do not repeat the text, which
// may have a password in it.
func parseBase(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("url cannot be parsed: write it as https://host or http://host:port")
	}
	if (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" {
		return nil, fmt.Errorf("url %.100q must be https://host or http://host:port", u.Redacted())
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("url of %s must have no user, password, query or fragment: credentials have keys of their own", u.Host)
	}
	elements := strings.FieldsFunc(u.Path, func(r rune) bool { return r == '/' })
	if !slices.Contains(elements, "v2") {
		elements = append(elements, "v2")
	}
	base := &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}
	return base.JoinPath(elements...), nil
}

func (c *Client) newTransport(u Upstream) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: c.cfg.DialTimeout}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            c.dialOnline(dialer.DialContext),
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.cfg.TLSTimeout,
		ResponseHeaderTimeout:  c.cfg.HeaderTimeout,
		MaxIdleConnsPerHost:    c.cfg.Parallel,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // a blob's digest is of the bytes as stored
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if u.Public {
		dialer.Control = refusePrivate
		t.Proxy = nil // a proxy would hide the address that is to be checked
	}
	if u.CA != "" {
		roots, err := rootCAs(u.CA)
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = roots
	}
	return t, nil
}

// rootCAs returns the system's certificates and those in file.
func rootCAs(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a container image without certificates
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read ca: %s has no PEM certificate", file)
	}
	return roots, nil
}

// inOrder returns the endpoints in order of preference, those that could not
// be reached a moment ago last.
func (up *upstream) inOrder(now time.Time) []*endpoint {
	var good, down []*endpoint
	for _, e := range up.endpoints {
		e.mu.Lock()
		isDown := now.Before(e.downUntil)
		e.mu.Unlock()
		if isDown {
			down = append(down, e)
		} else {
			good = append(good, e)
		}
	}
	return append(good, down...)
}

// setDown notes that e could not be reached, or that it could.
func (e *endpoint) setDown(down bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.downUntil = time.Time{}
	if down {
		e.downUntil = time.Now().Add(downFor)
	}
}

// url returns the address of a path below the one where repositories begin.
func (e *endpoint) url(path, query string) *url.URL {
	u := *e.base
	u.Path += "/" + path // names, tags and digests need no escaping
	u.RawQuery = query
	return &u
}
