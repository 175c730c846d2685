// Package rollout rolls an image out to many nodes and measures what they do:
// `shoal bench rollout`.
//
// Run starts a registry, a scheduler and daemons as processes of the real
// binary, each in a network namespace with a link of its own (bench/netns),
// pushes an image of random bytes, and pulls it through every daemon as a
// container runtime does: the manifest by its tag, then the layers in manifest
// order, three at a time. Every byte is checked. What came of it is a
// report.Result, with the least time that the links allow beside it.
//
// # Why
//
// What a rollout takes is decided by processes that share links, and by
// nothing that a function's benchmark sees. So the processes are the shipped
// binary, the registry is one that people run, and the links are the kernel's.
// Only the clients are of the harness: goroutines that dial inside the node's
// namespace, since a runtime's unpacking would measure the disk of this machine.
//
// The registry listens on the loopback of its own namespace, and a proxy of the
// harness stands on its link: it counts the bytes of layers that leave. What
// the daemons say that they got is collected beside that count, never instead.
//
// All processes share one machine. A harness that takes more than the machine
// has measures the machine, and prints a figure that looks like any other. So
// what a transfer costs here is measured first, for a fraction of a second, and
// a rollout that would need more than there is does not start. Processes cost
// something as such too: 32 nodes at 25 Mbit/s move as much as 8 at 100 and need
// nearly twice the cores. That is an estimate, made for links that are full: on two
// cores where a byte costs 5 ns in the probe, daemons delivered 150 MiB/s together
// with no core idle, 1.6 times to 2.5 times as much a byte depending on what else
// went on. So the result also says which share of the cores was busy, and above nine
// tenths it says what that means.
//
// The files of all members are on one machine too, and no fleet shares a disk. So
// they are in memory, in the tmpfs that Linux has for it, if nobody names another
// place and that one is roomy: files and processes together may need half of the
// memory that is available, or that the cgroup still allows, and the files half of
// the tmpfs (storage.go). Else they are where temporary files go. With 16 nodes on
// two cores a GiB took 13.5 CPU seconds and the rollout 1.52 × the bound on one
// ext4, 11.8 to 12.4 and 1.36 to 1.44 in memory. What memory leaves out is what a
// node's own disk would take: fsync costs nothing there. A daemon does that after
// its clients have the bytes, so that a pull does not wait for it; but a disk that
// is slower than the link is not seen, and --dir with a folder on one shows it. The
// result says where the files were. A daemon's small files, 2 to 4 MiB of index,
// are in what a process is thought to take.
//
// The harness is to cost little itself: clients compare what they get with the
// files that were pushed, mapped once for all of them, which takes less than a
// third of hashing it, and before the clients begin the memory that the daemons'
// files will take, wherever they are, is touched and given back (memory.go). All
// hosts have cubic for congestion control, which is Linux's default, unless
// something else is asked for: with BBR, the default of the machine where this was
// written, 3 to 10 % of the segments were sent twice (0.3 to 1.1 % with cubic; links
// of 25 Mbit/s with queues of 20 ms), and 8 nodes at 100 Mbit/s took 0.02 to 0.1 ×
// the bound longer.
//
// Without root, InProcess runs the same daemons in one process (bench/fleet)
// with their own rate limits in place of links. It is for a first look: bytes
// in flight have no queue to wait in, and processes cannot be killed. Its
// registry is a file server, since one process has no link to put a real one
// behind.
//
// Before the start every host has reached the origin, and the members each
// other: a new port of a bridge drops packets for up to a second, and what is
// lost then would be a second of a pull.
//
// A client goes on after a lost connection where it was, as containerd's does,
// and the result says how often. Whatever happens, the namespaces, processes
// and files of a run are gone when Run returns. Those of a run that was killed
// are found by the next one: namespaces by bench/netns, folders by a lock that
// nobody holds any more, in memory, where temporary files go and in --dir.
package rollout
