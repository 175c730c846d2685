// Package origin is the client of upstream registries: it resolves references,
// fetches runs of blobs and manifests, and passes lists on. It logs in where a
// registry asks for that, follows redirects to object storage, goes on after a
// cut at the byte where it was, and asks mirrors in order.
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
// asked once before the first wait. A URL that could not be reached comes last
// for half a minute: a mirror behind a silent firewall costs one connect
// timeout and not one per request. An attempt that brought 64 KiB or more
// before it was cut is followed at once by the next, at the same URL: a
// connection that is cut every mebibyte is slow, not broken.
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
// Upstreams under "*" take no proxy from the environment: the rule that only
// public addresses are reached is checked at the connect, after DNS, and a
// proxy would do both out of sight.
//
// A registry that ignores Range is coped with by reading up to the offset and
// dropping that. It is right but costs the registry up to the whole blob per
// run.
package origin
