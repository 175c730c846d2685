package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timerSlack is how much later than it asked for a thread may wake. Linux
	// gives 50 µs, and Go's monitor thread, which sleeps for 20 µs at a time
	// while anything runs, then wakes a few hundred times per second in a daemon
	// that does little at a time. On two cores with 17 daemons at 100 Mbit/s that
	// was a fifth of the CPU time: 12.4 to 14.4 s per GiB delivered with 50 µs, 11.0
	// to 12.2 with 2 ms. 5 ms saved 0.5 s more, but cold blobs of 1 KiB came 2 ms
	// later; with 2 ms it is half a millisecond.
	timerSlack = 2 * time.Millisecond

	// relaxed marks a process that has been started anew, so that a kernel which
	// forgets the slack (a sandbox's) is not asked for ever.
	relaxed = "_SHOAL_TIMERS"
)

// relaxTimers sets timerSlack for all threads of this process. A thread has it
// from the one that started it, and the first ones are there before main, so the
// process executes its own program again: same ID, same arguments. It must be
// called before anything else, on the main thread, which alone keeps what a
// parent has set for it (PR_SET_PDEATHSIG). If any of it fails, all is as ever: it
// only saves CPU time. A larger slack (systemd's TimerSlackNSec) is kept.
func relaxTimers() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, done := os.LookupEnv(relaxed); done {
		_ = os.Unsetenv(relaxed)
		return
	}
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(slack) >= timerSlack || unix.Gettid() != os.Getpid() {
		return
	}
	self, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), relaxed+"=1"))
}
