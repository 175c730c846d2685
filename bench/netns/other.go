//go:build !linux

package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
)

// errSystem is what everything returns that needs namespaces.
var errSystem = errors.New("a shaped network of namespaces needs Linux, and root")

// A Lab is a network of hosts. There is none on this system.
type Lab struct{}

// A Host is a network namespace. There is none on this system.
type Host struct{}

// Check returns an error: there are no network namespaces on this system.
func Check() error { return errSystem }

// New returns an error: there are no network namespaces on this system.
func New(Options) (*Lab, error) { return nil, errSystem }

// Leftovers returns nothing: nothing can have been left.
func Leftovers() ([]string, error) { return nil, nil }

// Sweep removes nothing: nothing can have been left.
func Sweep() ([]string, error) { return nil, nil }

// Host returns an error.
func (l *Lab) Host(string, int, Link) (*Host, error) { return nil, errSystem }

// Close does nothing.
func (l *Lab) Close() error { return nil }

// Name returns nothing.
func (h *Host) Name() string { return "" }

// Addr returns no address.
func (h *Host) Addr() netip.Addr { return netip.Addr{} }

// Start returns an error.
func (h *Host) Start(*exec.Cmd) error { return errSystem }

// Dial returns an error.
func (h *Host) Dial(context.Context, string, string) (net.Conn, error) { return nil, errSystem }

// Listen returns an error.
func (h *Host) Listen(context.Context, string, string) (net.Listener, error) { return nil, errSystem }

// Cut returns an error.
func (h *Host) Cut() error { return errSystem }

// Heal returns an error.
func (h *Host) Heal() error { return errSystem }

// Traffic returns an error.
func (h *Host) Traffic() (sent, received int64, err error) { return 0, 0, errSystem }
