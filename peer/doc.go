// Package peer is this process among its peers: the identity by which they
// know it, the chunks that it gives them and asks of them, the control streams
// between nodes and schedulers, and those on which one node asks another to
// bring images (jobs). All of it goes over one port.
//
// # The port
//
// The first byte that the dialling side sends tells what a connection carries:
//
//	0x16       a TLS handshake: the data plane, HTTP/1.1 over TLS 1.3
//	A to Z     an HTTP method: the data plane in plain HTTP, only if peer.security is none
//	0x13       multistream-select: libp2p with TLS and yamux, for the streams of control and of jobs
//
// Both kinds of TLS are mutual, with the certificates of libp2p's TLS
// handshake (libp2p specs, tls/tls.md): each is made by its owner and signed
// with the owner's Ed25519 key, so each end proves its peer ID and there is no
// authority to run. Members are let in and nobody else. An ID that the gossip
// has not brought yet is awaited for a second.
//
// # The data plane
//
//	GET /v1/blobs/<digest>
//	Range: bytes=<first>-<last>        needed; both ends, inside the blob
//	Shoal-Within: <milliseconds>       how long to wait for chunks that are not here yet
//	Shoal-Capability: <text>           shown for a private blob, which has an alias for a digest
//
// is answered with 206, Content-Range and the bytes. The blob may be still
// arriving: chunks are sent as they come in. 404 says that nothing of the blob
// is here for this asker, 503 that the first chunk did not come in time, 416 that the range is
// missing, malformed or outside, 403 that the asker is not a member any more.
// If a later chunk does not come, the answer is cut short and the connection
// closed, so the asker sees fewer bytes than Content-Length says and never a
// wrong one. HEAD works too. A stranger does not get as far as HTTP.
//
// With curl, on a node with peer.security none:
//
//	curl -r 0-1023 http://10.0.0.7:7051/v1/blobs/sha256:…
//
// # Floods
//
// A connection must say its first byte in 5 s and end its handshake in 10 s; of
// those that have proven nothing there are 1,024 at most, and the oldest gives
// way. One identity has at most 256 connections, and so as many requests at a
// time; one address 8,192 with security none, since many members may share it;
// all together 16,384. A header is at most 8 KiB and must come within 10 s, a
// request has no body, an idle connection is closed after 90 s, and an asker
// that takes less than a MiB in 2 minutes is let go. A stranger who goes through
// with the handshake, again and again, costs a millisecond of CPU each time:
// that is for a firewall to stop.
//
// # Why
//
// One port, because one is what people open in firewalls and find in
// `advertise`. libp2p's own way to share a port (p2p/transport/tcpreuse) was
// read and not taken: it identifies 64 connections at a time and gives each 5 s,
// so 64 that are silent hold up everybody who comes after them. Here each
// connection waits for its first byte by itself, and when too many have proven
// nothing the oldest is closed: members prove themselves in milliseconds. The
// byte is peeked at (MSG_PEEK) and left where it is, so that the connection
// needs no wrapper and stays a bare *net.TCPConn.
//
// Sendfile is what makes security none cheap, and it is easy to lose: net/http
// uses it only for a bare *net.TCPConn and an io.Copy that finds the
// ResponseWriter's ReadFrom. TestSendfile looks at the effect: what is changed
// in the file after it was "sent" arrives changed.
//
// libp2p is put together from its parts (swarm, upgrader, TLS, yamux) and not
// with libp2p.New, which links QUIC, WebRTC and WebSocket whether they are used
// or not. Measured, a program with nothing else: 12.7 MB against 30.2 MB of
// binary, 10 MB against 20 MB of memory, 4 goroutines against 16. A relay or
// hole punching for branch offices can be put around the same swarm later. Its
// transport is our own because libp2p's resets connections on close, which can
// lose the last message of a stream; a stream here is closed when the other end
// has seen the end of it, for a second at most. libp2p refuses to dial a peer
// for 5 s after a failure: that is switched off, since the caller knows better
// when its scheduler is worth another try.
//
// Connections are pooled under identity and address together, so that a
// connection that proved one identity is never used to ask another that has
// come to the same address.
//
// A fetch that finds all connections to a peer busy waits for one of which the
// answer is over within 50 ms, since the scheduler grants the next lease on a
// source when the last one nears its end. http.Transport would dial: 16 nodes
// made 364 connections in a rollout, and 308 with the wait.
//
// TLS sessions are not resumed. A new connection costs 2.4 ms of CPU on both
// ends together, and 1.5 ms with resumption (2 cores of an AMD EPYC), but
// connections are kept for the next lease, and a resumed one would have to
// carry the proof of identity from the one before.
//
// A peer has stalled when no byte came for the timeout. The one timer of a
// fetch fires once in that time and looks how long the read under way has
// lasted; time that our own writer takes is not the peer's.
//
// The upload limit is asked before each MiB, and the deadline for the asker to
// take that MiB is set after the wait, so that who waits for its turn is not
// taken for dead. What is granted still goes by sendfile.
//
// What a peer means by a digest, and whether it may have that, is asked of
// Config.Real, which knows who has proven to ask; room daemon/veil says what is
// private. A refusal is the answer for a blob that is not here, to the byte, so
// that nobody learns who has what.
//
// Security none trusts addresses: whoever has the IP address of a member gets
// chunks. That is every program on a member's machine, and everybody who can
// take a member's address. Members' addresses must be IP addresses then; names
// are not looked up. Control streams are encrypted and proven all the same.
//
// What members send, they send with reno where the system has cubic
// (peer.congestion). Cubic leaves slow start as soon as round trips get longer, which
// on a link that many short transfers share they always do, and a connection that
// begins again after a rest goes on slowly from there. Rollouts over links of 100
// Mbit/s with the delay of the harness: six nodes with 20 ms 1.55 to 1.64 × the bound
// with cubic, 1.30 with reno, 1.65 to 1.97 with BBR; eight with 50 ms 2.2 to 2.4, 1.74
// to 1.83, 2.6 to 2.9; without a delay the same, with 5 % less CPU time. What reno is
// known to be bad at, growing after a loss over a long and fat link, lasts longer than
// a chunk does either way.
//
// The low water mark of a connection (SO_RCVLOWAT) is set back at the end of
// each body. It was not, when a whole body came in one read with its end: the
// next answer on that connection, if it was short, such as a 404, was then
// noticed after the stall timeout only.
//
// Measured against its floor, which is the same requests, sums and writes with
// nothing but net/http, in the same run (BenchmarkTransfer): 0.98 to 1.04 times
// the CPU in six runs, in plain HTTP and with TLS. A deadline for each MiB costs
// nothing that can be seen.
package peer
