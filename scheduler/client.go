package scheduler

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/shoal-project/shoal/proto"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// Self is this node, as it presents itself.
	Self proto.Member
	// Dial opens a control stream to a member.
	Dial func(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error)
	// Holds lists the blobs that are whole on this node.
	Holds func() []proto.Blob
	// Sums returns the chunk sums of a blob that this node has, in order, the
	// zero Sum where it knows none, or nil if it has nothing of the blob. It may
	// block.
	Sums func(d proto.Digest) []proto.Sum
	// Call starts to bring a blob from its origin for others. It must not
	// block.
	Call func(b proto.Blob, o proto.Origin) error
	Log  *slog.Logger // default: none
}

// Client is a node's side of scheduling: it keeps a control stream to every
// member that may own digests, tells each owner what this node holds, and
// hands the leases to the Sessions. When an owner dies, or another member
// becomes the owner, its sessions move.
type Client struct {
	// immutable
	cfg    ClientConfig
	log    *slog.Logger
	ctx    context.Context // ends when Run ends
	cancel context.CancelFunc

	// mu protects the fields below. It is taken before a Session's.
	mu         sync.Mutex
	candidates []proto.Member
	council    []proto.Member // in case no candidate answers; empty if candidates are the council
	links      map[string]*link
	sessions   map[proto.Digest]*Session
	joined     uint64                  // sessions so far
	told       map[proto.Digest]string // which owner was told that a blob is whole here
	closed     bool
	wg         sync.WaitGroup
}

// NewClient returns a Client that knows no member yet.
func NewClient(cfg ClientConfig) *Client {
	c := &Client{
		cfg:      cfg,
		log:      cfg.Log,
		links:    make(map[string]*link),
		sessions: make(map[proto.Digest]*Session),
		told:     make(map[proto.Digest]string),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Run blocks until ctx ends, then says goodbye to the schedulers and waits for
// the streams to be done. It returns nil.
func (c *Client) Run(ctx context.Context) error {
	<-ctx.Done()
	c.mu.Lock()
	c.closed = true
	for _, l := range c.links {
		l.stop(&proto.Bye{Reason: "the node is shutting down"})
	}
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return nil
}

// SetMembers tells who is in the fleet now. It reports whether the members
// that may own digests are others than before.
func (c *Client) SetMembers(members []proto.Member) bool {
	candidates := Candidates(members)
	council := council(members)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	same := slices.EqualFunc(candidates, c.candidates, func(a, b proto.Member) bool { return a.ID == b.ID })
	c.candidates = slices.Clone(candidates)
	c.council = council
	c.relink()
	c.rehome()
	return !same
}

// relink makes the links that are needed and ends the others: to the
// candidates, and, while none of them answers, to the council. c.mu is held.
func (c *Client) relink() {
	lost := !slices.ContainsFunc(c.candidates, func(m proto.Member) bool {
		l := c.links[m.ID]
		return l == nil || l.state != linkDown
	})
	members := c.candidates
	if lost {
		members = append(slices.Clone(members), c.council...)
	}
	wanted := make(map[string]bool)
	for _, m := range members {
		wanted[m.ID] = true
		if l := c.links[m.ID]; l != nil && l.member.Addr == m.Addr {
			continue
		} else if l != nil {
			l.stop(nil) // it has moved
		}
		l := newLink(c, m)
		c.links[m.ID] = l
		c.wg.Go(l.run)
	}
	for id, l := range c.links {
		if !wanted[id] {
			delete(c.links, id)
			l.stop(nil)
		}
	}
}

// Owner returns the ID of the member that schedules d now, as far as this node
// knows, or "" if there is none.
func (c *Client) Owner(d proto.Digest) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner(d)
}

// owner counts members that have not answered yet as alive: if every node went
// to the next best until its own first connection stands, each would have
// another owner for the same digest. c.mu is held.
func (c *Client) owner(d proto.Digest) string {
	dead := func(id string) bool {
		l := c.links[id]
		return l == nil || l.state == linkDown
	}
	m, ok := Owner(d, c.candidates, dead)
	if !ok {
		if m, ok = Owner(d, c.council, dead); !ok {
			return ""
		}
	}
	return m.ID
}

// boxOf returns the mailbox of the link to the member with the given ID, or
// nil if the link does not stand. c.mu is held.
func (c *Client) boxOf(id string) *mailbox {
	if l := c.links[id]; l != nil && l.state == linkUp {
		return l.box
	}
	return nil
}

// rehome moves sessions and announcements to their owners. c.mu is held.
func (c *Client) rehome() {
	lists := make(map[*mailbox][]proto.Blob)
	for _, b := range c.cfg.Holds() {
		id := c.owner(b.Digest)
		if box := c.boxOf(id); box != nil && c.told[b.Digest] != id {
			c.told[b.Digest] = id
			lists[box] = append(lists[box], b)
		}
	}
	for box, blobs := range lists {
		for part := range slices.Chunk(blobs, proto.HoldsPerFrame) {
			box.put(&proto.Hold{Blobs: part})
		}
	}
	// In the order of the pulls, which is the order in which a scheduler serves
	// the blobs of one node: the layers of an image come in manifest order.
	sessions := slices.SortedFunc(maps.Values(c.sessions), func(a, b *Session) int { return cmp.Compare(a.number, b.number) })
	for _, s := range sessions {
		s.attach(c.boxOf(c.owner(s.digest)))
	}
}

// linkUp takes note that a link stands. It is called by the link.
func (c *Client) linkUp(l *link, box *mailbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[l.member.ID] != l {
		return
	}
	l.state, l.box = linkUp, box
	if !c.closed {
		c.relink()
	}
	for d, id := range c.told {
		if id == l.member.ID {
			delete(c.told, d) // it has forgotten
		}
	}
	c.rehome()
}

// linkDown takes note that a link could not be made or broke.
func (c *Client) linkDown(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[l.member.ID] != l {
		return
	}
	l.state, l.box = linkDown, nil
	if !c.closed {
		c.relink()
	}
	c.rehome()
}

// busy reports whether a session goes by box.
func (c *Client) busy(box *mailbox) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s.isOn(box) {
			return true
		}
	}
	return false
}

