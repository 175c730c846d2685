package scheduler

import (
	"sync"

	"github.com/shoal-project/shoal/proto"
)

// A Session is one blob's pull in the eyes of its scheduler, whoever that is
// at the moment.
type Session struct {
	// immutable
	client *Client
	digest proto.Digest
	state  func() *proto.Join
	events chan proto.Message
	number uint64 // of the client's sessions, set under its mu when it is made

	// mu protects the fields below. While it is held, no report can slip
	// between the state that a Join tells and the Join itself.
	mu     sync.Mutex
	box    *mailbox // of the stream to the owner; nil without one
	closed bool
}

// eventsBuffer is how many events wait for their reader. Leases are few by
// design; one that finds no room is given back.
const eventsBuffer = 64

// Join enters the pull of a blob into the swarm of its owner. There is at most
// one session per digest at a time. state says what is here and on its way; it
// is called, at any time and with locks held, whenever an owner has to be
// told, and must neither block nor call the session.
func (c *Client) Join(d proto.Digest, state func() *proto.Join) *Session {
	s := &Session{client: c, digest: d, state: state, events: make(chan proto.Message, eventsBuffer)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.joined++
		s.number = c.joined
		c.sessions[d] = s
		delete(c.told, d)
		s.attach(c.boxOf(c.owner(d)))
	}
	return s
}

// Events delivers what the scheduler says: *proto.Lease, *proto.Revoke, and
// *proto.Welcome and *proto.Bye when a scheduler has been found and lost. A
// session starts without one.
func (s *Session) Events() <-chan proto.Message { return s.events }

// Report tells the scheduler of the pull: *proto.Done, *proto.Fail or
// *proto.Await. Without a scheduler it is dropped: the next one is told the
// state. It does not block.
func (s *Session) Report(m proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.box != nil {
		s.box.put(m)
	}
}

// Close ends the session. If the blob is whole, the owner is told that it is
// to be had here, else that nothing of it is.
func (s *Session) Close(blob proto.Blob, whole bool) {
	c := s.client
	c.mu.Lock()
	if c.sessions[s.digest] == s {
		delete(c.sessions, s.digest)
	}
	c.mu.Unlock()
	s.mu.Lock()
	box := s.box
	s.closed, s.box = true, nil
	s.mu.Unlock()
	switch {
	case whole:
		c.Hold(blob)
	case box != nil:
		box.put(&proto.Part{Digest: s.digest})
	}
}

// attach moves the session to the owner at the end of box, which may be nil.
func (s *Session) attach(box *mailbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.box == box {
		return
	}
	if s.box != nil {
		s.box.put(&proto.Part{Digest: s.digest})
		s.event(&proto.Bye{Reason: "another scheduler"})
	}
	s.box = box
	if box != nil {
		box.put(s.state())
		s.event(&proto.Welcome{})
	}
}

// deliver hands over what came from the owner at the end of box. It reports
// whether it could.
func (s *Session) deliver(box *mailbox, m proto.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.box == box && s.event(m)
}

func (s *Session) event(m proto.Message) bool {
	select {
	case s.events <- m:
		return true
	default:
		return false
	}
}

func (s *Session) isOn(box *mailbox) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.box == box
}
