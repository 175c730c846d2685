// Package gossip tells who is in the fleet: every member's identity, name,
// zone, roles and peer address, seen by all, with nobody in charge. It is
// hashicorp/memberlist, keyed by the cluster secret.
//
// # Why
//
// A member's name in the gossip is its peer ID, so that two nodes of one name
// do not fight; its name for people is in the metadata, with the rest of
// proto.Member in at most 512 bytes.
//
// The key is HKDF-SHA256 of the secret, 32 bytes, so AES-256, with a label that
// has a version. Without a secret nothing is encrypted, which is allowed on a
// loopback address only. Several secrets can be valid at once, of which the
// first is used to send: a secret is changed in three steps, each on all members
// before the next (SetSecrets), and at no moment is there somebody whom another
// can't read.
//
// # A closed fleet
//
// The secret lets into the gossip; what is said there of a member is that
// member's own word. Its metadata is signed with its identity key, which the
// peer ID holds (Ed25519), together with the address at which it gossips. So
// nobody can say of another that he is elsewhere, or of another zone, role or
// peer address, and a card that was copied is worth nothing at another address.
// The card has an epoch, the time at which its process started: a packet of an
// earlier life that somebody has recorded and sends again is refused by whoever
// has heard of the later one, for ten minutes after its end as well. Then, as
// with a card of the same life, a ghost can be in the view until it is found
// dead like any other, in seconds; at the peer port it can prove nothing. A node
// whose clock was set back meets its own old card when it joins, and takes the
// epoch after that. memberlist's other messages, that somebody is suspected, dead
// or leaving, are not signed: who knows the secret, or sends recorded ones
// again, can have a member called dead for the moment until it says otherwise.
//
// With a list of those who may be members (Allowed) the secret alone is not
// enough. memberlist tells whoever joins all that it knows before it asks anybody
// about him, so its connections begin with an exchange in which both ends prove
// their IDs, for that connection (hello.go); it costs a round trip every five
// seconds. A stranger learns at most that somebody is there. What others pass on
// of him, who have no such list or another one, is ignored.
//
// The notes of Tell and the state of full exchanges are signed by their sender
// as well, and taken from those on the list only. A note is passed on once by
// each member, while it is younger than two minutes.
//
// A copied identity, with its key, can't be told from the original. Where the
// original is known, it stays, and the copy at another address is reported.
//
// # Joining, dying, coming back
//
// Another secret is found out by the words of memberlist's errors, since it has
// no error values: the other end can't decrypt what it gets, says so in a
// message made with its own secret, and that can't be decrypted here. If every
// join address does so before the first join, Run ends with ErrSecret: a node
// that starts with a wrong secret should not start. Later on it is logged and
// tried again, since somebody may be changing the secret of the fleet.
//
// A join that fails for another reason is tried again for ever, in pauses of
// 0.25 s up to 15 s, and the node works alone meanwhile. In company, once a
// minute, join addresses that are not live members are tried too: memberlist
// forgets the dead, so without that two halves of a fleet that were parted for
// a minute, such as a branch office behind a cut line, would stay parted.
// Addresses are looked up here and not by memberlist, which asks the name
// server for records of any type over TCP first.
//
// A node that dies and comes back at another address is not taken for an
// impostor: its identity is free as soon as it is known to be dead, and the
// newcomer, who sees that others know it elsewhere, joins again until then.
//
// memberlist's transport is wrapped, so that its connections end with it, and
// because it lets any stranger open any number of them and send 20 MB on each
// before it looks whether he knows the secret: here 128 connections, the oldest
// of which gives way, and 32 MiB in all. Connections wait until memberlist has
// itself on its list; it would tell early ones that the fleet is empty.
//
// The timers, and how soon a death is noticed, are in tuning.go: about 1.5 s in
// a small fleet, 3 to 4 s with 1,000 members, 4 to 8 s between members on one
// machine. A member that leaves is gone at once.
package gossip
