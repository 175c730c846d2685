package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
)

// Validate returns all mistakes of a resolved configuration, each naming its
// key and saying what to do, or nil. It reads no file and asks no network.
func (c Config) Validate() error {
	m := &mistakes{}
	if c.Role&(proto.RoleDaemon|proto.RoleScheduler) == 0 {
		m.add("role", "is neither daemon nor scheduler")
	}
	if c.Name == "" || len(c.Name) > maxName || !printable(c.Name) {
		m.add("name", "%.80q needs 1 to %d printable characters without spaces", c.Name, maxName)
	}
	m.zone(c.Zone)
	if c.Data == "" {
		m.add("data", "there is no home directory to derive a default from; set it, such as to /var/lib/shoal")
	}
	if ip, err := netip.ParseAddr(c.Advertise); err != nil || ip.IsUnspecified() {
		m.add("advertise", "%q is not an IP address that other members could dial; write one such as 10.0.0.7, without a port", c.Advertise)
	}
	if c.Drain < 0 {
		m.add("drain", "%s is less than nothing; write a duration such as 20s, or 0s to cut pulls off", c.Drain)
	}
	m.oneOf("peer.security", c.Peer.Security, "tls", "none")
	if !congestionName.MatchString(c.Peer.Congestion) {
		m.add("peer.congestion", "%.80q is not the name of a congestion control; write auto, system or one such as bbr", c.Peer.Congestion)
	}
	m.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	m.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	m.listeners(c)
	m.fleet(c)
	m.limits(c.Limits)
	m.tags(c.Tags)
	m.cache(c.Cache)
	m.prefetch(c)
	m.webhook(c)
	m.doors(c)
	m.policy(c)
	if len(c.Upstreams) == 0 {
		m.add("upstreams", "is empty, so that no image can be pulled; name the registries that may be reached, such as docker.io: {}")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		m.upstream(name, c.Upstreams[name])
	}
	if d := c.Mirror.Default; d != "" && c.Mirror.Listen != "" {
		_, named := c.Upstreams[d]
		_, any := c.Upstreams["*"]
		if d == "*" || !named && !(any && validHost(d)) {
			m.add("mirror.default", "%q is not among the upstreams; add it there, name another one, or write \"\" to refuse requests that name no registry", d)
		}
	}
	return errors.Join(m.errs...)
}

// maxName bounds the name and the zone, which travel in the gossip, where a
// member has 512 bytes for all it says of itself.
const maxName = 128

// mistakes collects what is wrong with a configuration.
type mistakes struct{ errs []error }

func (m *mistakes) add(key, format string, args ...any) {
	m.errs = append(m.errs, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
}

func (m *mistakes) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		m.add(key, "%q is not a value of this key; write %s", value, strings.Join(allowed, " or "))
	}
}

func (m *mistakes) zone(zone string) {
	if zone == "" {
		return
	}
	if len(zone) > maxName || !printable(zone) || slices.Contains(strings.Split(zone, "/"), "") {
		m.add("zone", "%.150q is not a path of printable names such as eu/berlin/r12, at most %d characters", zone, maxName)
	}
}

// listeners checks the addresses that the process listens at, each and
// against each other.
func (m *mistakes) listeners(c Config) {
	type door struct {
		key, addr string
		optional  bool
	}
	var seen []door
	for _, d := range []door{
		{"mirror.listen", c.Mirror.Listen, true},
		{"proxy.listen", c.Proxy.Listen, true},
		{"peer.listen", c.Peer.Listen, false},
		{"gossip.listen", c.Gossip.Listen, false},
		{"admin.listen", c.Admin.Listen, true},
	} {
		if d.addr == "" && d.optional {
			continue
		}
		split := splitAddr
		if d.optional {
			split = splitDoor
		}
		host, port, err := split(d.addr)
		if err != nil {
			m.add(d.key, "%w; write an address such as 127.0.0.1:7050, or :7050 for all addresses of this machine", err)
			continue
		}
		for _, o := range seen {
			ohost, oport, _ := splitDoor(o.addr)
			if sameDoor := port == oport && (host == ohost || anyHost(host) || anyHost(ohost)); sameDoor && (port != 0 || strings.HasPrefix(host, unixPrefix)) {
				m.add(d.key, "%s is the same as that of %s (%s); give it one of its own", d.addr, o.key, o.addr)
			}
		}
		seen = append(seen, d)
	}
}

