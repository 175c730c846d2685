//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// play is what this program does in a role; it returns its exit code.
func play(role string) int {
	if err := map[string]func() error{
		roleLab:       playLab,
		roleUser:      playUser,
		roleContainer: playContainer,
	}[role](); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// playLab makes a lab, says so, and pings through it for each line that it is
// told. At the end of them it closes the lab.
func playLab() error {
	l, err := New(Options{Zones: 2, CrossZoneRate: slow})
	if err != nil {
		return err
	}
	var hosts [2]*Host
	for i := range hosts {
		if hosts[i], err = l.Host(fmt.Sprintf("host-%d", i), i, Link{fast, fast}); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := reach(hosts[0], hosts[1]); err != nil {
			return errors.Join(err, l.Close())
		}
		fmt.Println("reached")
	}
	return l.Close()
}

// reach sends something from one host to another.
func reach(a, b *Host) error {
	ln, err := b.Listen(context.Background(), "tcp", at(b))
	if err != nil {
		return err
	}
	defer ln.Close()
	out, err := a.Dial(context.Background(), "tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := ln.Accept()
	if err != nil {
		return err
	}
	defer in.Close()
	return say(out, in, "hello")
}

// A labProcess is a process with a lab.
type labProcess struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startLab starts one and waits until it has its lab.
func startLab(t *testing.T) *labProcess {
	t.Helper()
	cmd := again(roleLab)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &labProcess{cmd, in, bufio.NewScanner(out)}
	p.expect(t, "ready")
	return p
}

// expect waits for a line.
func (p *labProcess) expect(t *testing.T, want string) {
	t.Helper()
	if !p.out.Scan() || p.out.Text() != want {
		t.Fatalf("a process with a lab says %q, want %q: %v", p.out.Text(), want, p.out.Err())
	}
}

// kill kills it, and leaves it to be waited for.
func (p *labProcess) kill(t *testing.T) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, p.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// names returns the namespaces that somebody has made.
func names(t *testing.T, of func(maker) bool) []string {
	t.Helper()
	var out []string
	for _, n := range observe(t).namespaces {
		if m, ok := parseMaker(n); ok && of(m) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// It is not parallel: it sweeps, and other tests' labs come and go.
func TestSweepTakesWhatTheDeadLeft(t *testing.T) {
	need(t)
	live, dead := startLab(t), startLab(t)
	mine := makeLab(t, Options{})
	makeHost(t, mine, "a", 0, Link{})
	me, err := thisProcess()
	if err != nil {
		t.Fatal(err)
	}
	// Of an earlier process that had our number; killed before it had mounted
	// its namespace; of a process that cannot be seen from here; of others.
	earlier, half, far := maker{me.pid, me.start - 1, me.pids}, maker{dead.Process.Pid, 1, me.pids}, maker{1 << 30, 1, me.pids + 1}
	for _, name := range []string{earlier.prefix(1) + hubName, far.prefix(1) + hubName, "shoal-1", "shoal-1-1-1-1-Other", "other"} {
		ns, err := makeNamespace(name)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.close()
	}
	if err := os.WriteFile(filepath.Join(run, half.prefix(1)+"a"), nil, 0o444); err != nil {
		t.Fatal(err)
	}

	if left, err := Leftovers(); err != nil || !slices.Equal(left, names(t, func(m maker) bool { return m == earlier || m == half })) {
		t.Errorf("leftovers while both processes live: %q, %v", left, err)
	}
	before := observe(t).namespaces
	ofDead := names(t, func(m maker) bool { return m.pid == dead.Process.Pid && m != half })
	if len(ofDead) != 3 {
		t.Errorf("namespaces of a lab of two hosts: %q", ofDead)
	}
	dead.kill(t)
	want := slices.Concat(ofDead, []string{earlier.prefix(1) + hubName, half.prefix(1) + "a"})
	slices.Sort(want)
	left, err := Leftovers()
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("leftovers of a process that was killed: %q, %v, want %q", left, err, want)
	}
	_ = dead.Wait() // it was killed
	swept, err := Sweep()
	if err != nil || !slices.Equal(swept, want) {
		t.Errorf("swept %q, %v, want %q", swept, err, want)
	}
	for _, n := range before {
		if is := slices.Contains(observe(t).namespaces, n); is == slices.Contains(want, n) {
			t.Errorf("namespace %s is there: %v", n, is)
		}
	}
	if left, err := Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("leftovers after a sweep: %q, %v", left, err)
	}
	if _, err := io.WriteString(live.in, "\n"); err != nil {
		t.Fatal(err)
	}
	live.expect(t, "reached")
	live.in.Close()
	if err := live.Wait(); err != nil {
		t.Errorf("the process that lives could not close its lab: %v", err)
	}
	if left := names(t, func(m maker) bool { return m.pid == live.Process.Pid }); len(left) > 0 {
		t.Errorf("it left %q", left)
	}
}

func TestParseMaker(t *testing.T) {
	t.Parallel()
	m := maker{12, 345, 4026531836}
	for _, suffix := range []string{hubName, probeName, "a", "node-1.x"} {
		if got, ok := parseMaker(m.prefix(7) + suffix); !ok || got != m {
			t.Errorf("%s: %v, %v", m.prefix(7)+suffix, got, ok)
		}
	}
	for _, name := range []string{
		"", "shoal", "shoal-1", "shoal-1-2-3-4", "shoal-1-2-3-4-", "shoal-1-2-3-4-A", "shoal-1-2-3-4-a b", "shoal-0-2-3-4-a",
		"shoal--1-2-3-4-a", "shoal-1-x-3-4-a", "Shoal-1-2-3-4-a", "x-shoal-1-2-3-4-a", "shoal-99999999999999999999-2-3-4-a", "cni-1-2-3-4-a",
	} {
		if m, ok := parseMaker(name); ok {
			t.Errorf("%q was made by %v", name, m)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for line, lives := range map[string]bool{
		"12 (shoal) S" + rest:      true,
		"12 (a) Z (b) 1) R" + rest: true,
		"12 (shoal) Z" + rest:      false,
		"12 (shoal) X" + rest:      false,
	} {
		ticks, got, err := parseStat([]byte(line))
		if err != nil || ticks != 4711 || got != lives {
			t.Errorf("%q: %d, %v, %v", line, ticks, got, err)
		}
	}
	for _, line := range []string{"", "12 (shoal)", "12 (shoal) S 1 2 3", "12 (shoal) S" + strings.Replace(rest, "4711", "x", 1)} {
		if _, lives, err := parseStat([]byte(line)); err == nil || lives {
			t.Errorf("%q is a process", line)
		}
	}
}

// playUser checks what is missing when it is not root.
func playUser() error {
	if err := unix.Setuid(65534); err != nil {
		return err
	}
	return Check()
}

// playContainer checks what is missing when it is root in a container: the
// right to make namespaces. A thread can give it up for what it executes.
func playContainer() error {
	if can, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil || can == 0 {
		return errors.Join(err, Check())
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(os.Args[0], os.Args, os.Environ())
}

func TestCheckSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	need(t)
	for role, want := range map[string]string{roleUser: "sudo", roleContainer: "privileged"} {
		out, err := again(role).Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
			t.Errorf("%s: %q, %v; want %q in it", role, out, err, want)
		}
	}
}
