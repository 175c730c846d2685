// Command shoal is a pull-through cache for container images whose nodes fetch
// from each other. One binary is everything: the daemon on a node, the
// scheduler of a fleet and the tools for people.
//
// One file per command; keys.go derives files, flags and environment variables
// from daemon.Config; load.go puts the layers of the configuration together;
// ui.go is what a person sees.
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
// their names, and names of registries are keys.
//
// An unknown key, flag or SHOAL_ variable is an error: a mistyped secretFile
// must not leave a fleet open. Variables in the forms that the kubelet sets for
// a Service called shoal are let through.
//
// Exit codes: 0 for success, 1 for a failure, 2 for a mistake in the command
// line or the configuration, so that a supervisor can tell "try again" from
// "don't"; 128 plus the signal's number when a second signal cuts a drain off, or
// when a signal ends a measurement.
package main
