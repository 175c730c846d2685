package rollout

import (
	"bytes"
	"context"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// touchMemory makes this machine have n bytes of its free memory at hand, or
// half of what it has. The host of a virtual machine takes back what is free for a
// while, and gives it again when it is touched, for 4 KiB at a time: that took 4 s
// of CPU time for a GiB where it was measured, as much as all else that a daemon
// does with a GiB. It is no part of a rollout. What is touched here goes back to
// the kernel's free lists before touchMemory returns, and the daemons' files get
// it from there, on disk or in memory. It ends early with ctx.
func touchMemory(ctx context.Context, n int64) error {
	n = min(n, memoryLeft(os.DirFS("/"), "MemFree:")/2) // so that nothing that is in use is thrown out for it
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

// memoryLeft returns how much more memory this process and its children can
// have on a machine with these files: what /proc/meminfo says in the line that
// begins with key, and not more than their cgroup allows. It is 0 where that is
// not known.
func memoryLeft(machine fs.FS, key string) int64 {
	info, err := fs.ReadFile(machine, "proc/meminfo")
	if err != nil {
		return 0
	}
	return min(kilobytes(info, key), cgroupLeft(machine))
}

// cgroupLeft returns how far this process's cgroup and those around it are from
// their limits, as far as they are of version 2 and have one (cgroups(7)). What
// they use includes files in the page cache, so there may be more.
func cgroupLeft(machine fs.FS) int64 {
	const root = "sys/fs/cgroup"
	left := int64(math.MaxInt64)
	groups, err := fs.ReadFile(machine, "proc/self/cgroup")
	if err != nil {
		return left
	}
	for line := range bytes.Lines(groups) {
		own, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::")
		for dir := path.Join(root, own); ok && strings.HasPrefix(dir, root); dir = path.Dir(dir) {
			limit, limited := readNumber(machine, dir+"/memory.max")
			used, known := readNumber(machine, dir+"/memory.current")
			if limited && known {
				left = min(left, max(limit-used, 0))
			}
		}
	}
	return left
}

// readNumber reads a file of one number. There is none in one that says max.
func readNumber(machine fs.FS, name string) (int64, bool) {
	text, err := fs.ReadFile(machine, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n, err == nil
}
