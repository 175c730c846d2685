package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/proto"
)

// MinSecret is the length in bytes of the shortest cluster secret that is
// accepted. Every member's trust hangs on it, and anybody who can send a
// datagram to the gossip port can try guesses offline against what it hears.
const MinSecret = 16

// Config is the configuration of one process, a daemon or a scheduler. The
// tags name the keys as they stand in the file; command line flags and
// environment variables are derived from the same tags by cmd/shoal, and the
// help tag is what `shoal daemon --help` says of a key.
//
// Default returns one that works on a laptop, Resolve fills in what is
// derived, Validate says what is wrong. New does the last two itself.
type Config struct {
	// Role is what the process was started as. It is not a key: the command
	// sets it, so that one file can be handed to both.
	Role proto.Role `koanf:"-"`

	// Name of this node, for people: logs, metrics, tables. Members are told
	// apart by their peer ID, so a name need not be unique.
	// Default: the hostname, which is what operators know a node by.
	Name string `koanf:"name" help:"name of this node, for people (default: the hostname)"`

	// Zone says where the node is: region, site, rack, or what else costs to
	// cross, from the largest to the smallest, such as "eu/berlin/r12".
	// Default: none, the same as that of every other node without one, since
	// a wrong guess would cost more than treating all links alike.
	Zone string `koanf:"zone" help:"where this node is, such as eu/berlin/r12 (default: none)"`

	// Data is the folder of the blobs, the index and the node's identity. One
	// process at a time can use it.
	// Default: shoal in the user's cache directory, since nothing in it is
	// precious and a laptop's user may not write to /var. A server wants
	// /var/lib/shoal, on a file system of its own if it can be had.
	Data string `koanf:"data" help:"folder of blobs, index and identity"`

	// Advertise is the IP address that other members reach this one at, for
	// the peer and the gossip port.
	// Default: the address that peer.listen names, else that of the route to
	// the first address in gossip.join, else that of the default route: the
	// address that the others would see as the sender. Set it behind NAT.
	Advertise string `koanf:"advertise" help:"IP address that other members reach this one at (default: that of the route to the first join address)"`

	// Drain is how long running pulls may go on after SIGTERM. New ones are
	// refused meanwhile and the runtime goes to the upstream itself.
	// Default: 20s, so that a pod is gone within the 30 seconds that
	// Kubernetes grants before it kills.
	Drain time.Duration `koanf:"drain" help:"how long running pulls may go on after SIGTERM, such as 20s"`

	// Offline forbids any request to an origin: what is neither here nor at a
	// peer is a 404. `shoal offline` switches it at run time, until the next
	// start. Default: false.
	Offline bool `koanf:"offline" help:"never contact an origin"`

	Mirror MirrorConfig `koanf:"mirror"`
	Proxy  ProxyConfig  `koanf:"proxy"`
	Tags   TagsConfig   `koanf:"tags"`
	Cache  CacheConfig  `koanf:"cache"`
	Peer   PeerConfig   `koanf:"peer"`
	Gossip GossipConfig `koanf:"gossip"`
	Admin  AdminConfig  `koanf:"admin"`
	Limits LimitsConfig `koanf:"limits"`

	// Upstreams are the registries that may be reached, by the host (and port)
	// that images are named with; "*" is any other, over https and at public
	// addresses only. What is not here is not reached: ?ns= in a request must
	// not make an open proxy of the node. A file that has this key replaces
	// the default as a whole, so that leaving a registry out forbids it.
	// Default: the usual public registries, anonymously.
	Upstreams map[string]Upstream `koanf:"upstreams" help:"registries that may be reached, as YAML: {registry.local:5000: {url: \"http://10.0.0.3:5000\"}}"`

	// Prefetch lists images that are brought here at certain times.
	// Default: none.
	Prefetch []PrefetchConfig `koanf:"prefetch" help:"images to bring at certain times, as YAML: [{image: docker.io/library/alpine:3, at: \"0 5 * * *\"}]"`

	Webhook WebhookConfig `koanf:"webhook"`

	Policy PolicyConfig `koanf:"policy"`
	Audit  AuditConfig  `koanf:"audit"`

	Log LogConfig `koanf:"log"`
}

