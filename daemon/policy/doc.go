// Package policy decides who may have what. Its Gate stands between every door
// and the cache: rules first, then whether the upstream says that this
// repository has this content, and how long it is.
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
// An upstream is believed in what it says about itself. One that claims a
// digest which it does not hold can have this node serve content that the node
// already has from elsewhere, to whoever knew the digest. With "*" configured
// anybody can run such an upstream. Leave "*" out where the cache holds
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
package policy
