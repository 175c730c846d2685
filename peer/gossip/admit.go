package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// rememberGone is how long the epoch of a member that has gone is kept, so
	// that old packets do not bring it back, and maxRecords bounds how many
	// are. A ghost that comes after that is found dead like any other member.
	rememberGone = 10 * time.Minute
	maxRecords   = 16384
)

var (
	errNotListed = errors.New("its peer ID is not on the list of those that may be members")
	errStale     = errors.New("that is of an earlier life of it")
)

// A record is the newest that was accepted of a member.
type record struct {
	at    netip.AddrPort // where it gossips
	meta  []byte         // verified
	epoch uint64
	gone  time.Time // when it went; zero while it is there
}

// allows reports whether a member with this ID is let in.
func (g *Gossip) allows(id string) bool { return id == g.self.ID || g.allowed == nil || g.allowed(id) }

// NotifyAlive judges what is said of a member that is said to be alive, by
// whomever. An error makes memberlist ignore it.
func (e events) NotifyAlive(n *memberlist.Node) error {
	g := e.g
	if !g.allows(n.Name) {
		g.stranger(n.Name, n.Address(), errNotListed)
		return errNotListed
	}
	epoch, err := g.judge(n)
	if err != nil {
		return err
	}
	if n.Name == g.self.ID {
		// Of an earlier life: memberlist has to see it to outdo it. Of a later
		// one: the clock was set back since.
		g.outdo(epoch, n.Address() == g.addr)
		return nil
	}
	g.mu.Lock()
	known, ok := g.records[n.Name]
	g.mu.Unlock()
	if ok && epoch < known.epoch {
		return errStale
	}
	return nil
}

// judge checks that a node's metadata was made by the owner of its ID, for its
// address, and returns the epoch. What was accepted before is not checked
// again: a full exchange tells of everybody.
func (g *Gossip) judge(n *memberlist.Node) (uint64, error) {
	at, err := addrOf(n)
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	known, ok := g.records[n.Name]
	g.mu.Unlock()
	if ok && known.at == at && bytes.Equal(known.meta, n.Meta) {
		return known.epoch, nil
	}
	c, err := parseMeta(n.Name, n.Meta)
	if err == nil {
		err = verifyMeta(n.Name, at, n.Meta)
	}
	if err != nil {
		g.stranger(n.Name, n.Address(), err)
		return 0, err
	}
	return c.epoch, nil
}

// stranger logs, once in a while, that somebody is kept out. Gossip repeats
// itself.
func (g *Gossip) stranger(id, address string, why error) {
	g.mu.Lock()
	now := time.Now()
	quiet := now.Sub(g.complained) < complainEvery
	if !quiet {
		g.complained = now
	}
	g.mu.Unlock()
	if !quiet {
		g.log.Warn("what the gossip says of a member is not accepted", "peer", id, "address", address, "error", why)
	}
}

// complainEvery bounds the log of those that are kept out.
const complainEvery = 10 * time.Second

// NotifyMerge sees what another member knows, when one of the two joins the
// other. If that has this member's identity at another address, it will not
// hear of this one until it knows the other to be dead.
func (e events) NotifyMerge(known []*memberlist.Node) error {
	listed := false
	for _, n := range known {
		listed = listed || n.Name != e.g.self.ID && e.g.allows(n.Name)
		if n.Name != e.g.self.ID {
			continue
		}
		if n.Address() != e.g.addr {
			e.g.disputed.Store(true)
		}
		if epoch, err := e.g.judge(n); err == nil {
			e.g.outdo(epoch, n.State != memberlist.StateAlive || n.Address() == e.g.addr)
		}
	}
	if !listed && len(known) > 0 {
		return errNotListed
	}
	return nil
}

// outdo makes this member's epoch higher than one of its own that others know,
// if that is higher: the clock was ahead when this member ran before. mine says
// that it can't be of another process that lives and has the same identity.
func (g *Gossip) outdo(epoch uint64, mine bool) {
	g.mu.Lock()
	higher := mine && epoch > g.epoch
	if higher {
		g.epoch = epoch + 1
	}
	g.mu.Unlock()
	if higher {
		notify(g.outdone)
	}
}

// keepNewest signs this member's card anew when its epoch has changed, until
// ctx ends.
func (g *Gossip) keepNewest(ctx context.Context, list *memberlist.Memberlist) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.outdone:
		}
		if err := g.sealCard(); err != nil {
			g.log.Error("can't sign what is told of this member", "error", err)
			continue
		}
		g.log.Warn("the fleet knows this node from a later time than now: is the clock right?")
		if err := list.UpdateNode(leaveWithin); err != nil {
			g.log.Debug("telling of a new epoch", "error", err)
		}
	}
}

// sealCard makes the metadata of this member.
func (g *Gossip) sealCard() error {
	g.mu.Lock()
	c := card{member: g.self, epoch: g.epoch}
	g.mu.Unlock()
	meta, err := c.seal(netip.AddrPortFrom(g.advertise, uint16(g.transport.port)), g.sign)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.mu.Lock()
	g.meta = meta
	g.mu.Unlock()
	return nil
}

// remember notes what was accepted of a member; g.mu is held.
func (g *Gossip) remember(id string, at netip.AddrPort, meta []byte, epoch uint64) {
	g.records[id] = record{at: at, meta: bytes.Clone(meta), epoch: epoch}
}

// forget notes that a member has gone, and drops those that have been gone for
// long; g.mu is held.
func (g *Gossip) forget(id string) {
	now := time.Now()
	if r, ok := g.records[id]; ok {
		r.gone = now
		g.records[id] = r
	}
	for id, r := range g.records {
		if !r.gone.IsZero() && (now.Sub(r.gone) > rememberGone || len(g.records) > maxRecords) {
			delete(g.records, id)
		}
	}
}
