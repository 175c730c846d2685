// Package scheduler decides who fetches which chunks from whom, so that each
// chunk leaves the origin once and every link of the fleet is busy until
// everyone has everything.
//
// Book is the decisions: pure state that is told what happens and when, and
// answers with messages. plan.go has the policy, choice.go which source is best,
// origin.go what of it concerns the origin, late.go second sources for what is late,
// measure.go what is believed of the links, trip.go what round trips cost; swarm.go, lease.go, ready.go, rarity.go,
// tally.go and zone.go are the tables that they read. Server feeds a Book from the
// nodes' control streams. Client is
// the node's side: it keeps a stream to each possible owner and hands leases to
// Sessions, one per blob that is being pulled. Owner says who schedules which
// digest; any daemon can, so every process runs a Server and a Client.
//
// # The policy
//
// A node has at most Window leases in flight, a source serves at most Slots; both
// are more where round trips are long.
// Of the chunks that a node misses it gets the one with the fewest copies in
// the swarm, counting those in flight, ties at random; a chunk that a reader
// waits for goes first. Of up to eight holders with a free slot it gets the one
// that would deliver first. Holders in other zones count for the first copy
// into a zone only. What nobody has or fetches is
// leased on the origin: to a seed if there is one, else to the nodes, one lease
// each. After each event only what it touched is looked at again: a node that
// has room is fed, a source that has a free slot or something new is offered to
// the nodes that found none.
//
// # Why
//
// Central leases with limited slots finish within 1.05 to 1.17 times the fluid
// bound here (8 to 200 nodes, 64 MiB and 3 GiB, all links equal; go test -v -run
// TestRolloutOnce prints some of it, bench/README.md has more), lists of holders
// from which each node chooses 4 times it (SCHEDULING.md).
//
// Where it departs from SCHEDULING.md, and why:
//   - Leases on the origin are two at a time with a seed; without one they are
//     three, of different nodes.
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
//     expected finish: the same effect without a median per decision. What slow
//     nodes have or are being sent counts as no copy when the rarest chunk is
//     looked for: 40 nodes, of which 4 were ten times slower, waited seconds for
//     the chunks that a seed had sent to those first (1.34 × the bound, now 1.19).
//   - A seed gives nothing that others have while it has something that nobody
//     else has. In-order readers all wait for much the same chunks, and those go
//     first; a seed that sent them to all who asked sent two copies of the blob,
//     and the last of 16 nodes took 2.1 × the bound instead of 1.11.
//   - Chunks cross into a zone once, even if a node is idle for it. With an
//     exception for idle nodes, 1.4 to 2.8 copies crossed (32 to 128 nodes in 4
//     zones), and the time was the same: 1.14 to 1.17 × the bound. That needs two
//     things: what a seed has counts as no copy in its zone, and a zone that is
//     behind takes no leases on the origin, since it gives what it gets from
//     there to all others (1.25 to 1.38 × without).
//   - A seed that is still bringing a blob has its slots for what only it has,
//     even if one is idle for a moment. Giving that one to somebody who waits
//     for a chunk that others have too left the next new chunk waiting, and now
//     and then a fleet fell into step with its seed and took 1.7 × the bound.
//   - A node says when a lease is near its end, and is granted the next one. The
//     way of a report and of a lease, with queues in between, is 20 ms on links
//     of 100 Mbit/s that are busy, and a chunk of 512 KiB takes 80 ms: with the
//     slot idle in between, 8 nodes took 1.36 × the bound (simulated, 10 ms of
//     round trip), and 1.21 with it. With three transfers at a time it is worth
//     less and still something: 8 real nodes take 1.24 without, 1.19 with it.
//   - Where round trips are long beside the time of a chunk, a node has up to five
//     leases more, and a source serves as many more: TCP begins with small windows,
//     again if a connection was idle for a moment, and with many sources most are.
//     Eight real nodes with round trips of 50 ms and chunks of 42 ms took 3.5 × the
//     bound, and 2.4 with it; simulated (--slow-start), 16 with 30 ms 1.70, now 1.34.
//     The round trip is the least that a lease and a report on it took, so that links
//     that are merely full do not count.
//   - The next run from the origin is asked for as long before the end of the last
//     one as the origin takes to answer. A seed is often in the scheduler's own
//     process, and goes without a word to anybody, but not without one to the origin:
//     with 20 ms between them its link was three quarters full, and is nine tenths.
//   - Three transfers at a time, not two; see Tuning.Window. What three need is
//     that no source serves fewer, neither a seed nor the origin: a flow gets a
//     third of its receiver's link only (simulated, 64 nodes: 1.40 with two slots,
//     1.45 with two leases on the origin without a seed, 1.18 with three of either).
//   - No preference for sources that a node has a connection to. It saves
//     handshakes, and turned the fleet into a chain: one node got all that the
//     seed sent, and everybody else what that one had (2.1 to 2.7 × the bound).
//     Nor does a source go on with the node whose lease is just ending: with that,
//     of nodes that arrive one after the other the worst took 1.1 to 1.6 × its own
//     bound (nine runs, three over 1.4), and 1.1 to 1.4 without (six runs). That
//     was before the fault was mended which the next but one tells of.
//   - Rates are averaged as times per byte, over whole leases. Averages of rates
//     believe a chunk that had been in some buffer. Whether a node is slow is judged
//     by the median of its last five, each way: two chunks of a slow source were
//     enough to make a fast node's average slow, and that one was served last (one
//     of nine, a second after the others, in two runs of five).
//   - A measurement counts against a link only if the other end's was not full, and
//     a node of which only what it gives seems slow keeps its window. With three
//     transfers at a time a source that serves one node gives a third of its link,
//     less over a new connection; a quarter of what is typical is slow. In one of
//     five runs with eight nodes that arrived one after the other, one of them had
//     one lease at a time for most of its pull and took 1.4 to 1.6 times its own
//     bound, all others 1.1.
//   - What a link carries is judged by what a lease got times the number of leases
//     that shared it meanwhile, on average, those near their end included. With the
//     lesser of how many there were at its start and at its end, one of 200 nodes
//     whose links are all equal was taken for slow if they had three slots, for all
//     of the 10 s until it is tried again, and ended at 1.69 × the bound; all others
//     at 1.20.
//   - A seed sends a chunk again that a reader has waited for and of which there is
//     one copy, if it does not arrive: at the start nobody knows who is slow, and
//     the first copy of a chunk that all readers wait for may go there. Clients
//     heard nothing for up to 27 % of their pull; now 8 to 14 %.
//   - A second source for a chunk that a reader waits for may serve one more than
//     it has slots. In a busy fleet none is free in the moment in which the chunk
//     is found to be late: a client heard nothing for 3.4 of 5.8 s. What second
//     sources may cost is bounded; see Book.save.
//   - More upload slots for a source are granted by comparing what it gives with
//     what is typical. Trying one more and keeping it if the total rose found
//     the same sources and cost every other rollout 2 to 15 %.
//   - The copies of a suspect do not count, so that a chunk which only a
//     stalled node has is fetched from the origin again.
//   - A node without a grant does not go to the origin by itself; see package
//     pull.
//   - A scheduler that has just become the owner of a pull under way waits
//     Settle before it sends anybody to the origin, since the other nodes'
//     reports are on their way.
package scheduler
