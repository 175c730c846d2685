package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A platform is a flag: one of those that an image is made for, or none for all
// of them.
type platform struct{ want *ocispec.Platform }

// UnmarshalText is for kong.
func (p *platform) UnmarshalText(text []byte) error {
	want, err := platforms.Parse(string(text))
	if err != nil {
		return fmt.Errorf("%w; write one such as linux/amd64 or linux/arm/v7", err)
	}
	p.want = &want
	return nil
}

// choose returns root, or what an index root with the bytes raw has for p: the
// first of those that run on it best, as a runtime chooses.
func (p platform) choose(root part, raw []byte) (part, error) {
	if p.want == nil {
		return root, nil
	}
	ps, err := parts(raw, root.desc.MediaType)
	if err != nil {
		return part{}, err
	}
	fits := platforms.Only(*p.want)
	var best *part
	var has []string
	index := false
	for i, m := range ps {
		at := m.desc.Platform
		switch {
		case !m.isManifest():
			continue
		case at != nil && fits.Match(*at) && (best == nil || fits.Less(*at, *best.desc.Platform)):
			best = &ps[i]
		case at != nil && at.OS != "unknown": // an attestation of docker's builder
			has = append(has, platforms.FormatAll(*at))
		}
		index = true
	}
	switch {
	case !index:
		return root, nil
	case best == nil && len(has) == 0:
		return part{}, fmt.Errorf("is an index without platforms; export it without --platform")
	case best == nil:
		slices.Sort(has)
		return part{}, fmt.Errorf("has no image for %s; it has %s", platforms.FormatAll(*p.want), strings.Join(slices.Compact(has), ", "))
	}
	return *best, nil
}

// confirm returns an error if an image whose blobs are in l says that it is
// for another platform. What says nothing, such as an artifact, is for all.
func (p platform) confirm(l layout, t tree) error {
	if p.want == nil {
		return nil
	}
	for _, b := range t.blobs {
		if b.desc.MediaType != ocispec.MediaTypeImageConfig && b.desc.MediaType != "application/vnd.docker.container.image.v1+json" {
			continue
		}
		data, err := os.ReadFile(l.blob(b.Digest))
		if err != nil {
			return err
		}
		var config ocispec.Image
		if err := json.Unmarshal(data, &config); err != nil {
			return fmt.Errorf("config %s: %w", b.Digest, err)
		}
		if config.OS != "" && !platforms.Only(*p.want).Match(config.Platform) {
			return fmt.Errorf("is an image for %s, not for %s", platforms.FormatAll(config.Platform), platforms.FormatAll(*p.want))
		}
	}
	return nil
}
