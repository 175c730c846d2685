// Package runtimes writes, undoes and checks the configuration with which
// containerd, dockerd, podman and CRI-O use the node's mirror.
//
//	containerd      config.toml (config_path), certs.d/<registry>/hosts.toml
//	docker          daemon.json (registry-mirrors, proxies), certs.d/<registry>/shoal.crt
//	podman, crio    registries.conf.d/zz-shoal.conf
//
// New plans: it reads, and returns the files as they would be. Apply writes
// them. Undo plans the way back. Check says whether a runtime uses the mirror,
// whoever configured it.
//
// # Why
//
// A plan is files before and after, and nothing else, so that --dry-run shows
// what would happen, a second run has nothing to do, and undo is a plan as well.
//
// What a person wrote is kept, to the byte: a key is put into the text where it
// belongs, and the text is never written anew from what a parser understood of
// it, which would lose comments, order and keys of later releases. The parsers
// are there to find the place and to prove the result: the edited text is parsed
// again and must differ from the old one in that key and in nothing else. What
// cannot be edited so (an inline table, a file that is generated) is refused
// with what to write by hand.
//
// What was there before is kept beside each file (.before-shoal), with a record
// (shoal-configure.json) of what was changed, what did not exist, which folders
// were made, and the modes and owners. The record is written before anything
// else, so that a crash in the middle leaves what undo understands. Undo restores
// to the byte; of a file that was edited since it says so and touches nothing,
// unless told to lose the edits.
//
// Planning again starts from what was there before, not from what the last run
// made of it, so configure is a statement ("these registries, this mirror") and
// not a heap of additions. A file that was edited since is taken as it is, without
// the old mirror.
//
// All files are opened below a root (os.Root), and symbolic links that lead out
// of it are refused, as is a file that is a link itself: a rename would replace
// the link. Absolute links count as leading out. --file names the real place.
//
// Nothing is restarted. A restart of containerd or dockerd is felt by what runs
// on the machine, so when it is done is not for a command that edits files to
// decide; the plan says which one is needed.
//
// For containerd each registry gets a folder of its own in certs.d, except where
// a _default is there already: a folder would hide it, and with it mirrors that
// somebody chose. For containers/image a drop-in replaces a registry's table in
// registries.conf as a whole, so the drop-in repeats what the table says and puts
// the mirror before the others. It sorts last, since the last one counts.
//
// A registry with a port is given no mirror in registries.conf: its name would be
// a part of the mirror's path, where references have no colon, and skopeo then
// fails each pull from it ("invalid reference format"), mirror or not (measured
// with 1.9.3).
//
// dockerd's containerd image store and its classic one use registry-mirrors for
// docker.io only; other registries go through the forward proxy.
package runtimes
