//go:build !linux

package peer

import (
	"errors"
	"fmt"
	"syscall"
)

func congestion(syscall.Conn) (string, error) {
	return "", fmt.Errorf("a congestion control for one program: %w", errors.ErrUnsupported)
}

func setCongestion(syscall.Conn, string) error { return errors.ErrUnsupported }
