// Package e2e pulls images with real runtimes through real Shoal processes from
// a real registry: containerd 1.6 and 2, podman, skopeo, dockerd, crane and
// regctl in front, docker-registry behind. It is all tests, behind the build tag
// e2e:
//
//	make e2e
//
// They need root, Debian's packages of those programs, and .ci/clients for what
// Debian does not have; where one is missing, all of them are listed with the
// commands that get them. A missing program fails the run: a check that skips
// itself is no check. E2E_LOGS is a directory for what the nodes say.
//
// # Why
//
// bench/fleet shows the promises in one process, with clients that are
// libraries. What it cannot show is here: that the shipped binary works as a
// process with a configuration file; that a runtime, configured as the README
// says, unpacks what it pulled and runs a container of it; and what happens
// when a process is killed, which leaves no time to tidy up.
//
// TestClients is the table of clients: each pulls cold, warm, and with the
// registry gone; the other tests are about what happens to the nodes. Containers
// of containerd 2 are not run: its shim would have to be built as well, and what
// it unpacked is seen by mounting it. That it fetches ranges in parallel is seen
// by a proxy between it and the node, since it does so only where it is told to.
//
// TestConfigure… let `shoal configure` write what the runtimes read, beside what
// somebody had written before, and look at what they make of it: their own dump
// of the configuration, pulls (containerd 1.6 through its CRI), and that they are
// as before after an undo.
//
// TestCRI, TestLogins… and TestCraneLogsIn are about private images, from a
// distribution with a token server. Each client tries without a login, with a
// wrong one and with that of somebody else, before the node has the image and
// after; it must be told that it may not, and not fail for another reason. A
// plain HTTP client asks for all parts of the image besides, since runtimes give
// up at the first no. It has to get everything by the same way with a token that
// is good, or its being refused would show nothing.
//
// What goes through the forward proxy comes from an address in a network
// namespace: dockerd takes those that begin with 127 for insecure, and would not
// check certificates. The clients trust the proxy's CA and no other.
//
// The containers print the checksums of their files, so that what is compared
// is what arrived at the very end, after the runtime's own unpacking. Every
// image is an index of two platforms, as most images are; the foreign one must
// not leave the registry.
//
// What left the registry is counted by a proxy in front of it, not by Shoal.
// The proxy slows the registry down where something has to happen in the middle
// of a pull, so no test depends on how fast the machine is, and none asserts a
// time. The runtimes are given no other way to the registry than through Shoal,
// so a pull that Shoal failed cannot succeed.
//
// Each test has a directory, processes and ports of its own, and takes them
// away: processes by their ID, mounts by their path, also when it fails. What
// runs on the machine besides, such as its own dockerd, is not touched.
package e2e
