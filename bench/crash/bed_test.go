package crash

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

const (
	// upstream is what the daemon calls the registry.
	upstream = "registry.crash"
	// images is how many there are, and quota what the daemon may keep of
	// their 33 MiB.
	images = 16
	quota  = 10 * mib
	// pinned is the image that it must keep.
	pinned = 0
	// originRate is that of the registry, in bytes a second. It makes pulls
	// take some tens of milliseconds, so that kills find them half done.
	originRate = 64 * mib

	mib = 1 << 20
	// upWithin bounds how long a daemon may take to start. It opens at once,
	// but the machine may be busy.
	upWithin = 30 * time.Second
	// grace is how long a daemon may take to end after SIGTERM.
	grace = 30 * time.Second
)

// shoal is the path of the binary.
var shoal string

// TestMain gets the binary.
func TestMain(m *testing.M) {
	leaks := goleak.IgnoreTopFunction(registry.LeakedGoroutine)
	dir, err := os.MkdirTemp("", "shoal-crash-")
	if err == nil {
		shoal, err = process.Shoal(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, leaks, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// setting returns the number in an environment variable, or what it is by
// default.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// An origin is a registry with everything that was pushed to it.
type origin struct {
	url    string
	images []registry.Image
	blobs  map[proto.Digest]known
}

// known is content that was pushed.
type known struct {
	repository string // one that has it
	manifest   bool
	data       []byte
}

// path returns where a registry has it.
func (k known) path(d proto.Digest) string {
	if k.manifest {
		return "/v2/" + k.repository + "/manifests/" + d.String()
	}
	return "/v2/" + k.repository + "/blobs/" + d.String()
}

// startOrigin starts a registry and pushes images to it, whose first layer is
// the same for all. Some layers are of one chunk, most of several.
func startOrigin(t *testing.T) *origin {
	t.Helper()
	r := registry.New(registry.Options{})
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.Close()
		r.Close()
	})
	o := &origin{url: server.URL, blobs: make(map[proto.Digest]known)}
	for i := range int64(images) {
		// One seed: layers of one size are the same.
		layers := []int64{mib, 20_000 + i, 700_000 + 30_000*i, mib + 1 + i}
		img, err := registry.PushImage(t.Context(), o.url, fmt.Sprintf("team/app-%d", i), "v1", layers, 1)
		if err != nil {
			t.Fatal(err)
		}
		o.images = append(o.images, img)
		o.blobs[img.Manifest.Digest] = known{repository: img.Repository, manifest: true, data: img.Raw}
		for _, b := range img.Blobs() {
			k := known{repository: img.Repository}
			k.data = o.fetch(t, k.path(b.Digest))
			if proto.DigestOf(k.data) != b.Digest {
				t.Fatalf("the registry has %s wrong", b.Digest)
			}
			o.blobs[b.Digest] = k
		}
	}
	http.DefaultClient.CloseIdleConnections()
	r.SetFaults(registry.Faults{Rate: originRate})
	return o
}

func (o *origin) fetch(t *testing.T, path string) []byte {
	t.Helper()
	resp, err := http.Get(o.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A node is a directory with a daemon that is started on it again and again.
type node struct {
	name, data, config string
	log                io.Writer
}

func newNode(t *testing.T, o *origin, name string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{name: name, data: filepath.Join(dir, "data"), config: filepath.Join(dir, "shoal.yaml")}
	config := fmt.Sprintf(`
data: %s
drain: 5s
mirror: {default: %[2]s}
cache: {quota: %[3]dMiB, reserve: 1MiB, keep: 20ms, scrub: "", pins: ["%[2]s/%[5]s"]}
upstreams:
  %[2]s: {url: %[4]q}
`, n.data, upstream, quota/mib, o.url, o.images[pinned].Repository+":"+o.images[pinned].Tag)
	if err := os.WriteFile(n.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("CRASH_LOGS"); dir != "" {
		f, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		n.log = f
	}
	return n
}

func (n *node) options() process.NodeOptions {
	o := process.NodeOptions{Name: n.name, Binary: shoal, Command: "daemon", Args: []string{"--config", n.config}, Log: n.log}
	if n.log != nil {
		o.Args = append(o.Args, "--log.level", "debug")
	}
	return o
}

// start starts the daemon and returns once it listens.
func (n *node) start(ctx context.Context) (*life, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("it took longer than %s", upWithin))
	defer cancel()
	p, err := process.StartNode(ctx, n.options())
	l := &life{Node: p, doomed: make(chan struct{}), dead: make(chan struct{})}
	l.left.Store(math.MaxInt64)
	return l, err
}

// killStarting starts the daemon and kills it so long after its process began.
// The error says that it ended otherwise.
func (n *node) killStarting(ctx context.Context, after time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("it took longer than %s", upWithin))
	defer cancel()
	killed := make(chan struct{})
	o := n.options()
	o.Start = func(cmd *exec.Cmd) error {
		if err := cmd.Start(); err != nil {
			return err
		}
		time.AfterFunc(after, func() {
			close(killed)
			_ = cmd.Process.Kill() // an error: it has ended, as is seen below
		})
		return nil
	}
	p, err := process.StartNode(ctx, o)
	if err == nil { // it was quicker
		<-p.Done()
		err = p.Died()
	}
	select {
	case <-killed:
		return nil
	default:
		return err
	}
}

// A life is one run of a daemon.
type life struct {
	*process.Node
	left   atomic.Int64  // bytes that clients get until it is doomed
	once   sync.Once     // closes doomed
	doomed chan struct{} // closed when it is to be killed
	dead   chan struct{} // closed before it is killed

	scrubbing sync.Mutex // held by the client that has it scrub
}

// sent notes that a client got n bytes.
func (l *life) sent(n int) {
	if l.left.Add(-int64(n)) <= 0 {
		l.once.Do(func() { close(l.doomed) })
	}
}

// killed reports whether the kill was sent, or is about to be.
func (l *life) killed() bool {
	select {
	case <-l.dead:
		return true
	default:
		return false
	}
}

// kill kills the daemon and waits for its end.
func (l *life) kill() {
	close(l.dead)
	l.Kill()
}

// wrong returns where got differs from the content at an offset, or -1.
func (k known) wrong(offset int, got []byte) int {
	if offset+len(got) > len(k.data) {
		return len(k.data)
	}
	if bytes.Equal(k.data[offset:offset+len(got)], got) {
		return -1
	}
	for i, c := range got {
		if k.data[offset+i] != c {
			return offset + i
		}
	}
	return -1
}
