package process

import "syscall"

// attributes are those of every program that is started: a group of its own,
// and its end if the thread that started it ends, which in a Go program is the
// end of the process.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
