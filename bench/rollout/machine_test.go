package rollout

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/report"
)

// TestDemand keeps what is said where a machine is too small.
func TestDemand(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	enough := capacity{cores: 8, cost: 5e-9, memory: 16 * gib, files: storage{path: "/data", free: 100 * gib}}
	var said strings.Builder
	for _, tc := range []struct {
		name    string
		options func(*Options)
		machine func(*capacity)
		ok      bool
	}{
		{"enough", func(*Options) {}, func(*capacity) {}, true},
		{"unknown memory and disk", func(*Options) {}, func(c *capacity) { c.memory, c.files.free = 0, 0 }, true},
		{"slow machine", func(*Options) {}, func(c *capacity) { c.cores = 0.5 }, false},
		{"fast links", func(o *Options) { o.NodeRate, o.OriginRate = 100*100*mbit, 100*100*mbit }, func(*capacity) {}, false},
		{"the origin is the limit", func(o *Options) { o.NodeRate = 100 * 100 * mbit }, func(*capacity) {}, true},
		{"little memory", func(o *Options) { o.Nodes = 32 }, func(c *capacity) { c.memory = 2 * gib }, false},
		{"little disk", func(o *Options) { o.Size = gib }, func(c *capacity) { c.files.free = 10 * gib }, false},
		{"clients keep nothing", func(o *Options) { o.Size, o.Mode = gib, report.ModeDirect }, func(c *capacity) { c.files.free = 10 * gib }, true},
		{"files do not take the memory", func(o *Options) { o.Size = 2 * gib }, func(*capacity) {}, true},
		{"files take the memory", func(o *Options) { o.Size = 2 * gib }, func(c *capacity) { c.files.inMemory, c.files.path = true, "/dev/shm" }, false},
	} {
		o, have := usual(), enough
		tc.options(&o)
		tc.machine(&have)
		err := o.need(have.cost).check(have)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err != nil {
			said.WriteString("# " + tc.name + "\n" + err.Error() + "\n\n")
		}
	}
	golden(t, "machine.golden", said.String())
}

// TestPulled: what is written while the clients pull is what they find nowhere.
func TestPulled(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mode               string
		warm               bool
		wantPulled, wantIn int64 // images
	}{
		{report.ModeShoal, false, 9, 11}, {report.ModeNoScheduler, false, 8, 10}, {report.ModeDirect, false, 0, 2}, {report.ModeShoal, true, 0, 11},
	} {
		o := usual()
		o.Mode, o.Warm = tc.mode, tc.warm
		if d := o.need(0); d.pulled != tc.wantPulled*o.Size || d.disk != tc.wantIn*o.Size {
			t.Errorf("%s, warm %t: %d of %d bytes, want %d of %d images", tc.mode, tc.warm, d.pulled, d.disk, tc.wantPulled, tc.wantIn)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{true, false} {
		cost, others, err := probe(t.Context(), encrypted)
		// Between 100 kB and 100 GB a second for one core: else it measured nothing.
		if err != nil || cost < 1e-11 || cost > 1e-5 || others < 0 {
			t.Errorf("encrypted %t: %.3g s per byte, %.1f cores for others, %v", encrypted, cost, others, err)
		}
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for stat, want := range map[string]float64{
		"":  0,
		"1": 0,
		"7 (sh) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 1 2 3":               2,
		"7 (a) R 1 (b) S) S 1 7 7 0 -1 4194560 1 2 3 4 100 1 9 9 20 0 1 0 1 2 3":      1.01,
		"7 (a\nb) S 1 7 7 0 -1 4194560 1 2 3 4 7 0 9 9 20 0 1 0 1 2 3":                0.07,
		"7 (cut off) S 1 7 7 0 -1 4194560 1 2 3 4 7":                                  0,
		"7 (sh) S 1 7 7 0 -1 4194560 1 2 3 4 x 50 9 9 20 0 1 0 1 2 3 is not a number": 0.5,
	} {
		if got := cpuOf([]byte(stat)); got != want {
			t.Errorf("%q: %v, want %v", stat, got, want)
		}
	}
	const status = "Name:\tVmHWM: 5 kB\nVmPeak:\t  900 kB\nVmHWM:\t   40960 kB\n"
	if got := kilobytes([]byte(status), "VmHWM:"); got != 40<<20 {
		t.Errorf("%d bytes", got)
	}
	if u := usageOf(os.Getpid()); u.rss < 1<<20 {
		t.Skipf("no /proc here: %+v", u)
	}
}

// TestFolders: what a killed run has left goes, and nothing else.
func TestFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live, err := newFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	left, err := newFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := left.lock.Close(); err != nil { // as the kernel does for a process that is no more
		t.Fatal(err)
	}
	others := []string{"shoal-bench-notes", "shoal-demo-1", "data"}
	for _, name := range others {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "data", lockName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "data"), filepath.Join(dir, "shoal-bench-link")); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := newFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.lock.Close(); err != nil {
		t.Fatal(err)
	}
	swept, err := sweepFolders(dir, filepath.Join(dir, "nowhere"), filepath.Dir(elsewhere.path))
	if want := []string{left.path, elsewhere.path}; err != nil || !slices.Equal(swept, want) {
		t.Errorf("swept %v, %v, want %v", swept, err, want)
	}
	for _, name := range append(others, filepath.Base(live.path), "shoal-bench-link", "data/"+lockName) {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for _, path := range swept {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
	if err := live.remove(); err != nil {
		t.Error(err)
	}
	if _, err := newFolder(filepath.Join(dir, "nowhere")); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("a folder in one that is not there: %v", err)
	}
}

// TestFoldersAtOnce: a folder that is being made is not taken for one that was
// left.
func TestFoldersAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for ctx.Err() == nil {
			if _, err := sweepFolders(dir); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 500 {
		f, err := newFolder(dir)
		if err == nil {
			_, err = os.Stat(filepath.Join(f.path, lockName))
			err = errors.Join(err, f.remove())
		}
		if err != nil {
			t.Error(err)
			break
		}
	}
	stop()
	sweeping.Wait()
}

func TestFindRegistry(t *testing.T) {
	if _, err := findRegistry("no-such-registry"); err == nil || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("got %v", err)
	}
	if got, err := findRegistry("sh"); err != nil || !filepath.IsAbs(got) {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := findRegistry(""); err == nil || !strings.Contains(err.Error(), "neither registry nor docker-registry") {
		t.Errorf("got %v", err)
	}
	if _, err := exec.LookPath("sh"); err == nil {
		t.Error("PATH was not empty, so the test looked elsewhere")
	}
}
