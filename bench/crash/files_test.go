package crash

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

// Suffixes of the files beside a blob's bytes.
const (
	sumsSuffix  = ".sums"
	stateSuffix = ".state"
)

// files returns the names of the files below dir, relative to it, and how long
// they are. A directory that is not there has none.
func files(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	found := make(map[string]int64)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // never made, or a daemon that runs has removed it
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		found[name] = info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// named returns the digest of a file below blobs or partial.
func named(name string) (proto.Digest, bool) {
	parts := strings.Split(filepath.ToSlash(name), "/")
	d, err := proto.ParseDigest(parts[0] + ":" + parts[len(parts)-1])
	return d, err == nil
}

// whole returns what is whole in the node's directory, and how many blobs are
// there in part.
func (n *node) whole(t *testing.T) (whole []proto.Digest, partial int) {
	t.Helper()
	for name := range files(t, filepath.Join(n.data, "blobs")) {
		if d, ok := named(name); ok {
			whole = append(whole, d)
		}
	}
	for name := range files(t, filepath.Join(n.data, "partial")) {
		if strings.HasSuffix(name, stateSuffix) {
			partial++
		}
	}
	slices.SortFunc(whole, func(a, b proto.Digest) int { return strings.Compare(a.String(), b.String()) })
	return whole, partial
}

// checkFiles checks the directory of a daemon that has ended: every blob is
// what was pushed, and no file is there that belongs to nothing. It returns how
// many bytes the blobs have.
func (n *node) checkFiles(t *testing.T, o *origin) (bytes int64) {
	t.Helper()
	blobs := filepath.Join(n.data, "blobs")
	found := files(t, blobs)
	for name, size := range found {
		bytes += size
		if of, is := strings.CutSuffix(name, sumsSuffix); is {
			if _, ok := found[of]; !ok {
				t.Errorf("%s: sums without their blob: %s", n.name, name)
			}
			continue
		}
		n.checkBlob(t, o, filepath.Join(blobs, name), name)
	}
	found = files(t, filepath.Join(n.data, "partial"))
	for name, size := range found {
		of, isState := strings.CutSuffix(name, stateSuffix)
		if !isState {
			bytes += size
		}
		_, data := found[of]
		_, state := found[of+stateSuffix]
		d, ok := named(of)
		if _, pushed := o.blobs[d]; !data || !state || !ok || !pushed {
			t.Errorf("%s: a file that belongs to nothing: partial/%s", n.name, name)
		}
	}
	for name := range files(t, filepath.Join(n.data, "quarantine")) {
		t.Errorf("%s: no file was damaged, and this was set aside: %s", n.name, name)
	}
	n.checkTop(t)
	return bytes
}

// checkBlob checks a whole blob's file.
func (n *node) checkBlob(t *testing.T, o *origin, path, name string) {
	t.Helper()
	d, ok := named(name)
	k, pushed := o.blobs[d]
	if !ok || !pushed {
		t.Errorf("%s: a file that belongs to nothing: blobs/%s", n.name, name)
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if at := k.wrong(0, data); at >= 0 || len(data) != len(k.data) {
		t.Errorf("%s: the file of %s has %d bytes of %d and is WRONG at %d", n.name, d, len(data), len(k.data), at)
	}
}

// checkTop checks that nothing temporary is left beside the directories.
func (n *node) checkTop(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(n.data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "tmp") {
			t.Errorf("%s: a temporary file was left: %s", n.name, e.Name())
		}
	}
}
