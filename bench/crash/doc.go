// Package crash kills the real daemon with SIGKILL at random moments, some 200
// times, and checks that it takes no harm: it opens its directory again at
// once, every byte that it serves is right, and after a scrub no file is left
// that belongs to nothing. All of it is in test files.
//
//	go test -run TestKilled -v ./bench/crash
//	CRASH_SEED=7 CRASH_KILLS=1000 go test -run TestKilled -v ./bench/crash
//
// A run that fails prints its seed; CRASH_SEED repeats its choices, though not
// to the microsecond. CRASH_KILLS is the number of kills, CRASH_LOGS a
// directory for what the daemons say.
//
// # Why
//
// cache has a test that kills a process of its own with Puts and Deletes in it,
// and a model test with every order of events. What they cannot show is here:
// the whole daemon with pulls under way, its index, its tags, its uses and pins,
// and eviction, collection and scrubbing in between. The quota is a third of
// what is asked for, and what was asked for is kept for an instant only, so that
// something is evicted all the time.
//
// Kills come in three phases: while the daemon starts, while what it has is read
// back, and while clients pull. The first kills of each directory come in its
// very first start. Where clients read, a kill comes a random number of bytes and
// an instant after their begin, so that it finds as much going on where the machine
// is slow.
//
// Everything is checked from outside. Clients compare each byte with what was
// pushed, also those of a body that the kill cuts, which a client may have
// handed on. What the daemon has on its disk is seen by walking its directory:
// a file named by a digest that was never pushed, or whose content does not have
// it, is as wrong as a byte that is served.
//
// An error of a request is excused if it came after the kill was sent, and by
// nothing else. A daemon that ends otherwise fails the test.
package crash
