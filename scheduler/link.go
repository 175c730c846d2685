package scheduler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/proto"
)

const (
	// handshakeTimeout bounds dialling and the exchange of Hello and Welcome.
	// After it the owner counts as dead and its digests go to the next, which for
	// one node's pull knows what that node says and nothing of who has the rest:
	// it would send the node to the origin for it. A process that is dead
	// refuses at once and the gossip drops a machine that is, so this is for one
	// that waits for a CPU: with 2 s a node that started beside a compile took a
	// scheduler for dead that was alive. It is less than a pull's patience (see
	// package pull), or pulls would go to the origin before the next is tried.
	handshakeTimeout = 4 * time.Second
	// pingEvery is how often a scheduler is asked for a sign of life while a
	// pull depends on it, and silentFor how long it may give none. A process
	// that dies is noticed at once, by its stream; this is for one that hangs.
	// With 3 s, nodes on a machine without a free CPU left schedulers that were
	// alive, one after the other.
	pingEvery = time.Second
	silentFor = 6 * time.Second
	// retryFirst and retryMax bound the pauses between attempts to reach a
	// scheduler; pulls do not wait for them, they go to another.
	retryFirst = 100 * time.Millisecond
	retryMax   = 5 * time.Second
)

// The states of a link.
const (
	linkNew = iota // has not been tried to its end yet
	linkUp
	linkDown
)

// link is the control stream to one possible owner, made again and again.
type link struct {
	// immutable
	client *Client
	member proto.Member
	ctx    context.Context
	cancel context.CancelFunc

	// client.mu protects the fields below.
	state int
	box   *mailbox
}

func newLink(c *Client, m proto.Member) *link {
	l := &link{client: c, member: m}
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	return l
}

// stop ends the link, with a last message if the stream stands. The client's
// mu is held.
func (l *link) stop(last proto.Message) {
	if l.box != nil && last != nil {
		l.box.put(last)
		l.box.close()
	}
	l.cancel()
}

// run keeps the link up until it is stopped.
func (l *link) run() {
	pause := retryFirst
	for l.ctx.Err() == nil {
		stood, err := l.once()
		l.client.linkDown(l)
		if stood {
			pause = retryFirst
		}
		if l.ctx.Err() != nil {
			return
		}
		l.client.log.Debug("no stream to scheduler", "node", l.member.Name, "peer", l.member.ID, "error", err)
		t := time.NewTimer(pause)
		select {
		case <-l.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = min(2*pause, retryMax)
	}
}

// once makes the stream and speaks on it until it ends. It reports whether the
// stream stood.
func (l *link) once() (stood bool, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	defer cancel()
	stream, err := l.client.cfg.Dial(ctx, l.member)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	hello := &proto.Hello{Min: proto.MinVersion, Max: proto.Version, Node: l.client.cfg.Self}
	if _, err := stream.Write(proto.AppendMessage(nil, hello)); err != nil {
		return false, fmt.Errorf("greeting: %w", err)
	}
	r := bufio.NewReaderSize(stream, 32<<10)
	m, buf, err := proto.ReadMessage(r, nil)
	if err != nil {
		return false, fmt.Errorf("waiting for welcome: %w", err)
	}
	switch m := m.(type) {
	case *proto.Welcome:
	case *proto.Bye:
		return false, fmt.Errorf("scheduler refused: %s", m.Reason)
	default:
		return false, fmt.Errorf("scheduler answered hello with %T", m)
	}
	if !stop() {
		return false, ctx.Err()
	}
	stop = context.AfterFunc(l.ctx, func() { stream.Close() })
	defer stop()
	return true, l.speak(stream, r, buf)
}

// speak exchanges messages on a stream that stands until it ends.
func (l *link) speak(stream io.ReadWriteCloser, r io.Reader, buf []byte) error {
	box := newMailbox()
	var heard atomic.Int64 // when the scheduler was last heard, Unix nanoseconds
	heard.Store(time.Now().UnixNano())
	over := make(chan struct{})
	written := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(written)
		_ = box.run(stream)
		stream.Close()
	}()
	go func() {
		defer close(watched)
		l.watch(stream, box, &heard, over)
	}()
	defer func() {
		close(over)
		box.close()
		stream.Close()
		<-written
		<-watched
	}()
	l.client.linkUp(l, box)
	for {
		m, grown, err := proto.ReadMessage(r, buf)
		if err != nil {
			return err
		}
		buf = grown
		heard.Store(time.Now().UnixNano())
		if bye, ok := m.(*proto.Bye); ok {
			return errors.New("scheduler said goodbye: " + bye.Reason)
		}
		l.client.receive(box, m)
	}
}

// watch closes the stream if the scheduler is silent while pulls depend on it.
func (l *link) watch(stream io.Closer, box *mailbox, heard *atomic.Int64, over <-chan struct{}) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var seq uint64
	var asked time.Time // since when an answer is due; zero: nothing was asked
	for {
		select {
		case <-over:
			return
		case now := <-tick.C:
			if !asked.IsZero() && heard.Load() > asked.UnixNano() {
				asked = time.Time{}
			}
			switch {
			case !l.client.busy(box):
				asked = time.Time{}
				continue
			case asked.IsZero():
				asked = now
			case now.Sub(asked) > silentFor:
				stream.Close()
				return
			}
			seq++
			box.put(&proto.Ping{Seq: seq})
		}
	}
}
