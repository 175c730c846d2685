package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
)

// mostHeld is how many packets of a host can be under way; more are lost.
const mostHeld = 1 << 16

// A delayer makes packets late.
type delayer struct {
	delay  time.Duration
	holder *holder // nil: the kernel does it
}

// newDelayer makes one that does it in the kernel or, if that cannot, in this
// process.
func newDelayer(delay time.Duration, log *slog.Logger) (*delayer, error) {
	ns, err := makeProbe()
	if err != nil {
		return nil, err
	}
	d, err := ns.newDelayer(delay, log)
	if err := errors.Join(err, ns.close()); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// newDelayer returns the first one that works in a namespace.
func (n *namespace) newDelayer(delay time.Duration, log *slog.Logger) (*delayer, error) {
	kernel := n.tryNetem()
	if kernel == nil {
		return &delayer{delay: delay}, nil
	}
	q, process := openQueue(n)
	if process != nil {
		return nil, fmt.Errorf("packets cannot be delayed: %w; %w",
			lacking("netem", "CONFIG_NET_SCH_NETEM", "sch_netem", kernel),
			lacking("packet queues for programs", "CONFIG_NETFILTER_NETLINK_QUEUE and CONFIG_NFT_QUEUE", "nft_queue", process))
	}
	if err := q.close(); err != nil {
		return nil, err
	}
	h, err := newHolder(delay, log)
	if err != nil {
		return nil, err
	}
	return &delayer{delay: delay, holder: h}, nil
}

// tryNetem returns why the kernel cannot delay packets.
func (n *namespace) tryNetem() error {
	nl, err := n.configure("")
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := makeTwin(nl); err != nil {
		return err
	}
	return addNetem(nl, time.Millisecond)
}

// add delays what a host sends or what it receives. It returns the parent for
// the host's shaper.
func (d *delayer) add(h *Host) (parent uint32, err error) {
	if d.holder != nil {
		return netlink.HANDLE_ROOT, d.holder.add(h.ns)
	}
	return belowNetem, addNetem(h.nl, d.delay)
}

// close ends what it runs.
func (d *delayer) close() error {
	if d == nil || d.holder == nil {
		return nil
	}
	return d.holder.close()
}

// rootNetem and belowNetem are where netem is on a link, and what comes after
// it: the shaper, so that its queue is as short as without a delay.
var rootNetem, belowNetem = netlink.MakeHandle(1, 0), netlink.MakeHandle(1, 1)

// addNetem delays what is sent over the link of nl's namespace.
func addNetem(nl *netlink.Handle, d time.Duration) error {
	link, err := nl.LinkByName(nic)
	if err != nil {
		return err
	}
	q := netlink.NewNetem(
		netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: rootNetem, Parent: netlink.HANDLE_ROOT},
		netlink.NetemQdiscAttrs{Latency: uint32(d.Microseconds()), Limit: mostHeld},
	)
	if err := nl.QdiscAdd(q); err != nil {
		return fmt.Errorf("delay with netem: %w", err)
	}
	return nil
}
