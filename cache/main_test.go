package cache

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) {
	flag.Set("rapid.checks", "30") // unless the command line says otherwise
	switch {
	case os.Getenv(victimDir) != "":
		victim()
	case os.Getenv(ownProcess) != "":
		m.Run()
	default:
		goleak.VerifyTestMain(m)
	}
}

// ownProcess is in the environment of a process for one test, with the
// directory that the test is to use.
const ownProcess = "SHOAL_CACHE_OWN_PROCESS"

// inOwnProcess runs the test in a process of its own, and reports whether this
// is it. Badger leaves goroutines behind where it fails to open, which goleak
// would find, and can end the process; what is to be cleaned up after that
// belongs to newDir, which makes the directory.
func inOwnProcess(t *testing.T, newDir func() string) (dir string, isIt bool) {
	if dir := os.Getenv(ownProcess); dir != "" {
		return dir, true
	}
	dir = newDir()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=1m", "-test.v")
	cmd.Env = append(os.Environ(), ownProcess+"="+dir)
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, regexp.MustCompile("(?m)^=== .*\n").ReplaceAll(out, nil))
	case bytes.Contains(out, []byte("SKIP")):
		t.Skipf("%s", out)
	}
	return dir, false
}

// unsynced has no fsync, for tests that do not look at the disk after a power
// loss: they would spend their time waiting for it.
func unsynced(c *Cache) *Cache {
	c.fsync = func(*os.File) error { return nil }
	return c
}

func open(t testing.TB, dir string) *Cache {
	t.Helper()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return unsynced(c)
}

// content returns size bytes that depend on seed, and the blob that they are.
func content(seed uint64, size int) (proto.Blob, []byte) {
	data := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	rnd.Read(data)
	return proto.Blob{Digest: proto.DigestOf(data), Size: int64(size)}, data
}

func content512(seed uint64, size int) (proto.Blob, []byte) {
	_, data := content(seed, size)
	sum := sha512.Sum512(data)
	d, err := proto.ParseDigest("sha512:" + hex.EncodeToString(sum[:]))
	if err != nil {
		panic(err)
	}
	return proto.Blob{Digest: d, Size: int64(size)}, data
}

func piece(b proto.Blob, data []byte, i int) []byte {
	c := b.Chunk(i)
	return data[c.Offset : c.Offset+c.Size]
}

func sumsOf(b proto.Blob, data []byte) []proto.Sum {
	sums := make([]proto.Sum, b.Chunks())
	for i := range sums {
		sums[i] = blake3.Sum256(piece(b, data, i))
	}
	return sums
}

// get opens a blob until the test ends.
func get(t testing.TB, c *Cache, b proto.Blob) *Blob {
	t.Helper()
	blob, err := c.Blob(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(blob.Release)
	return blob
}

func put(t testing.TB, b *Blob, data []byte, chunks ...int) {
	t.Helper()
	for _, i := range chunks {
		if err := b.Put(i, piece(b.Blob(), data, i)); err != nil {
			t.Fatalf("Put(%d): %v", i, err)
		}
	}
}

func all(b proto.Blob) []int {
	is := make([]int, b.Chunks())
	for i := range is {
		is[i] = i
	}
	return is
}

// store puts a whole blob into c and lets go of it.
func store(t testing.TB, c *Cache, b proto.Blob, data []byte) {
	t.Helper()
	blob, err := c.Blob(b)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Release()
	put(t, blob, data, rand.Perm(b.Chunks())...)
	if !blob.Whole() {
		t.Fatal("all chunks are in, and the blob is not whole")
	}
}

func wantContent(t testing.TB, b *Blob, data []byte) {
	t.Helper()
	r := b.NewReader(context.Background())
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("read other bytes than were put")
	}
}

// files lists all files under dir but the index and the lock.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	for _, sub := range []string{"blobs", "partial"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				rel, _ := filepath.Rel(dir, path)
				names = append(names, rel)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

const chunk = proto.MinChunk

// freeze makes a directory one that not even root may write to.
func freeze(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	if out, err := exec.Command("chattr", "+i", dir).CombinedOutput(); err != nil {
		t.Skipf("no directory can be made immutable here: %v: %s", err, out)
	}
	thaw = sync.OnceFunc(func() {
		if out, err := exec.Command("chattr", "-i", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Cleanup(thaw)
	return thaw
}