// MirrorConfig is the door for runtimes.
type MirrorConfig struct {
	// Listen is the address of the mirror, host:port or unix:/path; "" is no
	// mirror.
	// Default: 127.0.0.1:7050 for a daemon, since whoever reaches this door
	// can pull what the node can: its runtime is on the same host. None for a
	// scheduler, which serves no runtime.
	Listen string `koanf:"listen" help:"address of the mirror for runtimes, host:port or unix:/path; empty for none"`

	TLS TLSConfig `koanf:"tls"`

	// AllowFrom lists networks whose clients are let in. Default: all that
	// reach Listen.
	AllowFrom []string `koanf:"allowFrom" help:"networks whose clients are let in, such as 10.0.0.0/8 (default: all)"`

	// MaxConnections bounds the connections of all clients together: of more,
	// the one that has been idle longest is closed. Default: 8192, about 100 MB
	// at most.
	MaxConnections int `koanf:"maxConnections" help:"most connections of all clients together"`

	// MaxRequests bounds the requests of one client address that are answered at
	// once. More are refused with 503. Default: 256: a runtime has four to
	// sixteen, and behind one address may be a few nodes.
	MaxRequests int `koanf:"maxRequests" help:"most requests of one client that are answered at once"`

	// Default is the upstream of requests that name none (dockerd's and
	// podman's); "" refuses them.
	// Default: docker.io, since dockerd uses a mirror for nothing else.
	Default string `koanf:"default" help:"upstream of requests that name none"`

	// Prefetch starts the pull of all layers as soon as their manifest has
	// been served, before the runtime asks. Half of the runtimes cannot go
	// elsewhere once they have a manifest, and layers that start together
	// fill the link. Default: true.
	Prefetch bool `koanf:"prefetch" help:"start the layers of an image when its manifest is served"`
}

// PeerConfig is the port of the data plane and the control streams.
type PeerConfig struct {
	// Listen is the address that other members fetch chunks at.
	// Default: 127.0.0.1:7051 for a node on its own, which nobody else has to
	// reach; :7051 for a scheduler and as soon as gossip.secretFile or
	// gossip.join makes the node part of a fleet.
	Listen string `koanf:"listen" help:"address for other members (default: 127.0.0.1:7051, in a fleet :7051)"`

	// Security of the data plane: "tls", where both ends prove their peer ID,
	// or "none" for a network where nobody else can listen or answer; then
	// sendfile serves chunks at two thirds of the CPU time. All members must
	// agree. Default: tls.
	Security string `koanf:"security" help:"tls, or none on a trusted network"`

	// Congestion is TCP's congestion control for what this node sends to other
	// members: a name of those in net.ipv4.tcp_available_congestion_control, system
	// for the system's, or auto: reno in the place of cubic, else the system's. Six
	// nodes with round trips of 20 ms took 1.6 times the bound with cubic, 1.3 with
	// reno, 1.7 with BBR; over short round trips there is no difference. Linux only.
	// Default: auto.
	Congestion string `koanf:"congestion" help:"TCP's congestion control: auto, system, or one that the kernel has"`
}

