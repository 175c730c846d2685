//go:build unix && !linux

package process

import "syscall"

// attributes are those of every program that is started: a group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
