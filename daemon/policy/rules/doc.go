// Package rules decides requests by what is written in the configuration: which
// registries and repositories there are, what tags look like, and rules in CEL
// (https://cel.dev).
//
//	policy:
//	  default: deny
//	  repositories: ["docker.io/library/*", "ghcr.io/team/**"]
//	  noLatest: true
//	  rules:
//	    - name: signed
//	      if: glob(registry + "/" + repository, "ghcr.io/team/**") && !("release" in signedBy)
//	      do: deny
//	      message: sign it with the release key
//	    - name: known
//	      if: registry in ["docker.io", "ghcr.io"]
//	      do: allow
//
// What the configuration has keys of its own for comes first (Config.Registries,
// Repositories, NoLatest, Tags), then the rules in their order. The first that
// matches decides; where none does, Config.Default.
//
// A condition can speak of:
//
//	kind         string            manifest, blob, or list (of tags or referrers)
//	registry     string            as images are named with: docker.io
//	repository   string            library/alpine
//	tag          string            of the request; "" in one by digest, and of a blob
//	client       map(string)       door (mirror, proxy, job), address (an IP address or unix),
//	                               user (who it says it is; nobody here has checked that)
//	digest       string            *
//	platform     string            * linux/amd64; "" of an index
//	mediaType    string            * of the manifest
//	annotations  map(string)       * of the manifest; ask `"key" in annotations &&` first
//	signedBy     list(string)      * names of the keys that have signed it
//	age          duration          * since the image was made, as it says itself
//
//	glob(text, pattern)            path.Match's *, ? and [a-z]; /** at the end for all below
//	inNetwork(address, network)    inNetwork(client.address, "10.0.0.0/8")
//
// and of CEL's own functions: matches, startsWith, in, exists, size, duration, …
// Those with a star are known with the content only. A rule that needs one of
// them, and cannot do without, leaves the Verdict undecided until then; one such
// as `registry == "ghcr.io" && platform == "linux/arm64"` needs it for ghcr.io
// alone.
//
// A runtime asks for the tag once and then for digests: for the manifest again,
// for its platform's, for the blobs. With the default deny, a rule that allows
// tags must let those pass: `tag == "" || tag.startsWith("v")`. What an index
// has no answer for (platform) is "" there: `platform != "" && …`.
//
// # Why
//
// Decisions are pure functions of Facts, so that all of them can be tested in
// tables. Who finds the facts, and when, is the gate's business (package policy).
//
// A condition that cannot be evaluated (an annotation that is not there, a limit)
// denies, be it of a rule that denies or of one that allows: the one must not be
// passed by making it fail, and the other has allowed nothing. An image that
// does not say when it was made fails each rule about its age for the same
// reason. That nobody can say now who signed is neither yes nor no: Judge
// returns that error, and the request is answered like one whose registry is
// down. Where the answer makes no difference to the condition, it is not waited
// for.
//
// Content that is not there is CEL's unknown, which "and" and "or" see through,
// rather than an empty value: `platform != "linux/amd64"` would be true of it.
// The digest counts as content while a tag is not resolved.
//
// With both Config.Registries and Repositories, a request needs both: of two
// lists the narrower one is what was meant, and what is missing is noticed by
// the first denial. A repository that is allowed in a registry that is not is a
// mistake and said at the start.
//
// A rule in the mode audit goes on to the next, as if it had not matched, and is
// told in the Verdict: what it would do is seen without doing it. A rule may be
// enforced while the rest of the policy is audited.
//
// Expressions are ended by a limit on cost and one on memory, some 30 ms at
// most, and by the context. Annotations come from whoever made the image, who
// can make them long. CEL's extensions (strings, lists, regular expressions) are
// left out: what is there suffices for what people ask of images, and each would
// be one more thing to bound.
package rules
