//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/process"
)

const (
	// commandWithin bounds what a client's command may take.
	commandWithin = 2 * time.Minute
	// upWithin bounds how long a program may take to start.
	upWithin = 30 * time.Second
	// grace is how long a program may take to end after SIGTERM.
	grace = 30 * time.Second
)

// workDir returns a directory for one test, with a path short enough for Unix
// sockets. At the end of the test what is mounted below it is unmounted, and
// all is removed.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, at := range mounts(t, dir) {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", at, err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mounts returns what is mounted below dir, the innermost first.
func mounts(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			at = append(at, f[4])
		}
	}
	slices.Reverse(at)
	return at
}

// write writes a file that a program reads, with the directories above it.
func write(t *testing.T, file, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// start starts a program that serves and is not Shoal. It is ended with the
// test; its last lines are shown if the test failed.
func start(t *testing.T, o process.Options) *process.Process {
	t.Helper()
	p, err := process.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Stop(grace) // how it ends is not what is tested
		if t.Failed() {
			t.Log(p.Died())
		}
	})
	return p
}

// startup returns the context of a program that starts.
func startup(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), upWithin, fmt.Errorf("it took longer than %s", upWithin))
	t.Cleanup(cancel)
	return ctx
}

// line waits for a line of a program's output that contains text.
func line(t *testing.T, p *process.Process, text string) string {
	t.Helper()
	l, err := p.Line(startup(t), func(l string) bool { return strings.Contains(l, text) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run runs a client's command and returns what it printed on standard output.
// The test ends if it fails.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := try(t, env, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try is run for commands that may fail.
func try(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	return tryAt(t, (*exec.Cmd).Start, env, name, args...)
}

// tryAt is try for commands that start starts, such as those on another host.
func tryAt(t *testing.T, start func(*exec.Cmd) error, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", cmd, err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// killMentioning ends the processes that have text, a path below a test's own
// directory, among their arguments: what a runtime of the test started and left
// when it was stopped.
func killMentioning(t *testing.T, text string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || !bytes.Contains(args, []byte(text)) {
			continue
		}
		t.Logf("killing what was left: %s", bytes.ReplaceAll(args, []byte{0}, []byte{' '}))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// waitFor waits until something that is observed from outside has come about.
func waitFor(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.After(commandWithin)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
