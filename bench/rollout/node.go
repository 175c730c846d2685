package rollout

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/daemon/admin"
)

// A node is one member: a host, and the process that lives there now.
type node struct {
	// immutable
	is      string // its name
	host    *netns.Host
	options process.NodeOptions
	log     io.Closer // nil: none

	// mu protects the fields below.
	mu      sync.Mutex
	process *process.Node
	past    figures // of earlier lives
	latest  figures // of this one, when it was last asked
	gone    error   // why it does not come back
	coming  bool    // it was killed and comes back
}

// start starts the process.
func (n *node) start(ctx context.Context) error {
	p, err := process.StartNode(ctx, n.options)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.process, n.coming = p, false
	return nil
}

func (n *node) name() string { return n.is }

func (n *node) status(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	n.mu.Lock()
	p := n.process
	n.mu.Unlock()
	return p.Status(ctx)
}

func (n *node) figures(ctx context.Context) figures {
	s, err := n.status(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.latest.bytes = s.Bytes
	}
	if n.process.Died() == nil {
		n.latest.usage = usageOf(n.process.PID())
	}
	return n.past.plus(n.latest)
}

func (n *node) broken() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone != nil || n.coming {
		return n.gone
	}
	return n.process.Died()
}

func (n *node) inject(ctx context.Context, f Fault, final bool) error {
	switch f.Action {
	case "stop":
		return n.signal(syscall.SIGSTOP)
	case "cont":
		return n.signal(syscall.SIGCONT)
	case "cut":
		return n.host.Cut()
	case "heal":
		return n.host.Heal()
	case "kill":
		n.kill(ctx, f, final)
		return nil
	default: // restart
		n.kill(ctx, f, false)
		return n.start(ctx)
	}
}

func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	p := n.process
	n.mu.Unlock()
	return p.Signal(s)
}

// kill ends the process, after its figures have been taken.
func (n *node) kill(ctx context.Context, f Fault, final bool) {
	figures := n.figures(ctx)
	n.mu.Lock()
	p := n.process
	n.past, n.latest = figures, n.latest.minus(n.latest)
	n.coming = !final
	if final {
		n.gone = fmt.Errorf("%w: %s", errKilled, f)
	}
	n.mu.Unlock()
	p.Kill()
}

func (n *node) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		n.process.Kill()
	}
	if n.log != nil {
		return n.log.Close()
	}
	return nil
}
