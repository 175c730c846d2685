//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/daemon/admin"
)

// upstream is what images are named with where the registry can have any name.
const upstream = "registry.e2e"

// A fleet is a number of shoal processes, each with a configuration file.
type fleet struct {
	scheduler *process.Node // nil without one
	daemons   []*process.Node

	dir    string
	origin *origin
	secret string
}

// startFleet starts a scheduler and n daemons, and returns when they know each
// other.
func startFleet(t *testing.T, dir string, o *origin, n int) *fleet {
	t.Helper()
	f := &fleet{dir: dir, origin: o, secret: filepath.Join(dir, "secret")}
	write(t, f.secret, "the secret of the end-to-end tests\n")
	f.scheduler = f.node(t, "scheduler", "scheduler", "")
	for i := range n {
		f.daemons = append(f.daemons, f.node(t, "daemon", fmt.Sprintf("node-%d", i+1), f.scheduler.Gossip))
	}
	f.converge(t, append([]*process.Node{f.scheduler}, f.daemons...)...)
	return f
}

// startAlone starts one daemon with no fleet, for the given upstream, with
// extra flags.
func startAlone(t *testing.T, dir string, o *origin, upstream string, extra ...string) *process.Node {
	t.Helper()
	config := filepath.Join(dir, "alone.yaml")
	write(t, config, fmt.Sprintf(`
data: %s
mirror: {default: %[2]s}
upstreams:
  %[2]s: {url: %q}
`, filepath.Join(dir, "alone"), upstream, o.url))
	n := startNode(t, process.NodeOptions{Name: "alone", Command: "daemon", Args: append([]string{"--config", config}, extra...)})
	if err := process.Converge(startup(t), n); err != nil {
		t.Fatal(err)
	}
	return n
}

// node starts a member of the fleet, with extra flags.
func (f *fleet) node(t *testing.T, command, name, join string, extra ...string) *process.Node {
	t.Helper()
	config := filepath.Join(f.dir, name+".yaml")
	write(t, config, fmt.Sprintf(`
data: %s
mirror: {default: %s}
gossip: {join: [%s], secretFile: %s}
upstreams:
  %[2]s: {url: %[5]q}
`, filepath.Join(f.dir, name), upstream, join, f.secret, f.origin.url))
	return startNode(t, process.NodeOptions{Name: name, Command: command, Args: append([]string{"--config", config}, extra...)})
}

// startNode starts a shoal process. That it ends well when it is told to is
// part of every test. Its log, with everything in it, is kept in the directory
// that E2E_LOGS names, if it does.
func startNode(t *testing.T, o process.NodeOptions) *process.Node {
	t.Helper()
	o.Binary = shoal
	if dir := os.Getenv("E2E_LOGS"); dir != "" {
		log, err := os.OpenFile(filepath.Join(dir, t.Name()+"-"+o.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { log.Close() })
		o.Log, o.Args = log, append(o.Args, "--log.level", "debug")
	}
	n, err := process.StartNode(startup(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(grace); err != nil {
			t.Error(err)
		} else if t.Failed() {
			t.Log(n.Died())
		}
	})
	return n
}

func (f *fleet) converge(t *testing.T, nodes ...*process.Node) {
	t.Helper()
	if err := process.Converge(startup(t), nodes...); err != nil {
		t.Fatal(err)
	}
}

// status asks a node that must answer.
func status(t *testing.T, n *process.Node) admin.Status {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
