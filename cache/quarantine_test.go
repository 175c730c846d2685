package cache

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/proto"
)

// damages are what can happen to the file of a whole blob. The last ones cannot
// be read at all.
var damages = map[string]func(path string) error{
	"flipped bit": func(path string) error {
		return rewrite(path, func(data []byte) []byte { data[len(data)/2] ^= 1; return data })
	},
	"cut":     func(path string) error { return rewrite(path, func(data []byte) []byte { return data[:len(data)/2] }) },
	"emptied": func(path string) error { return os.Truncate(path, 0) },
	"longer":  func(path string) error { return rewrite(path, func(data []byte) []byte { return append(data, 1) }) },
	"gone":    os.Remove,
	"directory": func(path string) error {
		return errors.Join(os.Remove(path), os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "x"), nil, 0o600))
	},
	"loop": func(path string) error {
		return errors.Join(os.Remove(path), os.Symlink(path, path)) // ELOOP
	},
}

func rewrite(path string, f func([]byte) []byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, f(data), 0o600)
}

// quarantined lists what is in quarantine.
func quarantined(t *testing.T, c *Cache) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(c.layout.quarantine())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// wantSetAside checks what is to be seen of one damaged blob, and that it can
// be fetched again.
func wantSetAside(t *testing.T, c *Cache, l told, blob proto.Blob, data []byte, found, damage string) {
	t.Helper()
	next(t, l.evicted, blob.Digest)
	next(t, l.damaged, blob)
	if got := testutil.ToFloat64(c.metrics.care.damaged.WithLabelValues(found)); got != 1 {
		t.Errorf("counted %v damaged blobs", got)
	}
	if _, ok := c.Whole(blob.Digest); ok {
		t.Error("it is still whole")
	}
	if known, ok := c.Known(blob.Digest); ok {
		t.Error("it is still known")
		known.Release()
	}
	want := 1
	if damage == "gone" {
		want = 0
	}
	if got := quarantined(t, c); len(got) != want || want > 0 && !strings.HasSuffix(got[0], "-"+blob.Digest.Hex()) {
		t.Errorf("in quarantine: %q", got)
	}
	store(t, c, blob, data)
	wantContent(t, get(t, c, blob), data)
}

// A file that cannot be opened is found by who opens it, who then gets a blob to
// fill; and so does one that has another size.
func TestDamagedAtOpen(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cut", "longer", "gone", "directory", "loop"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, l := openWith(t, t.TempDir(), Options{})
			blob, data := content(1, 3*chunk)
			store(t, c, blob, data)
			if err := damages[name](c.layout.blob(blob.Digest)); err != nil {
				t.Fatal(err)
			}
			b, err := c.Blob(blob)
			if err != nil || b.Whole() {
				t.Fatalf("Blob: %v", err)
			}
			b.Release()
			wantSetAside(t, c, l, blob, data, foundOpen, name)
		})
	}
}

