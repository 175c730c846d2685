// Package rate limits how much of its links a node uses: rates as people write
// them (Parse), times of the day at which others hold (Plan), and Limiters that
// share a rate between transfers.
//
// A transfer asks its Limiter how much it may move, waits, and moves that:
//
//	for left > 0 {
//		n, err := limiter.Wait(ctx, left)
//		…
//		n, err = io.CopyN(conn, file, n) // sendfile, if both are bare
//		left -= n
//	}
//
// Three limits make the Limits of a node: upload in the handler that serves
// peers, download and origin where a pull takes in what sources send. What comes
// from an origin is paid for twice, since it comes in over the same link.
//
// # Why
//
// The limit is asked for in the handler and not by a wrapped connection: a
// wrapped connection has no ReadFrom, so sendfile is lost. A grant is at most
// 1 MiB, since each may cost a timer, two changes of goroutine and a system
// call. Below 67 Mbit/s a grant is 125 ms' worth, but 16 KiB at least: at
// 1 Mbit/s 1 MiB would take 8 s, in which a peer sees nothing come and gives the
// transfer up as stalled after 10. Small grants cost nothing there, for there
// are never more than eight a second. With no limit a Wait is a load of a flag,
// 11 ns and no allocation; with one that has credit, 190 ns.
//
// Measured between two peers over loopback, CPU of both ends over that of the
// same transfer without a limit (BenchmarkUploadLimit in package peer, lowest
// and highest of three runs on two busy cores):
//
//	limit, quantum          plain HTTP     TLS
//	never reached, 1 MiB    0.93 to 1.03   0.96 to 1.14
//	1 Gbit/s, 1 MiB         1.19 to 1.36   1.06 to 1.16
//	1 Gbit/s, 64 KiB        1.31 to 1.38   1.30 to 1.42
//
// Part of what is over 1 is that a slower stream arrives in smaller pieces.
//
// Over any time at all, no more passes than the rate and one quantum. What a
// timer is late by is made up for, up to 5 ms' worth: at 10 Gbit/s a quantum
// takes 0.8 ms. Measured with one transfer on two busy cores: 0.94 of 10 Gbit/s
// and of 40 with it, 0.70 and 0.18 without.
//
// golang.org/x/time/rate was read and not taken. Its waiters are told how long
// to sleep when they come, so that a change of the limit does not reach those
// who wait: one that has come to an end in the evening would hold for another
// minute where twenty transfers wait for 1 Mbit/s. Its burst would have to be a
// quantum at all rates, and it drops what late timers miss. Here those who wait
// stand in a queue, the first one has the timer, and each is granted one quantum
// before it has to stand at the end again, which makes transfers equally fast
// however many there are and however large they are.
//
// A schedule goes by the clock on the wall, jumps and all: that is what "from
// eight to seven" means to those who sit in the office. A window that the clock
// jumps over in spring is not opened, one in the hour that comes twice in autumn
// is open twice. Next finds the change to come, by going from border to border
// in the time between two jumps, and one timer waits for it. That it looks at
// the clock every ten minutes all the same is for machines that sleep, during
// which timers stand still, and for clocks that are set.
//
// Rates hold for the bytes of blobs. The headers of TCP and IP, TLS and HTTP come
// on top, about 4 % on Ethernet.
package rate
