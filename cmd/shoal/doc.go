// Command shoal is a pull-through cache for container images whose nodes fetch
// from each other. One binary is everything: the daemon on a node, the
// scheduler of a fleet and the tools for people.
//
// One file per command; keys.go derives files, flags and environment variables
// from daemon.Config; load.go puts the layers of the configuration together;
// ui.go is what a person sees, meter.go how far something is. layout.go is an
// OCI image layout in a folder, manifest.go what is in it, door.go the mirror
// that an export reads.
//
// # Why
//
// The keys of the configuration are derived from the tags of daemon.Config by
// reflection, in keys.go and nowhere else. Written thrice (file, flags,
// environment) they would differ within a month. kong takes the flags as a
// struct that is built at run time for that reason.
//
// koanf merges the layers and fills the struct. The file is read with the YAML
// library under koanf's parser rather than through it, because an unknown key
// is reported with its line, and only the nodes of the document know lines.
// koanf's paths are divided by a slash, not a dot: registries have dots in
// their names, and names of registries are keys. What reads itself from a text
// stays a text until koanf fills the struct: koanf copies what it merges, and
// loses the unexported fields of structs.
//
// A list of mappings (prefetch, webhook.rules) is one key. Its flag and its
// variable hold the list in YAML, as those of a mapping do: a flag for each
// field of each element could not be named.
//
// An export reads the mirror as containerd does, so it works for every upstream
// of the node, from its cache while the origin is away, and needs no
// credentials. The layout is written by layout.go and read by go-containerregistry
// in tests only: that library knows no SHA-512, takes a file of the right length
// for a right one, which an export that goes on must not, and would add a
// registry's client to a binary that has one. Blobs are written beside
// their names and renamed when they are right and on the disk, and index.json
// names an image last, so that a layout is one at any moment, whenever the stick
// is pulled out.
//
// --platform exports the manifest of that platform under the image's name, as
// skopeo and crane do, and not an index with most of it missing: the layout has
// all that it names, and every tool reads it.
//
// An import looks at all manifests and the length of all files before it sends
// anything, so that a stick that was copied in part is noticed at once and not
// after an hour; bytes are compared with digests blob by blob, by this command
// and by the node.
//
// An unknown key, flag or SHOAL_ variable is an error: a mistyped secretFile
// must not leave a fleet open. Variables in the forms that the kubelet sets for
// a Service called shoal are let through.
//
// doctor puts two views together. Only the node can say whether it reaches its
// registries and its fleet, so it is asked; only this side sees whether the
// runtime knows the mirror and the mirror answers. It goes on when something is
// broken, the configuration and the node included: that is what it is for. A
// runtime that does not use the mirror fails the examination only if none does,
// or if it was named.
//
// The daemon, the scheduler and the benchmarks start themselves anew with a
// coarser timer slack; timers_linux.go says why, and what it saves.
//
// Exit codes: 0 for success, 1 for a failure, 2 for a mistake in the command
// line or the configuration, so that a supervisor can tell "try again" from
// "don't"; 128 plus the signal's number when a second signal cuts a drain off, or
// when a signal ends a measurement, a copy or the wait for a job.
package main
