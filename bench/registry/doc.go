// Package registry is the origin of tests, demonstrations and benchmarks: a
// real distribution v3 registry behind a handler that counts what leaves,
// limits its rate, cuts, stalls, fails, redirects and asks for a login, as
// SetFaults says.
//
// # Why
//
// What Shoal promises about an origin is counted here and nowhere else: "each
// chunk leaves the origin once" is Copies, which knows for every byte of every
// blob how often it was written to a connection. A byte is counted just before
// it is written, so a client that has it always finds it counted.
//
// The faults are in front of a real registry instead of a fake one, so that
// its headers, its Range and its push API are those of the field. They are
// switched at run time: a test pushes without faults and then sets them.
// Tokens of Faults.Auth are opaque and kept in a map, unlike distribution's signed
// ones: to a client they look the same, and they can be revoked.
//
// Options.Login is distribution's own authentication, for tests of who may have
// what: there the registry that decides must be a real one. Its tokens are signed
// by a key of this package, and revoked by another key, since a signed token can't
// be taken back otherwise; distribution reads its keys at its start, so it is
// started anew on the same content. It lets an expired token pass for a minute
// longer, for clocks that are wrong. Here it is shown such a token as nonsense
// from the second on at which it expires, so that a test need not wait. The
// password file's time is set by hand, one second more for each change, because
// distribution reads it again only when that differs. Redirects and referrers
// that do not come from distribution are guarded by its own access controller.
// Bodies of errors do not count as bytes of manifests.
//
// A cut is clean, a FIN after exactly so many bytes, because that is what
// clients can resume from; a reset may take bytes with it that were counted.
//
// distribution 3.1 has no referrers API (distribution-spec, "Listing
// Referrers"), so its 404 is what a client falls back from. SetReferrers puts
// an answer in front of it.
//
// Down ends connections after the request has come in, since a test keeps the
// port. A client sees an end of file instead of a refused connection, which it
// may not treat otherwise.
//
// The library logs through logrus' process-wide logger and offers no other
// way, so New silences that one. It also starts one goroutine that nothing
// ends; LeakedGoroutine names it for leak checks.
//
// Content is in files even where it is temporary. The library's in-memory driver
// copies a blob anew with each 32 KiB that is pushed: a 64 MiB layer took 20.6 s
// against 0.7 s here. It also keeps the clouds' drivers out of the program.
package registry