// fleet checks what a node of a fleet needs: the secret, and addresses that
// the others can reach.
func (m *mistakes) fleet(c Config) {
	const how = "put one in a file (head -c 32 /dev/urandom | base64), the same on all members, and name the file here"
	host, _, err := splitAddr(c.Gossip.Listen)
	switch {
	case c.Gossip.SecretFile != "":
	case len(c.Gossip.Join) > 0:
		m.add("gossip.secretFile", "gossip.join makes this node part of a fleet, and a fleet needs a cluster secret; %s", how)
	case err == nil && !loopback(host):
		m.add("gossip.secretFile", "gossip.listen (%s) can be reached from other machines, and without a cluster secret whoever reaches it is let in; %s, or listen at 127.0.0.1:7052", c.Gossip.Listen, how)
	}
	var away string // a join address that is certainly not on this machine
	for _, j := range c.Gossip.Join {
		jhost, jport, err := splitAddr(j)
		if err != nil || jhost == "" || jport == 0 {
			m.add("gossip.join", "%q is not an address of a member; write host:port, such as 10.0.0.2:7052", j)
			continue
		}
		if ip, err := netip.ParseAddr(jhost); err == nil && !ip.IsLoopback() && away == "" {
			away = j
		}
	}
	if away == "" {
		return
	}
	for _, l := range []struct{ key, addr, port string }{
		{"peer.listen", c.Peer.Listen, ":7051"}, {"gossip.listen", c.Gossip.Listen, ":7052"},
	} {
		if host, _, err := splitAddr(l.addr); err == nil && loopback(host) {
			m.add(l.key, "%s is on loopback, where the fleet that gossip.join names (%s) can't reach it; write %s, or leave the key out", l.addr, away, l.port)
		}
	}
}

// minLimit is the lowest limit that works: a chunk has up to 8 MiB and takes
// more than a minute then, and what is much slower can't be told from what is
// dead.
const minLimit rate.Rate = 1e6 / 8 // 1mbit

// maxWindows bounds the schedule to what a person could oversee.
const maxWindows = 100

// limits checks the rates and the schedule.
func (m *mistakes) limits(l LimitsConfig) {
	check := func(key string, r rate.Rate, text string) {
		if r != rate.Unlimited && !(r >= minLimit) {
			m.add(key, "%q is so slow that it can't be told from a dead link; write %s or more, or %s", text, minLimit, rate.Unlimited)
		}
	}
	check("limits.uploadRate", l.UploadRate, l.UploadRate.String())
	check("limits.downloadRate", l.DownloadRate, l.DownloadRate.String())
	check("limits.originRate", l.OriginRate, l.OriginRate.String())
	if len(l.Schedule) > maxWindows {
		m.add("limits.schedule", "has %d windows; %d are enough for any week", len(l.Schedule), maxWindows)
		return
	}
	for _, line := range l.Schedule {
		w, err := rate.ParseWindow(line)
		if err != nil {
			m.add("limits.schedule", "%w", err)
			continue
		}
		check("limits.schedule", w.Rate, line)
	}
}

