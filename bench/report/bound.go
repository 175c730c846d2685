package report

import (
	"math"
	"slices"
)

// Modes of a rollout, as in Params.Mode.
const (
	ModeShoal       = "shoal"        // a scheduler process schedules and seeds
	ModeNoScheduler = "no-scheduler" // daemons only
	ModeDirect      = "direct"       // no fleet: all clients ask the origin
)

// Bound returns the least seconds in which size bytes can reach all nodes if
// they come in with injection bytes per second and the nodes have the given
// uplinks and downlinks, in bytes per second:
//
//	max(F/us, F/min d, N·F/(us + Σu))
//
// A rate of 0 is a link that carries nothing, and so the bound is infinite if
// it is needed; math.Inf(1) is a link without a limit. Without nodes, or with
// nothing to send, it is 0.
func Bound(size int64, injection float64, up, down []float64) float64 {
	if len(down) == 0 || size == 0 {
		return 0
	}
	f := float64(size)
	total := injection
	for _, u := range up {
		total += u
	}
	return max(f/injection, f/slices.Min(down), float64(len(down))*f/total)
}

// link returns the rate of a node's link each way.
func (r *Result) link(n *Node) float64 {
	if n.Slow {
		return unlimited(r.Params.SlowRate)
	}
	return unlimited(r.Params.NodeRate)
}

// unlimited returns a rate as Bound has it: in Params 0 is no limit.
func unlimited(rate float64) float64 {
	if rate == 0 {
		return math.Inf(1)
	}
	return rate
}

// injection returns how fast the image can come into the fleet.
func (r *Result) injection() float64 {
	us := unlimited(r.Params.OriginRate)
	if r.Params.Mode == ModeShoal && r.Params.SeedRate > 0 {
		us = min(us, r.Params.SeedRate)
	}
	return us
}

// SetBounds fills in Bound and the Bound of each node from Params, ImageBytes
// and the nodes' times of arrival.
//
// Bound is for all nodes starting at 0. That of one node is what its own pull
// takes at least: all bytes through its own downlink, and none earlier than
// since the first node arrived they can have come in. With zones, the image
// also has to come into each but the first, where the origin is.
func (r *Result) SetBounds() {
	r.Bound = r.bound(func(*Node) bool { return true })
	f := float64(r.ImageBytes)
	first := math.Inf(1)
	for i := range r.Nodes {
		first = min(first, r.Nodes[i].Arrived)
	}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		in := min(r.injection(), r.crossing(n))
		n.Bound = max(f/r.link(n), first+f/in-n.Arrived)
	}
}

// crossing returns how fast the image can come into a node's zone.
func (r *Result) crossing(n *Node) float64 {
	if r.Params.Zones < 2 || n.Zone == r.Nodes[0].Zone {
		return math.Inf(1)
	}
	return unlimited(r.Params.CrossZoneRate)
}

// bound returns the least seconds in which the nodes that want says can have
// the image, with the help of all others.
func (r *Result) bound(want func(*Node) bool) float64 {
	crossing := 0.0
	up := make([]float64, 0, len(r.Nodes))
	down := make([]float64, 0, len(r.Nodes))
	for i := range r.Nodes {
		n := &r.Nodes[i]
		up = append(up, r.link(n))
		if want(n) {
			down = append(down, r.link(n))
			crossing = max(crossing, float64(r.ImageBytes)/r.crossing(n))
		}
	}
	return max(crossing, Bound(r.ImageBytes, r.injection(), up, down))
}
