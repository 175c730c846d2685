package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// hangover is how long a program's output is waited for after its end, in case
// a child of it holds the pipe open.
const hangover = time.Second

// Options say what to run.
type Options struct {
	// Name of the program, for people.
	Name string
	// Path of the executable; without a slash it is looked up in PATH.
	Path string
	Args []string
	// Env is added to the environment of this process, of which variables that
	// configure Shoal are left out: what runs is what Args say.
	Env []string
	// Log gets all that the program prints, as it comes. Nil is nowhere.
	Log io.Writer
	// Start starts the program, such as in a network namespace. Nil is
	// (*exec.Cmd).Start.
	Start func(*exec.Cmd) error
}

// A Process is a program that was started. Its methods may be called by
// several goroutines.
type Process struct {
	// immutable
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
	err  error // of Wait; set before done is closed
}

// Start starts a program. The caller ends it with Stop or Kill.
func Start(o Options) (*Process, error) {
	p := &Process{name: o.Name, out: newOutput(o.Log), done: make(chan struct{})}
	p.cmd = exec.Command(o.Path, o.Args...)
	inherited := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SHOAL_") })
	p.cmd.Env = append(inherited, o.Env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out // one writer: exec copies from one pipe
	p.cmd.SysProcAttr = attributes()
	p.cmd.WaitDelay = hangover
	if o.Start == nil {
		o.Start = (*exec.Cmd).Start
	}
	if err := o.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
	}
	go func() {
		err := p.cmd.Wait()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // it ended well; only its output is cut off
		}
		p.err = err
		p.out.end()
		close(p.done)
	}()
	return p, nil
}

// Name returns the program's name for people.
func (p *Process) Name() string { return p.name }

// PID returns the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed once the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Line waits for the first line of the program's output, from its start on,
// that match accepts, and returns it. If the program ends without one, the
// error is that of Died.
func (p *Process) Line(ctx context.Context, match func(line string) bool) (string, error) {
	line, err := p.out.find(ctx, match)
	if errors.Is(err, io.EOF) {
		<-p.done
		return "", p.Died()
	}
	if err != nil {
		return "", fmt.Errorf("%s did not get as far as it should: %w; its last lines:\n%s", p.name, context.Cause(ctx), p.Tail())
	}
	return line, nil
}

// Died returns an error that says how the program ended, with its last lines.
// It is nil while the program runs.
func (p *Process) Died() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	how := "ended"
	if p.err != nil {
		how = "ended with " + p.err.Error()
	}
	return fmt.Errorf("%s %s; its last lines:\n%s", p.name, how, p.Tail())
}

// Tail returns the last lines of what the program printed, each indented.
func (p *Process) Tail() string {
	lines := p.out.tail()
	if len(lines) == 0 {
		return "    (it printed nothing)"
	}
	return "    " + strings.Join(lines, "\n    ")
}

// Terminate sends SIGTERM.
func (p *Process) Terminate() { _ = p.cmd.Process.Signal(syscall.SIGTERM) } // an error: it has ended

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Wait waits for the end of the program and returns what exec.Cmd.Wait did:
// nil for exit code 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended: %w", p.name, context.Cause(ctx))
	}
}

// Stop sends SIGTERM and, if that does not end the program within grace,
// SIGKILL. The error says so, or with what exit code it ended if not 0.
// A program that had ended before is no error.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.Terminate()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return p.Died()
		}
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM and was killed; its last lines:\n%s", p.name, grace, p.Tail())
	}
}
