package scheduler

import (
	"errors"
	"io"
	"sync"

	"github.com/shoal-project/shoal/proto"
)

// mailboxLimit is how many messages may wait for a stream. A peer that lets so
// many pile up is not reading.
const mailboxLimit = 1 << 16

var errSlowReader = errors.New("the other side does not read what it is sent")

// mailbox is the sending half of a control stream: put never blocks, and run
// writes what has been put, many messages to a write.
type mailbox struct {
	mu     sync.Mutex
	queue  []proto.Message
	err    error // set when no more can be put
	signal chan struct{}
}

func newMailbox() *mailbox { return &mailbox{signal: make(chan struct{}, 1)} }

// put queues messages. They are lost if the mailbox is closed.
func (m *mailbox) put(msgs ...proto.Message) {
	m.mu.Lock()
	if m.err == nil {
		m.queue = append(m.queue, msgs...)
		if len(m.queue) > mailboxLimit {
			m.err, m.queue = errSlowReader, nil
		}
	}
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

// close makes run write what is queued and return.
func (m *mailbox) close() {
	m.mu.Lock()
	if m.err == nil {
		m.err = io.EOF
	}
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

// run writes to w until the mailbox is closed, which is no error, or a write
// fails.
func (m *mailbox) run(w io.Writer) error {
	var queue []proto.Message
	var buf []byte
	for range m.signal {
		m.mu.Lock()
		queue, m.queue = m.queue, queue[:0]
		err := m.err
		m.mu.Unlock()
		buf = buf[:0]
		for _, msg := range queue {
			buf = proto.AppendMessage(buf, msg)
		}
		clear(queue)
		if len(buf) > 0 {
			if _, werr := w.Write(buf); werr != nil {
				m.close()
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if cap(buf) > proto.MaxFrame {
			buf = nil // a burst must not be kept for ever
		}
	}
	return nil
}
