package proto

import "time"

// Version is the version of the protocol between a node and a scheduler that
// this code speaks best; MinVersion is the oldest that it still speaks. Both
// are offered in Hello, and the scheduler's Welcome settles one.
const (
	Version    = 1
	MinVersion = 1
)

// A Sum is the BLAKE3-256 checksum of a chunk. The zero Sum means "not known".
// A blob of one chunk needs no sum: its digest says the same.
type Sum [32]byte

// IsZero reports whether s is not known.
func (s Sum) IsZero() bool { return s == Sum{} }

// A Message is one of the types below that travel on a control stream.
type Message interface {
	kind() kind
	encode(*encoder)
	decode(*decoder)
}

// Hello is the first message of a node: who it is and which versions it
// speaks.
type Hello struct {
	Min, Max int
	Node     Member
}

// Welcome answers Hello with the version that both will speak.
type Welcome struct{ Version int }

// Bye is the last message of either side. Reason is for people.
type Bye struct{ Reason string }

// Ping asks for a Pong with the same number. A scheduler that does not answer
// is taken for dead.
type Ping struct{ Seq uint64 }

// Pong answers Ping.
type Pong struct{ Seq uint64 }

// Hold tells of blobs that are whole on the sending node.
type Hold struct{ Blobs []Blob }

// Join says that the sending node wants the rest of a blob. It carries all
// that a scheduler which knows nothing needs: the chunks that are here (Have),
// those that are on their way (Flight) and from where the blob comes. A node
// that joins again, at another scheduler or after a cut, says the same with
// what it has by then.
type Join struct {
	Blob   Blob
	Origin Origin
	Have   Set
	Flight Set
	// Await is the chunk that a reader on the node waits for, or -1.
	Await int
	// Seed says that the node joins because it was called to bring the blob
	// from its origin for others.
	Seed bool
}

// Done says that one chunk has come in and was right, and what its sum is: the
// scheduler may be another one than that which granted the lease, and know
// nothing of it. Took is how long the chunk was on its way; Lease is zero if it
// came without a lease.
type Done struct {
	Digest Digest
	Lease  uint64
	Index  int
	Sum    Sum
	Took   time.Duration
}

// Near says that a lease is about to end: what is missing of it will be here
// within the time that the lease asked for. The scheduler grants the next one,
// which arrives when this one ends, so that no link is idle for the round trip.
type Near struct {
	Digest Digest
	Lease  uint64
}

// Cause says why a lease failed.
type Cause uint8

// Causes of failed leases.
const (
	// CauseBroken is a connection that could not be made or was cut.
	CauseBroken Cause = iota + 1
	// CauseStalled is a source that sent nothing, or too little, for too long.
	CauseStalled
	// CauseCorrupt is a source that sent bytes with a wrong sum.
	CauseCorrupt
	// CauseAbsent is a source that answered that it has not got the chunk.
	CauseAbsent
	// CauseDenied is an origin that this node may not or can not fetch from.
	CauseDenied
	// CauseDropped is a node that gave the lease back for a reason of its own.
	CauseDropped
)

// Fail gives a lease back: the chunks of it that were not Done are to be had
// elsewhere.
type Fail struct {
	Digest Digest
	Lease  uint64
	Cause  Cause
}

// Await says which chunk a reader on the node waits for.
type Await struct {
	Digest Digest
	Index  int
}

// Part says that the node neither has nor wants the blob any more.
type Part struct{ Digest Digest }

// Decline answers Call: the node can't bring the blob from its origin.
type Decline struct {
	Digest Digest
	Reason string
}

// Sums tells the sums of the chunks from First on that the node knows, the
// zero Sum where it does not.
type Sums struct {
	Digest Digest
	First  int
	Sums   []Sum
}

// Lease is the scheduler's word that the node fetches Count chunks of a blob,
// from First on, from one source, Within that time. The source is the member
// with the ID Source, at Addr, or the blob's origin if Source is empty. Sums
// holds the sums of the chunks in their order; it is empty for a lease on the
// origin and for a blob of one chunk. The node says
// Near as long before the end of the lease as Early says, by its own estimate.
type Lease struct {
	ID           uint64
	Digest       Digest
	First, Count int
	Source, Addr string
	Within       time.Duration
	Sums         []Sum
	Early        time.Duration
}

// FromOrigin reports whether the lease's source is the blob's origin.
func (l Lease) FromOrigin() bool { return l.Source == "" }

// Revoke takes a lease back: its chunks are leased to somebody else by now.
// What has come in of it still counts.
type Revoke struct {
	Digest Digest
	Lease  uint64
}

// Call asks a seed to join the swarm of a blob and to bring it from its
// origin.
type Call struct {
	Blob   Blob
	Origin Origin
}

// Ask asks a node for the sums of a blob's chunks that it has.
type Ask struct{ Digest Digest }
