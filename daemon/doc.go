// Package daemon is one process of Shoal, a daemon or a scheduler: its
// configuration, and the wiring of all rooms. New is the only place that knows
// every room.
//
//	config.go, config_*.go      what can be set, and why it is as it is
//	validate.go, validate_*.go  what is wrong with what was set
//	daemon.go                   New and Run
//	store.go                    the cache, and the memory of tags
//	trust.go                    secrets, members and tokens, read anew when they change
//	fleet.go                    peers, gossip, scheduler and puller, and the veil between
//	gate.go                     who may have what, the blocklist, the audit log
//	doors.go                    the mirror, the proxy, the admin door, jobs; draining
//	upkeep.go                   what is done by the clock
//	limits.go, status.go        rates, and what the admin door tells
//	checks.go                   what shoal doctor asks
//
// # Why
//
// A scheduler is the same process as a daemon, with another role in the gossip
// and no mirror by default: every daemon carries the scheduler's code anyway,
// and a scheduler that seeds needs a cache, an origin client, a puller and a
// peer listener. So there is one kind of process to run, to test and to
// understand.
//
// A daemon reaches the scheduler in its own process as it reaches any other,
// by a control stream, here over a pipe: one way through the code instead of
// two, at the price of some microseconds.
//
// Everything that leaves the node about a blob goes through the veil, here and not
// in the rooms: neither the scheduler nor the puller knows that some digests have
// other names outside. What files say of whom to trust is one value that is
// replaced as a whole, so that nobody sees the new members with the old secrets.
//
// When a daemon is told to stop it first refuses new pulls and lets the
// requests that run come to an end, for a time; then everything else ends
// together. The gossip leaves last in effect, since the members stop using a
// node as soon as it has left.
package daemon
