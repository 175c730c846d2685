// Package sim rolls an image out to many nodes under virtual time: the
// scheduler's decisions are the real ones (scheduler.Book), everything else is
// a model. It says what the decisions are good for at sizes that no machine can
// try, and what they cost.
//
// Options say what to simulate, Run does it. host.go is the node's side, as
// daemon/pull and scheduler.Client have it; control.go carries messages between
// nodes and books; network.go shares the links, window.go has TCP's windows; sim.go
// goes from one event to the next.
//
// # The model
//
// Each host has a link with a rate each way, and each zone one to the rest of
// the world, if it is limited. The bytes of a chunk flow over all links on
// their way at once, as fast as max-min fairness gives: each link is divided
// equally among its flows, and what one of them cannot use the others get. That
// is what TCP does over seconds, without its losses and its queues, and without its
// slow start unless SlowStart asks for it. Headers are left out unless Goodput says
// what they take. The origin and the scheduler process are in the first zone.
//
// With SlowStart connections are HTTP/1.1's, one transfer at a time, and have TCP's
// windows: window.go.
//
// A message between a node and its scheduler takes half a round trip, none if
// both are one process. A request takes a round trip until the first byte, and
// the first one to a host two more, for TCP and TLS. A scheduler that is busy
// with a message for Decision has the next ones wait.
//
// A node does what a daemon does: it joins the swarms of all layers in manifest
// order as soon as its client has come; it carries out leases chunk after
// chunk, reports each one, gives a lease back that is late and not half here,
// drops what is on its way when the layer is whole, and says then that it holds
// it. A client reads three layers at a time in manifest order, and its daemon
// reports the chunk that each reader waits for. The scheduler process answers a
// call by joining as a seed. Without one, each layer is scheduled by the daemon
// that owns its digest, with a book of its own.
//
// A scheduler that dies breaks off what it sends and takes; four round trips
// later the nodes have told the next owners what they have, want and are
// fetching.
//
// # What is not in it
//
//   - Processors and disks. A simulated node hashes, encrypts and writes for
//     nothing. On fast links and slow machines that is the limit, and rollout
//     is what shows it.
//   - The time of the decisions, unless Decision says it. The result has what
//     the books really took; if that is more than the rollout took in virtual
//     time, one scheduler cannot do it.
//   - Manifests and configs, the gossip, the origin's answers about tags.
//   - A chunk is passed on when all of it is here, as the book leases it;
//     nothing fails unless a fault says so.
//
// # What is measured and what is computed
//
// Times, bytes and leases are exact for the model and the same for the same
// Options, to the last bit on the same kind of processor. GrantSeconds is
// real: the time by the clock of all calls of the books, times the share of the
// clock's time in which the thread had a processor; what the garbage collector
// does on other threads is not in it. SchedulerMemory is the growth of the heap
// after a collection, less what the simulation itself takes, which is counted
// by the sizes of its own structures: the most of three looks. A scheduler
// process holds up to twice that before it collects, and its streams beside it.
//
// # Why
//
// One change in a swarm touches, strictly, every flow in it: a rate that sinks
// here lets another rise there. Finding all rates anew for each of millions of
// chunks would take days. So a change spreads from link to link only where it
// makes a difference of more than a hundredth, and over 256 links at most; but
// a link never carries more than it can, since that would make the fleet faster
// than it could be. In random networks of 16 links the rates were within 2 % of
// what is exactly fair. The smaller of the equal shares at both ends would be
// simpler, and leaves idle what TCP would fill.
//
// What always takes the same time goes through a queue, not through the heap of
// flows. The heap has flows only, each with the sooner of the end of its chunk
// and its deadline, and four children per node.
//
// The bounds are report's, for links as they were asked for. With Goodput under
// 1 the ratio has the headers in it, as that of a rollout has.
package sim
