// Package door is what stands between the network and a handler: it listens, at
// an address or a unix socket, with or without TLS, and it bounds what anybody
// who reaches it can make the process hold.
//
// The limits, all of them per door:
//
//	who           Config.AllowFrom; others are closed before a byte is read
//	connections   Config.MaxConns, and half of the files that the process may
//	              have open; an idle one gives way
//	requests      Config.RequestsPerClient at once, per address (per /64 of
//	              IPv6); 503 over it
//	headers       64 KiB, within 10 s
//	bodies        Config.MaxBody; each read of one within 2 minutes
//	answers       each write within 2 minutes: of 4 MiB of a file, else of
//	              what is written at once
//	idle          2 minutes
//	HTTP/2        100 streams, 1 MiB of what is not read yet, a ping to whoever
//	              is silent for a minute
//
// Those on headers and idle connections are the http.Server's, where it has
// others.
//
// # Why
//
// A flood must not cost others what they have. So a connection on which no
// request runs has no right to stay: it gives way to a newer one, and a client
// opens another without noticing. It is the oldest of the client that has most of
// them, so that who opens ten thousand and says nothing closes his own. Connections on which a request runs never give
// way, which makes them what has to be bounded per client. Those that have sent
// half of a header count as idle, whatever they do to look busy.
//
// When all connections have a request the newcomer is closed: to a runtime that
// is a mirror that is down, and it goes on to the next host at once, where it
// would wait for one that does not answer. For the same reason the answer over
// the limit of requests is 503: containerd repeats 408 and 429 dozens of times.
//
// A write has a deadline that begins with it, and not with the request: a layer
// may arrive over a thin link for hours, and what it waits for then is not the
// client. The deadline is set below TLS and below net/http, where the wait for
// content ends and the wait for the client begins. A server's WriteTimeout can't
// tell them apart. A stream of HTTP/2 can be stopped by its own client while the
// connection goes on; who writes a lot there, the mirror, sets a deadline itself.
//
// Under net/http a connection that is wrapped loses sendfile, unless it has
// ReadFrom. That of a conn here hands files to the kernel in pieces, each with
// its deadline (TestSendfile). Go uses sendfile on TCP only, so a unix socket
// costs a copy.
//
// HTTP/2 is offered where TLS is on, since clients that ask for it expect it. It
// costs half as much again as HTTP/1.1 over TLS (DESIGN.md, "Data plane"). When a
// handler returns before the Content-Length that it promised, net/http sends the
// stream's end and no more: the length is what shows that something is missing.
// RFC 9113, section 8.1.1, calls such a response malformed. Go's client reports
// it as io.ErrUnexpectedEOF, as it does over HTTP/1.1, and containerd resumes
// after that and nothing else; libcurl calls it a stream that was not closed
// cleanly (TestCutIsSeen). So the rule of the mirror holds for both: return, and
// add nothing. A panic with http.ErrAbortHandler would send RST_STREAM, which is
// as clear and which containerd does not resume after.
//
// A unix socket is made under another name and renamed, so that at no moment it
// has wider permissions than it should, and one that a dead process has left
// makes no trouble. One that answers is in use, and stays.
//
// A certificate is read again when its file changes. If it is no good, or does
// not belong to the key, the old one stays and the log says so.
package door
