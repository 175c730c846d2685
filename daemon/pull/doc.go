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
// The download limit is paid where bytes come in, in the writer that a Source
// gets. That is one place for peers and origins, the time is none in which a
// Source waits for its peer or registry, so nobody looks stalled, and a lease's
// deadline can leave it out. The sender is slowed down by TCP: what it is ahead
// stays in the sockets' buffers.
//
// A pull that is started ahead of a reader joins before Start returns, so that
// the schedulers hear of the blobs of an image in the order of its manifest,
// which is the order in which a runtime unpacks them. Joined by each pull's own
// goroutine they came in any order.
//
// A chunk is reported when it is in, not when Put returns: one Put of a blob also
// brings the digest up to date, and the last one syncs the file. A report after
// that held a slot at the source for as long, let the deadline of the lease pass
// for no fault of the source, and kept the sum of the last chunk, without which
// nobody may take it from here, until the disk was done.
//
// Bytes are counted by the Class of the member they came from. Duplicate has also
// the pieces of chunks whose rest did not come, since those bytes come once
// more. What a connection had in its buffers when it was given up is in no count.
//
// Without a scheduler four requests to the origin are under way. But the first
// chunk that a reader waits for has the line to itself, and a reader that begins
// inside a cold blob makes the first request one of two chunks: with four at once
// the origin had sent four chunks or more by the time of the first byte, and a
// client that wants a hundred bytes of a large layer waited for all of them. A
// reader that jumps ahead later has a request more than the four.
//
// A pull goes on without its reader unless Config.Abandon is set: the next client
// is never far, and half a layer is of no use to anybody. Whether somebody still
// wants it is known from the contexts of readers and not from their Close, so
// that the cache need not know why it is read. Who comes while a pull is being
// given up gets a new one after it, since a swarm knows one session of a node for
// a blob, and so does the cache's Fail.
//
// A chunk that this disk does not take ends the pull at once, with ErrStore:
// another source would not help. The mirror then passes the rest on unkept.
//
// When the whole content turns out not to match its digest though every chunk
// matched its sum, the sums are wrong and so may be every copy in the fleet:
// the blob is then fetched alone from the origin, once, and after a second
// failure the pull ends with the error.
package pull
