package process

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell starts a script, which is killed at the end of the test.
func shell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Options{Name: "script", Path: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func is(want string) func(string) bool { return func(line string) bool { return line == want } }

func TestLine(t *testing.T) {
	t.Parallel()
	p := shell(t, "echo one; echo two >&2; printf three; read x; echo never")
	for _, want := range []string{"two", "one"} { // also what came before
		if got, err := p.Line(t.Context(), is(want)); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	// A line without an end counts once the program is over.
	if got, err := p.Line(t.Context(), is("threenever")); got != "threenever" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	_, err := p.Line(t.Context(), is("four"))
	if err == nil || !strings.Contains(err.Error(), "two") || !strings.Contains(err.Error(), "script ended;") {
		t.Errorf("a program that ended without the line: %v", err)
	}
}

func TestLineThatDoesNotCome(t *testing.T) {
	t.Parallel()
	p := shell(t, "echo waiting for godot; exec sleep 60")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := p.Line(ctx, is("waiting for godot")); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	cancel(enough)
	if _, err := p.Line(ctx, is("hello")); !errors.Is(err, enough) || !strings.Contains(err.Error(), "godot") {
		t.Errorf("want the cause and the last lines: %v", err)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	const up = "echo up; while :; do sleep 0.05; done"
	for _, tc := range []struct {
		name, script string
		grace        time.Duration
		want         string // in the error; empty: none
	}{
		{"ends well", "trap 'exit 0' TERM; " + up, time.Minute, ""},
		{"ends badly", "trap 'echo cannot; exit 3' TERM; " + up, time.Minute, "exit status 3; its last lines:\n    up\n    cannot"},
		{"does not end", "trap : TERM; " + up, 50 * time.Millisecond, "was killed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := shell(t, tc.script)
			if _, err := p.Line(t.Context(), is("up")); err != nil {
				t.Fatal(err)
			}
			if p.Died() != nil {
				t.Errorf("it runs: %v", p.Died())
			}
			err := p.Stop(tc.grace)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if err := syscall.Kill(p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("signal to a process that should be gone: %v", err)
			}
			if err := p.Stop(tc.grace); err != nil {
				t.Errorf("a second Stop: %v", err)
			}
		})
	}
}

func TestKillAndWait(t *testing.T) {
	t.Parallel()
	p := shell(t, "exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	p.Kill()
	var exit *exec.ExitError
	if err := p.Wait(t.Context()); !errors.As(err, &exit) {
		t.Errorf("Wait after Kill: %v", err)
	}
	if err := p.Died(); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Died: %v", err)
	}
}

// TestStartElsewhere: whoever starts the program decides where.
func TestStartElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := Start(Options{Name: "script", Path: "/bin/sh", Args: []string{"-c", "pwd -P; kill -STOP $$; echo on; exec sleep 60"}, Start: func(cmd *exec.Cmd) error {
		cmd.Dir = dir
		return cmd.Start()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if _, err := p.Line(t.Context(), func(line string) bool { return strings.HasSuffix(line, dir) }); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { _, err := p.Line(t.Context(), is("on")); stopped <- err }()
	for done := false; !done; {
		if err := p.Signal(syscall.SIGCONT); err != nil { // it may not have stopped yet
			t.Fatal(err)
		}
		select {
		case err := <-stopped:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.Kill()
	if err := p.Signal(syscall.SIGCONT); err == nil || !strings.Contains(err.Error(), "script") {
		t.Errorf("a signal to what has ended: %v", err)
	}
	refused := errors.New("no namespace")
	if _, err := Start(Options{Name: "ghost", Path: "/bin/sh", Start: func(*exec.Cmd) error { return refused }}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}

func TestStartOfNothing(t *testing.T) {
	t.Parallel()
	if _, err := Start(Options{Name: "ghost", Path: "/nowhere/ghost"}); err == nil || !strings.Contains(err.Error(), "ghost") {
		t.Errorf("got %v", err)
	}
}

// TestOutput: however the output is cut when it comes, the lines are the same.
func TestOutput(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range tailLines + 5 {
		fmt.Fprintf(&text, "line %d\r\n", i)
	}
	text.WriteString(strings.Repeat("x", maxLine+10) + "\nend")
	for _, size := range []int{1, 7, 1 << 20} {
		o := newOutput(nil)
		for rest := text.String(); rest != ""; {
			n := min(size, len(rest))
			if got, err := o.Write([]byte(rest[:n])); got != n || err != nil {
				t.Fatal(got, err)
			}
			rest = rest[n:]
		}
		o.end()
		last := o.tail()
		if len(last) != tailLines || last[tailLines-1] != "end" || last[0] != "line 7" || len(last[tailLines-2]) != maxLine {
			t.Errorf("in pieces of %d: %q", size, last)
		}
	}
}

func TestNodeAddresses(t *testing.T) {
	t.Parallel()
	var n Node
	for line, want := range map[string]bool{
		`{"msg":"shoal is starting","mirror":"x"}`: false,
		`shoal is up`: false,
		`{"msg":"a client says: shoal is up","mirror":"x"}`:                                                         false,
		`{"msg":"shoal is up","mirror":"127.0.0.1:1","admin":"127.0.0.1:2","peers":"a:3","gossip":"b:4","extra":5}`: true,
	} {
		if got := n.parse(line); got != want {
			t.Errorf("%s: %t", line, got)
		}
	}
	if n.Mirror != "127.0.0.1:1" || n.Admin != "127.0.0.1:2" || n.Peers != "a:3" || n.Gossip != "b:4" {
		t.Errorf("%+v", n)
	}
}
