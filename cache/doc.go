// Package cache keeps blobs on this node's disk, whole or still arriving.
//
// A Blob is where both halves of a pull meet: Put takes verified chunks in any
// order, Readers hand out bytes and wait only for the chunk that they need.
// Neither knows the other. A whole blob is served from its *os.File, so that
// the kernel sends it.
//
//	cache.go   the table of blobs: open, find, delete, close
//	blob.go    a Blob: what is in, who waits
//	put.go     chunks come in; the digest of the whole; completion
//	load.go    blobs come back from the disk, checked
//	reader.go  clients read
//	state.go   the two files beside a blob's bytes
//	layout.go  where everything is on the disk
//	index.go   badger: links, and a record of each blob
//
// # Why
//
// The files are the truth and the index is a help. Open lists names (50 ms for
// 5,000 blobs, all told), and a record that a crash took from the index is made
// again. So no write of the index needs a sync, which costs badger 2 ms, and
// an index that is damaged is thrown away: nothing is lost but links, and
// those are learned again from the origin. Badger panics over a damaged table
// in a goroutine of its own, where nobody can recover, or passes over the
// table; so every table is read here first.
//
// What is asked for each chunk is in a file beside the bytes, a record of a
// mark and a sum, written in one piece: 33 bytes in the page cache, against 5
// µs for a put in badger.
//
// Nothing is synced until a blob is whole. After a kill the page cache still
// has everything; after a power loss the marks may say what the bytes do not
// hold, so each chunk of a partial blob is checked against its sum when the
// blob is first opened again. That is when it is opened and not in Open, which
// would read the whole disk before the first request. Blob waits for it (about
// a gigabyte a second and core) rather than letting Have grow afterwards: the
// puller would bring from the origin what is here.
//
// A name appears under blobs only after the bytes are synced, and the
// directory is synced after it. Readers do not wait for any of that: they have
// the blob as soon as its digest was right, from the very file that is then
// renamed under them.
//
// The digest of the whole has to be taken in order, and chunks come in any. A
// goroutine that follows would be one more per blob, woken for each chunk.
// Instead a baton: the Put that finds it free hashes its own bytes if they are
// next, and what others have stored from the page cache. With one source in
// order no byte is read back. No lock is held meanwhile; two Puts of the same
// chunk take turns, since writing both at once could leave some of each.
//
// A chunk's sum is learned from whoever brought it from the origin, so it can
// be wrong together with its bytes. Only the digest shows that, and then there
// is no telling which chunk it was: all of them go, with their sums. Readers
// of the failed try fail for good, since what they handed on is wrong. That is
// what a fill is for: one try, and who holds on to an old one fails. The last
// chunk is kept from Readers until the digest was right, so no client ever
// completes a wrong blob; it is not kept from peers, who check for themselves.
//
// The sums file of a whole blob is not synced: if it is lost or torn, its own
// checksum shows it, and the sums are made again from the bytes, which are
// checked against the digest on the way.
//
// A partial blob that nobody has open and that is now said to have another
// size is dropped rather than refused: nothing has proved its size, and a
// repository that lies about it must not keep the digest from everybody else.
//
// Badger writes through memory maps of files with holes; on a full disk the
// kernel answers that with SIGBUS, which ends the process. So Put leaves 32
// MiB of the file system alone, the index 16 MiB, and a ballast of 4 MiB is let
// go of when the index has to be closed on a disk that others have filled.
//
// Memory, measured: a program that opens an empty cache and nothing else has
// 10 MB resident, under 2 MB more than one that does not; with 5,000 blobs it
// has 15 MB, with 20,000 links 16 MB, and 25 MB just after it wrote those. The
// settings that make badger this small are in index.go.
package cache
