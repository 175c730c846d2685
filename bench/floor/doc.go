// Package floor has the benchmarks that put one real node of Shoal beside the
// least that its work can cost, in the same run: a warm blob beside nginx, a
// cold one beside the origin itself, and how much memory it takes. All of it is
// in test files.
//
//	go test -run '^$' -bench . ./bench/floor
//
// # Why
//
// A figure of one machine at one moment says nothing elsewhere, a ratio does. So
// ours and the floor take turns, on the same bytes, with the same client, and
// what is printed are the medians' ratio or difference.
//
// The node is a process of the binary as it is shipped, which the benchmarks
// build unless BENCH_SHOAL names one, such as that of another commit. nginx is a
// process too: a server in the client's process would share its
// scheduler, its garbage collector and its CPU account. nginx runs as its
// packages have it, sendfile and tcp_nopush on, with one process, which one
// client cannot use up. Without nginx its benchmark is skipped and says how to
// get it.
//
// The client reads into one large buffer and drops it. It costs the same beside
// both servers, and it is a part of what a runtime has to do anyway.
//
// A cold blob is asked for alone, without its manifest: so the node has to ask
// the origin how long it is, or whether it may be had, on top of fetching it. In
// a pull the manifest has told it that, and the blobs are on their way before
// they are asked for; that is the cold image.
package floor
