// Package scheduler decides who fetches which chunks from whom, so that each
// chunk leaves the origin once and every link of the fleet is busy until
// everyone has everything.
//
// Book is the decisions: pure state that is told what happens and when, and
// answers with messages. plan.go has the policy, swarm.go the tables that it
// reads. Server feeds a Book from the nodes' control streams. Client is the
// node's side: it keeps a stream to each possible owner and hands leases to
// Sessions, one per blob that is being pulled. Owner says who schedules which
// digest; any daemon can, so every process runs a Server and a Client.
//
// # The policy
//
// A node has at most Window leases in flight, a source serves at most Slots.
// Of the chunks that a node misses it gets the one with the fewest copies in
// the swarm, counting those in flight, ties at random; a chunk that a reader
// waits for goes first. Of up to eight holders with a free slot it gets the one
// that would deliver first. Holders in other zones count for the first copy
// into a zone, or if the node would be idle. What nobody has or fetches is
// leased on the origin: to a seed if there is one, else to the nodes, one lease
// each. After each event only what it touched is looked at again: a node that
// has room is fed, a source that has a free slot or something new is offered to
// the nodes that found none.
//
// # Why
//
// Central leases with limited slots finish within 1.02 to 1.17 times the fluid
// bound here (8 to 200 nodes, 64 MiB and 3 GiB, all links equal; go test -v -run
// TestRolloutOnce prints some of it), lists of holders from which each node
// chooses 4 times it (SCHEDULING.md).
//
// Where it departs from SCHEDULING.md, and why:
//   - Leases on the origin without a seed are two at a time and one per node.
//     Four at a time ended at 1.36 × the bound with 3 nodes, two at 1.05: with
//     its whole window on the origin, a node still lacks what the others
//     fetched when the origin has sent everything.
//   - Origin chunks are leased in order, not at random: runs of them are one
//     request, and readers read in order.
//   - In a fleet without a scheduler process at most 16 daemons own digests,
//     not all: every node keeps a stream to each possible owner.
//     They are also who takes over at once when no scheduler's stream stands,
//     before the gossip knows that it is dead: waiting for that, every node
//     gave up after a second and went to the origin on its own (1.6 copies
//     after a kill -9 of the scheduler, 1.01 with the council).
//   - A slow source is skipped if any faster holder exists, instead of by its
//     expected finish: the same effect without a median per decision.
//   - The copies of a suspect do not count, so that a chunk which only a
//     stalled node has is fetched from the origin again.
//   - A node without a grant does not go to the origin by itself; see package
//     pull.
//   - A scheduler that has just become the owner of a pull under way waits
//     Settle before it sends anybody to the origin, since the other nodes'
//     reports are on their way.
package scheduler
