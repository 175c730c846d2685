// Package netns makes a network on this machine: hosts that are network
// namespaces, each with an address and a link of a given rate, in zones that
// are joined by slower links, with a delay between any two. Programs run on the
// hosts as they would on machines, and this process can dial and listen there.
// It needs Linux and root; Check says what is missing.
//
// A Lab has one namespace with the bridges, the hub: a bridge for each zone
// and, if there are several, a core bridge. A Host is a namespace whose one
// link, a veth pair, ends at its zone's bridge. Both ends of each link are
// shaped with tbf: the host's end to what it may send, the hub's end to what it
// may receive. So are the links between zones and core.
//
// # Why
//
// What a rollout over slow links takes can be measured on one machine only if
// the links are slow for real: with the kernel's TCP, its queues and its losses
// between the processes, and not with a limiter in the program under test.
//
// Shaping is what `tc qdisc add dev V root tbf rate R burst B latency 20ms`
// does, with B at least 128 KiB and 1/250 s of the rate. Smaller bursts cut the
// kernel's large packets (GSO) into small ones, which costs a core. One TCP
// connection gets 95 to 96 % of 100 Mbit/s as payload; the rest is headers. The
// first burst of an idle link goes through at once.
//
// All links are in namespaces, none is in the machine's own. So there are no
// names of links to keep apart, a link ends with its namespace, and what a
// killed run leaves is names in /run/netns, where `ip netns` lists them. Their
// form is shoal-PID-START-PIDS-LAB-HOST: the process, when it started (its ID
// alone would also name a later process), the inode of its PID namespace (in
// another one the ID means nothing), the number of the lab in that process.
// Sweep removes a name of this form if it can see that the process is gone, and
// touches nothing else. It ends no process: those of a harness that was killed
// end with it if they were started with SysProcAttr.Pdeathsig, as bench/process
// does.
//
// A thread is in one namespace, and Go moves goroutines between threads. So
// entering one is done by a goroutine that has its thread for itself, and it
// goes back before the thread has another. If it cannot, the thread ends; the
// main thread could not, so it never enters one. Host names are not resolved,
// since the resolver works on other goroutines.
//
// Hosts know each other's hardware addresses from the start. Asking for them
// would fill the kernel's table of neighbours, which is one for all namespaces
// and has room for about a thousand: the pairs of 32 hosts. Links are used only
// when the kernel says that they work, which is a moment after they are up: a
// connection whose first packet is lost takes a second longer. (Seen in half of
// all first connections before.)
//
// Cut takes the hub's end of a link down, like a cable that is pulled: packets
// are lost in silence. With the host's end down its routes would be gone, and
// programs would get errors at once.
//
// IPv6 is off, and the firewall does not look at bridged packets; both would be
// work and traffic that is not measured.
//
// # Delay
//
// If the kernel has netem, each host's link has it before the shaper. That way
// has NOT been tried: the kernel that this was developed on (6.18, x86-64) has
// no netem, and its test is skipped there. Else packets that come in over a
// host's link go to a queue (NFQUEUE) for this process, which lets them go on
// when they have waited. It is told of packets only, large ones stay whole, and
// they never leave the kernel. nftables' queue expression is tried, then
// iptables' NFQUEUE target through nftables, which is what the tests ran with.
//
// The delay is never shorter than asked for, and about a tenth longer: a ping
// with 10 ms each way takes 20.8 to 22.5 ms. On two cores, links of 100 Mbit/s
// that are all busy, each host receiving from one and sending to another, carry
// this much payload, median (and least):
//
//	links  without delay   10 ms each way
//	8      95.8 % (92.5)   92.5 % (91.5)
//	16     95.8 % (94.2)   90.3 % (88.6)
//	32     93.5 % (91.2)   70.5 % (63.7), the machine is the limit
//
// A version that woke up for each packet, and for the end of its delay, took
// four times the CPU for 32 links and carried a fifth of that.
//
// Packets to loopback and to the host itself are not delayed. Those of IPv4
// are, which is all there is but ARP.
package netns
