package peer

import (
	"net"
	"syscall"
)

// setLowWater has a read from conn wait for n bytes (SO_RCVLOWAT, socket(7)). It
// is a hint: a connection that it does not work for reads as ever.
func setLowWater(conn net.Conn, n int) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	c, err := raw.SyscallConn()
	if err != nil {
		return
	}
	_ = c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n)
	})
}
