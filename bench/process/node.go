package process

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
)

// up is the message with which a node says that it listens, and where.
const up = "shoal is up"

// NodeOptions say which node to start.
type NodeOptions struct {
	// Name of the node.
	Name string
	// Binary is the path of shoal.
	Binary string
	// Command is daemon or scheduler.
	Command string
	// Args are flags for it, each beside its value. Listeners that they do not
	// name are free ports of 127.0.0.1; --name and --log.format are set.
	Args []string
	// Log gets all that the node prints. Nil is nowhere.
	Log io.Writer
	// Start is that of Options.
	Start func(*exec.Cmd) error
	// Dial opens connections to the node's doors, if they are in a network of
	// their own. Nil is an ordinary one.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// A Node is a running shoal daemon or scheduler.
type Node struct {
	*Process
	// Where its doors are, host:port. Mirror is empty for a scheduler.
	Mirror, Admin, Peers, Gossip string

	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// StartNode starts a node and returns once it listens. Whether it has found
// its fleet is for Converge.
func StartNode(ctx context.Context, o NodeOptions) (*Node, error) {
	args := []string{o.Command, "--name", o.Name, "--log.format", "json"}
	for _, d := range []string{"peer", "gossip", "admin", "mirror"} {
		flag := "--" + d + ".listen"
		if !slices.Contains(o.Args, flag) && (d != "mirror" || o.Command == "daemon") {
			args = append(args, flag, "127.0.0.1:0")
		}
	}
	p, err := Start(Options{Name: o.Name, Path: o.Binary, Args: append(args, o.Args...), Log: o.Log, Start: o.Start})
	if err != nil {
		return nil, err
	}
	n := &Node{Process: p, dial: o.Dial}
	_, err = p.Line(ctx, n.parse)
	if err != nil {
		p.Kill()
		return nil, err
	}
	return n, nil
}

// parse reads the addresses from the line that has them.
func (n *Node) parse(line string) bool {
	if !strings.Contains(line, up) {
		return false
	}
	var is struct{ Msg, Mirror, Admin, Peers, Gossip string }
	if json.Unmarshal([]byte(line), &is) != nil || is.Msg != up {
		return false
	}
	n.Mirror, n.Admin, n.Peers, n.Gossip = is.Mirror, is.Admin, is.Peers, is.Gossip
	return true
}

// Status asks the node what it is doing.
func (n *Node) Status(ctx context.Context) (admin.Status, error) {
	return admin.NewClient(n.Admin).Through(n.dial).Status(ctx)
}

// Converge waits until every one of the nodes is ready and knows exactly the
// others. It fails at once if one of them dies.
func Converge(ctx context.Context, nodes ...*Node) error {
	tick := time.NewTicker(10 * time.Millisecond) // as an operator would: by asking
	defer tick.Stop()
	for {
		for _, n := range nodes {
			if err := n.Died(); err != nil {
				return err
			}
		}
		err := apart(ctx, nodes)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the fleet did not come together: %w", err)
		case <-tick.C:
		}
	}
}

// apart says what is missing until the nodes are one fleet.
func apart(ctx context.Context, nodes []*Node) error {
	for _, n := range nodes {
		s, err := n.Status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name(), err)
		}
		if !s.Ready {
			return fmt.Errorf("%s is %s", n.Name(), s.Reason)
		}
		if len(s.Members) != len(nodes) {
			return fmt.Errorf("%s knows %d members of %d", n.Name(), len(s.Members), len(nodes))
		}
	}
	return nil
}
