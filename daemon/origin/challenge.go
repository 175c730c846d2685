package origin

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// A challenge is one way to log in that a 401 offers (RFC 9110, section
// 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // by lower-case name
}

// parseChallenges reads a WWW-Authenticate header. It stops at the first thing
// that it does not understand and returns what came before.
func parseChallenges(s string) []challenge {
	var all []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		name, rest := cutToken(s)
		if name == "" {
			return all
		}
		rest = strings.TrimLeft(rest, " \t")
		value, isParam := strings.CutPrefix(rest, "=")
		if !isParam {
			all = append(all, challenge{strings.ToLower(name), make(map[string]string)})
			s = rest
			continue
		}
		if len(all) == 0 {
			return nil
		}
		value, s = cutValue(strings.TrimLeft(value, " \t"))
		params := all[len(all)-1].params
		if _, twice := params[strings.ToLower(name)]; !twice {
			params[strings.ToLower(name)] = value
		}
	}
}

// cutToken splits s after the token that it starts with (RFC 9110, section
// 5.6.2).
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutValue splits s after the token or quoted string that it starts with, and
// takes the quotes off.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return cutToken(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// realmAllowed reports whether the registry at base may have its tokens handed
// out by realm: over https by a host of its own registrable domain or one of
// the listed hosts; over plain http only if the registry itself is plain http,
// by its own host or a listed one.
func realmAllowed(base, realm *url.URL, listed []string) bool {
	isListed := slices.ContainsFunc(listed, func(h string) bool {
		return strings.EqualFold(h, realm.Host) || strings.EqualFold(h, realm.Hostname())
	})
	sameHost := strings.EqualFold(base.Hostname(), realm.Hostname())
	switch realm.Scheme {
	case "https":
		return isListed || sameHost || sameDomain(base.Hostname(), realm.Hostname())
	case "http":
		return base.Scheme == "http" && (isListed || sameHost)
	}
	return false
}

// sameRegistry reports whether two URLs of an upstream are of one host or one
// registrable domain, and neither is less safe than the other.
func sameRegistry(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && (strings.EqualFold(a.Hostname(), b.Hostname()) || sameDomain(a.Hostname(), b.Hostname()))
}

// sameDomain reports whether two hosts belong to one registrable domain, by
// the public suffix list: auth.docker.io and registry-1.docker.io do, and
// a.github.io and b.github.io do not.
func sameDomain(a, b string) bool {
	da, db := domain(a), domain(b)
	return da != "" && da == db
}

// domain returns the registrable domain of a host, or "" if it has none.
func domain(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	d, err := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(host))
	if err != nil {
		return ""
	}
	return d
}
