package rollout

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/bench/report"
)

// actions are what can be done to a target: kill is SIGKILL, stop and cont are
// the signals of those names, cut and heal take its link down and up, restart
// kills and starts again with what it has on its disk.
var actions = []string{"kill", "stop", "cont", "cut", "heal", "restart"}

// Targets that are not nodes.
const (
	targetScheduler = "scheduler"
	targetOrigin    = "origin"
	targetOwner     = "owner" // whoever schedules the first layer at that time
)

// A Fault is something that happens to one process during a rollout.
type Fault struct {
	Action string
	Target string
	At     time.Duration // since the start
}

// ParseFault reads ACTION TARGET@TIME, such as "kill scheduler@2s".
func ParseFault(s string) (Fault, error) {
	what, at, ok := strings.Cut(s, "@")
	words := strings.Fields(what)
	if !ok || len(words) != 2 {
		return Fault{}, fmt.Errorf(`%q is no fault; write an action, a target and a time, such as "kill scheduler@2s"`, s)
	}
	t, err := time.ParseDuration(at)
	if err != nil || t < 0 {
		return Fault{}, fmt.Errorf("%q: %q is not a time since the start; write one such as 1.5s", s, at)
	}
	f := Fault{Action: words[0], Target: words[1], At: t}
	if !slices.Contains(actions, f.Action) {
		return Fault{}, fmt.Errorf("%q: cannot %s anything; want %s", s, f.Action, strings.Join(actions, ", "))
	}
	_, isNode := f.node()
	if !isNode && !slices.Contains([]string{targetScheduler, targetOrigin, targetOwner}, f.Target) {
		return Fault{}, fmt.Errorf("%q: there is no %s; want scheduler, origin, owner, or node-1 and so on", s, f.Target)
	}
	return f, nil
}

// String returns what ParseFault reads.
func (f Fault) String() string { return fmt.Sprintf("%s %s@%s", f.Action, f.Target, f.At) }

// node returns the index of the node that is the target.
func (f Fault) node() (int, bool) {
	digits, ok := strings.CutPrefix(f.Target, "node-")
	n, err := strconv.Atoi(digits)
	return n - 1, ok && err == nil && n > 0 && strconv.Itoa(n) == digits
}

func (f Fault) check(m *mistakes, o Options) {
	i, isNode := f.node()
	m.unless(!isNode || i < o.Nodes, "--fault %q: the last node is %s", f, nodeName(o.Nodes-1))
	m.unless(f.Target != targetScheduler || o.Mode == report.ModeShoal, "--fault %q: --mode %s has no scheduler process", f, o.Mode)
	ours := isNode || f.Target == targetOwner
	m.unless(!ours || o.Mode != report.ModeDirect, "--fault %q: --mode direct has no process but the origin's", f)
	m.unless(f.At < maxTime, "--fault %q: that is too late to matter", f)
}
