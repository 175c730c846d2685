// Package veil hides private content from the fleet: what digests it has, where
// it comes from, and the bytes, from whoever does not hold the cluster secret.
//
// A digest is private if this node knows it from upstreams only that ask who
// wants it. For such a digest the fleet hears an alias, an HMAC of it with a key
// derived from the cluster secret. Schedulers plan by the alias as by any
// digest. Peers ask for the alias and show a capability, a MAC over digest,
// asker and expiry, made by the asker itself. Who names a private digest in the
// clear is told that it is not here.
//
//	alias        "sha256:" hex(HMAC-SHA256(K1, digest))
//	capability   "1." asker "." expiry "." base64url(HMAC-SHA256(K2, alias 0 asker 0 expiry))
//	note         base64url(nonce AES-256-GCM(K3, digest 0 upstream 0 repository 0 flag; alias))
//
// K1, K2 and K3 are HKDF-SHA256 of a cluster secret with a label each; the
// expiry is a time in seconds since 1970, two minutes ahead.
//
// # Why
//
// Knowing a digest is not permission, and digests are no secrets: they stand in
// manifests, lock files and logs. Among nodes there is nobody to ask whether an
// upstream grants a blob to a client, and nobody has to: each node asks its own
// upstream for its own clients, before it pulls, and the fleet is where the
// bytes come from. What the fleet needs is a proof that the asker is of the
// fleet, now, and means this blob; members make it themselves, since all of them
// hold the secret. So this does not protect nodes from each other: a member is
// trusted to ask its upstream first. It protects from those who get at the peer
// port without the secret: with security none, from a machine at a member's
// address; with a stolen identity key whose owner is still in the view; from a
// recorded request, which holds for one asker and two minutes.
//
// Aliases are for those who see the traffic of schedulers, their logs and
// metrics, or the paths of requests with security none: they see that somebody
// pulls something private of that size, and that others pull the same.
// Sizes, and the BLAKE3 sums of chunks that members report, can confirm a guess
// of the content to a member. With security none the bytes themselves can be
// read on the wire, as everything then.
//
// Origin leases carry no secrets. Of a private blob, a Join names no upstream,
// so that no scheduler can send anybody there who has not come by itself: a node
// that pulls knows its origin. A seed is another matter: if the blob comes by a
// credential of nodes (auth: node), the Join holds a sealed note of its origin,
// and a seed that is called opens it and fetches what its own credentials allow.
// If it comes by a client's token (passthrough) there is nothing to say: no seed
// has the token.
//
// Without a cluster secret, which is for one machine, aliases are made with a
// random key of this process. Nobody else knows them, so private content stays
// where it is.
//
// While the secret changes, all current secrets count: capabilities and notes of
// any of them are taken, a blob is held out under the aliases of all (Held), and
// an alias that was once told stays known until Forget. Two nodes that are at
// different steps of the change may name one blob differently and pull it
// apart from each other; the one that comes later still finds who has it.
//
// Clocks of members should agree to half a minute, as far as private content is
// concerned. If they do not, members refuse each other's capabilities, and the
// blob comes from its origin.
//
// A digest that turns public while it is pulled keeps the alias for that pull,
// since the scheduler knows it by no other name (Session).
package veil
