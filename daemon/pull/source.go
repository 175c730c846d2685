package pull

import (
	"context"
	"io"

	"github.com/shoal-project/shoal/proto"
)

// A Source serves chunks: a peer, or the origin. What it writes is not
// trusted.
//
// Fetch writes the bytes of r to w, in order, and returns nil only after all
// of them. It returns promptly when ctx ends, with an error that wraps ctx's,
// and stops with w's error when w fails. A Source is used by several
// goroutines at once. Every implementation passes pulltest.Suite.
type Source interface {
	Fetch(ctx context.Context, r proto.Run, w io.Writer) error
}

// A Class says how a source is to this node, for those who count bytes.
type Class uint8

const (
	ClassOrigin Class = iota // a registry
	ClassSeed                // a scheduler process
	ClassZone                // a daemon of this node's zone
	ClassFar                 // any other member
)
