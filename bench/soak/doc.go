// Package soak runs a small fleet of real daemons under load for a long time,
// and fails if one of them grows. It is all tests, the long one behind the build
// tag soak:
//
//	make soak
//	SOAK=1h make soak
//
// SOAK is how long clients pull (10m), SOAK_SEED repeats their choices, SOAK_LOGS
// is a directory for what the daemons say.
//
// # Why
//
// What leaks, leaks slowly: a goroutine for each client that went away, a file
// of each blob that was evicted while it was read, an index that is never
// compacted. So three daemons pull from one registry, and from each other, more
// than they may keep, and their resident memory, goroutines and open files are
// sampled from outside, from /proc and from their metrics. Each is flat if the
// median of the last fifth of the run is no larger than that of the second fifth
// by more than a share and a bit: see flat. The first fifth does not count, since
// that is when the caches and pools fill.
//
// Besides whole pulls there is what clients do otherwise: they go away in the
// middle, ask for ranges, for lists, and for tags that are not there. The
// schedules of collection and scrub fire each minute. Every body is hashed; an
// answer that is not the right one fails the run.
//
// The popularity of images is Zipf's, as is found for images as for web pages.
// The hit ratio is printed beside those that an LRU cache and the best of all would
// have for the very same requests. The best is Belady's, which keeps what is asked
// for again the soonest. He knows the future, so nobody gets there; how far away we
// are says what a better policy could bring at most. All images are of one size,
// because only then is his rule the optimum. Both may fill the quota, where a daemon
// makes room down to its low watermark. A hit is what had not to be fetched: that
// counts the layers which a daemon starts before they are asked for, and pieces that
// are fetched twice, as they are.
//
// It is not in CI: ten minutes are too long for that, and what a shorter run shows
// is noise.
package soak
