//go:build e2e

package e2e

import (
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// programs are what the tests run, by the Debian package that has them.
var programs = []struct{ name, debian string }{
	{"containerd", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"docker-registry", "docker-registry"},
	{"skopeo", "skopeo"},
	{"podman", "podman"},
	{"dockerd", "docker.io"},
	{"docker", "docker.io"},
	{"busybox", "busybox-static"},
	// Those of .ci/clients.
	{"crane", ""},
	{"regctl", ""},
	{filepath.Join(containerd2, "containerd"), ""},
	{filepath.Join(containerd2, "ctr"), ""},
}

// containerd2 is the folder beside the programs of go install that .ci/clients
// puts containerd 2 into, since its programs have the names of Debian's.
const containerd2 = "containerd2"

// goBin is where go install puts programs. prepare sets it.
var goBin string

func containerd2Dir() string { return filepath.Join(goBin, containerd2) }

// find returns the path of a program of the list.
func find(name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		name = filepath.Join(goBin, name)
	}
	return exec.LookPath(name)
}

// shoal is the path of the binary.
var shoal string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if err := errors.Join(prepare(), missing()); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
			return 1
		}
		dir, err := os.MkdirTemp("", "shoal-e2e-bin-")
		if err == nil {
			defer os.RemoveAll(dir)
			shoal, err = process.Shoal(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		return m.Run()
	}())
}

// prepare adds to PATH where Debian and go install put programs that the PATH
// of a bare shell does not have.
func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: containers are started and file systems mounted")
	}
	out, err := exec.Command("go", "env", "GOPATH").Output()
	if err != nil {
		return fmt.Errorf("go env GOPATH: %w", err)
	}
	goBin = filepath.Join(strings.TrimSpace(string(out)), "bin")
	path := []string{os.Getenv("PATH"), "/usr/sbin", "/sbin", goBin}
	return os.Setenv("PATH", strings.Join(path, string(os.PathListSeparator)))
}

// missing returns an error that lists the programs that are not here, and how
// to get them.
func missing() error {
	var names, debian, commands []string
	for _, p := range programs {
		path, err := find(p.name)
		if err == nil && (p.name != "busybox" || static(path)) {
			continue
		}
		names = append(names, p.name)
		if p.debian == "" {
			commands = []string{".ci/clients"}
		} else if !slices.Contains(debian, p.debian) {
			debian = append(debian, p.debian)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if len(debian) > 0 {
		commands = append(commands, "apt-get install --no-install-recommends "+strings.Join(debian, " "))
	}
	return fmt.Errorf("these programs are missing: %s\nget them with:\n  %s", strings.Join(names, ", "), strings.Join(commands, "\n  "))
}

// static reports whether an executable needs no shared libraries, as it must
// where it is all there is.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