// Hold announces that a blob is whole here.
func (c *Client) Hold(b proto.Blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.owner(b.Digest)
	if box := c.boxOf(id); box != nil && c.told[b.Digest] != id {
		c.told[b.Digest] = id
		box.put(&proto.Hold{Blobs: []proto.Blob{b}})
	}
}

// Gone takes back that a blob is whole here. A blob that is not, or that is on
// its way here, is left alone.
func (c *Client) Gone(d proto.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, told := c.told[d]
	delete(c.told, d)
	if c.sessions[d] != nil || !told {
		return
	}
	if box := c.boxOf(id); box != nil {
		box.put(&proto.Part{Digest: d})
	}
}

// receive takes a message from the scheduler at the other end of box.
func (c *Client) receive(box *mailbox, m proto.Message) {
	switch m := m.(type) {
	case *proto.Lease:
		if s := c.session(m.Digest); s == nil || !s.deliver(box, m) {
			box.put(&proto.Fail{Digest: m.Digest, Lease: m.ID, Cause: proto.CauseDropped})
		}
	case *proto.Revoke:
		if s := c.session(m.Digest); s != nil {
			s.deliver(box, m)
		}
	case *proto.Call:
		if err := c.cfg.Call(m.Blob, m.Origin); err != nil {
			c.log.Debug("declined to seed", "digest", m.Blob.Digest, "error", err)
			box.put(&proto.Decline{Digest: m.Blob.Digest, Reason: err.Error()})
		}
	case *proto.Ask:
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			c.wg.Go(func() { c.answer(box, m.Digest) })
		}
	}
}

// answer tells what is known of a blob's sums. It may take as long as to read
// the blob, so that leases must not wait for it.
func (c *Client) answer(box *mailbox, d proto.Digest) {
	sums := c.cfg.Sums(d)
	if sums == nil {
		box.put(&proto.Part{Digest: d})
	}
	first := 0
	for part := range slices.Chunk(sums, proto.SumsPerFrame) {
		box.put(&proto.Sums{Digest: d, First: first, Sums: part})
		first += len(part)
	}
}

func (c *Client) session(d proto.Digest) *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[d]
}

// Ready reports whether a pull that starts now would find its owner: there are
// candidates, all have been tried, and one at least is connected.
func (c *Client) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	up := false
	for _, l := range c.links {
		if l.state == linkNew {
			return false
		}
		up = up || l.state == linkUp
	}
	return up
}