// A file that the daemon's user may not read is set aside as well. Root may read
// all, so it is another user that tries.
func TestDamagedForbidden(t *testing.T) {
	t.Parallel()
	dir, isIt := asNobody(t)
	if !isIt {
		return
	}
	c, l := openWith(t, dir, Options{})
	blob, data := content(1, 2*chunk)
	two, data2 := content(2, 2*chunk)
	store(t, c, blob, data)
	store(t, c, two, data2)
	for _, b := range []proto.Blob{blob, two} {
		if err := os.Chmod(c.layout.blob(b.Digest), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Open(c.layout.blob(blob.Digest)); !errors.Is(err, syscall.EACCES) {
		t.Fatalf("the file can be read: %v", err)
	}
	b, err := c.Blob(blob)
	if err != nil || b.Whole() {
		t.Fatalf("Blob: %v", err)
	}
	b.Release()
	wantSetAside(t, c, l, blob, data, foundOpen, "")
	if report, err := c.Scrub(t.Context(), nil); err != nil || !slices.Equal(report.Damaged, []proto.Digest{two.Digest}) {
		t.Errorf("scrub: %+v, %v", report, err)
	}
	_, err = Open(t.TempDir(), Options{Adopt: []string{filepath.Join(dir, "secret")}})
	if err == nil || !strings.Contains(err.Error(), "cache.adopt: "+filepath.Join(dir, "secret")) || !strings.Contains(err.Error(), "run shoal as a user that may read it") {
		t.Errorf("adopt a directory that may not be read: %v", err)
	}
}

// asNobody runs the test in a process of a user who may not do everything, in
// a directory of its own with an unreadable "secret" in it, and reports whether
// this is it.
func asNobody(t *testing.T) (dir string, isIt bool) {
	t.Helper()
	if dir := os.Getenv(ownProcess); dir != "" {
		return dir, true
	}
	dir, err := os.MkdirTemp("/tmp", "shoal-nobody-") // t.TempDir is below directories that nobody may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "test")
	if out, err := exec.Command("cp", os.Args[0], program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(dir, "secret", "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^"+t.Name()+"$", "-test.timeout=1m", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), ownProcess+"="+dir, "TMPDIR="+dir)
	if os.Getuid() == 0 {
		const nobody = 65534
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return dir, false
}

// Who reads a blob when it is found damaged gets an error and not the rest.
func TestDamagedWhileRead(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	blob, data := content(1, 3*chunk)
	store(t, c, blob, data)
	held := get(t, c, blob)
	if err := damages["flipped bit"](c.layout.blob(blob.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Scrub(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	next(t, l.damaged, blob)
	r := held.NewReader(t.Context())
	defer r.Close()
	if n, err := io.Copy(io.Discard, r.Content()); n > 0 || !errors.Is(err, ErrDigest) {
		t.Errorf("read %d bytes of a damaged blob, %v", n, err)
	}
	b := get(t, c, blob)
	put(t, b, data, all(blob)...)
	wantContent(t, b, data)
}

// A read error makes somebody doubt a blob: a damaged one is set aside, any
// other stays.
func TestDoubt(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	one, data1 := content(1, 3*chunk)
	two, data2 := content(2, 200)
	store(t, c, one, data1)
	store(t, c, two, data2)
	absent, _ := content(3, 10)
	if err := damages["flipped bit"](c.layout.blob(one.Digest)); err != nil {
		t.Fatal(err)
	}
	c.Doubt(two.Digest)
	c.Doubt(absent.Digest)
	c.Doubt(one.Digest)
	c.Doubt(one.Digest)
	wantSetAside(t, c, l, one, data1, foundRead, "flipped bit")
	wantContent(t, get(t, c, two), data2)
	nothing(t, l.damaged)

	// That the file has gone is noticed by who opens another descriptor of it.
	b := get(t, c, two)
	if err := os.Remove(c.layout.blob(two.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.File(); err == nil {
		t.Error("File of a file that has gone: no error")
	}
	next(t, l.damaged, two)

	// So is a file that is shorter than it was, by who reads it.
	b = get(t, c, one)
	if err := os.Truncate(c.layout.blob(one.Digest), chunk); err != nil {
		t.Fatal(err)
	}
	r := b.NewReader(t.Context())
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); n > chunk || !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errDamaged) {
		t.Errorf("read %d bytes of a file that was cut: %v", n, err)
	}
	next(t, l.damaged, one)
}

// The quarantine keeps the newest of what is in it, few and not much.
func TestQuarantineBounds(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	var last []string
	for k := range quarantineFiles + 3 {
		blob, data := content(uint64(k), 10)
		store(t, c, blob, data)
		if err := damages["flipped bit"](c.layout.blob(blob.Digest)); err != nil {
			t.Fatal(err)
		}
		c.Doubt(blob.Digest)
		next(t, l.damaged, blob)
		last = append(last, blob.Digest.Hex())
	}
	got := quarantined(t, c)
	if len(got) != quarantineFiles {
		t.Fatalf("%d files in quarantine", len(got))
	}
	for i, name := range got {
		if !strings.HasSuffix(name, last[i+3]) {
			t.Errorf("file %d is %s, not of %s", i, name, last[i+3])
		}
	}
}

func TestQuarantineKeeps(t *testing.T) {
	t.Parallel()
	const half = quarantineBytes / 2
	tests := []struct {
		sizes []int64 // the newest first
		free  int64
		want  int
	}{
		{nil, 0, 0},
		{[]int64{1, 1}, 1 << 40, 2},
		{make([]int64, quarantineFiles+1), 1 << 40, quarantineFiles},
		{make([]int64, quarantineFiles), 0, quarantineFiles},
		{[]int64{half, half, 1}, 1 << 40, 2},
		{[]int64{2*half + 1, 1}, 1 << 40, 0},
		{[]int64{100, 60, 1}, 1600, 1},
		{[]int64{101, 1}, 1600, 0},
	}
	for _, tt := range tests {
		if got := quarantineKeeps(tt.sizes, tt.free); got != tt.want {
			t.Errorf("of %d with %d bytes free %d stay, want %d", tt.sizes, tt.free, got, tt.want)
		}
	}
}

// A directory where a blob is to be put is moved out of its way.
func TestPlaceOverDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	blob, data := content(1, 2*chunk)
	l := layout(dir)
	for _, path := range []string{l.blob(blob.Digest), l.sums(blob.Digest), l.partial(blob.Digest), l.state(blob.Digest)} {
		if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := openWith(t, dir, Options{})
	store(t, c, blob, data)
	wantContent(t, get(t, c, blob), data)
	c.Scrub(t.Context(), nil)
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("files are %q", got)
	}
}

// What was found of a file is not held against another one that has come in its
// place since.
func TestCondemn(t *testing.T) {
	t.Parallel()
	c, l := openWith(t, t.TempDir(), Options{})
	blob, data := content(1, 2*chunk)
	path := c.layout.blob(blob.Digest)
	store(t, c, blob, data)
	held, err := os.Open(path) // so that its inode is not given to the next one
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	before, err := held.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(blob.Digest); err != nil {
		t.Fatal(err)
	}
	next(t, l.evicted, blob.Digest)
	if c.condemn(blob.Digest, before, foundScrub, errDamaged) {
		t.Fatal("a blob that is not here was set aside")
	}
	store(t, c, blob, data)
	for _, info := range []os.FileInfo{before, nil} {
		if c.condemn(blob.Digest, info, foundScrub, errDamaged) {
			t.Fatal("another file was set aside")
		}
	}
	nothing(t, l.damaged)
	wantContent(t, get(t, c, blob), data)
	now, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !c.condemn(blob.Digest, now, foundScrub, errDamaged) {
		t.Error("the very file was not set aside")
	}
	next(t, l.damaged, blob)
}
