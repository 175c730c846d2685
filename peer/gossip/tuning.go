package gossip

import (
	"time"

	"github.com/hashicorp/memberlist"
)

// The timers for a network.
const (
	// Each member probes one other in every probeInterval. It suspects one
	// that answers neither itself, nor through others, nor over TCP in that
	// time, and takes it for dead unless it speaks up in the time of
	// suspicion: suspicionMult × probeInterval × max(1, log10 n), or six times
	// as long if no other member has the same suspicion. So a dead machine is
	// known to be dead after about
	//
	//	until it is probed  0.3 s
	//	the probe           0.3 s
	//	suspicion           0.9 s up to 10 members, 1.8 s at 100, 2.7 s at 1,000
	//
	// Measured: 1.5 s with 4 members, 1.9 s with 21. memberlist's own values
	// for a LAN, 1 s and 4, make it 6 s to 14 s. A process that dies on a
	// machine that lives is noticed sooner, by its connections.
	probeInterval = 300 * time.Millisecond
	// probeTimeout is when a probe is tried over others and over TCP as well.
	// A round trip on a loaded LAN takes a few milliseconds; most of this is
	// for a process that waits for a CPU.
	probeTimeout = 200 * time.Millisecond
	// suspicionMult of 3 makes one other member's word enough for the short
	// time, and one member's own trouble never enough.
	suspicionMult = 3
	// gossipInterval halves memberlist's 200 ms: news reaches 1,000 members in
	// about 0.7 s, so that a live member's word is in time to refute a
	// suspicion.
	gossipInterval = 100 * time.Millisecond
	// reclaimAfter lets an identity come back at another address as soon as it
	// is known to be dead at the old one.
	reclaimAfter = time.Millisecond

	// retransmitMult times log10 n is how often a member passes a piece of news
	// on: memberlist's value for a LAN. Its 2 for one machine left, in one of 40
	// starts of 4 members and in most of 20, somebody without the news of
	// another until the next full exchange; with 4, 60 of 60 were complete
	// within a second.
	retransmitMult = 4
	// fullExchange is how often a member compares all it knows with another,
	// which repairs what the news has missed. memberlist's 15 s and 30 s are
	// for states of megabytes; ours has 300 bytes a member.
	fullExchange = 5 * time.Second

	// leaveWithin bounds telling the others that this member leaves.
	leaveWithin = 2 * time.Second
)

// tuned returns memberlist's configuration for a network: its own for a LAN,
// but for the timers above; or for one machine if local is true.
//
// Nothing is compressed: what members say is keys and signatures, which do not get
// shorter, and each packet took a table of 64 KiB. Compressed packets of older
// versions are understood.
//
// On one machine memberlist's local values stay, with a probe in a second: a
// death takes 4 to 8 s to be noticed. Many members in one process, as in tests,
// wait for each other's CPU time for long; with the shorter timers 20 members
// beside 16 busy goroutines on 2 cores took each other for dead dozens of times
// in 15 s, with these never.
func tuned(local bool) *memberlist.Config {
	if local {
		c := memberlist.DefaultLocalConfig()
		c.EnableCompression = false
		c.DeadNodeReclaimTime = reclaimAfter
		c.RetransmitMult = retransmitMult
		c.PushPullInterval = fullExchange
		return c
	}
	c := memberlist.DefaultLANConfig()
	c.EnableCompression = false
	c.ProbeInterval = probeInterval
	c.ProbeTimeout = probeTimeout
	c.SuspicionMult = suspicionMult
	c.GossipInterval = gossipInterval
	c.RetransmitMult = retransmitMult
	c.PushPullInterval = fullExchange
	c.DeadNodeReclaimTime = reclaimAfter
	return c
}
