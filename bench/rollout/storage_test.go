package rollout

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/report"
)

// TestStore: files go into memory unasked only where that has room for them
// twice, beside the processes.
func TestStore(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	shared, disk := storage{sharedMemory, true, 8 << 30}, storage{"/tmp", false, 100 << 30}
	// 8 daemons, a scheduler and a registry; 11 copies of 64 MiB.
	const processes, files = 10 * 100 * mib, 11 * 64 * mib
	for _, tc := range []struct {
		name   string
		change func(o *Options, shared, temporary *storage)
		memory int64
		want   string
	}{
		{"roomy", func(*Options, *storage, *storage) {}, 24 << 30, sharedMemory},
		{"just roomy", func(_ *Options, s, _ *storage) { s.free = 2 * files }, 2 * (processes + files), sharedMemory},
		{"a byte of memory less", func(*Options, *storage, *storage) {}, 2*(processes+files) - 1, "/tmp"},
		{"a byte of its own less", func(_ *Options, s, _ *storage) { s.free = 2*files - 1 }, 24 << 30, "/tmp"},
		{"as small as in a container", func(_ *Options, s, _ *storage) { s.free = 64 * mib }, 24 << 30, "/tmp"},
		{"unknown memory", func(*Options, *storage, *storage) {}, 0, "/tmp"},
		{"not in memory", func(_ *Options, s, _ *storage) { s.inMemory = false }, 24 << 30, "/tmp"},
		{"more nodes", func(o *Options, _, _ *storage) { o.Nodes = 64 }, 16 << 30, "/tmp"},
		{"a larger image", func(o *Options, _, _ *storage) { o.Size = 1 << 30 }, 64 << 30, "/tmp"},
		{"of which clients keep nothing", func(o *Options, _, _ *storage) { o.Size, o.Mode = 1<<30, report.ModeDirect }, 64 << 30, sharedMemory},
		{"all in memory, and not roomy", func(_ *Options, _, t *storage) { t.inMemory = true }, 1 << 30, "/tmp"},
	} {
		o, s, d := usual(), shared, disk
		tc.change(&o, &s, &d)
		if got := o.need(0).store(s, d, tc.memory); got.path != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestStorageAt: what is told of a folder is what the kernel says of it.
func TestStorageAt(t *testing.T) {
	t.Parallel()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Skip(err)
	}
	looked := 0
	for line := range strings.Lines(string(mounts)) {
		words := strings.Fields(line)
		inMemory := words[2] == "tmpfs"
		if path := words[1]; path == sharedMemory || path == "/" {
			s, err := storageAt(path)
			if err != nil {
				t.Log(err) // it is not ours to write to
				continue
			}
			looked++
			if s.inMemory != inMemory || s.free <= 0 || !strings.HasSuffix(s.String(), " ("+path+")") || strings.HasPrefix(s.String(), "in memory") != inMemory {
				t.Errorf("%s: %+v, %s", strings.TrimSpace(line), s, s)
			}
		}
	}
	t.Logf("looked at %d", looked)
	if _, err := storageAt(filepath.Join(t.TempDir(), "nowhere")); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// TestFindStorage: a place that is asked for is obeyed, wherever it is.
func TestFindStorage(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	asked := t.TempDir()
	for _, tc := range []struct {
		dir   string
		nodes int
		want  []string
	}{{asked, 8, []string{asked}}, {sharedMemory, maxNodes, []string{sharedMemory}}, {"", 1, []string{temporary, sharedMemory}}} {
		if _, err := os.Stat(tc.dir); tc.dir != "" && err != nil {
			continue
		}
		o := usual().filled()
		o.Dir, o.Nodes, o.Size = tc.dir, tc.nodes, 1<<20
		s, err := o.findStorage()
		if err != nil || s.path != tc.want[0] && s.path != tc.want[len(tc.want)-1] {
			t.Errorf("--dir %q: %s, %v, want one of %v", tc.dir, s, err, tc.want)
		}
	}
	o := usual().filled()
	o.Size, o.Nodes = maxSize, maxNodes // no memory has room for that
	if s, err := o.findStorage(); err != nil || s.path != temporary {
		t.Errorf("of an endless image: %s, %v", s, err)
	}
}

// TestSweep: what was left is found where a run puts its files unasked, and where
// it is asked to.
func TestSweep(t *testing.T) {
	temporary, asked := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temporary)
	var left []string
	for _, dir := range []string{temporary, asked, sharedMemory} {
		f, err := newFolder(dir)
		if err != nil && dir == sharedMemory {
			t.Log(err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, f.path)
		if err := f.lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
	o := usual().filled()
	o.InProcess, o.Dir = true, asked
	if err := o.sweep(); err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
}
