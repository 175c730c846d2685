// Command demo shows what Shoal does, on one machine and in under a minute: it
// starts a registry, a scheduler and some daemons as processes of their own,
// pushes an image, pulls it through all daemons at once, and says what came
// from where.
//
//	demo -shoal bin/shoal -registryd bin/registryd
//
// It ends with exit code 0 if everybody got the right bytes and the registry
// sent each of them once; 130 if it was interrupted. It uses loopback only,
// takes free ports, and leaves nothing behind.
//
// # Why
//
// It is the first thing that a newcomer runs, so it must be true. Nothing is
// simulated: the clients are those of go-containerregistry, which check every
// digest, and what left the registry is what the registry counted. The fleet's
// own figures are compared with that count, and a difference is an error.
//
// The registry is slowed down to -rate, by default to about 400 Mbit/s.
// On loopback a registry without a limit has the bandwidth of the memory, and
// there would be nothing to share; with one, three nodes on their own would
// take three times as long as one, and the table shows that these don't. What
// it says of nodes on their own is arithmetic: bytes divided by the rate.
//
// The screen is for people: bars on a terminal, plain lines elsewhere, as in
// the log of a CI job.
package main
