package report

import (
	"cmp"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strings"
)

// Ratio returns the time of the last node over the bound, or 0 if a node
// failed or there is no bound.
func (r *Result) Ratio() float64 {
	if r.Failed() > 0 || len(r.Nodes) == 0 || !(r.Bound > 0) || math.IsInf(r.Bound, 0) {
		return 0
	}
	return r.last(func(*Node) bool { return true }) / r.Bound
}

// Failed returns how many nodes did not get everything, without those that a
// fault has killed.
func (r *Result) Failed() int {
	failed := 0
	for i := range r.Nodes {
		if n := &r.Nodes[i]; n.Done == 0 && !n.Killed {
			failed++
		}
	}
	return failed
}

// Copies returns how many times the image left the origin.
func (r *Result) Copies() float64 { return float64(r.OriginBytes) / float64(max(r.ImageBytes, 1)) }

// WriteJSON writes r as one line of JSON.
func (r *Result) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

func (r *Result) last(of func(*Node) bool) float64 {
	last := 0.0
	for i := range r.Nodes {
		if n := &r.Nodes[i]; of(n) {
			last = max(last, n.Done)
		}
	}
	return last
}

// others returns the time of the last node that is not slow over the least time
// in which those can have the image, or 0 if one of them failed or there are
// none.
func (r *Result) others() (last, ratio float64) {
	fast := func(n *Node) bool { return !n.Slow }
	for i := range r.Nodes {
		if n := &r.Nodes[i]; fast(n) && n.Done == 0 && !n.Killed {
			return 0, 0
		}
	}
	last, bound := r.last(fast), r.bound(fast)
	if bound == 0 {
		return last, 0
	}
	return last, last / bound
}

// own returns the own times of the nodes that got everything, in order.
func (r *Result) own() []float64 {
	var out []float64
	for i := range r.Nodes {
		if n := &r.Nodes[i]; n.Done > 0 {
			out = append(out, n.Done-n.Arrived)
		}
	}
	slices.Sort(out)
	return out
}

// quantile returns the value that a share q of the sorted values does not
// exceed (nearest rank), or 0 if there is none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// worstOwn returns the largest own time over own bound.
func (r *Result) worstOwn() (ratio float64, name string) {
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if n.Done == 0 || n.Bound == 0 {
			continue
		}
		if x := (n.Done - n.Arrived) / n.Bound; x > ratio {
			ratio, name = x, n.Name
		}
	}
	return ratio, name
}

// worstSilence returns the largest share of its own pull in which a client got
// no byte.
func (r *Result) worstSilence() (share, seconds float64, name string) {
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if own := n.Done - n.Arrived; n.Done > 0 && own > 0 && n.Silence/own > share {
			share, seconds, name = n.Silence/own, n.Silence, n.Name
		}
	}
	return share, seconds, name
}

// bytes returns the sum of all nodes' bytes.
func (r *Result) bytes() Bytes {
	var sum Bytes
	for i := range r.Nodes {
		b := &r.Nodes[i].Bytes
		sum.Origin += b.Origin
		sum.Seed += b.Seed
		sum.Zone += b.Zone
		sum.Far += b.Far
		sum.Disk += b.Disk
		sum.Duplicate += b.Duplicate
	}
	return sum
}

// A crossing is how many copies of the image came into a zone from others.
type crossing struct {
	zone   string
	copies float64
}

// crossings returns those of all zones, in the order of their names. What
// comes from the scheduler counts if it is in another zone; what comes from the
// origin does not, since Copies counts that.
func (r *Result) crossings() []crossing {
	sums := make(map[string]int64)
	for i := range r.Nodes {
		n := &r.Nodes[i]
		sums[n.Zone] += n.Bytes.Far
		if r.Scheduler != nil && r.Scheduler.Zone != n.Zone {
			sums[n.Zone] += n.Bytes.Seed
		}
	}
	var out []crossing
	for zone, sum := range sums {
		out = append(out, crossing{zone, float64(sum) / float64(max(r.ImageBytes, 1))})
	}
	slices.SortFunc(out, func(a, b crossing) int {
		return cmp.Or(cmp.Compare(len(a.zone), len(b.zone)), strings.Compare(a.zone, b.zone))
	})
	return out
}

// little is Little's law over one rollout, from the first arrival until the
// last node is done.
type little struct {
	lambda float64 // arrivals per second
	w      float64 // mean own time, in seconds
	l      float64 // mean number of nodes that pull
	offBy  float64 // |L - λW| / L
}

// little takes all nodes; one that failed is there until the end.
func (r *Result) little() little {
	type event struct {
		at float64
		by int
	}
	if len(r.Nodes) == 0 {
		return little{}
	}
	var events []event
	first, end := math.Inf(1), 0.0
	for i := range r.Nodes {
		n := &r.Nodes[i]
		events = append(events, event{n.Arrived, 1})
		if n.Done > 0 {
			events = append(events, event{n.Done, -1})
		}
		first, end = min(first, n.Arrived), max(end, n.Arrived, n.Done)
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	area, at, in := 0.0, first, 0
	for _, e := range events {
		area += float64(in) * (e.at - at)
		at = e.at
		in += e.by
	}
	window := end - first
	if window <= 0 {
		return little{}
	}
	own := r.own()
	total := 0.0
	for _, t := range own {
		total += t
	}
	out := little{lambda: float64(len(r.Nodes)) / window, l: area / window}
	if len(own) > 0 {
		out.w = total / float64(len(own))
	}
	if out.l > 0 {
		out.offBy = math.Abs(out.l-out.lambda*out.w) / out.l
	}
	return out
}
