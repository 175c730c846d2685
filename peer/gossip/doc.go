// Package gossip tells who is in the fleet: every member's identity, name,
// zone, roles and peer address, seen by all, with nobody in charge. It is
// hashicorp/memberlist, keyed by the cluster secret.
//
// # Why
//
// A member's name in the gossip is its peer ID, so that two nodes of one name
// do not fight; its name for people is in the metadata, with the rest of
// proto.Member in at most 512 bytes. Metadata that can't be read leaves its
// member out of the view, with a word in the log, and not out of the gossip.
//
// The key is HKDF-SHA256 of the secret, 32 bytes, so AES-256, with a label that
// has a version. Whoever knows the secret can say anything of anybody here;
// what an ID is worth is proven at the peer port, by TLS. Without a secret
// nothing is encrypted, which is allowed on a loopback address only.
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
// newcomer, who sees that others know it elsewhere, joins again until then. Two
// live ones of one identity are reported, and the first stays.
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
