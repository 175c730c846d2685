// Package mirror is the door for container runtimes: the read half of the OCI
// distribution API, over HTTP, for as many upstream registries as the node is
// configured with.
//
//	GET, HEAD /v2/                          is this a registry?
//	GET, HEAD /v2/<name>/manifests/<reference>
//	GET, HEAD /v2/<name>/blobs/<digest>
//	GET       /v2/<name>/tags/list          passed on to the upstream
//	GET       /v2/<name>/referrers/<digest> passed on to the upstream
//
// The upstream is chosen by ?ns= (containerd sends it), else by a first
// component of the name that is the host of a configured registry (podman's
// mirrors can have such a prefix), else it is Config.Default (dockerd says
// nothing). A one-component name on docker.io is one below library/.
//
// One request reads from top to bottom in serve.go: parse, Gate.Admit,
// Puller.Open, http.ServeContent. ServeContent does ranges, conditions and
// HEAD; the reader that it is given waits for chunks that are still arriving;
// a blob that is whole is given as its file, so that the kernel's sendfile does
// the work.
//
// # Why
//
// What half of the clients can't do decides. Once dockerd, podman or skopeo has
// a manifest from a mirror, a failing blob fails the pull. containerd goes to
// the next host on any status from 400 on, but retries 408 and 429 dozens of
// times without a pause, and hangs on a mirror that hangs. So:
//
// The status tells the truth where it can. A manifest is here and verified as a
// whole before its headers are sent. A blob's headers wait for the first bytes
// that were asked for, up to 5 s, so that an origin that says no, is down, or
// sends something else becomes a status and not a cut. After that the headers
// go out and the bytes follow: containerd up to 2.2 waits for headers for ever,
// from 2.3 for 30 s, dockerd for 16 s, and a slow origin is no reason to fail.
// What needs an answer of the origin gets 15 s, just under dockerd's patience.
//
// Nothing is ever added to a response that began. Where a chunk can't be had
// from anywhere the handler returns with bytes missing, and net/http then
// closes the connection. Measured on the wire (Linux, Go 1.26), with 1,000 to
// 100,000 bytes of a longer body written, by Write and by ReadFrom: after a
// return the client gets every byte and then a FIN, which it reports as
// io.ErrUnexpectedEOF, the one fault that containerd resumes after. After a
// panic with http.ErrAbortHandler there is a FIN too, but what net/http had
// still in its buffers, up to 2 KiB and the headers with it, is lost. Only a
// client that has sent further requests meanwhile can get a reset, and none
// of the runtimes does. HTTP/2 is another matter and not served.
//
// The statuses, all in one function, status:
//
//	400 NAME_INVALID, DIGEST_INVALID, TAG_INVALID  the request makes no sense
//	403 DENIED           the origin or a rule refuses. Not 401: without a
//	                     challenge to answer it would only make clients try
//	404 *_UNKNOWN        the origin does not have it, or is not configured here
//	405 UNSUPPORTED      a write
//	416 RANGE_INVALID
//	502 SIZE_INVALID, DIGEST_INVALID, MANIFEST_INVALID
//	                     the origin's content is too large or not what its
//	                     digest says. It will be no better in a moment, and of
//	                     the 5xx containerd retries 500, 503 and 504 but not 502
//	503 UNAVAILABLE      the origin is down, slow, or limits us (its 429, its
//	                     5xx, its timeouts), or this daemon is shutting down
//	500 UNKNOWN          this node's own fault, such as a full disk
//
// A 404 for a registry that is not configured here makes containerd go on to
// the next host, and the message says which key to add.
//
// A manifest that is served commits the node to its blobs, so all of them are
// started, in manifest order, before the client asks. They are learned first:
// a client's next request must find their links, or each blob would cost a
// question to the origin. An index starts nothing: it has many platforms, and
// the client's next request says which one. HEAD starts nothing either.
//
// While draining, new pulls are refused, and blobs are not: whoever asks for a
// blob has its manifest already, often from here. A ping is refused too, as it
// is the first request of a pull by dockerd and podman. When the daemon's grace
// ends it closes the server.
//
// Departure: a repository of the default upstream whose first component has a
// dot is taken for one, unless that registry is configured. Docker Hub has no
// such names, other defaults may.
//
// Lists are read into memory (up to 8 MiB) and then sent. A list that ends
// early would be shorter, not broken, to a client.
package mirror
