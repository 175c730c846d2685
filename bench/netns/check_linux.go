package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
)

// probeName is the name of a namespace in which it is tried what works.
const probeName = "+probe"

// Check tries what a lab needs, in a namespace of its own that it removes, and
// returns all that is missing and how to get it. Nil: a lab can be made.
func Check() error {
	if id := os.Geteuid(); id != 0 {
		return fmt.Errorf("network namespaces need root, and this is user %d: run it with sudo", id)
	}
	if _, err := os.Stat("/proc/thread-self/ns/net"); err != nil {
		return fmt.Errorf("network namespaces need /proc and a kernel with CONFIG_NET_NS: %w", err)
	}
	ns, err := makeProbe()
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("no network namespace can be made; in a container it must be privileged (CAP_SYS_ADMIN and CAP_NET_ADMIN): %w", err)
	}
	if err != nil {
		return err
	}
	return errors.Join(ns.try(), ns.close())
}

// makeProbe makes a namespace to try things in.
func makeProbe() (*namespace, error) {
	me, err := thisProcess()
	if err != nil {
		return nil, err
	}
	for lab := 1; ; lab++ {
		ns, err := makeNamespace(me.prefix(lab) + probeName)
		if !errors.Is(err, fs.ErrExist) {
			return ns, err
		}
	}
}

// try makes one of each thing that a lab is made of.
func (n *namespace) try() error {
	nl, err := n.configure("")
	if err != nil {
		return err
	}
	defer nl.Close()
	var missing []error
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attributes("bridge")}); err != nil {
		missing = append(missing, lacking("bridges", "CONFIG_BRIDGE", "bridge", err))
	}
	if err := makeTwin(nl); err != nil {
		missing = append(missing, lacking("links between namespaces", "CONFIG_VETH", "veth", err))
		return errors.Join(missing...)
	}
	if err := shape(nl, nic, slowest, netlink.HANDLE_ROOT); err != nil {
		missing = append(missing, lacking("the token bucket filter", "CONFIG_NET_SCH_TBF", "sch_tbf", err))
	}
	return errors.Join(missing...)
}

// makeTwin makes a link that is like a host's, with both ends here.
func makeTwin(nl *netlink.Handle) error {
	return nl.LinkAdd(&netlink.Veth{LinkAttrs: attributes(nic), PeerName: "peer"})
}

// lacking says what the kernel does not have.
func lacking(what, option, module string, err error) error {
	return fmt.Errorf("the kernel lacks %s (%s): try `modprobe %s`, or another kernel: %w", what, option, module, err)
}
