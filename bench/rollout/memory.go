package rollout

import (
	"context"
	"os"
	"syscall"
)

// touchMemory makes this machine have n bytes of its free memory at hand. The
// host of a virtual machine takes back what is free for a while, and gives it
// again when it is touched, for 4 KiB at a time: that took 4 s of CPU time for a
// GiB where it was measured, as much as all else that a daemon does with a GiB. It
// is no part of a rollout. What is touched here goes back to the kernel's free
// lists, from which the daemons' files get it. It ends early with ctx.
func touchMemory(ctx context.Context, n int64) error {
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		n = min(n, kilobytes(info, "MemFree:")/2) // so that nothing that is in use is thrown out for it
	}
	if n <= 0 {
		return nil
	}
	b, err := syscall.Mmap(-1, 0, int(n), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		if b[i] = 1; i%(64<<20) == 0 && ctx.Err() != nil {
			break
		}
	}
	return os.NewSyscallError("munmap", syscall.Munmap(b))
}
