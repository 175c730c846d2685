// Package jobs brings images to nodes before somebody asks for them: to this
// one, to a zone, to a share of the fleet or to all of it. A job is started by a
// person, by a schedule, or by what a registry says was pushed (webhooks). It
// also takes in images that come from outside, an import.
//
// The node that is asked for a job coordinates it. It asks the origin what each
// tag names, once, chooses the nodes, and opens a stream to each (package peer,
// /shoal/job/1). On it one line of JSON goes out, the order:
//
//	{"job":"…","images":[{"image":"alpine:3","upstream":"docker.io","repository":"library/alpine","tag":"3","digest":"sha256:…"}],"platforms":["linux/arm64"]}
//
// and lines come back until the node is done:
//
//	{"index":0,"image":{"state":"running","blobs":7,"blobsDone":3,"bytes":3000,"bytesDone":1234,…}}
//	{}                          nothing new, and still alive: every 5 s at least
//	{"refused":"why"}           the node does not do it: the last line
//	{"end":true}                all has been tried: the last line
//
// A stream that is closed by the one who asked cancels the order. Unknown fields
// are ignored.
//
// # Why
//
// A job is coordinated by the node that was asked and by no scheduler: a fleet
// may have none, and a job must outlive the one it has. What is scheduled is the
// bytes: each node pulls through its own gate and puller, so leases, sums and
// zones work as in any pull, and a job of a thousand nodes takes one copy from
// the origin.
//
// Each node asks its own gate. A member could be believed when it says that a
// repository has a digest, and each node be spared a HEAD; but then one member
// that is not honest could open every repository's content to all.
//
// The gate is asked for each blob too, although its manifest has named it: what
// came here through another private repository is only linked once the origin
// has said so, and a job is when the origin can be asked. Rules that look into
// content are asked before anything of an image is started, at the door "job". A
// registry that wants its callers' own tokens (auth: passthrough) has no jobs: a
// job is nobody's, and what a caller has left here was not left for that. What is
// imported is the operator's word, so its manifest is believed as it is.
//
// Tags are resolved at the origin for each job, past what is remembered of them.
// A webhook comes in the moment after a push, when the answer that is remembered
// is certainly wrong. What the origin says is remembered for all, here and, once
// all of an image is there, at each node. Only if the origin does not answer does
// a job go by what the tag named before, and says so (Stale). For the same
// reason the digest in a webhook is not used: it says what was pushed and not
// what the tag names, and whoever can send a webhook could set a tag back.
//
// Nodes choose among the platforms of an index themselves, since "its own" is
// another one on each, with containerd's rules: what a job brings is what the
// runtime will ask for. A node that has it all is asked all the same: it says so
// in a few lines.
//
// A job is a file, written before Start returns and again when the digests and
// the nodes are known, when nodes have ended (a few times a second at most) and
// at its end. What is lost in a crash is which nodes had ended, and asking them
// again costs nothing: a blob that is whole is not brought twice. Jobs that have
// ended keep their nodes in the file only: a hundred jobs of a thousand nodes
// would be 40 MB of memory.
//
// A node that cannot be reached is tried again for 30 s, its restart, and at
// once when it is a member again. Then its part has failed and the rest of the
// job goes on: partial failure is said per node and per image. A node that shuts
// down leaves its part open rather than failed, in whatever order its rooms end.
//
// Blobs of a job are brought six at a time and in the order of their manifest,
// not all at once as after a manifest that a client was served: a job that is
// cancelled should stop soon, and nobody waits for its first layer. They are
// opened as by a reader, so that a puller which abandons what nobody wants
// abandons them too. That a blob is whole is known by its last byte, which the
// cache gives out only then; so the last chunk counts as awaited, which moves one
// lease of many.
//
// Progress is sampled, twice a second while blobs arrive, and sent when it has
// changed; that images and blobs are done is sent at once. This is the one place
// that looks at a clock instead of waiting for an event: there is an event per
// chunk, and nobody reads hundreds of lines a second.
//
// A share of the fleet is chosen by rendezvous hashing of the images and the
// nodes. So 25 % are in 50 %, a rollout in steps does not bring anything twice,
// and another image starts on other nodes.
//
// An import checks that all of an image is here before it counts as one, but
// takes an index with some of its images: that is how an export of one platform
// looks. What was imported is linked to its repository on the operator's word,
// without asking the origin, which may be out of reach for ever.
package jobs
