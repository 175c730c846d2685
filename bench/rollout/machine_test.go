package rollout

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/report"
)

// TestDemand keeps what is said where a machine is too small.
func TestDemand(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	enough := capacity{cores: 8, cost: 5e-9, memory: 16 * gib, disk: 100 * gib}
	var said strings.Builder
	for _, tc := range []struct {
		name    string
		options func(*Options)
		machine func(*capacity)
		ok      bool
	}{
		{"enough", func(*Options) {}, func(*capacity) {}, true},
		{"unknown memory and disk", func(*Options) {}, func(c *capacity) { c.memory, c.disk = 0, 0 }, true},
		{"slow machine", func(*Options) {}, func(c *capacity) { c.cores = 0.5 }, false},
		{"fast links", func(o *Options) { o.NodeRate, o.OriginRate = 100*100*mbit, 100*100*mbit }, func(*capacity) {}, false},
		{"the origin is the limit", func(o *Options) { o.NodeRate = 100 * 100 * mbit }, func(*capacity) {}, true},
		{"little memory", func(o *Options) { o.Nodes = 32 }, func(c *capacity) { c.memory = 2 * gib }, false},
		{"little disk", func(o *Options) { o.Size = gib }, func(c *capacity) { c.disk = 10 * gib }, false},
		{"clients keep nothing", func(o *Options) { o.Size, o.Mode = gib, report.ModeDirect }, func(c *capacity) { c.disk = 10 * gib }, true},
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
	swept, err := sweepFolders(dir)
	if err != nil || len(swept) != 1 || swept[0] != left.path {
		t.Errorf("swept %v, %v, want %s", swept, err, left.path)
	}
	for _, name := range append(others, filepath.Base(live.path), "shoal-bench-link", "data/"+lockName) {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(left.path); !os.IsNotExist(err) {
		t.Errorf("%s is still there", left.path)
	}
	if err := live.remove(); err != nil {
		t.Error(err)
	}
	if _, err := newFolder(filepath.Join(dir, "nowhere")); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("a folder in one that is not there: %v", err)
	}
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
