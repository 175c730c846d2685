// Package fleet runs many nodes in one process: real daemons with real
// listeners on loopback, a data directory each, one gossip. It is the bed of
// the integration tests and of measurements that need no network of their own.
//
// # Why
//
// A fleet in one process starts in a second, can be run under the race
// detector, and lets a test look into every node. What it cannot show, a
// process that is killed, is for programs: see bench/e2e.
package fleet
