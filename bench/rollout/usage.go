package rollout

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// ticks is what the kernel counts CPU time in, per second, in what it tells
// programs: USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

// usage is what a process has used.
type usage struct {
	cpu float64 // seconds, of user and kernel
	rss int64   // the largest, in bytes
}

// usageOf reads what a process has used so far from /proc. It is zero where
// there is no such thing.
func usageOf(pid int) usage {
	var u usage
	dir := fmt.Sprintf("/proc/%d/", pid)
	if stat, err := os.ReadFile(dir + "stat"); err == nil {
		u.cpu = cpuOf(stat)
	}
	if status, err := os.ReadFile(dir + "status"); err == nil {
		u.rss = kilobytes(status, "VmHWM:")
	}
	return u
}

// cpuOf reads utime and stime, the 14th and 15th word (proc(5)). The second is
// the program's name in parentheses and may hold anything.
func cpuOf(stat []byte) float64 {
	words := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(words) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(words[11]), 10, 64)
	kernel, _ := strconv.ParseInt(string(words[12]), 10, 64)
	return float64(user+kernel) / ticks
}

// kilobytes reads the line of a file such as /proc/meminfo that begins with
// key, and returns its value in bytes.
func kilobytes(file []byte, key string) int64 {
	for line := range bytes.Lines(file) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 10, 64)
			return n << 10
		}
	}
	return 0
}
