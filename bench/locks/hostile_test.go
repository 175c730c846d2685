//go:build linux

package locks_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

const (
	// hostileUpstream is what the victim calls the registry.
	hostileUpstream = "origin.test"
	// maxResident is what a daemon under attack may take. An idle one has 40 MB,
	// and the connections that it lets wait take about 10 KB each.
	maxResident = 256 << 20
	// maxFiles is what it may have open: connections of the mirror
	// (mirror.maxConnections), the thousand of each other door that come on top,
	// of which the gossip takes 128, and its own.
	maxFiles = 8192 + 3*1000 + 128 + 200
	// pullWithin is how long a pull may take meanwhile, and an attack that has an
	// end of its own.
	pullWithin = 60 * time.Second
	// attackFor is how long an attack lasts that has none.
	attackFor = 2 * time.Second
	// patience is how long a daemon may listen to somebody who does not come to
	// the point: it takes 10 s to be let go.
	patience = 25 * time.Second
)

// attacker dials from an address that is not the honest client's.
var attacker = net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}

// A victim is a node of a fleet of two, in processes of their own.
type victim struct {
	*process.Node
	t      *testing.T
	all    []*process.Node
	proxy  string
	origin string
	seed   uint64
}

func startVictim(t *testing.T) *victim {
	t.Helper()
	r := registry.New(registry.Options{})
	server := httptest.NewServer(r)
	t.Cleanup(func() { server.Close(); r.Close() })
	dir := t.TempDir()
	binary, err := process.Shoal(dir)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	write(t, secret, "the secret of the hostile tests")
	v := &victim{t: t, origin: server.URL}
	for i, join := 0, ""; i < 2; i++ {
		config := filepath.Join(dir, fmt.Sprintf("node-%d.yaml", i))
		write(t, config, fmt.Sprintf(`
data: %s
drain: 1s
mirror: {default: %[2]s, listen: 127.0.0.1:0}
proxy: {listen: 127.0.0.1:0, ca: %[6]s/ca.crt, key: %[6]s/ca.key}
gossip: {join: [%[3]s], secretFile: %[4]s}
cache: {reserve: 1MiB}
upstreams: {%[2]s: {url: %[5]q}}
`, filepath.Join(dir, fmt.Sprintf("data-%d", i)), hostileUpstream, join, secret, server.URL, dir))
		if i == 0 {
			if out, err := exec.CommandContext(t.Context(), binary, "ca", "init", "--config", config).CombinedOutput(); err != nil {
				t.Fatalf("shoal ca init: %v\n%s", err, out)
			}
		}
		n, err := process.StartNode(t.Context(), process.NodeOptions{Name: fmt.Sprintf("node-%d", i), Binary: binary, Command: "daemon", Args: []string{"--config", config}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Stop(10 * time.Second); err != nil {
				t.Errorf("%s did not end well: %v", n.Name(), err)
			}
		})
		v.all, join = append(v.all, n), n.Gossip
	}
	v.Node = v.all[0]
	v.proxy = proxyOf(t, v.Node)
	v.together()
	return v
}

// proxyOf returns where a node's proxy is, which it says on its log.
func proxyOf(t *testing.T, n *process.Node) string {
	t.Helper()
	var up struct{ Proxy string }
	if _, err := n.Line(t.Context(), func(line string) bool {
		return json.Unmarshal([]byte(line), &up) == nil && up.Proxy != ""
	}); err != nil {
		t.Fatal(err)
	}
	return up.Proxy
}

// together waits until the two nodes are one fleet.
func (v *victim) together() {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), 30*time.Second)
	defer cancel()
	if err := process.Converge(ctx, v.all...); err != nil {
		v.t.Error(err)
	}
}

// http are the ports that speak HTTP to whoever reaches them.
func (v *victim) http() map[string]string {
	return map[string]string{"mirror": v.Mirror, "admin": v.Admin, "proxy": v.proxy}
}

// ports are the TCP ports that others can reach.
func (v *victim) ports() map[string]string {
	ports := v.http()
	ports["peers"], ports["gossip"] = v.Peers, v.Gossip
	return ports
}

