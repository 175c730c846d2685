package main

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"
)

// benchCmd is the harness: what a fleet does, measured.
type benchCmd struct {
	Rollout  rolloutCmd  `cmd:"" help:"roll an image out to many nodes over shaped links, and compare with what the links allow"`
	Simulate simulateCmd `cmd:"" help:"the same with the scheduler's decisions alone, under virtual time, for any number of nodes"`
}

// A byteSize is a flag in bytes, such as 64MiB.
type byteSize int64

// UnmarshalText is for kong.
func (s *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%q is not a size; write one such as 64MiB, 3GiB or 1000000", text)
	}
	*s = byteSize(n)
	return nil
}
