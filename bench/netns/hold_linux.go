package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A holder delays what the hosts of a lab receive.
type holder struct {
	// immutable
	delay time.Duration
	rest  time.Duration
	wake  int           // an eventfd: there is something new
	done  chan struct{} // closed when run has ended
	log   *slog.Logger

	// mu protects the fields below.
	mu      sync.Mutex
	queues  []*queue // by host, in order of their making; never fewer
	closing bool
}

// newHolder makes a holder without hosts and starts it.
func newHolder(delay time.Duration, log *slog.Logger) (*holder, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	h := &holder{
		delay: delay, wake: fd, done: make(chan struct{}), log: log,
		rest: min(max(delay/20, 100*time.Microsecond), 2*time.Millisecond),
	}
	go func() {
		defer close(h.done)
		if err := h.run(); err != nil {
			h.log.Error("packets no longer go on after their delay: all hosts are cut off", "error", err)
		}
	}()
	return h, nil
}

// add delays what the host of a namespace receives.
func (h *holder) add(ns *namespace) error {
	q, err := openQueue(ns)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.queues = append(h.queues, q)
	h.mu.Unlock()
	return h.ring()
}

// close ends the delay. Packets that are held are lost, and later ones.
func (h *holder) close() error {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	errs := []error{h.ring()}
	<-h.done
	for _, q := range h.queues {
		errs = append(errs, q.close())
	}
	return errors.Join(append(errs, unix.Close(h.wake))...)
}

// ring makes run look at what is new.
func (h *holder) ring() error {
	_, err := unix.Write(h.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // adds to a 64-bit number
	return err
}

// A heldPacket is one that waits.
type heldPacket struct {
	queue int
	id    uint32
	due   time.Time
}

// run lets packets go on when they have waited, until the holder is closed.
//
// It does not use Go's own waiting for files and times: that wakes a thread for
// every packet, twice, and rounds times up to a millisecond. Instead it has a
// thread that takes packets together. After each look it rests, so while many
// come they wait up to two rests longer, and single ones not at all.
func (h *holder) run() error {
	var held []heldPacket
	for {
		queues, closing := h.look()
		if closing {
			return nil
		}
		limit := time.Duration(-1) // none
		if len(held) > 0 {
			limit = max(time.Until(held[0].due), 0)
		}
		ready, err := h.wait(queues, limit)
		if err != nil {
			return err
		}
		now := time.Now()
		for _, i := range ready {
			if held, err = take(held, queues[i], i, now.Add(h.delay)); err != nil {
				return err
			}
		}
		n := due(held, now)
		if err := release(queues, held[:n]); err != nil {
			return err
		}
		if held = held[n:]; len(held) == 0 {
			held = nil // or the slice would creep through memory
		}
		if _, err := h.wait(nil, h.rest); err != nil {
			return err
		}
	}
}

// look returns what is new.
func (h *holder) look() (queues []*queue, closing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.queues, h.closing
}

// wait waits for a packet in one of the queues and returns which have any. It
// returns early if there is something new, and at the limit; negative is none.
func (h *holder) wait(queues []*queue, limit time.Duration) (ready []int, err error) {
	fds := []unix.PollFd{{Fd: int32(h.wake), Events: unix.POLLIN}}
	for _, q := range queues {
		fds = append(fds, unix.PollFd{Fd: int32(q.fd), Events: unix.POLLIN})
	}
	var timeout *unix.Timespec
	if limit >= 0 {
		t := unix.NsecToTimespec(limit.Nanoseconds())
		timeout = &t
	}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("wait for packets: %w", err)
	}
	if fds[0].Revents != 0 {
		if _, err := unix.Read(h.wake, make([]byte, 8)); err != nil && !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("read an eventfd: %w", err)
		}
	}
	for i, fd := range fds[1:] {
		if fd.Revents != 0 {
			ready = append(ready, i)
		}
	}
	return ready, nil
}

// take adds all packets of a queue to those that are held.
func take(held []heldPacket, q *queue, i int, due time.Time) ([]heldPacket, error) {
	for {
		id, err := q.next()
		if errors.Is(err, unix.EAGAIN) {
			return held, nil
		}
		if err != nil {
			return held, fmt.Errorf("read a packet queue: %w", err)
		}
		held = append(held, heldPacket{i, id, due})
	}
}

// due returns how many packets have waited long enough.
func due(held []heldPacket, now time.Time) int {
	n := 0
	for n < len(held) && !held[n].due.After(now) {
		n++
	}
	return n
}

// release lets packets go on, those of one host together.
func release(queues []*queue, held []heldPacket) error {
	last := make(map[int]uint32)
	for _, p := range held {
		last[p.queue] = p.id
	}
	for i, id := range last {
		if err := queues[i].release(id); err != nil {
			return fmt.Errorf("let packets go on: %w", err)
		}
	}
	return nil
}
