package scheduler

import "math"

// What round trips cost. TCP begins each connection with a small window, and one
// that was idle nearly so, and makes it twice as large with each round trip. Of a
// chunk that comes over such a connection little comes at first, however fast the
// links are. Where round trips are long beside the time of a chunk, a few more
// leases fill what those leave.

const (
	// firstWindow is what a connection begins with: ten segments (RFC 6928), in
	// Ethernet frames.
	firstWindow = 10 * 1448
	// hidden is how many chunks' time may be lost at the start of a lease while
	// Window other ones, less one, still fill the link. With 0 six real nodes with
	// round trips of 4 ms, 10 under load, took 1.25 to 1.74 (median of five 1.48), with
	// 1 they took 1.25 to 1.54 (1.33).
	hidden = 1
	// mostMore is how many leases more than Window, and uploads more than Slots,
	// there are at most. 5: a lease has a buffer of a chunk, up to 8 MiB. 64
	// simulated nodes with round trips of 60 ms took 2.1 with 5 and 1.9 with 9, six
	// with 70 ms 1.60 with either.
	mostMore = 5
	// coldShare is how much longer than cold a chunk has to take for its time to say
	// that a link is slow. 1.5: trip is the least of many, and queues come on top.
	coldShare = 1.5
)

// looped takes note of how many seconds a lease of n and a report on it were on their
// way.
func (n *node) looped(seconds float64) {
	if n.loop == 0 || seconds < n.trip {
		n.trip = seconds
	}
	average(&n.loop, seconds)
}

// cold returns in how many seconds the links of a chunk of so many bytes make no
// difference: those that it takes over a connection that begins anew, with round
// trips of so many seconds. It is one for each window, one for the request, and one
// for the report and the next lease.
func cold(trip, size float64) float64 { return trip * (2 + math.Log2(1+size/firstWindow)) }

// more returns how many leases beyond the usual make up for lost seconds of each of
// them, on a link that carries rate.
func more(lost, size, rate float64) int {
	return min(int(math.Round(max(lost*rate/size-hidden, 0))), mostMore)
}

// reach brings up to date how many leases n may have more than Window, and src serve
// more than Slots, after one of so many bytes. It returns cold for it. The round trip
// between the two is taken for that between the farther of them and this scheduler.
func (b *Book) reach(src, n *node, size float64) float64 {
	lost := cold(max(src.trip, n.trip), size)
	average(&src.lost, lost)
	average(&n.lost, lost)
	src.moreGiven = more(src.lost, size, max(b.typical, src.rate))
	n.moreTaken = more(n.lost, size, max(b.typical, n.takes))
	return lost
}
