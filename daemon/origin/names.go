package origin

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// The grammar of the distribution specification, "Pulling manifests".
var (
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxRepository is the longest repository name: many clients limit name and
// host to 255 characters together.
const maxRepository = 255

// ParseRepository returns s if it is a repository name of the distribution
// specification's grammar and at most 255 characters long. Such a name has no
// empty, "." or ".." element and nothing to escape, so it is safe in a URL's
// path.
func ParseRepository(s string) (string, error) {
	if len(s) > maxRepository {
		return "", fmt.Errorf("repository name %.40q… has %d characters, more than %d", s, len(s), maxRepository)
	}
	if !repositoryGrammar.MatchString(s) {
		return "", fmt.Errorf("repository name %q is not valid: it is lower-case letters and digits, with single separators . _ __ - / between them", s)
	}
	return s, nil
}

// ParseTag returns s if it is a tag of the distribution specification's
// grammar, at most 128 characters long.
func ParseTag(s string) (string, error) {
	if !tagGrammar.MatchString(s) {
		return "", fmt.Errorf("tag %.140q is not valid: it is up to 128 letters, digits, underscores, periods and dashes, and starts with none of the last two", s)
	}
	return s, nil
}

// publicHost reports whether s, in lower case, can be the name of a registry
// on the public internet: a host name of two labels or more, not an address,
// with a port or without (RFC 1123, section 2.1).
func publicHost(s string) bool {
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' {
			return false
		}
		host = h
	}
	if len(host) > 253 || !strings.Contains(host, ".") {
		return false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return true
}

func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Named returns the configured upstream that host stands for: the one with that
// name, or else the one that has a URL there whose repositories are the host's
// own, without a path. host may have a port; one without is that of https. It is
// not ok if no upstream, or more than one, has such a URL: then nobody can say
// whose content it is. Hosts under "*" are never named.
func (c *Client) Named(host string) (upstream string, ok bool) {
	upstream, ok = c.hosts[strings.TrimSuffix(strings.ToLower(host), ":443")]
	return upstream, ok && upstream != ""
}

// namedHosts returns what Named goes by. A host that is ambiguous stands for "".
func namedHosts(named map[string]*upstream) map[string]string {
	hosts := make(map[string]string)
	for name, up := range named {
		for _, e := range up.endpoints {
			if strings.Trim(e.base.Path, "/") != "v2" {
				continue // its repositories have other names there
			}
			h := hostKey(e.base)
			if other, there := hosts[h]; there && other != name {
				hosts[h] = ""
				continue
			}
			hosts[h] = name
		}
	}
	for name := range named {
		hosts[strings.TrimSuffix(name, ":443")] = name
	}
	return hosts
}

// hostKey returns u's host and port, the latter left out if it is that of https.
func hostKey(u *url.URL) string {
	switch {
	case u.Scheme == "http" && u.Port() == "":
		return u.Host + ":80"
	case u.Port() == "443":
		return strings.TrimSuffix(u.Host, ":443")
	}
	return u.Host
}
