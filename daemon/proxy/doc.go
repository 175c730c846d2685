// Package proxy is the door for clients that have the node as their HTTP(S)
// proxy: dockerd, which takes a mirror for docker.io only, and whatever else
// knows HTTPS_PROXY. It answers CONNECT, and requests in plain http with whole
// URLs.
//
// A host that is a configured upstream is intercepted: the proxy answers TLS
// with a certificate that its own CA has signed, and what is inside goes three
// ways (intercept.go):
//
//	GET, HEAD of a manifest or blob   Config.Handler, the mirror's, and of what
//	                                  could be taken for one
//	GET, HEAD /v2/                    the registry, or the handler if it is away
//	everything else                   the registry, as it came (untouched.go)
//
// All other hosts are reached through blind tunnels (line.go), or not at all
// with Tunnel off, and none that is this machine, its links or a cloud's
// metadata (guard.go). ca.go makes the CA and signs.
//
// # Why
//
// goproxy takes CONNECT requests apart, takes their connections over and writes
// refusals. For what comes after, its v1.9.2 does not do, and so each intercepted
// connection is handed to an http.Server of net/http, and each request for the
// registry to httputil.ReverseProxy:
//
//   - Its interception reads requests with no limit to their headers, no timeout
//     of the handshake, of headers or between requests, and answers no
//     Expect: 100-continue. Its answers are http.Responses: a handler that
//     serves ranges and sets deadlines would need a pipe and a goroutine.
//   - In plain http, an answer without a length that the registry has cut short
//     ends as a whole one, and parts of it are held back until there is more.
//   - The client's connection of a websocket that has ended is left open.
//   - What a client sends right behind its CONNECT, or its upgrade, is lost:
//     goproxy drops the buffer, and ReverseProxy does not look into it. Both are
//     given a connection that reads that first (hijackable, patientWriter).
//   - It cannot be told to end its tunnels, nor waited for.
//   - It makes the keys of certificates from the first 16 bytes of the CA's key
//     in DER. Of an RSA key those are public. So keys come from crypto/rand.
//
// # The CA
//
// Whoever has its key can be any host that it is not limited to, to everybody
// who trusts it. So it has critical name constraints for what is intercepted,
// addresses as well as names: a kind of name that no constraint speaks of would
// be free. It is good for TLS servers only. "*.gcr.io" becomes the constraint
// "gcr.io", since the form with a leading dot is not in RFC 5280 for names of
// hosts; a domain's owner is the owner of what is below. A host that it does not
// cover is refused when somebody connects: tunnelling it instead would go around
// the policy that interception is for, and a certificate that no client believes
// tells nobody what to do. Certificates live for a week, are made when needed
// (0.2 ms) and remembered, 1,024 of them.
//
// # What a client may have
//
// The upstream follows from the CONNECT, and a request for another Host inside is
// refused (421), so a client that may reach one upstream does not get to another
// one's grants. Content is the handler's to answer however its path is written,
// with a query or with escapes: a registry may read it as the plain one, and what
// the policy refuses would come that way. The handler takes ?ns= for nothing here,
// so that it does not name another upstream either.
// Proxy-Authorization is nobody's business and dropped. The registry's TLS is
// always checked.
//
// A ping decides whether there is a pull at all, and dockerd asks it before each.
// If the registry does not answer it within 8 s, or says 429 or 5xx, the handler
// does, so that what is here can be pulled while the registry is away; a 401
// stays a 401.
//
// # Where tunnels lead
//
// A proxy on a node is a way into what only that node reaches. Addresses are
// checked after the name was resolved, by the dialer itself, so a name that
// changes its address is no way around. Private networks of the site are
// allowed, since its registries and storage are there. Ports are 443 unless
// configured: mail servers and databases are not for a runtime. An upstream may
// be anywhere, on any port, but at the proxy's own address, where it would call
// itself for ever. The transports follow no proxy of the environment, which is
// often this one.
//
// # Limits
//
// Clients in Go show nothing of a refused CONNECT but its reason phrase, so that
// is where the reason is.
//
// 512 connections at once after their CONNECT, 256 of one client; at the limit
// the one that has been idle for longest gives way, if that was for a minute.
// Intercepted ones speak HTTP/1.1, so requests are no more than those. A tunnel
// ends when nothing has moved in 10 min in either direction: each direction can
// end alone, as long as the other one moves. A client has 10 s for headers and
// for a handshake, and 2 min to take or send some more. A push may take hours,
// and 10 min from its last byte until the registry answers, which may hash a
// layer in that time. No HTTP/2 inside: a cut blob is a stream error there, which
// not every runtime resumes after. Tunnels copy through buffers of 16 KiB and not
// with splice, which would not tell whether something moves.
//
// Plain text in a CONNECT to an intercepted host, which nothing real sends, is
// answered with net/http's 400.
package proxy
