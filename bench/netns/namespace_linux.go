package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// run is where named network namespaces are, for `ip netns` and everybody else.
const run = "/run/netns"

// A namespace is a network namespace with a name.
type namespace struct {
	name string
	file *os.File
}

// makeNamespace makes one. Its name must be free: fs.ErrExist says it is not.
func makeNamespace(name string) (_ *namespace, err error) {
	if err := makeRun(); err != nil {
		return nil, err
	}
	path := filepath.Join(run, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	_ = f.Close() // the mount covers it
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), removeNamespace(name))
		}
	}()
	unshare := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	err = visit(unshare, func() error {
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	if f, err = os.Open(path); err != nil {
		return nil, err
	}
	return &namespace{name: name, file: f}, nil
}

// makeRun makes the folder of the names a shared mount, as `ip netns add` does:
// if a later one had to do it, it would mount the folder over ours, and what is
// below could no longer be removed.
func makeRun() error {
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	d, err := os.Open(run)
	if err != nil {
		return err
	}
	defer d.Close() // gives the lock up
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", run, err)
	}
	err = unix.Mount("", run, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		err = unix.Mount(run, run, "none", unix.MS_BIND|unix.MS_REC, "")
		if err == nil {
			err = unix.Mount("", run, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", run, err)
	}
	return nil
}

// removeNamespace removes a name. The namespace goes with it unless a process
// or an open socket is still in it.
func removeNamespace(name string) error {
	path := filepath.Join(run, name)
	// It is not mounted if its maker was killed in between.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// close removes the namespace.
func (n *namespace) close() error {
	return errors.Join(n.file.Close(), removeNamespace(n.name))
}

// do calls f on a thread that is in the namespace. What f opens, starts and
// reads under /proc belongs to it. f must do so itself, not on a goroutine.
func (n *namespace) do(f func() error) error { return visit(n.enter, f) }

// enter moves the calling thread. errClosed: the namespace has been removed.
func (n *namespace) enter() error {
	c, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	err = errClosed
	// Not called if the file is closed, and not closed while it is called.
	_ = c.Control(func(fd uintptr) { err = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.name, err)
	}
	return nil
}

// visit calls f on a thread that enter has moved to another network namespace.
// The thread belongs to a goroutine of its own meanwhile: the runtime runs no
// other on it and makes no other thread from it. It goes back before anybody
// else gets it; one that cannot ends with its goroutine.
func visit(enter, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- visitLocked(enter, f) }()
	return <-done
}

// visitLocked is visit on the calling goroutine, which ends after it.
func visitLocked(enter, f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and shows where the process is. While it
		// is held here another one gets the work.
		defer runtime.UnlockOSThread()
		return visit(enter, f)
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave a network namespace: %w", back)) // locked, so the thread ends
	}
	runtime.UnlockOSThread()
	return err
}
