package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unlinked are packages, and all below them, that must not be in the shipped
// binary: what only tests and the demo need.
var unlinked = []string{
	"testing",
	"net/http/httptest",
	"github.com/containerd/containerd",
	"github.com/distribution/distribution",
	"github.com/google/go-containerregistry",
	"github.com/rogpeppe/go-internal",
	"github.com/shoal-project/shoal/bench",
	"github.com/shoal-project/shoal/daemon/pull/pulltest",
	"go.uber.org/goleak",
	"pgregory.net/rapid",
}

// harness are those of them that are in it all the same: what `shoal bench` is
// made of. Its registry is a program of its own.
var harness = []string{
	module + "/bench/fleet",
	module + "/bench/netns",
	module + "/bench/process",
	module + "/bench/report",
	module + "/bench/rollout",
	module + "/bench/sim",
}

// tolerated are those of them that a library of ours links for its own reasons:
// sigstore's timestamps come with a package of PKCS #7 that has a helper for tests
// among its code, and its bundles with one that reads names of images.
var tolerated = []string{"testing", "github.com/google/go-containerregistry/pkg/name"}

// isUnlinked reports whether the package pkg is one of those.
func isUnlinked(pkg string) bool {
	if slices.Contains(harness, pkg) {
		return false
	}
	for _, u := range unlinked {
		if pkg == u || strings.HasPrefix(pkg, u+"/") {
			return true
		}
	}
	return false
}

func TestBinaryIsLean(t *testing.T) {
	t.Parallel()
	readSources(t, filepath.Join("..", ".."))
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}}\t{{join .Imports \" \"}}", ".")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	importers := map[string][]string{}
	var linked []string
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), "\t")
		linked = append(linked, pkg)
		for _, i := range strings.Fields(imports) {
			importers[i] = append(importers[i], pkg)
		}
	}
	if len(linked) < 100 {
		t.Fatalf("go list tells of %d packages only:\n%s", len(linked), out)
	}
	for _, pkg := range linked {
		if isUnlinked(pkg) && !slices.Contains(tolerated, pkg) {
			t.Errorf("the binary links %s, which %s imports", pkg, strings.Join(importers[pkg], " and "))
		}
	}
}

func TestIsUnlinked(t *testing.T) {
	t.Parallel()
	for pkg, want := range map[string]bool{
		"testing":         true,
		"testing/quick":   true,
		"testing2":        false,
		"net/http":        false,
		module + "/bench": true,
		"github.com/containerd/containerd/v2/core/remotes": true,
		"github.com/containerd/errdefs":                    false,
		module + "/daemon/pull":                            false,
		module + "/bench/registry":                         true,
		module + "/bench/rollout":                          false,
		module + "/bench/rollout/other":                    true,
	} {
		if got := isUnlinked(pkg); got != want {
			t.Errorf("%s: %t", pkg, got)
		}
	}
}

const module = "github.com/shoal-project/shoal"

// readSources reads go.mod and our Go files, so that the test cache, which does
// not see what the go command reads, drops a result when any of them changes.
func readSources(t *testing.T, root string) {
	t.Helper()
	if _, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != root && strings.HasPrefix(d.Name(), ".") && d.Name() != "..":
			return filepath.SkipDir
		case strings.HasSuffix(name, ".go"):
			_, err = os.Stat(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
