// Package keep has tests and nothing else: what the cache of one node keeps
// its word about, a test for each promise, with the real daemon in this
// process in front of a real registry that counts, throttles, cuts and fails
// (bench/registry).
//
//	tags_test.go      one lookup, ages, stale answers, offline
//	content_test.go   every kind of content, unchanged; lists and referrers
//	transfer_test.go  once, Range, cuts, restarts, back-off
//	space_test.go     quota, pins, a full disk, an unreadable file, adoption
//	jobs_test.go      prefetch on many nodes, webhooks
//
// # Why
//
// The rooms have tests of their own parts. These are of the whole, asked as a
// client asks and counted at the origin, so that a promise that every room
// keeps and their wiring breaks does not pass.
package keep
