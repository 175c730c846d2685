package cache

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

func TestLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	x := c.Index()
	d1, d2 := proto.DigestOf([]byte("1")), proto.DigestOf([]byte("2"))
	link := Link{Size: 1 << 39, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	set := func(upstream, repository string, links map[proto.Digest]Link) {
		t.Helper()
		if err := x.SetLinks(upstream, repository, links); err != nil {
			t.Fatal(err)
		}
	}
	want := func(upstream, repository string, d proto.Digest, want Link, wantOK bool) {
		t.Helper()
		got, ok, err := x.Link(upstream, repository, d)
		if got != want || ok != wantOK || err != nil {
			t.Errorf("Link(%s, %s, %s) = %v, %v, %v", upstream, repository, d, got, ok, err)
		}
	}
	want("docker.io", "library/a", d1, Link{}, false)
	set("docker.io", "library/a", map[proto.Digest]Link{d1: link, d2: {}})
	set("docker.io", "library/a", nil)
	set("docker.io", "library/a", map[proto.Digest]Link{d2: {Size: 2}})
	want("docker.io", "library/a", d1, link, true)
	want("docker.io", "library/a", d2, Link{Size: 2}, true)
	for _, other := range [][2]string{{"docker.io", "library/b"}, {"docker.io", "library"}, {"docker.i", "olibrary/a"}, {"docker.io\x00library/a", ""}, {"", ""}} {
		if strings.Contains(other[0], "\x00") {
			if _, _, err := x.Link(other[0], other[1], d1); err == nil {
				t.Error("a name with a zero byte: no error")
			}
			continue
		}
		want(other[0], other[1], d1, Link{}, false)
	}
	if err := x.SetLinks("a\x00b", "c", map[proto.Digest]Link{d1: link}); err == nil {
		t.Error("a name with a zero byte was set")
	}
	if err := x.SetLinks("a", "c", map[proto.Digest]Link{{}: link}); err == nil {
		t.Error("the zero digest was set")
	}
	if err := x.ForgetLink("docker.io", "library/a", d2); err != nil {
		t.Fatal(err)
	}
	if err := x.ForgetLink("docker.io", "library/a", d2); err != nil {
		t.Errorf("of a link that is not there: %v", err)
	}
	want("docker.io", "library/a", d2, Link{}, false)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	x = open(t, dir).Index()
	want("docker.io", "library/a", d1, link, true)
	want("docker.io", "library/a", d2, Link{}, false)
}

