package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// A maker is the process that made a namespace: what the names of all that it
// makes start with. The process ID alone would name a process that has got it
// since, and means nothing in another PID namespace.
type maker struct {
	pid   int
	start uint64 // when it started, in clock ticks since the machine did
	pids  uint64 // inode of its PID namespace
}

// prefix returns that of the names of one of its labs.
func (m maker) prefix(lab int) string {
	return fmt.Sprintf("shoal-%d-%d-%d-%d-", m.pid, m.start, m.pids, lab)
}

// madeName is a name that makeHub and Host give.
var madeName = regexp.MustCompile(`^shoal-([1-9][0-9]*)-([0-9]+)-([0-9]+)-[1-9][0-9]*-(\+hub|\+probe|[a-z0-9][a-z0-9.-]{0,62})$`)

// parseMaker returns who made a namespace of that name, and whether it is one
// that this harness makes.
func parseMaker(name string) (maker, bool) {
	m := madeName.FindStringSubmatch(name)
	if m == nil {
		return maker{}, false
	}
	pid, err1 := strconv.Atoi(m[1])
	start, err2 := strconv.ParseUint(m[2], 10, 64)
	pids, err3 := strconv.ParseUint(m[3], 10, 64)
	return maker{pid, start, pids}, errors.Join(err1, err2, err3) == nil
}

// thisProcess returns this process.
func thisProcess() (maker, error) {
	m := maker{pid: os.Getpid()}
	var err error
	if m.pids, err = pidNamespace(); err != nil {
		return m, err
	}
	m.start, _, err = started(m.pid)
	return m, err
}

// pidNamespace returns the inode of the PID namespace that this process is in.
func pidNamespace() (uint64, error) {
	const file = "/proc/self/ns/pid"
	s, err := os.Readlink(file)
	if err != nil {
		return 0, err
	}
	var inode uint64
	if _, err := fmt.Sscanf(s, "pid:[%d]", &inode); err != nil {
		return 0, fmt.Errorf("%s is %q: %w", file, s, err)
	}
	return inode, nil
}

// started returns when a process started, in clock ticks since the machine
// did, and whether it lives. One that is dead and that nobody has waited for
// yet does not.
func started(pid int) (ticks uint64, lives bool, err error) {
	file := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return parseStat(b)
}

// parseStat reads the third field, the state, and the 22nd, when it started, of
// /proc/PID/stat; see proc(5). The second one is a name with any characters, in
// parentheses.
func parseStat(b []byte) (ticks uint64, lives bool, err error) {
	after := b[bytes.LastIndexByte(b, ')')+1:]
	fields := bytes.Fields(after)
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("a line of /proc/PID/stat has %d fields after the name: %q", len(fields), b)
	}
	ticks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return ticks, err == nil && fields[0][0] != 'Z' && fields[0][0] != 'X', err
}

// gone reports whether the maker of a namespace is gone for certain. It is not
// if it may be somewhere that cannot be seen from here.
func (m maker) gone(here uint64) (bool, error) {
	if m.pids != here {
		return false, nil
	}
	start, lives, err := started(m.pid)
	return err == nil && (!lives || start != m.start), err
}

// Leftovers returns the names, as `ip netns` lists them, of the namespaces that
// earlier runs left because they were killed. Links need no removal: all of
// them are in namespaces, and end with them.
func Leftovers() ([]string, error) {
	entries, err := os.ReadDir(run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	here, err := pidNamespace()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		m, ok := parseMaker(e.Name())
		if !ok {
			continue
		}
		gone, err := m.gone(here)
		if err != nil {
			return nil, fmt.Errorf("find out whether namespace %s is in use: %w", e.Name(), err)
		}
		if gone {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Sweep removes the leftovers of earlier runs and returns their names. What a
// living process has made, or anything but this harness, stays.
func Sweep() ([]string, error) {
	names, err := Leftovers()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, removeNamespace(n))
	}
	return names, errors.Join(errs...)
}