// GossipConfig is how the members of a fleet find each other.
type GossipConfig struct {
	// Listen is the address of the gossip, TCP and UDP.
	// Default: 127.0.0.1:7052 for a node on its own; :7052 for a scheduler
	// and in a fleet, as for peer.listen.
	Listen string `koanf:"listen" help:"address of the gossip, TCP and UDP (default: 127.0.0.1:7052, in a fleet :7052)"`

	// Join lists gossip addresses (host:port) of other members, of which one
	// must answer; a name that resolves to several stands for all of them, and
	// the node itself may be among them. Default: none, a fleet of one.
	Join []string `koanf:"join" help:"gossip addresses of other members, host:port"`

	// SecretFile holds the cluster secret, the same for all members, at least
	// MinSecret bytes; white space around it does not count. It keys the
	// gossip, which tells the members' identities, so it is the lock of the
	// whole fleet. There is no key for the secret itself: command lines and
	// environments are readable by too many. A second line is a second secret:
	// the first is used, both are accepted. The file is read anew when it
	// changes, so a secret is changed by adding the new one below the old one
	// on all members, then swapping the lines, then dropping the old one.
	// Default: none, which is accepted on loopback without Join only.
	SecretFile string `koanf:"secretFile" help:"file with the cluster secret, the same on all members; a second line is accepted too"`

	// AllowFile lists the peer IDs that may be members, one a line, with # for
	// comments; `shoal status` shows a node's own. It is read anew when it
	// changes. Default: none, whoever has the secret.
	AllowFile string `koanf:"allowFile" help:"file with the peer IDs that may be members, one a line (default: whoever has the secret)"`
}

// LimitsConfig is how much of its links the node may use. Rates are written
// 200mbit, 10gbit (bits per second), 25MB/s, 25MiB/s (bytes per second) or
// unlimited, and are those of the blobs' bytes: what goes around them adds 4 %.
// What the mirror sends to runtimes is not limited.
type LimitsConfig struct {
	// UploadRate is how fast the node sends to its peers, all together.
	// Default: unlimited, since a fleet is as fast as what its members give, and
	// every copy that a peer sends is one that the origin need not.
	UploadRate rate.Rate `koanf:"uploadRate" help:"most that is sent to peers, such as 200mbit (default: unlimited)"`

	// DownloadRate is how fast the node receives, from peers and origins
	// together. Default: unlimited, since somebody waits for the image.
	DownloadRate rate.Rate `koanf:"downloadRate" help:"most that is received from peers and origins, such as 200mbit (default: unlimited)"`

	// OriginRate is how fast the node receives from origins; that counts for
	// DownloadRate too. It is for a thin line to the outside behind which peers
	// have a fast network. Default: unlimited.
	OriginRate rate.Rate `koanf:"originRate" help:"most that is received from origins, such as 20mbit (default: unlimited)"`

	// Schedule lists times of the day at which another rate takes the place of
	// the three above, by the node's local time: "08:00-19:00 20mbit". A window
	// may go over midnight ("22:00-06:00 unlimited"), begin on some weekdays
	// only ("Mon-Fri 08:00-19:00 20mbit"), and be for one kind ("08:00-19:00
	// upload 20mbit"; download, origin). Of windows that overlap the lowest
	// rate holds. Default: none, the same rates at all times.
	Schedule []string `koanf:"schedule" help:"other rates by time of the day, such as '08:00-19:00 20mbit'"`
}

// Plan returns the limits at any time. It fails if Schedule has a line that is
// not a window.
func (l LimitsConfig) Plan() (rate.Plan, error) {
	p := rate.Plan{Rates: rate.Rates{Upload: l.UploadRate, Download: l.DownloadRate, Origin: l.OriginRate}}
	for _, line := range l.Schedule {
		w, err := rate.ParseWindow(line)
		if err != nil {
			return p, fmt.Errorf("limits.schedule: %w", err)
		}
		p.Windows = append(p.Windows, w)
	}
	return p, nil
}