// upstream checks one entry of upstreams.
func (m *mistakes) upstream(name string, u Upstream) {
	key := "upstreams." + name
	if name == "*" {
		if u.URL != "" || len(u.URLs) > 0 || u.Auth != "" && u.Auth != "anonymous" || u.CA != "" || u.Username != "" || u.PasswordFile != "" ||
			u.CredentialsFile != "" || len(u.Allow) > 0 || len(u.Realms) > 0 {
			m.add(key, "stands for any registry, anonymously at its own address, and takes no settings; write \"*\": {}, and an entry of its own for a registry that needs more")
		}
		return
	}
	if !validHost(name) {
		m.add(key, "is not a registry as images name it; write a host, with a port if images have one, in lower case, such as ghcr.io or registry.local:5000")
	}
	if u.URL != "" && len(u.URLs) > 0 {
		m.add(key, "has both url and urls; write all addresses into urls, in the order to try them")
	}
	for _, raw := range u.Addresses() {
		m.url(key, raw)
	}
	m.tagRules(key, u)
	for _, r := range u.Realms {
		if !validHost(r) {
			m.add(key+".realms", "%q is not a host; write the host of the token service, such as auth.example.com", r)
		}
	}
	for _, a := range u.Allow {
		if _, err := path.Match(a, ""); err != nil || a == "" {
			m.add(key+".allow", "%q is not a repository or a pattern; write names such as team/app or team/*", a)
		}
	}
	m.auth(key, u)
	m.passthrough(key, u)
}

// url checks one URL of an upstream. The messages have no user info in them.
func (m *mistakes) url(key, raw string) {
	v, err := url.Parse(raw)
	switch {
	case err != nil:
		m.add(key+".url", "is not a URL; write one such as https://registry.example.com")
	case v.User != nil:
		m.add(key+".url", "%s has credentials in it, which logs and process lists would show; write username and passwordFile, with auth: node", v.Redacted())
	case v.Scheme != "http" && v.Scheme != "https" || v.Hostname() == "" || v.RawQuery != "" || v.Fragment != "":
		m.add(key+".url", "%q is not the address of a registry; write http or https and a host, such as https://registry.example.com", raw)
	}
}

// auth checks that an upstream's credentials go with its auth.
func (m *mistakes) auth(key string, u Upstream) {
	given := u.Username != "" || u.PasswordFile != "" || u.CredentialsFile != ""
	switch u.Auth {
	case "", "anonymous":
		if given {
			m.add(key+".auth", "credentials are given and auth does not use them; write auth: node, and in allow the repositories that whoever reaches the mirror may have")
		}
		return
	case "node":
	case "passthrough":
		if given {
			m.add(key+".auth", "credentials are given and passthrough uses the callers' own; write auth: node, or remove them")
		}
		return
	default:
		m.oneOf(key+".auth", u.Auth, "anonymous", "node", "passthrough")
		return
	}
	if len(u.Allow) == 0 {
		m.add(key+".allow", "is needed with auth: node, since whoever reaches the mirror is served with this node's credentials; list the repositories, such as [team/app, \"public/*\"]")
	}
	switch {
	case !given:
		m.add(key+".auth", "node needs credentials; give credentialsFile (a docker config.json), or username and passwordFile")
	case u.CredentialsFile != "" && (u.Username != "" || u.PasswordFile != ""):
		m.add(key+".credentialsFile", "is given beside username or passwordFile; keep one of the two")
	case u.CredentialsFile == "" && (u.Username == "" || u.PasswordFile == ""):
		m.add(key+".username", "username and passwordFile go together; give both")
	}
}

// splitAddr splits host:port with a numeric port.
func splitAddr(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", addr)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q has no port from 0 to 65535", addr)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(" /@", r) }) {
		return "", 0, fmt.Errorf("%q has no host in it that could be one", addr)
	}
	return host, int(n), nil
}

// anyHost reports whether listening at host is listening at all addresses.
func anyHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// loopback reports whether host is certainly an address of this machine alone.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// congestionName is what a kernel can call a congestion control: TCP_CA_NAME_MAX, with
// the byte that ends it, is 16.
var congestionName = regexp.MustCompile(`^[a-z0-9_-]{1,15}$`)

// registryHost is a host and an optional port as they stand before the first
// slash of an image's name (distribution/reference, "domain"), lower case.
var registryHost = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

func validHost(name string) bool {
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		if port, err := strconv.ParseUint(name[i+1:], 10, 16); err != nil || port == 0 {
			return false
		}
	}
	return len(name) <= 255 && registryHost.MatchString(name)
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' })
}
