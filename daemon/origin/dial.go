package origin

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// A privateAddrError is why refusePrivate refused.
type privateAddrError struct{ addr netip.Addr }

func (e *privateAddrError) Error() string {
	return fmt.Sprintf("%s is not a public address: only those may be reached through \"*\"; give the registry an entry of its own in upstreams", e.addr)
}

// refusePrivate is a net.Dialer's Control. It sees the address after DNS, just
// before the connect, so a name that resolves to something else the next time
// gains nothing.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !publicAddr(ap.Addr()) {
		return &privateAddrError{ap.Addr()}
	}
	return nil
}

// notPublic4 are the IPv4 blocks that are not globally reachable (IANA IPv4
// Special-Purpose Address Registry), and multicast. 192.88.99.0/24 was the
// 6to4 relay.
var notPublic4 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
	"192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4",
)

// notPublic6 are the blocks inside 2000::/3 that are not (IANA IPv6
// Special-Purpose Address Registry), and 6to4, which has an IPv4 address in it.
var notPublic6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")

var (
	global6 = netip.MustParsePrefix("2000::/3")     // all unicast that IANA has given out
	nat64   = netip.MustParsePrefix("64:ff9b::/96") // IPv4 behind a NAT64 (RFC 6052)
)

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// publicAddr reports whether a is an address on the public internet.
func publicAddr(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	inside := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case a.Is4():
		return !slices.ContainsFunc(notPublic4, inside)
	case nat64.Contains(a):
		b := a.As16()
		return publicAddr(netip.AddrFrom4([4]byte(b[12:])))
	default:
		return global6.Contains(a) && !slices.ContainsFunc(notPublic6, inside)
	}
}
