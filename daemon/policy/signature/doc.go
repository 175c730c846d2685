// Package signature says who has signed an image, and what an attached
// vulnerability scan has found in it. It decides nothing: which signatures are
// needed where is up to the rules that ask.
//
// It verifies what cosign signs with a key or with an identity ("keyless"), as
// a tag, as a referrer or as a Sigstore bundle; what notation signs, as JWS or
// COSE; and of scan results cosign's and in-toto's attestations, with the
// reports of trivy and grype and those in SARIF.
//
// # Why
//
// The libraries are those of the projects, for what is signed and how. Finding
// and fetching is our own: their clients would log in, retry and fail over in
// ways of their own, and read more of a hostile registry than is good. All goes
// through package origin, with its credentials and its patience.
//
// # No network but the registry
//
// Nothing else is asked: not Rekor, Fulcio, a TUF repository, an OCSP responder
// or a CRL. A node without a way out must decide like every other one, and a
// pull must not wait for a third party. So the trust root is a file; a log
// entry counts by the log's signature in the bundle; and a certificate that is
// revoked is trusted until its key is taken out of the configuration. A public
// key is enough by itself: a log entry is not demanded with it.
//
// # What the signature has to be of
//
// The digest in the signed payload, or in one of the statement's subjects, or in
// notation's target, must be the image's. Names are not compared: images are
// copied to other registries with their signatures, and what was signed is the
// content. So a signature that is copied to another image is refused, and one
// that comes along with the image is not.
//
// An attestation is no signature. A scanner that signs "this has ten critical
// holes" has not approved of the image. Key.Predicates lists the types that are
// meant to count, such as a build's provenance.
//
// The subject of a signature's own manifest, its artifact type and its
// annotations are not signed. They only decide whether something is looked at.
//
// # Not known is not "no"
//
// A registry that fails must not turn a signed image into an unsigned one, since
// that is a 403 that no client tries again, nor an unsigned one into one whose
// check is left out. Only two answers count: what was verified, and "everything
// that is there was looked at". Both places are always asked (referrers, and
// cosign's tag), and an error of one is kept while the other is searched. What
// the registry has named itself and then does not have, or sends with another
// digest, counts as its failing and not as "no signature". Errors are not
// remembered.
//
// What is found before something fails is returned along with the error, and
// without it where it is enough: see Verifier.SignedBy. With several keys and
// none of them required, an answer that is not complete would be a wrong no to
// whoever asks for the key that is missing.
//
// # What is remembered
//
// A valid signature is remembered in the cache's index for as long as the image
// is there, by digest and by a fingerprint of everything that the key is: its
// kind, the content of its files, its identities. A restart, a failing origin or
// a copy in another repository costs no second look, and a key that is changed
// or taken away counts at once. A revoked signature can't be told from another
// one; the blocklist is for that. One of notation ends with its own expiry and
// its certificates', since a fresh check would end there too.
//
// "Not signed" is believed for 30 seconds, in memory: who pushes and then signs
// waits no longer, and a node that is asked for an unsigned image in a loop does
// not pass the loop on. "Some have signed and some have not" is believed for
// five minutes, because with several keys that is the usual state.
//
// A scan result is asked for anew every five minutes: it changes, and what
// passed yesterday need not pass today. That an image has passed is remembered
// with the time of the scan, and only used while the registry fails and the scan
// is young enough.
//
// # Scan results
//
// The newest counts that the gate's key has signed, by the time in the
// predicate. Whoever controls the registry can hide newer ones, so an age limit
// is what makes a gate worth having. What cannot be read, has a severity that is
// not understood or a time in the future is refused even where a missing result
// is allowed: a gate that can't tell must not open. "Unknown" is a severity that
// scanners do say, below negligible.
//
// One time and one key are one scanner: two scanners under the same key hide
// each other's results, and need two keys and two gates.
//
// # Bounds
//
// 64 signatures are looked at for one image, those first that say what they are;
// manifests have 4 MiB at most, signatures 1 MiB and scan results 16 MiB, two of
// them at a time; referrers are 8 pages, and a lookup takes a minute. A registry
// that hides a signature behind more than that has an unsigned image. A panic in
// one of the libraries refuses what was being verified.
//
// # What is not there
//
// Timestamps of notation: without them a signature ends with its certificate.
// Notation's plugins and signing authorities. Keys in a KMS. VEX. For a
// certificate with a P-384 or P-521 key, sigstore-go writes a line to standard
// error when it tries a second hash.
package signature
