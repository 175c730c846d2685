// Package pull brings blobs to this node: from peers as the scheduler's leases
// say, or straight from the origin where no scheduler is to be had.
//
// A Puller has at most one pull per digest, however many ask for it. A pull is
// one goroutine that reacts to events (a lease, a finished fetch, a reader that
// waits for a chunk) and one goroutine per fetch. The bytes go from a Source
// through an assembler, which cuts them into chunks, into the cache; readers
// take them out there and never meet the pull.
//
// # Why
//
// SCHEDULING.md lets a node without a grant for a second go to the last known
// holders and then to the origin. Here a node does that only if it has had no
// scheduler for five. With a live scheduler, seconds without a grant are
// normal when the origin is slow and the swarm is large, and the fallback would
// turn a slow origin into a stampede. Whether the scheduler is alive is known
// from its stream, and from its answers to pings while pulls depend on it;
// when it is not, the next owner takes over, and every daemon can be the owner.
//
// A pull that was opened for a reader joins its swarm when the reader first
// waits for a chunk, which is at once: so the first leases already go where a
// Range request wants to read.
//
// When the whole content turns out not to match its digest though every chunk
// matched its sum, the sums are wrong and so may be every copy in the fleet:
// the blob is then fetched alone from the origin, once, and after a second
// failure the pull ends with the error.
package pull
