package origin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Errors that callers branch on. What the methods of Client and Source return
// wraps exactly one of them, or the error of a context that ended, or the
// error of the writer that was given.
var (
	// ErrNotFound: the upstream does not have it (404, 410).
	ErrNotFound = errors.New("not found")
	// ErrDenied: the upstream refuses it to us (401, 403, 451), or a rule of
	// this package forbids asking: a token realm on a foreign host, a private
	// address reached through "*".
	ErrDenied = errors.New("denied")
	// ErrUnavailable: no answer, or none that counts: network errors, timeouts,
	// 429 and 5xx after all retries, or the upstream wants to be left alone.
	ErrUnavailable = errors.New("unavailable")
	// ErrOffline: SetOffline has it that no upstream is contacted.
	ErrOffline = errors.New("offline")
	// ErrUnknownUpstream: not in the configuration.
	ErrUnknownUpstream = errors.New("unknown upstream")
	// ErrTooLarge: a manifest of more than MaxManifest bytes, or a list of more
	// than MaxList.
	ErrTooLarge = errors.New("too large")
	// ErrProtocol: the registry breaks the distribution specification: a wrong
	// length, a wrong digest header, a status that makes no sense.
	ErrProtocol = errors.New("registry breaks the protocol")
)

// MaxManifest is the size in bytes of the largest manifest that is accepted
// (distribution-spec, "Pushing Manifests": registries should refuse more than
// 4 MiB).
const MaxManifest = 4 << 20

// Values of Upstream.Auth.
const (
	AuthAnonymous   = "anonymous"   // no credentials are ever sent
	AuthNode        = "node"        // the operator's credentials
	AuthPassthrough = "passthrough" // the callers' own
)

// Config says which upstreams there are and how patient to be with them. The
// zero value of every field but Upstreams is a sensible default.
type Config struct {
	// Upstreams by name: a registry host as it is in image references, such as
	// "docker.io" or "registry.local:5000", or "*" for every other host.
	Upstreams map[string]Upstream

	// Log gets a line at debug level per attempt that failed, and warnings when
	// an upstream wants to be left alone for long. Nil is silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer

	// DialTimeout bounds one TCP connect. Default 5 s: SYNs are repeated after
	// 1 and 3 s, so two may be lost.
	DialTimeout time.Duration
	// TLSTimeout bounds one TLS handshake. Default 10 s.
	TLSTimeout time.Duration
	// HeaderTimeout bounds the wait for response headers. Default 30 s, like
	// containerd: registries look a blob up in object storage before they
	// answer.
	HeaderTimeout time.Duration
	// StallTimeout is how long a body may bring no byte before the connection
	// is cut and the transfer resumed on another. Default 15 s: far below the
	// minutes after which clients give up, and longer than TCP needs to get
	// over the loss of a whole window.
	StallTimeout time.Duration

	// Tries is how often each URL is asked in a row without a byte of progress
	// before a call fails. Default 4.
	Tries int
	// Backoff is the wait before the second try; it doubles with each further
	// one, up to 5 s, and is spread by a quarter either way so that a fleet
	// does not come back in step. Default 200 ms.
	Backoff time.Duration
	// MaxRetryAfter is how long Fetch waits at most for an upstream that wants
	// to be left alone; beyond it the call fails at once. Default 10 s: a
	// client that waits for headers is still there then. Resolve and lists,
	// which may have something older to serve, wait for a second at most.
	MaxRetryAfter time.Duration
	// RedirectTTL is how long the target of a blob's redirect is used again
	// without asking the registry. Default 60 s: signed URLs of object storage
	// are valid for some minutes at least.
	RedirectTTL time.Duration
	// Parallel is how many idle connections to keep per host; set it to at
	// least the number of concurrent fetches, or connections are opened and
	// closed all the time. Default 32.
	Parallel int
}

// An Upstream is one registry: where it is and who we are to it.
type Upstream struct {
	// URLs to ask, in order of preference: mirrors first, the registry itself
	// last. https, or http for a plain registry. A path goes before "/v2/",
	// unless it has an element "v2" already: then repositories begin there
	// ("https://harbor.corp/v2/dockerhub"). Default: https and the upstream's
	// name; registry-1.docker.io for docker.io. Not allowed for "*".
	URLs []string
	// Auth is AuthAnonymous (the default), AuthNode or AuthPassthrough. With the
	// last one all URLs have to be of one domain, since a caller's token is for
	// one registry.
	Auth string
	// Basic lets a caller be asked for a user name and password, which are then
	// sent through this daemon. With AuthPassthrough only; not the default,
	// because clients give a password to whoever asks for it.
	Basic bool
	// Username and Password are the operator's credentials. They are sent to
	// those of URLs, and their token servers, that ask for them.
	Username, Password string
	// PasswordFile has the password instead of Password. A line end after it
	// does not count. It is read anew at each login, and a login that was made
	// with another content is not used any more.
	PasswordFile string
	// CredentialsFile is a docker config.json, or a directory with one: a
	// mounted Kubernetes secret, with .dockerconfigjson, config.json or
	// .dockercfg in it. It is searched for the host of each URL: credential
	// helpers that it names are asked, then its auths section. When the file
	// changes, logins that were made with the old one are not used any more.
	CredentialsFile string
	// Realms are further hosts (host or host:port) that may hand out tokens;
	// without it only https hosts of the registry's own domain may.
	Realms []string
	// CA is a file of PEM certificates to trust beside the system's.
	CA string
	// Public allows only https and public addresses. Always on for "*".
	Public bool
}