// Upstream is one registry and how to reach it.
type Upstream struct {
	// URL of the registry. Its scheme decides between https and plain http; a
	// path is kept, with /v2 after it if it has none. Default: https and the
	// upstream's name (docker.io is at https://registry-1.docker.io).
	URL string `koanf:"url"`

	// URLs are several in place of URL, asked in order: the next one when one
	// does not answer.
	URLs []string `koanf:"urls"`

	// Auth says with whose credentials the upstream is asked: "anonymous",
	// "node" for those of the operator, given below, or "passthrough" for the
	// caller's own, which the upstream is asked about before anything is served.
	// With node, whoever reaches the mirror gets what the node may have, so
	// Allow is needed. Default: anonymous.
	Auth string `koanf:"auth"`

	// Basic lets the mirror pass on an upstream's Basic challenge with
	// passthrough: then callers send this node their password. Default: false.
	Basic bool `koanf:"basic"`

	// GrantTTL is for how long the upstream's yes to a caller's token is
	// believed with passthrough, at most a minute, and never longer than the
	// token lives. Default: 60s.
	GrantTTL time.Duration `koanf:"grantTTL"`

	// CA is a PEM file of certificates to trust for this upstream beside the
	// system's. Default: none.
	CA string `koanf:"ca"`

	// Username and PasswordFile are the operator's credentials for auth: node.
	// The file holds the password or token alone. Default: none.
	Username     string `koanf:"username"`
	PasswordFile string `koanf:"passwordFile"`

	// CredentialsFile is a docker config.json with the credentials, in place
	// of Username and PasswordFile, or a folder with one, as Kubernetes mounts a
	// secret of type dockerconfigjson. Credential helpers that it names are
	// asked. It is read anew when it changes. Default: none.
	CredentialsFile string `koanf:"credentialsFile"`

	// Allow lists the repositories that may be served, by name, by path.Match
	// pattern ("team/*") or with all below ("team/**"); those of docker.io
	// with one component are library/name. It is needed with auth: node, so
	// that no private image is given away by an upstream's mere configuration.
	// Default: all with auth: anonymous.
	Allow []string `koanf:"allow"`

	// TagTTL is TagsConfig.TTL for this upstream. Default: that.
	TagTTL time.Duration `koanf:"tagTTL"`

	// Tags are the TTLs of tags that match a path.Match pattern, before TagTTL:
	// a duration, or "immutable" for tags that are never pushed anew, such as
	// {"v*": immutable, latest: 10s}. Of several patterns that match the
	// longest counts. Default: none.
	Tags map[string]string `koanf:"tags"`

	// Realms lists hosts (with port if not 443) that the upstream's token
	// service may be at, beside its own domain. Credentials are sent there,
	// so a realm that a registry merely names does not count. Default: none.
	Realms []string `koanf:"realms"`
}

// LogConfig is how the process logs, to standard error.
type LogConfig struct {
	// Level is debug, info, warn or error. Default: info, which has no line
	// per request.
	Level string `koanf:"level" help:"debug, info, warn or error"`

	// Format is text, json, or auto: text on a terminal, JSON elsewhere,
	// since what is not a person is a log collector. Default: auto.
	Format string `koanf:"format" help:"text, json or auto"`
}

// Default returns what a laptop gets with no file: a daemon that is a fleet of
// one, on loopback, with its data in the user's cache directory, in front of
// the usual public registries. Data is empty if the user has no home; Validate
// says what to do then.
func Default() Config {
	c := Config{
		Role:   proto.RoleDaemon,
		Drain:  20 * time.Second,
		Mirror: MirrorConfig{Listen: "127.0.0.1:7050", Default: "docker.io", Prefetch: true, MaxConnections: 8192, MaxRequests: 256},
		Tags:   defaultTags(),
		Cache:  defaultCache(),
		Peer:   PeerConfig{Listen: "127.0.0.1:7051", Security: "tls", Congestion: peer.CongestionAuto},
		Gossip: GossipConfig{Listen: "127.0.0.1:7052"},
		Admin:  AdminConfig{Listen: "127.0.0.1:7053", LocalRole: "admin"},
		Proxy:  ProxyConfig{Tunnel: true},
		Policy: PolicyConfig{Default: "allow", Mode: "enforce"},
		Audit:  AuditConfig{MaxSize: 100, KeepDays: 30},
		Upstreams: map[string]Upstream{
			"docker.io":         {URL: "https://registry-1.docker.io"},
			"ghcr.io":           {},
			"quay.io":           {},
			"registry.k8s.io":   {},
			"gcr.io":            {},
			"mcr.microsoft.com": {},
			"public.ecr.aws":    {},
		},
		Log: LogConfig{Level: "info", Format: "auto"},
	}
	if dir, err := os.UserCacheDir(); err == nil {
		c.Data = filepath.Join(dir, "shoal")
	}
	return c
}

