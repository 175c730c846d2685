// Package policy decides who may have what. Its Gate stands between every door
// and the cache: rules first, then whether the upstream lets this caller read
// the repository, then whether the repository has this content, and how long it
// is; and at last what rules say of the content itself.
//
//	policy.go   Gate: the order in which everything is asked
//	grant.go    passthrough: what upstreams let their callers have
//	judge.go    rules that look into content
//	visible.go  what anybody may see, and whose word counts
//	manifest.go what a manifest names
//	lookup.go   one question to the origin, however many ask
//	allow.go    the allow lists of upstreams
//	caller.go, denial.go
//
// The rules of the configuration are in package rules, signatures and scans in
// package signature. This package calls the first and is told what the second
// says.
//
// # Why
//
// Content is stored once per digest, whichever repository it came through, and
// knowing a digest is not permission. So the Gate remembers what it was told
// per upstream, repository and digest (a link, kept in the cache's index). A
// blob that came in through one repository is served for another only after
// the upstream has said that the other one has it too.
//
// A link comes from an answer of the upstream to a HEAD, or from a manifest of
// that repository that was served (Learn). The second kind is what makes a
// pull cheap: a manifest names its blobs with their sizes, so that a pull of
// an image asks the origin one HEAD (for the tag) and not one per layer. A
// layer with URLs or of a non-distributable type gives no link: its registry
// need not have it.
//
// An upstream that is configured by name is believed in what it says about
// itself. One that claims a digest which it does not hold could have this node
// serve content that it already has from elsewhere, to whoever knew the digest.
// With "*" configured anybody can run such an upstream. So the word of one that
// nobody has named does not count for a digest that came through another one
// which not anybody may read (rule "private"), and neither does it make such a
// digest public. This costs public images under "*" that share layers with
// private ones, until the registry is named: a 403 that says so.
//
// A manifest's word is not an upstream's: whoever can push to any repository
// writes manifests. For a digest that is hidden here and came through other
// repositories only, it gives no link, and the upstream is asked when the blob
// is wanted: one HEAD per shared layer of a private image. What is not known
// here is linked by a manifest's word all the same, since one HEAD per layer
// and node would be the end of cheap pulls. Registries check that they have
// what a manifest names when it is pushed; one that does not is no place for
// private content.
//
// A link says whether its content is a manifest, by its media type. Registries
// serve manifests and blobs under different paths, and what they have under the
// one they need not have under the other, so a link of the one kind does not
// answer for the other: the origin is asked.
//
// Tags are resolved by package tags, which says how long what they named is
// good, and what is served when the origin is down. The Gate links what it
// says, so that what follows a tag in a pull needs no origin. Digests never
// change what they name, so a link has no lifetime: with the origin down, one
// that is remembered is enough, and without one the bytes are not served even
// if they are here. Forget drops a link that turned out wrong, such as a size
// that a careless manifest got wrong, and has the tags that name it asked for
// again.
//
// Learn also writes down which digests a manifest names, for the cache: a pin
// of an image has to reach its layers. It does so under a digest that it
// computes itself. A parameter could be wrong, and then a pin would hold the
// blobs of another image; the hash of the few kilobytes that a manifest has is
// not worth that.
//
// Concurrent questions about the same thing are asked once, by the first who
// asked, in its goroutine and under its context. When that one goes away, the
// others do not share its cancellation: one of them asks again. x/sync's
// singleflight would need a goroutine that outlives its caller for that, which
// no one waits for, and its Do can't be left when the caller's context ends.
//
// The patterns of AllowRepositories are path.Match's and a closing /** for a
// subtree, and no more: an allow list is read by people. A pattern that does
// not parse matches nothing, which is the safe side. The configuration refuses
// it before it gets here.
//
// # Why: passthrough
//
// Who may read a repository is known to its upstream only, so it is asked, by a
// HEAD of the very manifest that is wanted, with the caller's own header and
// nothing of ours. For a tag that is the check and the lookup at once. A HEAD of a blob
// says less, since some registries show a blob under the name of any
// repository; so one of the manifests that this node knows to name it is asked
// for, and a blob that none names is a 404. Behind a load
// balancer a client's blob requests may come to a node that has not seen the
// manifest: give each client one node.
//
// A yes is believed for a minute, or until the token's own end. It is kept as a
// hash of the upstream, the repository and the header, in memory, 16,384 of
// them. That is how late a revocation can be. A no is never kept: it is about
// who asked, and the next login may be right. A token that the upstream has just
// taken although its time is over by this node's clock is taken too, for this
// one answer. Package origin may use the token for as long as it lives (ten
// minutes if it does not say): a blob of gigabytes takes longer than a minute,
// and the upstream looks at the token each time anyway.
//
// With a grant everything is as elsewhere: links, tags that are remembered,
// stale ones while the origin is down. Without one nothing is, and 503 is the
// answer while the origin is down. A lookup that was refused with a token which
// somebody else had brought is repeated with the caller's own.
//
// A job has nobody's token and may not use those that callers have left: it
// would bring to any node what one user may have.
//
// # Why: content rules
//
// What rules say of content is known when the manifest is here, so Judge comes
// after Admit, and before anything of the manifest is told or started. A HEAD
// needs it too, since it tells the digest. A blob is let through as part of an image that was judged for the
// same client less than a minute ago; else the manifests that are known to name
// it are judged again, from the cache. Rules that speak of tags see none in a
// pull by digest.
//
// An image counts as signed by who signed an index of its repository that has
// it: that is how cosign and notation sign images of several platforms. What
// nobody can tell now, because the registry does not answer, is no verdict: 503.
// Scans are asked of images and not of indexes, since each platform has its own.
//
// In mode audit nothing is refused but what is blocked, since a recall is a
// decision of its own, and what no upstream's allow list has.
//
// # Why: private digests
//
// Private is asked for each message to the fleet, so it is in memory: 8 bytes of
// a seeded hash per digest, about 4 MB for 100,000, and nothing where all
// upstreams are anonymous. It is read from the links at the start. What is not
// known is private: the list of a private repository's tags is a blob too.
package policy
