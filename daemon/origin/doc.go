// Package origin is the client of upstream registries: it resolves references,
// fetches runs of blobs and manifests, and lists tags and referrers. It logs in
// where a registry asks for that, follows redirects to object storage, goes on
// after a cut at the byte where it was, and asks mirrors in order. It leaves a
// registry alone that asks for that, and all of them while it is offline.
//
// It is nobody's word on who may have what: package policy decides that. What is
// here is whose login is used. An anonymous upstream sees none, a node upstream
// the operator's, and a passthrough upstream the callers' own: under
// WithAuthorization exactly what this caller sent, so that the upstream decides,
// and otherwise what Grant was told that the upstream has taken.
//
// # Why
//
// It is net/http and nothing above it. What matters here is what happens to a
// single body (where it is resumed, when it has stalled, whether its
// connection is used again), and registry client libraries hide that.
//
// Blobs travel over HTTP/1.1, one connection per range. Measured over TLS on
// loopback, 8 parallel ranges of 1 MiB, client and server together: 2.0 CPU
// seconds per GiB over HTTP/1.1 and 3.0 to 3.7 over HTTP/2. All ranges of one
// HTTP/2 connection would also share one congestion window, which is just what
// parallel ranges are to get around.
//
// Redirects are followed by hand. http.Client keeps Authorization on a redirect
// to another port or to a subdomain, object storage refuses requests that have
// both a signature and an Authorization header, and http.Client's errors have
// the whole URL in them, signature and all. A blob's last target is remembered
// for a minute, so that its hundred ranges cost one question to the registry.
// A redirect from https to plain http is refused.
//
// Failing over to the next URL costs nothing, waiting does, so every URL is
// asked once before the first wait, unless it rests. A URL that could not be reached comes last
// for half a minute: a mirror behind a silent firewall costs one connect
// timeout and not one per request. An attempt that brought 64 KiB or more
// before it was cut is followed at once by the next, at the same URL: a
// connection that is cut every mebibyte is slow, not broken.
//
// A registry that answers 429, or another error with Retry-After, is not asked
// until that is over, whatever it was that got the answer: it counts requests,
// not manifests. Then one call asks, and the others follow when it has been
// answered; a hundred waiting fetches that all came back would be told to wait
// again. Only an answer to a request that was sent after the rest ends it, since
// the 200 that was under way when the first 429 came proves nothing. The token
// server's 429 counts as the registry's, that of object storage does not. One
// caller's counts for all callers of a passthrough upstream: nobody can see from
// outside whose limit it was. A 503
// without Retry-After is no such request: it may be of a single blob, and one
// bad blob must not take a registry away. Each URL rests for itself, so mirrors
// stand in for each other.
//
// Resolve and lists fail at once while a registry rests for more than a second,
// because their callers may have something older to serve, and a client that
// waits is no better off with a fresher answer. Blobs can't be had elsewhere, so
// Fetch waits as long as a client would. Retry-After is believed up to an hour:
// a mistaken one should not outlive the day.
//
// Offline is a switch here and not in each caller, at the one place that every
// request passes. What runs is cancelled rather than waited for: who switches
// it off wants the link free. ErrOffline is neither ErrUnavailable nor
// ErrNotFound, so that nobody takes it for the registry's word.
//
// A list is read to its end before it counts, so that it is whole or an error
// and can be remembered. The referrers of a registry without that API are in a
// tag; ours are an empty index where that is missing too, but only if no URL
// failed otherwise. Before the API had a specification, registries answered it
// with 400, 405, 406, 501 or a web page; these are taken for a 404 as well, as
// other clients do.
//
// When URLs disagree, a refusal outweighs everything, so that nothing stale is
// served to somebody who was just denied it; then comes not knowing, since one
// mirror's 404 proves nothing while another URL did not answer.
//
// Errors have nothing in them that the other side chose: no reason phrase, no
// body, no Location. A registry could echo our own credentials there.
//
// A token's realm may be anywhere in the registry's own registrable domain by
// the public suffix list, and nowhere else unless the operator lists it.
// Tokens are kept per repository, which is their scope.
//
// The same rule holds for the challenges of passthrough upstreams that are
// relayed, since a client gives its password to the realm it is sent to. They
// are not copied but written anew: a realm is relayed as the address that was
// checked, so that no client can read it as another one, and of the rest only
// what token clients know. Only the registry's own 401 is relayed, and not that
// of a host which it redirects to. Basic is left out, because a client would send
// the password itself through here, unless the operator wants that. A caller's
// Authorization goes to the upstream's own scheme, host and port; that is why all
// URLs of such an upstream are of one domain and scheme.
//
// Under WithAuthorization a 401 ends the call at the first URL that says it: the
// caller has to hear it, and another URL would ask for the same. Fetch takes no
// notice of that context: a pull is shared by all who wait for the blob, and must
// not end with the first one's token. It uses the newest granted Authorization
// that is live. One that the registry refuses, with 401 or 403, is forgotten at
// once, and the next one tried; so a token that was revoked is used once more and
// not again. A pull that outlives all tokens fails, as the registry wants it: a
// client comes back with a new one, and the pull goes on where it was. Granted
// ones are in memory only. What a redirect led to belongs to the grant that it
// took, and is not used without it: a signed URL would outlive the right to it.
//
// A grant does not count against the bounds by its number alone: a registry that
// takes any token for a public repository would let a caller fill the memory with
// long invented ones.
//
// Credential files are read at each login, and looked at (a stat, about a
// microsecond) at each request: a login that is remembered from an older version
// of the file is not used any more, although it may still be good. Otherwise an
// operator who takes a secret away would have to know how long tokens live.
// Kubernetes changes a mounted secret by a symbolic link, which a watch on the
// file would miss.
//
// Credential helpers are run as docker runs them, one at a time, for 10 seconds
// at most, and their answer is used for a minute: a pull of a hundred ranges would
// otherwise be a hundred processes. What they write is in no error, since some
// write the secret there. They get a process group of their own, so that what they
// started ends with them. A secret in the file goes before the store: docker takes
// it out of the file when the store has it, so it was put there for this daemon,
// often in a copy of a file that names a store which is not installed here.
//
// Upstreams under "*" take no proxy from the environment: the rule that only
// public addresses are reached is checked at the connect, after DNS, and a
// proxy would do both out of sight.
//
// A registry that ignores Range is coped with by reading up to the offset and
// dropping that. It is right but costs the registry up to the whole blob per
// run.
package origin