// pull pulls an image that nobody has seen, as an honest client would, and
// checks every byte.
func (v *victim) pull() error {
	v.seed++
	img, err := registry.PushImage(v.t.Context(), v.origin, "team/app", fmt.Sprintf("v%d", v.seed), []int64{3 << 20, 1000}, v.seed)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(v.t.Context(), pullWithin)
	defer cancel()
	raw, err := v.get(ctx, "team/app/manifests/"+img.Tag)
	if err != nil || !bytes.Equal(raw, img.Raw) {
		return fmt.Errorf("manifest: %d bytes, %w", len(raw), err)
	}
	for _, b := range img.Blobs() {
		data, err := v.get(ctx, "team/app/blobs/"+b.Digest.String())
		if err != nil || proto.DigestOf(data) != b.Digest {
			return fmt.Errorf("blob %s: %d bytes, %w", b.Digest, len(data), err)
		}
	}
	return nil
}

// get gets something of the mirror's on a connection of its own.
func (v *victim) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.Mirror+"/v2/"+path, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", resp.Status, body)
	}
	return body, err
}

// forgetPeak has resident count from now on. Linux takes it with any kernel since
// 4.0.
func (v *victim) forgetPeak() {
	v.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", v.PID()), []byte("5"), 0); err != nil {
		v.t.Fatal(err)
	}
}

// resident returns the most memory that the process has had, in bytes.
func (v *victim) resident() int64 {
	v.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				v.t.Fatal(err)
			}
			return kib << 10
		}
	}
	v.t.Fatal("no VmHWM")
	return 0
}

// files returns how many files the process has open.
func (v *victim) files() int {
	v.t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.PID()))
	if err != nil {
		v.t.Fatal(err)
	}
	return len(open)
}

// An attack calls underWay once it has begun in earnest. An endless one goes on
// until ctx ends, the others until they are through.
type attack struct {
	name    string
	run     func(ctx context.Context, v *victim, underWay func()) error
	endless bool
}

var attacks = []attack{
	{"garbage at every port", garbage, false},
	{"headers without an end", headerBomb, false},
	{"bodies that nobody wants", bodyBomb, false},
	{"requests without a pause", flood, true},
	{"handshakes of strangers", handshakes, true},
	{"answers that nobody reads", slowReaders, true},
	{"requests a byte at a time", slowLoris, false},
	{"10,000 idle connections", idle, true},
}

// TestUnderAttack: whatever comes to the ports, honest clients get their images,
// the process stays within its memory, and the fleet together.
func TestUnderAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes and ten thousand connections; runs without -short")
	}
	v := startVictim(t)
	if err := v.pull(); err != nil {
		t.Fatalf("without any attack: %v", err)
	}
	t.Logf("%d MB resident at most and %d open files before", v.resident()>>20, v.files())
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			v.forgetPeak()
			pulls, slowest, err := v.under(a)
			if err != nil {
				t.Error(err)
			}
			if err := v.Died(); err != nil {
				t.Fatal(err)
			}
			if err := v.pull(); err != nil {
				t.Errorf("an honest pull after it: %v", err)
			}
			v.together()
			n := v.resident()
			t.Logf("%d honest pulls meanwhile, the slowest took %s; %d MB resident at most", pulls, slowest.Round(time.Millisecond), n>>20)
			if n > maxResident {
				t.Errorf("%d MB resident, want at most %d", n>>20, maxResident>>20)
			}
		})
	}
}

// under pulls for as long as an attack lasts. The error is that of the attack,
// which an honest pull's is too.
func (v *victim) under(a attack) (pulls int, slowest time.Duration, err error) {
	ctx, cancel := context.WithTimeout(v.t.Context(), pullWithin)
	defer cancel()
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.run(ctx, v, sync.OnceFunc(func() { close(started) })) }()
	select {
	case <-started:
	case err := <-ended:
		return 0, 0, fmt.Errorf("the attack did not get going: %w", err)
	}
	var over <-chan time.Time
	if a.endless {
		over = time.After(attackFor)
	}
	for {
		begin := time.Now()
		if err := v.pull(); err != nil {
			cancel()
			return pulls, slowest, errors.Join(fmt.Errorf("an honest pull meanwhile: %w", err), <-ended)
		}
		pulls, slowest = pulls+1, max(slowest, time.Since(begin))
		select {
		case err := <-ended:
			return pulls, slowest, err
		case <-over:
			cancel()
			return pulls, slowest, <-ended
		default:
		}
	}
}
