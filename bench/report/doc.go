// Package report says what came of a rollout to many nodes, real or simulated,
// and how near to what the links allow it came: as a table for people, as JSON
// for machines, and as a plot.
//
// Everything in it is a pure function of a Result. Rates are in bytes per
// second, times in seconds, sizes in bytes; only the table and the plot turn
// them into Mbit/s and MiB.
//
// # The bound
//
// Bound is the fluid bound of Kumar and Ross ("Peer-assisted file distribution:
// the minimum distribution time", 2006). It knows nothing of chunks, round
// trips, TCP or framing: a ratio of 1 cannot be reached by anything that sends
// a chunk on only when all of it is here. The rate of a link is taken as it was
// asked for, so headers (4 to 5 % of a link with an MTU of 1500) count against
// the rollout.
//
// For a rollout with a scheduler process, which brings the image from the
// origin and passes it on, the way in is the slower of the two links. With
// zones, the link between a zone and the rest bounds it too, and nodes that
// arrive late, or that are not slow in a fleet where some are, have bounds of
// their own: see SetBounds.
//
// # Little's law
//
// L = λW holds exactly for any window that begins and ends with nobody in the
// system, so it says nothing about the fleet. It is a check of the books: L is
// found by walking through arrivals and departures, λ and W by counting and
// averaging. Nodes that failed, or a clock that went wrong, make the two
// differ.
//
// # Why
//
// The percentiles are nearest-rank, so that each is the time of a node that
// exists, and p99 of 8 nodes is simply the last.
//
// The plot is SVG written by hand: some curves, two axes, a legend. A library
// for that would be the largest dependency of the program. Of a large fleet it
// draws 200 curves, evenly spread over the order in which the nodes finished,
// the first and the last always among them.
package report
