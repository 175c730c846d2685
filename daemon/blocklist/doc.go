// Package blocklist is the list of digests that nobody in the fleet may have: a
// recalled image is blocked at one node and refused at all of them as soon as
// they hear of it.
//
// The list is kept in blocklist.json in the node's data folder:
//
//	[{"digest":"sha256:…","blocked":true,"reason":"CVE-2026-1","by":"node-a","at":"2026-01-02T15:04:05.678Z"}]
//
// # Why
//
// There is no leader to ask, and a node that is cut off must be able to block
// too, and to be told later. So each member has the whole list, and merges what
// it hears: of two entries about a digest the later one counts. Every member
// puts any two entries in the same order, so that all say the same once all have
// heard the same, in whatever order and however often. Between two of the same
// millisecond, blocked counts more.
//
// News goes out as a note, which the gossip passes on: under a second in a fleet
// of a thousand. Who missed it gets it with the state that two members exchange
// now and then and when one joins, and tells it then: where one missed it, others
// have too.
//
// "Later" goes by the clocks of the nodes where people said it, and clocks are
// wrong. An entry that replaces one is therefore later than that one, whatever
// the time: who sees that something is blocked can always take it back. Clamping
// entries of the future to the receiver's present would break that, since each
// receiver would have another time for the same entry, and each repetition a
// newer one. Only what claims to be of 2100 or later is clamped, by everybody
// alike, to the oldest: it counts where nothing else is known, and anything
// beats it. A member that means harm can block what it likes and keep blocking
// it, as anybody with the cluster's secret can.
//
// What is no longer blocked stays in the list as such, or a member that was away
// would block it again. It goes, the oldest first, when the list is full. What
// is blocked never makes room: flooding the list must not free an image. A full
// list refuses, and says so.
//
// A blocked index blocks the image manifests in it that are known here, since
// runtimes ask for those by digest, and so does every member with those that it
// knows. The entries are the same whoever makes them, but for the digest and a
// pointer to the index, by which they are taken back with it. Layers are not
// blocked with an image: others share them, and without its manifest they are of
// no use. A layer can be blocked by its own digest.
//
// The file is written before Block returns; if that fails, the digest is blocked
// all the same and told to the others, for a recall must not wait for a disk. A
// damaged file is an error at the start and not an empty list: what was recalled
// must not come back because of a bad sector. What others say is written by Run,
// at most as often as the disk takes it.
package blocklist
