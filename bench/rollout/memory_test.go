package rollout

import (
	"context"
	"math"
	"os"
	"testing"
	"testing/fstest"
)

// TestMemoryLeft: the least of what the machine has and the cgroups allow.
func TestMemoryLeft(t *testing.T) {
	t.Parallel()
	const (
		unified = "sys/fs/cgroup"
		own     = unified + "/system.slice/bench.service"
	)
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"no cgroups", nil, 8 << 20},
		{"no limit", map[string]string{own + "/memory.max": "max\n", own + "/memory.current": "5\n"}, 8 << 20},
		{"a limit", map[string]string{own + "/memory.max": "3000\n", own + "/memory.current": "1000\n"}, 2000},
		{"a limit of the cgroup around", map[string]string{
			own + "/memory.max": "3000", own + "/memory.current": "1000",
			unified + "/system.slice/memory.max": "3500", unified + "/system.slice/memory.current": "2000",
		}, 1500},
		{"a limit of the outermost, as in a container", map[string]string{unified + "/memory.max": "70", unified + "/memory.current": "20"}, 50},
		{"over the limit", map[string]string{own + "/memory.max": "10", own + "/memory.current": "20"}, 0},
		{"a large limit", map[string]string{own + "/memory.max": "9000000000", own + "/memory.current": "20"}, 8 << 20},
		{"a limit without use", map[string]string{own + "/memory.max": "10"}, 8 << 20},
		{"another's", map[string]string{unified + "/user.slice/memory.max": "10", unified + "/user.slice/memory.current": "0"}, 8 << 20},
		{"version 1", map[string]string{"proc/self/cgroup": "4:memory:/system.slice/bench.service\n", own + "/memory.max": "10", own + "/memory.current": "0"}, 8 << 20},
		{"above the root", map[string]string{"proc/self/cgroup": "0::/../..\n", "sys/memory.max": "10", "sys/memory.current": "0"}, 8 << 20},
	} {
		machine := fstest.MapFS{
			"proc/meminfo":     {Data: []byte("MemTotal: 9000 kB\nMemFree:  4096 kB\nMemAvailable:    8192 kB\n")},
			"proc/self/cgroup": {Data: []byte("9:name=systemd:/\n4:memory:/elsewhere\n0::/system.slice/bench.service\n")},
		}
		for name, text := range tc.files {
			machine[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := memoryLeft(machine, "MemAvailable:"); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	if got := memoryLeft(fstest.MapFS{}, "MemFree:"); got != 0 {
		t.Errorf("of a machine that tells nothing: %d", got)
	}
}

// TestTouchMemory: it takes no more than there is, and keeps nothing.
func TestTouchMemory(t *testing.T) {
	t.Parallel()
	if err := touchMemory(t.Context(), 8<<20); err != nil {
		t.Error(err)
	}
	if err := touchMemory(t.Context(), -1); err != nil {
		t.Error(err)
	}
	if memoryLeft(os.DirFS("/"), "MemFree:") > 0 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := touchMemory(ctx, math.MaxInt64); err != nil { // of half of what is free, the first page only
			t.Error(err)
		}
	}
}
