package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/shoal-project/shoal/daemon"
)

type versionCmd struct{}

// Run prints which build this is.
func (versionCmd) Run() error {
	v := version()
	_, err := fmt.Fprintf(os.Stdout, "shoal %s (commit %s, %s, %s/%s)\n", v.Version, v.Commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// A build says what the binary was made from.
type build struct {
	Version string // that of daemon.Version
	Commit  string // with "-dirty" if the tree had changes; "unknown" without version control
}

// version reads what the Go linker recorded of this binary.
func version() build {
	b := build{Version: daemon.Version(), Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	b.Commit += dirty
	return b
}
