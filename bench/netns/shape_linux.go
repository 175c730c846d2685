package netns

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

const (
	// leastBurst is how much a shaper lets through at once. A large packet
	// (GSO, up to 64 KiB and headers) that is larger would be cut into small
	// ones, which costs a core.
	leastBurst = 128 << 10
	// burstsPerSecond is how often the kernel must look at a shaper for the
	// full rate to go through: fast links have a greater burst.
	burstsPerSecond = 250
	// queueFor is how long a packet waits in a shaper at most; then it is lost,
	// and TCP learns of the limit.
	queueFor = 0.020 // seconds
)

// burst returns the bytes that a shaper of a rate lets through at once.
func burst(rate float64) float64 {
	return min(max(leastBurst, rate/burstsPerSecond), math.MaxInt32)
}

// shape limits what a link of nl's namespace sends, in bytes/s. 0 is no limit.
// It is what `tc qdisc add dev NAME root tbf` does.
func shape(nl *netlink.Handle, name string, rate float64, parent uint32) error {
	if rate == 0 {
		return nil
	}
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	b := burst(rate)
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0x10, 0), Parent: parent},
		Rate:       uint64(rate),
		Buffer:     netlink.Xmittime(uint64(rate), uint32(b+rate/1e6)), // it rounds down to microseconds
		Limit:      uint32(min(rate*queueFor+b, math.MaxUint32)),
	}
	if err := nl.QdiscAdd(tbf); err != nil {
		return fmt.Errorf("shape link %s with tbf: %w", name, err)
	}
	return nil
}
