//go:build linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Roles that this program plays when it is run again. It has none at first.
const (
	roleVar = "SHOAL_NETNS_TEST_ROLE"

	roleTests     = "tests"     // run the tests in namespaces of its own
	roleLab       = "lab"       // make a lab and wait
	roleUser      = "user"      // check what is missing, as a user
	roleContainer = "container" // check what is missing, as root without privileges
)

// TestMain runs the tests in a process that has an empty /run/netns and a
// network with nothing but loopback. So they can compare what is there with
// what was, whatever else runs on the machine, and nothing can be left of them.
// Without root that cannot be; the tests say so one by one.
func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	switch {
	case role == "" && os.Geteuid() == 0:
		os.Exit(isolate())
	case role == roleTests:
		if err := unix.Mount("none", run, "tmpfs", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make an empty", run, "for the tests:", err)
			os.Exit(1)
		}
	case role != "":
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

// isolate runs the tests in namespaces of their own.
func isolate() int {
	if err := os.MkdirAll(run, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := again(roleTests, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS | unix.CLONE_NEWNET
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
	}
	if err != nil {
		return 1
	}
	return 0
}

// again returns this program in another role. It does not outlive this one.
func again(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// need skips a test for which what is missing is root, and fails one for which
// it is anything else.
func need(t *testing.T) {
	t.Helper()
	err := Check()
	if err != nil && os.Geteuid() != 0 {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
