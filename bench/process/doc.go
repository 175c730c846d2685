// Package process runs programs of which a test or a demonstration is made:
// it starts them, keeps the end of what they print, waits for a line of it,
// and ends them. A Node is the one program that is Shoal's own.
//
// # Why
//
// What only processes can show is shown with processes: that the binary works
// as it is shipped, and what is left of it after SIGKILL. bench/demo and
// the tests beside it need the same few things for that, and need them right: no program
// outlives the one that started it, programs are ended by their process ID and
// never by their name, and when one dies what it said last is in the error.
//
// Each program is in a process group of its own, so that Ctrl-C reaches the
// starter alone and it can end the others in order. On Linux the kernel kills
// them if the starter dies without doing so, as a test does that runs into its
// time limit.
//
// Ports are free ones that the kernel chose. A Node says on its log which, so
// nobody has to guess one and hope.
package process
