// Package mirror is the door for container runtimes: the read half of the OCI
// distribution API, over HTTP, for as many upstream registries as the node is
// configured with.
//
//	GET, HEAD /v2/                          is this a registry?
//	GET, HEAD /v2/<name>/manifests/<reference>
//	GET, HEAD /v2/<name>/blobs/<digest>
//	GET, HEAD /v2/<name>/tags/list          passed on to the upstream, remembered
//	GET, HEAD /v2/<name>/referrers/<digest> passed on to the upstream, remembered
//
// The upstream is chosen by ?ns= (containerd sends it), else by a first
// component of the name that is the host of a configured registry (podman's
// mirrors can have such a prefix), else it is Config.Default (dockerd says
// nothing). A one-component name on docker.io is one below library/.
//
// One request reads from top to bottom in serve.go: parse, Gate.Admit,
// Puller.Open, http.ServeContent. ServeContent does ranges, conditions and
// HEAD; a blob that is whole is given as its file, so that the kernel's sendfile
// does the work. The reader of one that is still arriving waits for chunks, and
// what is here of it goes from the file as well (response.go). A blob for which
// there is no room here is passed on to its client (through.go).
//
// The proxy has the same handler for each upstream that it intercepts
// (Proxied, proxied.go): there the URL names none.
//
// Of an upstream whose callers' own tokens decide (auth: passthrough) the
// upstream's challenge is passed on, for /v2/ too, and what callers send goes to
// the gate. Its lists are asked for with the caller's token each time, and never
// remembered. Elsewhere nobody looks at an Authorization.
//
// An answer that is what was remembered, since the upstream does not answer or
// the node is offline, says so: Warning: 110 - "Response is Stale", Age, a line
// in the log, and source="stale" in the metrics.
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
// of the runtimes does. Over HTTP/2 the stream ends before its Content-Length, and
// Go's client, so containerd, reports the same (daemon/door).
//
// A client that takes less than a MiB in two minutes is let go, since whoever
// stops reading would hold a blob, a file and a goroutine for ever. The time
// begins with each MiB that is there to be sent, so a blob that comes slowly is
// nobody's fault. Pieces of a file are still handed to the kernel as the file.
// Over HTTP/2 it has to be done here: a client can stop one stream and not the
// connection, and a deadline ends a stream even while nobody writes, so that it
// is taken back after each write.
//
// A blob that is still arriving is sent with sendfile too, a quantum at a time:
// copying them was 7 % of all CPU time in a rollout. Measured over loopback
// through a door, the server's side (BenchmarkArriving, eight runs in turn on two
// busy cores): 0.50 CPU-s/GiB (0.38 to 0.57) where copies of 32 KiB took 0.61
// (0.46 to 0.73). The wait for a chunk
// and what it says of the rest is the Reader's, so the last chunk is held back as
// it is from reads, and a blob that is found wrong ends the answer. Only the 32
// KiB that are read before the headers are copied. What the kernel can't send is
// read and then written, 256 KiB at a time: over TLS, HTTP/2 and unix sockets,
// several ranges, what is passed on, and a blob whose file has no name any more.
// So is what the file does not give: the read knows why. Each of these writes is
// flushed, or the end of a chunk would wait in net/http for the next one. Who
// waits for a chunk of one range has no buffer meanwhile.
//
// The statuses, all in one function, status:
//
//	400 NAME_INVALID, DIGEST_INVALID, TAG_INVALID  the request makes no sense
//	401 UNAUTHORIZED     the upstream wants to see the caller's own token, and
//	                     its challenge is one that may be passed on
//	403 DENIED           the origin or a rule refuses. Not 401: without a
//	                     challenge to answer it would only make clients try
//	404 *_UNKNOWN        the origin does not have it, or is not configured here,
//	                     or the node is offline and it is not here
//	405 UNSUPPORTED      a write
//	416 RANGE_INVALID
//	502 SIZE_INVALID, DIGEST_INVALID, MANIFEST_INVALID
//	                     the origin's content is too large or not what its
//	                     digest says. It will be no better in a moment, and of
//	                     the 5xx containerd retries 500, 503 and 504 but not 502
//	503 UNAVAILABLE      the origin is down, slow, or limits us (its 429, its
//	                     5xx, its timeouts), or this daemon is shutting down
//	500 UNKNOWN          this node's own fault
//
// A 404 for a registry that is not configured here makes containerd go on to
// the next host, and the message says which key to add.
//
// A manifest that is served commits the node to its blobs, so all of them are
// started, in manifest order, before the client asks. They are learned first:
// a client's next request must find their links, or each blob would cost a
// question to the origin. An index starts nothing: it has many platforms, and
// the client's next request says which one. HEAD starts nothing either. Nor does
// the manifest of another platform than this node's, if the index has one for this
// one: containerd 2 fetches all of an index' manifests and the layers of one. Its
// layers are started when they are asked for.
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
// dockerd logs in only if the ping is challenged, so the ping of a passthrough
// upstream asks the upstream, and is a 503 if that does not answer: without a
// token nothing could be had in that moment anyway. A token that the upstream
// takes no more when content is still to come makes the gate ask once more with
// the caller's own: a client that gets a 401 logs in again, and one that gets a
// 403 gives up.
//
// What rules look into is here as a whole before anything of it is told, so a
// HEAD of a manifest fetches it then. Through the proxy, what an anonymous
// upstream does not show to this node is left to the client and its own
// credentials, unread, unless there are such rules: nobody could say that they
// were kept. A path that looks like that of a manifest or a blob and does not
// parse is refused there, since the registry might read it in another way.
//
// The audit has a record of each GET of content that was answered and of each
// refusal. A 401 to who has sent no token is the beginning of a login and none.
// Who is asking is what the client says (the name of Basic, the subject of a
// JWT); the registry has checked it if the content was private.
//
// Lists are read into memory (origin.MaxList bytes) and then sent. A list that
// ends early would be shorter, not broken, to a client. Each page is remembered
// under its own query, its text as a blob of the cache, so that it is evicted
// like one. It is remembered before it is sent, at the price of an fsync: lists
// are rare, and what a client has seen can be seen again.
//
// What can't be kept is passed on. When the cache has no room for a chunk
// (cache.ErrFull), or the disk does not take it (pull.ErrStore), or does not give
// back what it took, the rest of the response comes from the origin and is kept
// nowhere. Its end is as safe as otherwise: all of the blob runs through the
// digest, from byte 0, and the last 32 KiB of the response are held back until
// the digest is right. What is here, and so what the client has already, is read
// back from the cache for it and not fetched again. The costs: a Range of a blob
// that is not here moves all of the blob, since nothing less can be verified; no
// two clients share what is passed on; and a response that goes on like this after
// n bytes waits until they have been read and hashed, about a second for a
// gigabyte or two. A chunk, the one that found no room, comes twice.
//
// Of a file that is whole and ends too soon, or can't be read, Config.Doubt is
// told, and the client gets the rest in the same way: half of the clients would
// fail at a cut. Only several ranges at once are cut, since where in them it
// happened only http.ServeContent knows. The file is given to it with the size
// that the blob has, or it would take what is left for all there is.
//
// The metrics have the sources of metrics.go as a label, not statuses: an
// operator wants to know what the cache is good for, and the log has the status.
// Upstreams have their configured names, and all others are "other": under "*"
// clients could make up any number. A HEAD counts as a hit if what it describes
// is whole here.
//
// Departure: a multipart answer is flushed part by part. net/http would hold a
// short first part back until the next one has come from the origin.
package mirror
