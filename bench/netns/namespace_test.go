//go:build linux

package netns

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// threads returns which network namespace each thread of this process is in.
func threads(t *testing.T) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	in := map[int]string{}
	for _, e := range entries {
		is, err := os.Readlink("/proc/self/task/" + e.Name() + "/ns/net")
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		id, _ := strconv.Atoi(e.Name())
		in[id] = is
	}
	return in
}

// It is not parallel: it looks at all threads.
func TestThreadsComeHome(t *testing.T) {
	home := networkOf(t, "/proc/self/ns/net")
	l := makeLab(t, Options{Delay: 1})
	a, b := makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{})
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 25 {
				if err := wander(t, a, b); err != nil {
					return err
				}
			}
			return nil
		})
		// Meanwhile, whatever else runs is at home.
		g.Go(func() error {
			for range 1000 {
				if is, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || is != home {
					return errors.Join(err, errors.New("a goroutine is in namespace "+is))
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for id, is := range threads(t) {
		if is != home {
			t.Errorf("thread %d is in namespace %s", id, is)
		}
	}
}

// wander does everything once that enters a namespace.
func wander(t *testing.T, a, b *Host) error {
	ln, err := a.Listen(t.Context(), "tcp", at(a))
	if err != nil {
		return err
	}
	defer ln.Close()
	c, err := b.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := a.Dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil {
		return errors.New("somebody listens on port 1")
	}
	cmd := exec.Command("true")
	if err := b.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// A thread that cannot leave a namespace ends, and with it what it has made
// there. It is not parallel: it looks at all threads.
func TestThreadThatCannotComeHomeEnds(t *testing.T) {
	home := networkOf(t, "/proc/self/ns/net")
	h := makeHost(t, makeLab(t, Options{}), "a", 0, Link{})
	var id int
	undone := ""
	_, err := inside(h, func() (string, error) {
		id = unix.Gettid()
		return "it", dropCapabilities()
	}, func(made string) { undone = made })
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("entering a namespace for good: %v", err)
	}
	if undone != "it" {
		t.Error("what was made is still there")
	}
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		is, there := threads(t)[id]
		if !there {
			break // the number is free, so no thread of this process has it
		}
		if is == home {
			t.Fatal("the thread came home without the right to")
		}
		if time.Now().After(deadline) {
			t.Fatal("the thread is still there")
		}
	}
}

// The main thread could not end.
func TestMainThreadStaysAtHome(t *testing.T) {
	t.Parallel()
	h := makeHost(t, makeLab(t, Options{}), "a", 0, Link{})
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for range 2000 {
				err := h.ns.do(func() error {
					if unix.Gettid() == unix.Getpid() {
						return errors.New("the main thread has entered a namespace")
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// dropCapabilities takes all rights from the calling thread.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData // version 3 has 64 bits
	return unix.Capset(&header, &none[0])
}
