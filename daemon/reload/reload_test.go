package reload_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/daemon/reload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is far more than a change takes, for a machine that is busy.
const within = 20 * time.Second

// watching watches files until the test ends. What is received is told of.
func watching(t *testing.T, files ...string) <-chan struct{} {
	t.Helper()
	told := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- reload.Watch(ctx, nil, func() { told <- struct{}{} }, files...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	expect(t, told, "the start")
	return told
}

func expect(t *testing.T, told <-chan struct{}, after string) {
	t.Helper()
	select {
	case <-told:
	case <-time.After(within):
		t.Fatalf("nothing was told after %s", after)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "tls.crt")
	write(t, file, "1")
	told := watching(t, file)

	write(t, file, "2")
	expect(t, told, "a write in place")
	write(t, file+".new", "3")
	must(t, os.Rename(file+".new", file))
	expect(t, told, "a rename")
	must(t, os.Remove(file))
	expect(t, told, "a removal")
	write(t, file, "4")
	expect(t, told, "a return")
}

// What happens beside the file, and a write that changes nothing, are not told.
// The change after them is: so they were seen, and passed over.
func TestNoChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "tls.crt")
	write(t, file, "1")
	told := watching(t, file)

	write(t, filepath.Join(dir, "other"), "x")
	write(t, file, "1")
	time.Sleep(500 * time.Millisecond) // longer than a change takes to be complete
	write(t, file, "2")
	expect(t, told, "a write")
	select {
	case <-told:
		t.Error("told twice of one change")
	case <-time.After(500 * time.Millisecond):
	}
}

// A secret that Kubernetes mounts: the files are links through ..data, and only
// that is replaced.
func TestKubernetesSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	version := func(name, content string) {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		write(t, filepath.Join(dir, name, "tls.crt"), content)
		must(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", "1")
	file := filepath.Join(dir, "tls.crt")
	must(t, os.Symlink("..data/tls.crt", file))
	told := watching(t, file)
	for _, n := range []string{"2", "3"} {
		version(".."+n, n)
		expect(t, told, "version "+n)
	}
}

// certbot's files: links to another folder, in which they are written too.
func TestLinkToAnotherFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live, archive := filepath.Join(dir, "live"), filepath.Join(dir, "archive")
	must(t, os.Mkdir(live, 0o755))
	must(t, os.Mkdir(archive, 0o755))
	write(t, filepath.Join(archive, "cert1.pem"), "1")
	file := filepath.Join(live, "cert.pem")
	must(t, os.Symlink("../archive/cert1.pem", file))
	told := watching(t, file)

	write(t, filepath.Join(archive, "cert1.pem"), "1b")
	expect(t, told, "a write behind the link")
	write(t, filepath.Join(archive, "cert2.pem"), "2")
	must(t, os.Symlink("../archive/cert2.pem", file+".new"))
	must(t, os.Rename(file+".new", file))
	expect(t, told, "a new link")
	write(t, filepath.Join(archive, "cert2.pem"), "2b")
	expect(t, told, "a write behind the new link")
}

func TestNoFolder(t *testing.T) {
	t.Parallel()
	err := reload.Watch(t.Context(), nil, func() { t.Error("told of a file that can't be watched") },
		filepath.Join(t.TempDir(), "nowhere", "tls.crt"))
	if err == nil {
		t.Error("no error")
	}
}

// A folder that is a link, to another folder later: what is written there then
// is seen too.
func TestLinkedFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		must(t, os.Mkdir(filepath.Join(dir, v), 0o755))
		write(t, filepath.Join(dir, v, "cert.pem"), v)
	}
	current := filepath.Join(dir, "current")
	must(t, os.Symlink("v1", current))
	file := filepath.Join(dir, "cert.pem")
	must(t, os.Symlink("current/cert.pem", file))
	told := watching(t, file)
	must(t, os.Symlink("v2", current+".new"))
	must(t, os.Rename(current+".new", current))
	expect(t, told, "another folder")
	write(t, filepath.Join(dir, "v2", "cert.pem"), "v2b")
	expect(t, told, "a write there")
}
