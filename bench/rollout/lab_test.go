package rollout

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/report"
)

// A shoal is the binary, which TestLab builds.
type shoal struct{ path, dir string }

// TestLab runs the command as it is shipped, on links of its own. It needs
// root, Linux and a registry; what is missing is said.
func TestLab(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes in network namespaces")
	}
	if err := netns.Check(); err != nil {
		t.Skip(err)
	}
	if _, err := findRegistry(""); err != nil {
		t.Skip(err)
	}
	sources, err := filepath.Glob("../../cmd/shoal/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatalf("%v, %v", sources, err)
	}
	for _, f := range sources { // the test cache knows what the test reads, not what go build does
		if _, err := os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	s := shoal{path: filepath.Join(t.TempDir(), "shoal"), dir: t.TempDir()}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", s.path, "../../cmd/shoal").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Run("shoal", func(t *testing.T) { s.rollsOut(t, report.ModeShoal, "--nodes", "3", "--layers", "2") })
	t.Run("no scheduler", func(t *testing.T) { s.rollsOut(t, report.ModeNoScheduler, "--nodes", "2", "--security", "none") })
	t.Run("direct", func(t *testing.T) {
		s.rollsOut(t, report.ModeDirect, "--nodes", "2", "--node-rate", "20mbit", "--origin-rate", "1gbit")
	})
	t.Run("faults", s.faults)
	t.Run("interrupted", s.interrupted)
	t.Run("killed", s.killed)
}

// command returns the rollout of 4 MiB, with its files in s.dir.
func (s shoal) command(t *testing.T, args ...string) *exec.Cmd {
	args = append([]string{"bench", "rollout", "--force", "--size", "4MiB", "--dir", s.dir}, args...)
	return exec.CommandContext(t.Context(), s.path, args...)
}

// clean checks that nothing of a run is left: no file, process or namespace.
func (s shoal) clean(t *testing.T) {
	t.Helper()
	empty(t, s.dir)
	for _, p := range s.processes(t) {
		t.Errorf("a process is left: %s", p)
	}
	left, err := netns.Leftovers()
	if err != nil || len(left) > 0 {
		t.Errorf("left in the network: %v, %v", left, err)
	}
}

// processes returns the command lines of all processes that run the binary or
// have the run's folder in their arguments.
func (s shoal) processes(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(found) == 0 {
		t.Fatalf("%v, %v", found, err)
	}
	var out []string
	for _, f := range found {
		line, err := os.ReadFile(f)
		if text := strings.ReplaceAll(string(line), "\x00", " "); err == nil && (strings.Contains(text, s.path) || strings.Contains(text, s.dir)) {
			out = append(out, text)
		}
	}
	return out
}

// run runs a rollout and returns its result.
func (s shoal) run(t *testing.T, args ...string) *report.Result {
	t.Helper()
	out := t.TempDir()
	cmd := s.command(t, append(args, "--json", filepath.Join(out, "r.json"), "--plot", filepath.Join(out, "r.svg"))...)
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
	data, err := os.ReadFile(filepath.Join(out, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report.Result
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if svg, err := os.ReadFile(filepath.Join(out, "r.svg")); err != nil || !strings.HasPrefix(string(svg), "<svg") {
		t.Errorf("the plot: %.100s, %v", svg, err)
	}
	return &r
}

func (s shoal) rollsOut(t *testing.T, mode string, args ...string) {
	r := s.run(t, append(args, "--mode", mode)...)
	o := usual()
	o.Nodes, o.Size, o.Mode, o.Layers = r.Params.Nodes, 4<<20, mode, r.Params.Layers
	checkResult(t, r, o)
	for _, n := range r.Nodes {
		// Nothing is faster than its link, but for the burst of that.
		if n.Done < 0.9*n.Bound {
			t.Errorf("%s has everything after %.3f s, where its link takes %.3f s", n.Name, n.Done, n.Bound)
		}
		if mode != report.ModeDirect && (n.CPU <= 0 || n.RSS < 1<<20) {
			t.Errorf("%s: %.2f s of CPU, %d bytes", n.Name, n.CPU, n.RSS)
		}
	}
	s.clean(t)
}

// faults: a node whose process comes back, one that was stopped for a while, and
// the death of the scheduler are survived by all pulls.
func (s shoal) faults(t *testing.T) {
	faults := []string{"stop node-1@100ms", "restart node-2@150ms", "kill scheduler@200ms", "cont node-1@300ms"}
	args := []string{"--nodes", "3", "--node-rate", "50mbit", "--origin-rate", "50mbit"}
	for _, f := range faults {
		args = append(args, "--fault", f)
	}
	r := s.run(t, args...)
	if strings.Join(r.Faults, "|") != strings.Join(faults, "|") {
		t.Errorf("carried out: %q", r.Faults)
	}
	if r.Failed() > 0 || r.Nodes[1].Resumed == 0 {
		t.Errorf("%+v", r.Nodes)
	}
	s.clean(t)
	r = s.run(t, "--nodes", "3", "--node-rate", "50mbit", "--origin-rate", "50mbit", "--mode", report.ModeNoScheduler, "--fault", "kill owner@200ms")
	killed := 0
	for _, n := range r.Nodes {
		if n.Killed {
			killed++
		}
	}
	if killed != 1 || r.Failed() > 0 {
		t.Errorf("%d nodes were killed: %+v", killed, r.Nodes)
	}
	s.clean(t)
}

// interrupted: Ctrl-C in the middle leaves nothing.
func (s shoal) interrupted(t *testing.T) {
	cmd := s.command(t, "--nodes", "2", "--node-rate", "1mbit", "--origin-rate", "1mbit", "-v") // half a minute
	s.startAndWait(t, cmd)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("ended with %v", err)
	}
	s.clean(t)
}

// killed: what a run leaves that was killed itself is removed by the next one.
func (s shoal) killed(t *testing.T) {
	cmd := s.command(t, "--nodes", "2", "--node-rate", "1mbit", "--origin-rate", "1mbit", "-v")
	s.startAndWait(t, cmd)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	left, err := netns.Leftovers()
	if err != nil || len(left) == 0 {
		t.Errorf("a killed run leaves %v, %v", left, err)
	}
	said, err := s.command(t, "--nodes", "1", "--mode", "direct").CombinedOutput()
	if err != nil || !strings.Contains(string(said), "removed what a killed run had left: ") {
		t.Errorf("%v: %s", err, said)
	}
	for _, name := range left {
		if !strings.Contains(string(said), name) {
			t.Errorf("it says nothing of %s: %s", name, said)
		}
	}
	s.clean(t)
}

// startAndWait starts a rollout and returns when its fleet is up. The rest of
// what it says is thrown away.
func (s shoal) startAndWait(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	r, w := io.Pipe()
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var rest sync.WaitGroup
	t.Cleanup(func() {
		_ = w.Close()
		rest.Wait()
	})
	in := bufio.NewScanner(r)
	var said strings.Builder
	for in.Scan() {
		said.WriteString(in.Text() + "\n")
		if strings.Contains(in.Text(), "the fleet is up") {
			rest.Go(func() { _, _ = io.Copy(io.Discard, r) })
			return
		}
	}
	t.Fatalf("the fleet is not up:\n%s", said.String())
}
