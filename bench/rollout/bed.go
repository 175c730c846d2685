package rollout

import (
	"context"
	"fmt"

	"github.com/shoal-project/shoal/daemon/admin"
)

// A bed is where a rollout happens: processes in namespaces, or a fleet in this
// process. It has a scheduler or not, and a daemon for each node or none.
type bed interface {
	// client returns what the client of a node pulls from, and how it gets there.
	client(node int) (base string, dial dialer)
	// members returns the daemons, in the order of the nodes, and the scheduler
	// last if there is one.
	members() []member
	// sent is how many bytes of layers have left the origin.
	sent() int64
	// inject carries out a fault. final says that none will bring the target
	// back.
	inject(ctx context.Context, f Fault, final bool) error
	// close ends and removes everything.
	close() error
}

// A member is one process of Shoal's.
type member interface {
	name() string
	// status asks it what it is doing.
	status(ctx context.Context) (admin.Status, error)
	// figures are what it has used and got since its first start. A member that
	// is not there any more has those that it had when it was last asked.
	figures(ctx context.Context) figures
	// broken says why nothing is to be expected of it any more, or nil.
	broken() error
}

// figures are what one member has used and got.
type figures struct {
	bytes admin.Bytes
	usage usage
}

func (f figures) minus(g figures) figures {
	f.bytes = f.bytes.Minus(g.bytes)
	f.usage.cpu -= g.usage.cpu
	return f
}

// plus adds up two lives of one member.
func (f figures) plus(g figures) figures {
	f.bytes = f.bytes.Plus(g.bytes)
	f.usage.cpu += g.usage.cpu
	f.usage.rss = max(f.usage.rss, g.usage.rss)
	return f
}

// all returns the figures of all members.
func all(ctx context.Context, b bed) []figures {
	var out []figures
	for _, m := range b.members() {
		out = append(out, m.figures(ctx))
	}
	return out
}

// start makes the bed that o asks for, below dir, with the image at its origin.
func start(ctx context.Context, o Options, dir string, img *image) (bed, error) {
	if o.InProcess {
		b, err := startInProcess(ctx, o, dir, img)
		if err != nil {
			return nil, fmt.Errorf("start the fleet: %w", err)
		}
		return b, nil
	}
	b, err := startLab(ctx, o, dir, img)
	if err != nil {
		return nil, err
	}
	return b, nil
}
