package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

// tmpfs mounts a small file system with the options, and skips the test where
// that is not allowed.
func tmpfs(t *testing.T, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "shoal-test", dir).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fillUp writes zeros until the file system has nothing left.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := bytes.Repeat([]byte{1}, 4096)
	for err == nil {
		_, err = f.Write(buf)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// On a full disk Put says so and what to do, what is in stays, and when there
// is room again it goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, fmt.Sprintf("size=%d", reserveBlobs+40*chunk+8<<20)) // room for the blob, and for the index
	c := open(t, dir)
	blob, data := content(1, 40*chunk)
	b := get(t, c, blob)
	in := []int{0, 1, 2}
	put(t, b, data, in...)
	filler := filepath.Join(dir, "filler")
	fillUp(t, filler) // others do, while the blob arrives
	err := b.Put(3, piece(blob, data, 3))
	if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("Put: %v", err)
	}
	if b.Have().Count() != len(in) {
		t.Errorf("%d chunks are in, Put took %d", b.Have().Count(), len(in))
	}
	other, dataOther := content(2, 2*chunk)
	ob, err := c.Blob(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := ob.Put(0, piece(other, dataOther, 0)); !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Put of another blob: %v", err)
	}
	ob.Release()
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("files are %q", got)
	}
	r := b.NewReader(t.Context())
	defer r.Close()
	got := make([]byte, len(in)*chunk)
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:len(got)]) {
		t.Errorf("reading what is in: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	put(t, b, data, all(blob)[len(in):]...)
	wantContent(t, b, data)
}

// When others fill the disk up, the index refuses writes instead of having the
// kernel kill the process for writing to a memory map without room.
func TestIndexDiskFull(t *testing.T) {
	t.Parallel()
	dir, isIt := inOwnProcess(t, func() string { return tmpfs(t, "size=64m") })
	if !isIt {
		return
	}
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	set := func(n int) error {
		links := map[proto.Digest]Link{}
		for i := range 100 {
			links[proto.DigestOf(fmt.Append(nil, n, i))] = Link{Size: 1, MediaType: strings.Repeat("m", 500)}
		}
		return c.Index().SetLinks("u", "r", links)
	}
	for n := range 10 { // over half a memory table, which Close writes out
		if err := set(n); err != nil {
			t.Fatal(err)
		}
	}
	filler := filepath.Join(dir, "filler")
	fillUp(t, filler)
	for n := range 100 {
		if err := set(1000 + n); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("SetLinks on a full disk: %v", err)
		}
	}
	if _, ok, err := c.Index().Link("u", "r", proto.DigestOf(fmt.Append(nil, 3, 4))); !ok || err != nil {
		t.Errorf("Link on a full disk: %v, %v", ok, err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close on a full disk: %v", err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("Open on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if c, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := set(5000); err != nil {
		t.Errorf("SetLinks once there is room: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