// DefaultScheduler returns what `shoal scheduler` starts from: Default with
// no mirror, since it serves no runtime, and with a data folder beside that of
// a daemon on the same machine. Its peer and gossip addresses are left for
// Resolve, which has it listen to the fleet.
func DefaultScheduler() Config {
	c := Default()
	c.Role = proto.RoleScheduler
	c.Mirror.Listen = ""
	c.Peer.Listen, c.Gossip.Listen = "", ""
	if c.Data != "" {
		c.Data += "-scheduler"
	}
	return c
}

// Resolve returns c with the empty ones of Name, Peer.Listen, Gossip.Listen
// and Advertise filled in, as their comments say. It may look up the join
// addresses in the DNS, for about a second each until one resolves, but sends
// nothing to the fleet.
func (c Config) Resolve(ctx context.Context) (Config, error) {
	var errs []error
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			errs = append(errs, errors.New("name: this machine tells no hostname; set name"))
		}
		c.Name = host
	}
	host := "127.0.0.1"
	if c.inFleet() {
		host = ""
	}
	if c.Peer.Listen == "" {
		c.Peer.Listen = host + ":7051"
	}
	if c.Gossip.Listen == "" {
		c.Gossip.Listen = host + ":7052"
	}
	if c.Advertise == "" {
		a, err := advertise(ctx, c.Peer.Listen, c.Gossip.Join)
		if err != nil {
			errs = append(errs, err)
		}
		c.Advertise = a
	}
	return c, errors.Join(errs...)
}

// inFleet reports whether the configuration speaks of other members.
func (c Config) inFleet() bool {
	return c.Role&proto.RoleScheduler != 0 || c.Gossip.SecretFile != "" || len(c.Gossip.Join) > 0
}

// advertise returns the address that others reach a listener at.
func advertise(ctx context.Context, listen string, join []string) (string, error) {
	if host, _, err := net.SplitHostPort(listen); err == nil {
		if host == "localhost" {
			return "127.0.0.1", nil
		}
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
			return ip.String(), nil
		}
	}
	// An address for documentation (RFC 5737) that no network routes to on its
	// own stands for "anywhere": the way there is the default route.
	for _, to := range append(join[:len(join):len(join)], "192.0.2.1:7052") {
		if ip, ok := routeTo(ctx, to); ok {
			return ip, nil
		}
	}
	return "", fmt.Errorf("advertise: peer.listen %s names no address and no route leads to another machine; set advertise to the IP address that the other members reach this one at", listen)
}

// routeTo returns the address of this machine on the route to another one.
// Connecting a UDP socket makes the kernel choose it and sends nothing.
func routeTo(ctx context.Context, to string) (string, bool) {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "udp", to)
	if err != nil {
		return "", false
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok || local.IP.IsUnspecified() {
		return "", false
	}
	return local.AddrPort().Addr().Unmap().String(), true
}

// Addresses returns the URLs of the upstream in the order to try them, from
// URL or URLs; none means the default.
func (u Upstream) Addresses() []string {
	if u.URL != "" {
		return append([]string{u.URL}, u.URLs...)
	}
	return u.URLs
}

// readSecret reads a small file that holds a secret and nothing else.
func readSecret(key, file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return nil, fmt.Errorf("%s: %s is empty", key, file)
	}
	return data, nil
}
