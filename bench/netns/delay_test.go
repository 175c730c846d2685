//go:build linux

package netns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDelay(t *testing.T) {
	t.Parallel()
	need(t)
	const delay, n = 20 * time.Millisecond, 1 << 20
	h, err := newHolder(delay, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*delayer{"netem": {delay: delay}, "queue": {delay: delay, holder: h}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "netem" {
				needNetem(t)
			}
			l := makeLab(t, Options{})
			l.delay = d
			a, b := makeHost(t, l, "a", 0, Link{fast, fast}), makeHost(t, l, "b", 0, Link{fast, fast})
			start := time.Now()
			out, in := connect(t, a, b)
			if took := time.Since(start); took < 2*delay {
				t.Errorf("a connection was made in %s with a delay of %s each way", took, delay)
			}
			for range 5 {
				if took := ping(t, out, in); took < 2*delay {
					t.Errorf("a round trip took %s with a delay of %s each way", took, delay)
				}
			}
			if took, least := transfer(t, n, route{a, b}), least(n, fast)+delay; took < least {
				t.Errorf("a transfer took %s, and rate and delay allow %s", took, least)
			}
		})
	}
}

// ping sends a byte there and back again.
func ping(t *testing.T, out, in net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if err := say(out, in, "?"); err != nil {
		t.Fatal(err)
	}
	if err := say(in, out, "!"); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// needNetem skips a test if the kernel cannot delay packets.
func needNetem(t *testing.T) {
	t.Helper()
	ns, err := makeProbe()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	if err := ns.tryNetem(); err != nil {
		t.Skipf("this kernel has no netem, the other way is tested: %v", err)
	}
}

func TestNewFindsAWayToDelay(t *testing.T) {
	t.Parallel()
	const delay = 5 * time.Millisecond
	l := makeLab(t, Options{Delay: delay})
	a, b := makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{})
	out, in := connect(t, a, b)
	if took := ping(t, out, in); took < 2*delay {
		t.Errorf("a round trip took %s with a delay of %s each way", took, delay)
	}
}

func TestLoopbackIsNotDelayed(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{Delay: longest})
	a := makeHost(t, l, "a", 0, Link{})
	for _, addr := range []string{"127.0.0.1:0", at(a)} {
		ln, err := a.Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		ctx, cancel := context.WithTimeout(t.Context(), longest)
		defer cancel()
		c, err := a.Dial(ctx, "tcp", ln.Addr().String())
		if err != nil {
			t.Errorf("a connection to %s takes as long as a delay: %v", addr, err)
			continue
		}
		c.Close()
	}
}

// A packet is gone if its link is, before it has gone on.
func TestPacketsThatAreGone(t *testing.T) {
	t.Parallel()
	need(t)
	ns, err := makeProbe()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	q, err := openQueue(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	for range 2 {
		if err := q.release(4711); err != nil {
			t.Fatal(err)
		}
	}
	if id, err := q.next(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a queue without packets: %d, %v", id, err)
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	now := time.Now()
	held := []heldPacket{{0, 1, now.Add(-1)}, {0, 2, now}, {0, 3, now.Add(1)}}
	for n, at := range []time.Time{now.Add(-2), now.Add(-1), now, now.Add(1)} {
		want := n
		if got := due(held, at); got != want {
			t.Errorf("%d packets are due at %s, want %d", got, at.Sub(now), want)
		}
	}
}