// A Client talks to upstream registries. Its methods may be called from
// several goroutines at once.
type Client struct {
	// immutable
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	named   map[string]*upstream // by lower-case name
	other   *Upstream            // the "*" entry
	hosts   map[string]string    // names of upstreams, by what Named is told
	grants  grants

	mu sync.Mutex // protects the fields below
	// others are upstreams under "*" that were asked for, by lower-case host.
	others map[string]*upstream
	// online ends, by goOffline, when SetOffline is told true.
	online    context.Context
	goOffline context.CancelCauseFunc
}

// maxOthers bounds the memory that requests for invented hosts can take.
const maxOthers = 256

// New returns a Client, or an error that says which upstream is wrong and how
// to put it right. It reads the CA and credentials files but does no network
// I/O.
func New(cfg Config) (*Client, error) {
	cfg.defaults()
	m, err := newMetrics(cfg.Registry)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg:     cfg,
		log:     cfg.Log,
		metrics: m,
		named:   make(map[string]*upstream),
		others:  make(map[string]*upstream),
	}
	c.grants.init()
	c.online, c.goOffline = context.WithCancelCause(context.Background())
	if err := c.registerBackoff(cfg.Registry); err != nil {
		return nil, err
	}
	for name, u := range cfg.Upstreams {
		if err := c.configure(name, u); err != nil {
			return nil, fmt.Errorf("upstream %q: %w", name, err)
		}
	}
	c.hosts = namedHosts(c.named)
	return c, nil
}

func (cfg *Config) defaults() {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, 5*time.Second)
	cfg.TLSTimeout = cmp.Or(cfg.TLSTimeout, 10*time.Second)
	cfg.HeaderTimeout = cmp.Or(cfg.HeaderTimeout, 30*time.Second)
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 15*time.Second)
	cfg.Tries = cmp.Or(cfg.Tries, 4)
	cfg.Backoff = cmp.Or(cfg.Backoff, 200*time.Millisecond)
	cfg.MaxRetryAfter = cmp.Or(cfg.MaxRetryAfter, 10*time.Second)
	cfg.RedirectTTL = cmp.Or(cfg.RedirectTTL, time.Minute)
	cfg.Parallel = cmp.Or(cfg.Parallel, 32)
}

// shortWait is the longest rest that Resolve and lists wait out.
func (cfg *Config) shortWait() time.Duration { return min(maxShortWait, cfg.MaxRetryAfter) }

// configure takes one entry of Config.Upstreams in.
func (c *Client) configure(name string, u Upstream) error {
	if name == "*" {
		if len(u.URLs) > 0 || u.Username != "" || u.Password != "" {
			return errors.New(`"*" stands for many registries, so it takes no url and no password: give the registry an entry of its own`)
		}
		if u.Auth == AuthPassthrough {
			return fmt.Errorf(`"*" takes no auth: %s: a caller's token is for one registry, so give that an entry of its own`, AuthPassthrough)
		}
		u.Public = true
		if err := u.validate(); err != nil {
			return err
		}
		c.other = &u
		return nil
	}
	up, err := c.newUpstream(strings.ToLower(name), name, u)
	if err != nil {
		return err
	}
	c.named[strings.ToLower(name)] = up
	return nil
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for up := range maps.Values(c.named) {
		up.transport.CloseIdleConnections()
	}
	for up := range maps.Values(c.others) {
		up.transport.CloseIdleConnections()
	}
}

// Knows reports whether the upstream may be asked: it is configured by name,
// or "*" is configured and the name is that of a registry host. Names are
// compared without regard to case.
func (c *Client) Knows(upstream string) bool {
	name := strings.ToLower(upstream)
	return c.named[name] != nil || c.other != nil && publicHost(name)
}

// Auth returns the mode of an upstream: AuthAnonymous, AuthNode or
// AuthPassthrough. "*" is every host that is not named. Of an upstream that is
// not known it is empty.
func (c *Client) Auth(upstream string) string {
	name := strings.ToLower(upstream)
	if up := c.named[name]; up != nil {
		return up.authMode
	}
	if c.Knows(name) || name == "*" && c.other != nil {
		return cmp.Or(c.other.Auth, AuthAnonymous)
	}
	return ""
}

// upstream returns the upstream with the given name.
func (c *Client) upstream(name string) (*upstream, error) {
	host := strings.ToLower(name)
	if up := c.named[host]; up != nil {
		return up, nil
	}
	if !c.Knows(host) {
		return nil, fmt.Errorf("registry %.100q is not configured: add it to upstreams, or add \"*\" for any public one: %w", name, ErrUnknownUpstream)
	}
	c.mu.Lock()
	up := c.others[host]
	c.mu.Unlock()
	if up != nil {
		return up, nil
	}
	up, err := c.newUpstream(host, "*", *c.other)
	if err != nil {
		return nil, fmt.Errorf("upstream %.100q under \"*\": %w", name, err)
	}
	return c.addOther(up), nil
}

// addOther keeps an upstream under "*" and returns it, or the one that another
// goroutine was quicker to add.
func (c *Client) addOther(up *upstream) *upstream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.others[up.name]; first != nil {
		return first
	}
	if len(c.others) >= maxOthers {
		for name, old := range c.others { // any one: a map has no order
			old.transport.CloseIdleConnections()
			delete(c.others, name)
			break
		}
	}
	c.others[up.name] = up
	return up
}
