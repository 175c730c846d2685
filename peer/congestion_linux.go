package peer

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// congestion returns the name of a socket's congestion control (TCP_CONGESTION,
// tcp(7)).
func congestion(s syscall.Conn) (name string, err error) {
	err = onSocket(s, func(fd int) error {
		name, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		return err
	})
	return name, err
}

// setCongestion sets it. Connections that a listener accepts have the listener's.
func setCongestion(s syscall.Conn, name string) error {
	err := onSocket(s, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
	if errors.Is(err, unix.ENOENT) {
		has, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control") // empty: it does not say
		return fmt.Errorf("this kernel has %s: %w", strings.TrimSpace(string(has)), err)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("net.ipv4.tcp_allowed_congestion_control has to name it: %w", err)
	}
	return err
}

// onSocket calls f with the file descriptor of s.
func onSocket(s syscall.Conn, f func(fd int) error) error {
	c, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := c.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}
