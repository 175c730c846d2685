package daemon_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path that all of ours starts with.
const module = "github.com/shoal-project/shoal"

// rooms says which rooms of ours each room may import. Imports run one way, from
// the command to the words on the wire, so that a room can be read, tested and
// replaced without those that use it. A folder that is not here may not hold Go
// code; a new room is added with a reason. "bench/*" stands for every folder
// under bench.
var rooms = map[string][]string{
	"proto":         {},
	"cache":         {"proto"},
	"scheduler":     {"proto"},
	"peer":          {"cache", "proto"},
	"peer/gossip":   {"proto"},
	"daemon/origin": {"proto"},
	// daemon/jobs and cache for what the API says of them.
	"daemon/admin": {"daemon/jobs", "daemon/blocklist", "cache", "proto"},
	"daemon/rate":  {},
	// Doors and files know nothing of what goes through them.
	"daemon/door":     {"daemon/reload"},
	"daemon/reload":   {},
	"daemon/proxy":    {},
	"daemon/runtimes": {},
	"daemon/audit":    {},
	// Private digests, and digests that nobody may have.
	"daemon/veil":      {"proto"},
	"daemon/blocklist": {"proto"},
	"daemon/tags":      {"daemon/origin", "cache", "proto"},
	"daemon/policy":    {"daemon/policy/rules", "daemon/tags", "daemon/origin", "cache", "proto"},
	// Decisions only: what they are about is given to them.
	"daemon/policy/rules":     {},
	"daemon/policy/signature": {"daemon/policy/rules", "daemon/origin", "cache", "proto"},
	"daemon/pull":             {"cache", "proto"},
	"daemon/pull/pulltest":    {"daemon/pull", "cache", "proto"},
	"daemon/jobs":             {"daemon/policy", "daemon/tags", "daemon/pull", "daemon/origin", "cache", "proto"},
	// daemon/door for who a client is.
	"daemon/mirror": {"daemon/policy", "daemon/audit", "daemon/door", "daemon/pull", "daemon/origin", "cache", "proto"},
	"daemon": {
		"daemon/mirror", "daemon/policy", "daemon/policy/rules", "daemon/policy/signature", "daemon/tags", "daemon/pull", "daemon/origin",
		"daemon/jobs", "daemon/admin", "daemon/rate", "daemon/door", "daemon/reload", "daemon/proxy", "daemon/audit", "daemon/veil", "daemon/blocklist",
		"peer", "peer/gossip", "scheduler", "cache", "proto",
	},
	"bench/*": {"bench/*", "daemon", "daemon/admin", "daemon/jobs", "daemon/rate", "scheduler", "proto"},
	// daemon/admin for its client, daemon/jobs and cache for what it takes and
	// returns, proto for the role that a command names.
	// daemon/origin and daemon/policy for what an image is named with and which
	// types are manifests, which an export and an import read.
	// daemon/proxy for the CA that it makes, daemon/runtimes for what it writes.
	"cmd/shoal": {"bench/*", "daemon", "daemon/proxy", "daemon/runtimes", "daemon/blocklist", "daemon/jobs", "daemon/admin", "daemon/policy", "daemon/origin", "daemon/rate", "cache", "proto"},
}

// stdOnly are the rooms that import nothing but the standard library.
var stdOnly = []string{"proto", "daemon/rate"}

// topLevel are the folders that the repository has.
// bin is what the Makefile builds; it is never committed.
var topLevel = []string{"bench", "bin", "cache", "cmd", "daemon", "deploy", "peer", "proto", "scheduler"}

// room returns the entry of rooms that a folder belongs to.
func room(dir string) string {
	if strings.HasPrefix(dir, "bench/") {
		return "bench/*"
	}
	return dir
}

// checkImport returns what is wrong with a file in dir importing imp, or "".
func checkImport(dir, imp string) string {
	from := room(dir)
	allowed, known := rooms[from]
	if !known {
		return fmt.Sprintf("%s is not a room; put the code into one, or add the room to the table with a reason", dir)
	}
	first, _, _ := strings.Cut(imp, "/")
	if slices.Contains(stdOnly, dir) && strings.Contains(first, ".") {
		return fmt.Sprintf("%s imports %s, and may import the standard library only", dir, imp)
	}
	ours, is := strings.CutPrefix(imp, module+"/")
	if !is {
		return ""
	}
	if !slices.Contains(allowed, room(ours)) {
		return fmt.Sprintf("%s imports %s; it may import %q of ours", dir, ours, allowed)
	}
	return ""
}

// TestImportsRunOneWay parses the source rather than asking the go command:
// what a test reads is part of the key of the test cache, so a passing result
// is never that of another tree.
func TestImportsRunOneWay(t *testing.T) {
	t.Parallel()
	root := ".."
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			imp, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if wrong := checkImport(path.Dir(filepath.ToSlash(rel)), imp); wrong != "" {
				t.Errorf("%s: %s", rel, wrong)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("found %d Go files, so this test looks at the wrong folder", files)
	}
}

func TestTopLevelFolders(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("the folder %s is not one of those that the repository has; what a package is for belongs into its doc.go, and a helper beside its one user", e.Name())
		}
	}
}

// TestImportTable checks the checker, and that the table itself runs one way.
func TestImportTable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		dir, imp string
		ok       bool
	}{
		{"proto", "crypto/sha256", true},
		{"proto", "github.com/zeebo/blake3", false},
		{"cache", module + "/proto", true},
		{"cache", module + "/peer", false},
		{"cache", "github.com/dgraph-io/badger/v4", true},
		{"daemon/mirror", module + "/daemon/pull", true},
		{"daemon/pull", module + "/daemon/mirror", false},
		{"daemon/pull", module + "/daemon/origin", false},
		{"peer", module + "/scheduler", false},
		{"scheduler", module + "/cache", false},
		{"daemon", module + "/cmd/shoal", false},
		{"bench/fleet", module + "/daemon", true},
		{"bench/fleet", module + "/bench/registry", true},
		{"bench/registry/registryd", module + "/bench/registry", true},
		{"bench/fleet", module + "/daemon/pull", false},
		{"daemon", module + "/bench/fleet", false},
		{"cmd/shoal", module + "/bench/sim", true},
		{"internal/util", "strings", false},
	} {
		if got := checkImport(tt.dir, tt.imp); (got == "") != tt.ok {
			t.Errorf("%s importing %s: %q, want ok: %t", tt.dir, tt.imp, got, tt.ok)
		}
	}
	for from, to := range rooms {
		for _, r := range to {
			if _, known := rooms[r]; !known {
				t.Errorf("the table lets %s import %s, which is not a room", from, r)
			}
			if r != from && reaches(r, from, map[string]bool{}) {
				t.Errorf("the table lets %s and %s import each other", from, r)
			}
		}
	}
}

// reaches reports whether the table leads from one room to another.
func reaches(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	return slices.ContainsFunc(rooms[from], func(next string) bool { return reaches(next, to, seen) })
}
