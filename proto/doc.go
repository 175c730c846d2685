// Package proto holds the words that Shoal's processes say to each other: what
// content is called (Digest, Blob, Chunk, Set, Sum), who is in the fleet
// (Member), the messages between a node and a scheduler, and how they are
// framed. README.md beside this file is the wire specification.
//
// # Why
//
// The package uses the standard library only and imports nothing of Shoal, so
// that every room can import it and another implementation of the protocol
// needs this folder and no other.
//
// Digest is an opaque struct, not a string type: the only ways to have a
// non-zero one are to parse it or to compute it, so no path, key or request is
// ever built from text that a stranger chose.
//
// The messages have a codec of their own instead of JSON or a generated one: a
// scheduler writes tens of thousands of leases a second, every field is a
// number or a short string, and the whole codec is shorter than a schema and
// its generated code would be. Every decoder is bounded by the frame that it
// reads from and is a fuzz target.
package proto
