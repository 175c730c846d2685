package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// A target is the host and port that a client wants to reach.
type target struct {
	host string // in lower case, without a dot at its end; an address as netip prints it
	port uint16
}

// hostGrammar is that of a host name (RFC 1123, section 2.1) with the underscore
// that some have all the same.
var hostGrammar = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)

// maxHost is the longest host name, in characters (RFC 1035, section 2.3.4).
const maxHost = 253

// parseTarget reads host:port, or a host alone if there is a default port.
func parseTarget(s string, port uint16) (target, error) {
	t := target{port: port}
	host, digits, err := net.SplitHostPort(s)
	switch {
	case err == nil:
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return t, fmt.Errorf("%.300q has no port between 1 and 65535", s)
		}
		t.port = uint16(n)
	case port == 0:
		return t, fmt.Errorf("%.300q is not a host and a port, such as registry.example:443", s)
	default:
		host = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return t, fmt.Errorf("%.300q has a zone", s)
		}
		t.host = addr.Unmap().String()
		return t, nil
	}
	t.host = strings.TrimSuffix(strings.ToLower(host), ".")
	if len(t.host) > maxHost || !hostGrammar.MatchString(t.host) {
		return t, fmt.Errorf("%.300q is no host name", s)
	}
	return t, nil
}

// String returns the host and the port.
func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(int(t.port))) }

// authority is what stands in a URL for the target.
func (t target) authority(scheme string) string {
	if scheme == "https" && t.port == 443 || scheme == "http" && t.port == 80 {
		if strings.Contains(t.host, ":") {
			return "[" + t.host + "]"
		}
		return t.host
	}
	return t.String()
}

// name is how a configuration names the target: with its port, unless that is
// 443.
func (t target) name() string { return t.authority("https") }

// matches reports whether the target is one of those that pattern stands for.
func (t target) matches(pattern string) bool {
	if host, port, err := net.SplitHostPort(pattern); err == nil {
		if port != strconv.Itoa(int(t.port)) {
			return false
		}
		pattern = host
	}
	pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "["), "]")
	if domain, ok := strings.CutPrefix(pattern, "*"); ok { // domain begins with the dot
		return strings.HasSuffix(t.host, domain) && len(t.host) > len(domain)
	}
	return t.host == pattern
}

// CheckPattern returns what is wrong with a pattern of Config.Intercept.
func CheckPattern(pattern string) error {
	host, wild := strings.CutPrefix(pattern, "*.")
	t, err := parseTarget(host, 443)
	if err != nil {
		return fmt.Errorf("%.300q is not a host, such as ghcr.io, or all hosts below a domain, such as *.gcr.io: %w", pattern, err)
	}
	if _, err := netip.ParseAddr(t.host); err == nil && wild {
		return errors.New("there are no hosts below an address: " + pattern)
	}
	return nil
}