func TestLinksAtOnce(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir()).Index()
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := range 10 {
				links := map[proto.Digest]Link{}
				for j := range 60 {
					links[proto.DigestOf(fmt.Append(nil, i, j))] = Link{Size: int64(i*100 + j), MediaType: "x"}
				}
				repository := fmt.Sprint("r", k)
				if err := x.SetLinks("u", repository, links); err != nil {
					t.Error(err)
				}
				for d, want := range links {
					if got, ok, err := x.Link("u", repository, d); got != want || !ok || err != nil {
						t.Errorf("Link = %v, %v, %v", got, ok, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestRecords(t *testing.T) {
	t.Parallel()
	for _, v := range [][]byte{nil, {0x80}, {1}, {1, 0x80}, bytes.Repeat([]byte{0xff}, 20), {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1}} {
		if s, err := decodeStay(v); err == nil {
			t.Errorf("decodeStay(%x) = %v", v, s)
		}
	}
	for _, v := range [][]byte{nil, {0x80}, bytes.Repeat([]byte{0xff}, 20)} {
		if l, err := decodeLink(v); err == nil {
			t.Errorf("decodeLink(%x) = %v", v, l)
		}
	}
}

// Whatever happens to the files of the index, the blobs are still there, and
// the index works.
func TestIndexDamaged(t *testing.T) {
	t.Parallel()
	root, isIt := inOwnProcess(t, func() string { return memoryDir(t) })
	if !isIt {
		return
	}
	golden := newDir(t, root)
	c, err := Open(golden, Options{})
	if err != nil {
		t.Fatal(err)
	}
	unsynced(c)
	blob, data := content(1, 2*chunk)
	one, dataOne := content(2, 100)
	store(t, c, blob, data)
	for k := range 60 { // enough for a table and a log
		links := map[proto.Digest]Link{}
		for i := range 100 {
			links[proto.DigestOf(fmt.Append(nil, k, i))] = Link{MediaType: strings.Repeat("m", 100)}
		}
		if err := c.Index().SetLinks("u", fmt.Sprint(k), links); err != nil {
			t.Fatal(err)
		}
	}
	store(t, c, one, dataOne)
	crashed := copyDir(t, golden, root)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	damages := map[string]func(path string, size int64) error{
		"gone":      func(path string, _ int64) error { return os.Remove(path) },
		"empty":     func(path string, _ int64) error { return os.Truncate(path, 0) },
		"cut":       func(path string, size int64) error { return os.Truncate(path, size/2) },
		"zeroed":    func(path string, size int64) error { return os.WriteFile(path, make([]byte, size), 0o600) },
		"scribbled": func(path string, size int64) error { return scribble(path, size/3, 64) },
		"tail":      func(path string, size int64) error { return scribble(path, max(0, size-40), 40) },
	}
	for _, from := range []string{golden, crashed} {
		entries, err := os.ReadDir(layout(from).index())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			for name, damage := range damages {
				t.Run(fmt.Sprintf("%v/%s/%s", from == crashed, e.Name(), name), func(t *testing.T) {
					t.Parallel()
					dir := copyDir(t, from, root)
					path := filepath.Join(layout(dir).index(), e.Name())
					info, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := damage(path, info.Size()); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { os.RemoveAll(dir) })
					c := open(t, dir)
					if n := len(c.Blobs()); n != 2 {
						t.Errorf("%d blobs", n)
					}
					wantContent(t, get(t, c, blob), data)
					wantContent(t, get(t, c, one), dataOne)
					for k := range 60 {
						if l, ok, err := c.Index().Link("u", fmt.Sprint(k), proto.DigestOf(fmt.Append(nil, k, 5))); err != nil || ok && len(l.MediaType) != 100 {
							t.Fatalf("Link = %v, %v, %v", l, ok, err)
						}
					}
					if err := c.Index().SetLinks("u", "r", map[proto.Digest]Link{blob.Digest: {Size: 5}}); err != nil {
						t.Error(err)
					}
					if l, ok, err := c.Index().Link("u", "r", blob.Digest); l.Size != 5 || !ok || err != nil {
						t.Errorf("Link = %v, %v, %v", l, ok, err)
					}
				})
			}
		}
	}
}

// The index is brought up to the files that are there.
func TestReconcile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	unsynced(c)
	kept, dataKept := content(1, 300)
	gone, dataGone := content(2, 400)
	store(t, c, kept, dataKept)
	store(t, c, gone, dataGone)
	if err := c.index.forgetBlobs(kept.Digest); err != nil { // as if its record had been lost
		t.Fatal(err)
	}
	if err := os.Remove(c.layout.blob(gone.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if got := c.Blobs(); len(got) != 1 || got[0] != kept {
		t.Errorf("Blobs = %v", got)
	}
	stays, err := c.index.blobs()
	if err != nil || len(stays) != 1 || stays[kept.Digest].size != 300 || stays[kept.Digest].added.IsZero() {
		t.Errorf("index has %v, %v", stays, err)
	}
}

// An index that cannot be opened for a reason of the machine's, here because
// the file system can have no more files, is not thrown away.
func TestIndexNotThrownAway(t *testing.T) {
	t.Parallel()
	dir, isIt := inOwnProcess(t, func() string { return tmpfs(t, "size=64m,nr_inodes=100") })
	if !isIt {
		return
	}
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := proto.DigestOf(nil)
	if err := c.Index().SetLinks("u", "r", map[proto.Digest]Link{d: {Size: 3}}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	fillers := filepath.Join(dir, "fillers")
	for i := 0; err == nil; i++ {
		err = os.MkdirAll(filepath.Join(fillers, fmt.Sprint(i)), 0o700)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) || !strings.Contains(err.Error(), c.layout.index()) {
		t.Errorf("Open: %v", err)
	}
	if err := os.RemoveAll(fillers); err != nil {
		t.Fatal(err)
	}
	if l, ok, err := open(t, dir).Index().Link("u", "r", d); !ok || l.Size != 3 || err != nil {
		t.Errorf("Link = %v, %v, %v", l, ok, err)
	}
}

// A cache whose directory was removed while it was open can still be closed.
func TestIndexRemoved(t *testing.T) {
	t.Parallel()
	dir, isIt := inOwnProcess(t, func() string { return memoryDir(t) })
	if !isIt {
		return
	}
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Index().SetLinks("u", "r", map[proto.Digest]Link{proto.DigestOf(nil): {Size: 3}}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Close: %v", err)
	}
}

func scribble(path string, at, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(n)), at)
	return err
}

// copyDir copies a cache as it is on the disk into a new directory under root.
func copyDir(t *testing.T, dir, root string) string {
	t.Helper()
	to := newDir(t, root)
	if err := copyTree(dir, to); err != nil {
		t.Fatal(err)
	}
	return to
}

func newDir(t *testing.T, root string) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyTree copies what is below dir, as a crash about now would leave it: files
// that come and go meanwhile are there or not.
func copyTree(dir, to string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return writeWithHoles(filepath.Join(to, rel), data)
	})
}

// writeWithHoles writes a file that takes no space for the pages of zeros in it.
func writeWithHoles(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const page = 4096
	for off := 0; off < len(data); off += page {
		p := data[off:min(off+page, len(data))]
		if len(bytes.Trim(p, "\x00")) == 0 {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(data)))
}

// LinkedFrom names the repositories that have a digest, whatever their names
// look like, and no others.
func TestLinkedFrom(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir()).Index()
	d, other := proto.DigestOf([]byte("d")), proto.DigestOf([]byte("other"))
	link := Link{Size: 3, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	want := []Linked{
		{Upstream: "docker.io", Repository: "library/" + d.String(), Link: link},
		{Upstream: "docker.io", Repository: "library/alpine", Link: Link{Size: 7}},
		{Upstream: "ghcr.io", Repository: "a/b", Link: link},
	}
	for _, l := range want {
		if err := x.SetLinks(l.Upstream, l.Repository, map[proto.Digest]Link{d: l.Link, other: {Size: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.SetLinks("quay.io", "no/"+d.String(), map[proto.Digest]Link{other: link}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(want, func(a, b Linked) int {
		return cmp.Or(strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Repository, b.Repository))
	})
	if got, err := x.LinkedFrom(d); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := x.LinkedFrom(proto.DigestOf(nil)); err != nil || got != nil {
		t.Errorf("of an unknown digest: %v, %v", got, err)
	}
}
