package peer

import (
	"context"
	"net/netip"
	"sync"
	"time"

	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-project/shoal/proto"
)

// A newcomer dials its peers as soon as it has joined, which can be before the
// gossip has told them of it. So an unknown identity is awaited for a moment.
// Gossip reaches a thousand nodes in under a second.
const (
	awaitMember = time.Second
	maxAwaited  = 8
)

// members is who may come in.
type members struct {
	mu sync.Mutex
	// mu protects the fields below.
	ids     map[libp2ppeer.ID]struct{}
	ips     map[netip.Addr]struct{}
	changed chan struct{} // closed and replaced when the members change
	waiting int
}

func newMembers() *members { return &members{changed: make(chan struct{})} }

// set replaces the members. It returns those that can't be let in: with an ID
// that is no peer ID, or, if byIP is true, with an address that is not an IP
// address.
func (m *members) set(ms []proto.Member, byIP bool) (bad []proto.Member) {
	ids := make(map[libp2ppeer.ID]struct{}, len(ms))
	ips := make(map[netip.Addr]struct{}, len(ms))
	for _, member := range ms {
		id, err := libp2ppeer.Decode(member.ID)
		if err != nil {
			bad = append(bad, member)
			continue
		}
		ids[id] = struct{}{}
		if addr, err := netip.ParseAddrPort(member.Addr); err == nil {
			ips[plainIP(addr.Addr())] = struct{}{}
		} else if byIP {
			bad = append(bad, member)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids, m.ips = ids, ips
	close(m.changed)
	m.changed = make(chan struct{})
	return bad
}

// plainIP makes addresses of one host comparable, however a socket wrote them.
func plainIP(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// has reports whether id is a member now.
func (m *members) has(id libp2ppeer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.ids[id]
	return ok
}

// hasIP reports whether a member has the address ip now.
func (m *members) hasIP(ip netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.ips[plainIP(ip)]
	return ok
}

// admit reports whether id is a member, or becomes one while admit waits.
func (m *members) admit(ctx context.Context, id libp2ppeer.ID) bool {
	return m.await(ctx, func() bool { _, ok := m.ids[id]; return ok })
}

// admitIP does the same for an address.
func (m *members) admitIP(ctx context.Context, ip netip.Addr) bool {
	ip = plainIP(ip)
	return m.await(ctx, func() bool { _, ok := m.ips[ip]; return ok })
}

// await waits until is, which is called with mu held, is true: for awaitMember
// at most, and not at all if maxAwaited others wait already.
func (m *members) await(ctx context.Context, is func() bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is() {
		return true
	}
	if m.waiting >= maxAwaited {
		return false
	}
	m.waiting++
	defer func() { m.waiting-- }()
	timer := time.NewTimer(awaitMember)
	defer timer.Stop()
	for !is() {
		changed := m.changed
		m.mu.Unlock()
		more := true
		select {
		case <-changed:
		case <-timer.C:
			more = false
		case <-ctx.Done():
			more = false
		}
		m.mu.Lock()
		if !more {
			return is()
		}
	}
	return true
}
