//go:build !linux

package peer

import "net"

// setLowWater does nothing: see the other one.
func setLowWater(net.Conn, int) {}
