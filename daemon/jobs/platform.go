package jobs

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/proto"
)

// A filter says what of an index is wanted.
type filter struct {
	all   bool
	wants []platforms.Platform
}

// newFilter reads platforms as people write them: "linux/amd64", "arm64",
// "linux/arm/v7". Without any it is def that is wanted.
func newFilter(specs []string, all bool, def platforms.Platform) (filter, error) {
	f := filter{all: all}
	for _, s := range specs {
		p, err := platforms.Parse(s)
		if err != nil {
			return filter{}, fmt.Errorf("platform %w; write one such as linux/amd64 or linux/arm/v7", err)
		}
		f.wants = append(f.wants, p)
	}
	if len(specs) == 0 {
		f.wants = []platforms.Platform{def}
	}
	return f, nil
}

// isIndex reports whether a manifest names others. Learn has refused one that
// reads as an image as well.
func isIndex(manifest []byte) bool {
	var doc struct {
		Manifests *json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(manifest, &doc) == nil && doc.Manifests != nil
}

// choose returns which of the manifests of an index are wanted (image-spec,
// image-index.md, "platform"): of each platform the first of those that run on
// it best, as a runtime chooses. Entries of no platform are taken if no entry
// fits, as in an index of something else than images. The error names the
// platforms that are there.
func (f filter) choose(index []byte) ([]proto.Digest, error) {
	var doc struct {
		Manifests []struct {
			Digest   proto.Digest      `json:"digest"`
			Platform *ocispec.Platform `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(index, &doc); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	var chosen, plain []proto.Digest
	var has []string
	for _, m := range doc.Manifests {
		switch {
		case f.all:
			chosen = append(chosen, m.Digest)
		case m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "":
			plain = append(plain, m.Digest)
		case m.Platform.OS != "unknown": // an attestation of docker's builder
			has = append(has, platforms.FormatAll(*m.Platform))
		}
	}
	if f.all {
		return unique(chosen), nil
	}
	for _, want := range f.wants {
		fits := platforms.Only(want)
		best := -1
		for i, m := range doc.Manifests {
			if m.Platform != nil && fits.Match(*m.Platform) &&
				(best < 0 || fits.Less(*m.Platform, *doc.Manifests[best].Platform)) {
				best = i
			}
		}
		switch {
		case best >= 0:
			chosen = append(chosen, doc.Manifests[best].Digest)
		case len(plain) > 0:
			chosen = append(chosen, plain...)
		default:
			slices.Sort(has)
			return nil, fmt.Errorf("it has no image for %s; it has %s", platforms.FormatAll(want), list(slices.Compact(has)))
		}
	}
	return unique(chosen), nil
}

// unique returns ds with each digest once, where it is first.
func unique(ds []proto.Digest) []proto.Digest {
	seen := map[proto.Digest]bool{}
	return slices.DeleteFunc(ds, func(d proto.Digest) bool {
		was := seen[d]
		seen[d] = true
		return was
	})
}

// list names things for a person, a hostile number of them as well.
func list(names []string) string {
	const most = 30
	if len(names) == 0 {
		return "none"
	}
	if len(names) > most {
		names = append(names[:most:most], "…")
	}
	return strings.Join(names, ", ")
}
