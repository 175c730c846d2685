// Package tags resolves tags and remembers what they name. A tag is the one
// thing here that can change under its name, so how long an answer is good, and
// what is said when the origin is silent, is decided in this room and nowhere
// else.
//
//	tags.go    Resolver: resolve, set, doubt
//	judge.go   the pure decision on what is known of a tag
//	lookup.go  one question to the origin, and what is remembered of it
//	rule.go    the operator's patterns: "v*": immutable, "latest": 10m
//
// # Why
//
// A rollout asks every node for the same tag within seconds, and Docker Hub
// counts each HEAD of a manifest that comes without an account. So an answer is
// good for a minute (the TTL), and for another minute it is still given at
// once, while the origin is asked behind it (RFC 5861,
// stale-while-revalidate). Who deploys and pulls within two minutes of a push to
// the same tag can get the old image: a tag that this matters for gets a rule,
// and 0 asks each time. An aging answer is not called stale. It becomes so when
// the question behind it has failed: that failure is noted, and from then on
// everybody asks and waits. Otherwise one who was refused would be given the
// old answer for the rest of the window.
//
// A lookup belongs to nobody. package policy has the first who asks for a
// digest do the asking, in its own goroutine and under its own context, because
// nobody there waits for goroutines. Here there is Run, and a lookup that goes
// on behind an answer has no asker at all. So each is a goroutine of the
// Resolver's, of a minute at most, and what it brings is kept even if everybody
// has left: the client that gave up is the one who asks again.
//
// 404 is remembered for half a minute, in memory only: it is what a typing
// error in a deployment asks for again and again, and what the next push makes
// wrong. 401 and 403 are never remembered. They are about who asked, and an
// operator who puts a credential right should see it at once.
//
// What the origin says outweighs what is remembered: a refusal is passed on,
// and a tag that it has removed is not served when it is down, and not while
// offline either. The record stays all the same, marked as gone. A pin by name
// reaches its blobs through it, and a proxy before a registry that is down
// answers 404 too.
//
// Silence is a network error, a timeout, 429 or 5xx (ErrUnavailable): then the
// last answer is given, called stale, for a week at most. An answer that makes
// no sense (ErrProtocol) is not silence. Some registries refuse with 400, and
// in doubt a refusal is one. Offline the operator has said that the origin is
// not to be asked, and then any age is better than nothing.
//
// An origin that hangs is worse than one that is down. Clients wait for 16 s to
// 30 s, package origin tries for longer than that, and the mirror ends its wait
// after 15 s with an error, although the answer is at hand. So who has an older
// answer waits for 5 s, and for half a minute after that nobody waits for the
// same upstream: a node that starts 50 pods would else wait 5 s for each tag.
// The lookups go on behind, and the first one that is answered in time ends
// that. A tag that has just been refused is waited for as long as it takes.
//
// The index holds the records, and there is no copy of them in memory: badger
// answers in microseconds. Only what it did not take, on a full disk, is kept in
// memory, in the same bounded table as the failures. Records are written at
// each lookup, a few hundred bytes a minute and tag at most, and never synced.
//
// Of the rules that match a tag the one with the most letters of its own
// counts. The configuration file is a map and has no order, and "v1.*" is
// meant to be an exception of "v*".
//
// An immutable tag is asked for once. If what it names turns out to be gone from
// the origin, or not to be what was said, Doubt makes the next one who asks
// ask the origin: a tag that cannot be pulled has not been immutable.
package tags
