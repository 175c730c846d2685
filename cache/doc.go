// Package cache keeps blobs on this node's disk, whole or still arriving.
//
// A Blob is where both halves of a pull meet: Put takes verified chunks in any
// order, Readers hand out bytes and wait only for the chunk that they need.
// Neither knows the other. A whole blob is served from its *os.File, so that
// the kernel sends it, and so are the chunks that are in of one that is arriving
// (Reader.Await, Reader.File).
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
//	records.go     badger: tags, lists, and the parts of manifests
//	amount.go      bytes, or a share of the disk
//	space.go       the quota and the reserve: is there room for a blob
//	worth.go       what a blob is worth, and which go: pure
//	evict.go       they go; Run
//	use.go         what is remembered of how blobs are used; Use
//	pins.go        what never goes
//	pattern.go     patterns of images
//	gc.go          all that is of no use any more goes, on demand
//
//	adopt.go       blobs of containerd's content store, served from there
//	watch.go       what containerd does there meanwhile
//	scrub.go       everything is read again and checked, and leftovers removed
//	quarantine.go  what happens to a damaged blob, and how one is suspected
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
// The file of a Reader has an offset of its own, as sendfile needs, and so it is
// opened by its name, under which there may be the next fill's by then: it is
// compared with the one that the fill has open. Once it is right it may be held
// over waits, since each begins by asking whether the fill is still good.
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
// go of when the index has to be closed on a disk that others have filled. The
// reserve that is configured comes on top of nothing: it is those 32 MiB, made
// larger.
//
// Which blob goes is decided by its last use and by how often it was used, each
// use counting half as much for every two days that have passed (LRFU, Lee et
// al. 2001). LRU alone is emptied by a scanner that pulls everything once; LFU
// holds on to releases whose time has gone. Per byte it counts what fetching it
// again costs, and a request costs as much as a megabyte: so manifests and
// configs, without which no pull begins, stay ten times as long as layers and
// take no space to speak of. TestPolicy has the figures, beside those of LRU,
// LFU and Belady: on its trace some 10 % more of all requests are hits than
// with LRU, and 1 to 3 % more of all bytes. The half-life could be one day or
// four; adaptive schemes (ARC, LFU with aging) have state that must be kept for
// blobs that are gone, and that won nothing here. The order of two blobs does
// not change by waiting, so what is kept is a time and a number for each. Uses
// within one minute are one, since a runtime asks for ranges in parallel.
//
// A blob counts as if it were whole from its first Put on. Were room looked for
// chunk by chunk, several layers that arrive at a time would fill the quota with
// halves of which none can be completed. So most often it is the first Put that
// says ErrFull, when nothing was fetched yet that would have to be fetched again
// to stream it past the cache, and a blob that cannot fit evicts nobody in vain.
// That costs a lock once per blob; a further chunk costs what it did, a look at
// how much the disk has left, since others fill disks too.
//
// Whoever finds no room evicts, itself, what it needs, and Run what is over the
// high watermark. Eviction by Run alone would have every Put wait for another
// goroutine, and a cache without Run would fill up for good. One evicts at a
// time; nothing is locked while files are removed.
//
// When others fill the disk the cache gives way to them, down to nothing if it
// must: the reserve is theirs. A percentage as quota is of the whole file
// system and not of what is free, since that would move with every blob.
//
// Pins are in a file of their own, and synced, for the index may be lost and
// they must not. It has the manifests as well that the tags named, and the parts
// of a manifest can be read from its bytes; so a pin holds before anything was
// learned again. A damaged file of pins is an error of Open: to go on would
// evict what somebody had said to keep.
//
// Records of links, tags and manifests carry the week in which they were
// written, one byte that badger has for it. After eight weeks those of blobs
// that are not here are cleared away, or the index would grow for ever.
//
// Damage of a whole blob shows in three places: when it is opened (not there,
// another size, not readable), when a read of it fails and somebody calls
// Doubt, and in the scrub. All three end in setAside: the blob is not whole any
// more, so that the next pull fetches it, and the bytes go to the quarantine,
// because the disk's owner will want to see what kind of damage it is. What the
// process is short of, such as descriptors, is not damage. Scrub and Doubt read
// without holding anybody up; only to act on what they found do they take the
// blob's files alone, and then look whether that is still the same file. A
// file that Content handed out for sendfile cannot be taken back, so its client
// may get damaged bytes to the end, as it would have without the scrub: clients
// check digests themselves. The scrub reads through the page cache: a blob that
// is read often is checked in memory, where it is also served from. To throw
// its pages out first would make the scrub cost every reader a disk access.
//
// Blobs of containerd's content store are adopted and not linked or copied:
// hard links would need the same file system and write access, and keep the
// space of what containerd has collected. They are believed only after all of
// their bytes were read, at the first opening and not at the listing, which
// would read some 20 GB on each start of a node. Nothing else is asked: what is
// listed and never opened costs a stat. That a file was right is remembered by
// its path, size, time and inode, together with its sums, in a file as the
// sums of a whole blob are; a small blob is just read again. The scrub reads
// those that were believed. All that containerd has is offered to the fleet;
// who may have it is decided at the doors, as for all blobs.
//
// fsnotify gives names and loses them when its queue overflows; the directories
// are then listed anew, and it watches before it lists, so that nothing falls
// between. A directory without an inotify watch (128 instances per user is the
// kernel's default) is listed each minute: that is polling, which nothing else
// here does, and better than an adopted store that is never looked at again.
//
// An adopt path without blobs/sha256 is refused unless it is a content store
// that is still empty: containerd makes that directory with its first blob, and
// a new node must not fail to start shoal.
//
// Memory, measured: a program that opens an empty cache and nothing else has
// 10 MB resident, under 2 MB more than one that does not; with 5,000 blobs it
// has 15 MB, with 20,000 links 16 MB, and 25 MB just after it wrote those. The
// settings that make badger this small are in index.go.
package cache
