// Package daemon is one process of Shoal, a daemon or a scheduler: its
// configuration, and the wiring of all rooms. New is the only place that knows
// every room.
//
//	config.go, config_cache.go      what can be set, and why it is as it is
//	validate.go, validate_cache.go  what is wrong with what was set
//	daemon.go                       New, Run, the fleet
//	store.go                        the cache and the gate in front of it
//	doors.go                        the mirror, the admin door, jobs; draining
//	upkeep.go                       what is done by the clock
//	limits.go, status.go            rates, and what the admin door tells
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
// When a daemon is told to stop it first refuses new pulls and lets the
// requests that run come to an end, for a time; then everything else ends
// together. The gossip leaves last in effect, since the members stop using a
// node as soon as it has left.
package daemon
