package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// A fault is something that happens to the fleet at a time.
type fault struct {
	at time.Duration
	do func()
}

// takeoverRTTs is how many round trips nodes need until they have a stream to
// the next owner: TCP, TLS, the stream's protocol, hello.
const takeoverRTTs = 4

// takeoverCost is what that takes without a round trip: certificates, and the
// time until the broken stream is noticed.
const takeoverCost = 10 * time.Millisecond

// kill ends the scheduler process. What it was sending breaks off, and the
// nodes turn to the daemons that own the layers then.
func (s *sim) kill() {
	s.done = append(s.done, fmt.Sprintf("kill scheduler@%s", s.o.Kill))
	s.seed.dead = true
	for _, v := range s.servers {
		v.dead = true
	}
	for _, l := range s.layers {
		l.server = nil
	}
	for _, h := range s.hosts {
		for _, f := range slices.Clone(h.flows) {
			if f.src == s.seed || h == s.seed {
				s.stop(f, proto.CauseBroken)
			}
		}
	}
	s.faults = append(s.faults, fault{s.now + takeoverRTTs*s.o.RTT + takeoverCost, s.takeOver})
}

// takeOver lets all nodes tell the new owners what they have and want.
func (s *sim) takeOver() {
	for _, l := range s.layers {
		l.server = s.serverOf(l)
	}
	for _, h := range s.hosts[:s.o.Nodes] {
		for _, l := range s.layers {
			if p := &h.parts[l.index]; p.joined || p.whole {
				s.join(h, l, false)
			}
		}
	}
}
