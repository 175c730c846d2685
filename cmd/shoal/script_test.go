package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/admin"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts' golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addrs":   cmdAddrs,
			"ready":   cmdReady,
			"get":     cmdGet,
			"occupy":  cmdOccupy,
			"term":    cmdTerm,
			"hang":    cmdHang,
			"ask":     cmdAsk,
			"origin":  cmdOrigin,
			"members": cmdMembers,
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir+"/home")
			// Under the race detector every process would wait a second at its
			// exit for reports of goroutines that are still running.
			e.Setenv("GORACE", "atexit_sleep_ms=0 halt_on_error=1")
			e.Values[askedKey{}] = make(chan struct{}, 1)
			return nil
		},
	})
}

// cmdAddrs sets each variable to an address on loopback that nobody listens at:
// addrs NAME…
func cmdAddrs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: addrs NAME...")
	}
	for _, name := range args {
		ts.Setenv(name, freeAddr(ts))
	}
}

// freeAddr returns an address with a port below those that kernels hand out by
// themselves, so that between this check and its use no connection of another
// test takes it.
func freeAddr(ts *testscript.TestScript) string {
	for range 1000 {
		addr := "127.0.0.1:" + strconv.Itoa(20000+rand.IntN(12000))
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", addr)
		ts.Check(tcp.Close())
		if err != nil {
			continue
		}
		ts.Check(udp.Close())
		return addr
	}
	ts.Fatalf("no free port found")
	return ""
}

// cmdReady waits until the process with the given admin address says that it
// is ready, or with "!" until it no longer does: [!] ready ADDR. It polls, as a
// supervisor does.
func cmdReady(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] ready ADDR")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	last := ""
	for ctx.Err() == nil {
		status, body, err := get(ctx, "http://"+args[0]+"/readyz")
		if (status == http.StatusOK) != neg {
			return
		}
		last = fmt.Sprint(status, body, err)
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	ts.Fatalf("%s: still %s", args[0], last)
}

// cmdMembers waits until a node knows that many members: members ADDR N. It
// polls, as a supervisor does.
func cmdMembers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: members ADDR N")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		s, err := admin.NewClient(args[0]).Status(ctx)
		if err == nil && strconv.Itoa(len(s.Members)) == args[1] {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	ts.Fatalf("%s does not know %s members", args[0], args[1])
}

// cmdGet asks for a URL and prints the body: get URL STATUS.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get URL STATUS")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	status, body, err := get(ctx, args[0])
	ts.Check(err)
	if strconv.Itoa(status) != args[1] {
		ts.Fatalf("GET %s: %d %s, want %s", args[0], status, body, args[1])
	}
	fmt.Fprint(ts.Stdout(), body)
}

// cmdOccupy listens at an address until the script ends and puts it into a
// variable: occupy NAME.
func cmdOccupy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: occupy NAME")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// cmdHang starts a registry that takes requests and never answers, and puts its
// address into a variable: hang NAME.
func cmdHang(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hang NAME")
	}
	asked := ts.Value(askedKey{}).(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	}))
	ts.Defer(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	ts.Setenv(args[0], srv.Listener.Addr().String())
}

// cmdOrigin starts a registry and puts its address into a variable, and the
// digests of what it has into others: origin NAME. It has the image team/app:v1
// and the index team/multi:v1, for linux/amd64 and linux/arm64.
func cmdOrigin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: origin NAME")
	}
	reg := registry.New(registry.Options{})
	srv := httptest.NewServer(reg)
	ts.Defer(func() {
		srv.Close()
		reg.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	app, err := registry.PushImage(ctx, srv.URL, "team/app", "v1", []int64{1 << 20, 1000}, 1)
	ts.Check(err)
	index, err := pushIndex(ctx, srv.URL, "team/multi", "v1", "linux/amd64", "linux/arm64")
	ts.Check(err)
	multi, err := index.Digest()
	ts.Check(err)
	ts.Setenv(args[0], srv.URL)
	ts.Setenv("APP", app.Manifest.Digest.String())
	ts.Setenv("APP_HEX", app.Manifest.Digest.Hex())
	ts.Setenv("LAYER", app.Layers[0].Digest.String())
	ts.Setenv("LAYER_HEX", app.Layers[0].Digest.Hex())
	ts.Setenv("MULTI", multi.String())
}

// askedKey is the key of the channel that tells that the registry of hang was
// asked.
type askedKey struct{}

// cmdAsk sends a GET that is answered late or never, and goes on as soon as the
// registry of hang has been asked for it: ask URL.
func cmdAsk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ask URL")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	var wg sync.WaitGroup
	wg.Go(func() { get(ctx, args[0]) })
	ts.Defer(func() {
		cancel()
		wg.Wait()
	})
	select {
	case <-ts.Value(askedKey{}).(chan struct{}):
	case <-ctx.Done():
		ts.Fatalf("the registry was not asked")
	}
}

// cmdTerm sends SIGTERM to all processes in the background: term.
func cmdTerm(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: term")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGTERM))
	}
}

func get(ctx context.Context, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, strings.TrimRight(string(body), "\n"), err
}

// TestExampleHasEveryKey keeps the commented file complete and valid.
func TestExampleHasEveryKey(t *testing.T) {
	t.Parallel()
	layer, errs := fromFile("example.yaml", []byte(example))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for _, k := range keys() {
		at := any(layer)
		for _, p := range k.path {
			m, ok := at.(map[string]any)
			if !ok || m[p] == nil {
				t.Errorf("example.yaml has no %s", k.name())
				break
			}
			at = m[p]
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys() {
		if !strings.Contains(string(readme), "| `"+k.name()+"` |") {
			t.Errorf("the table in README.md has no %s", k.name())
		}
	}
}
