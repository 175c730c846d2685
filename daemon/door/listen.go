package door

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// unixPrefix begins the address of a unix socket.
const unixPrefix = "unix:"

// maxPath is the length in bytes of the longest path of a socket, with what is
// added to it for a moment (Linux, unix(7): 108 with a NUL; others: 104).
const maxPath = 103 - len(newSuffix)

const newSuffix = ".new"

// A keyError is a mistake in the configuration.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.key + ": " + e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// listen listens at addr, which the key is about.
func listen(key, addr string, mode fs.FileMode) (net.Listener, error) {
	var ln net.Listener
	var err error
	path, isUnix := strings.CutPrefix(addr, unixPrefix)
	if isUnix {
		ln, err = listenUnix(path, mode)
	} else {
		ln, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && isUnix:
		return nil, &keyError{key, fmt.Errorf("%s is in use by another process: stop it, or set %s to another path: %w", addr, key, err)}
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &keyError{key, fmt.Errorf("%s is in use by another process: stop it, or set %s to another port: %w", addr, key, err)}
	case err != nil:
		return nil, &keyError{key, err}
	}
	return ln, nil
}

// A socket is the listener of a unix socket, which it removes when it closes.
type socket struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

func listenUnix(path string, mode fs.FileMode) (_ *socket, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path; write unix:/run/shoal/mirror.sock", path)
	}
	if len(path) > maxPath {
		return nil, fmt.Errorf("%s is too long for a socket, which may have %d bytes", path, maxPath)
	}
	if err := stale(path); err != nil {
		return nil, err
	}
	fresh := path + newSuffix
	if err := stale(fresh); err != nil {
		return nil, err
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	s := &socket{UnixListener: ln, path: path}
	if err = os.Chmod(fresh, mode); err == nil {
		s.made, err = os.Lstat(fresh)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(fresh), ln.Close())
	}
	return s, nil
}

// stale returns nil if nothing is at path, or a socket that nobody listens at.
func stale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket: remove it, or choose another path", path)
	}
	c, err := net.Dial("unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s can't be told to be unused: %w", path, err)
	}
	return errors.Join(syscall.EADDRINUSE, c.Close())
}

// Close is part of net.Listener.
func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.made) {
		_ = os.Remove(s.path) // the next start removes it otherwise
	}
	return s.UnixListener.Close()
}

// affordable returns how many of most connections the process may have, and
// still open as many files.
func affordable(most int) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return most
	}
	return int(min(uint64(most), max(uint64(files.Cur)/2, 1)))
}
