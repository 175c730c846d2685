package jobs

import (
	"errors"
	"fmt"

	"github.com/containerd/platforms"

	"github.com/shoal-project/shoal/daemon/origin"
)

// refs reads the images of s.
func (s Spec) refs(def string) ([]origin.Ref, error) {
	var refs []origin.Ref
	for _, image := range s.Images {
		ref, err := ParseImage(image, def)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// Validate returns what of s cannot be done, whatever the fleet and the origins
// are.
func (s Spec) Validate(def string) error {
	if len(s.Images) == 0 || len(s.Images) > maxImages {
		return fmt.Errorf("%d images: name 1 to %d", len(s.Images), maxImages)
	}
	if len(s.Platforms) > maxPlatforms {
		return fmt.Errorf("%d platforms: name at most %d, or ask for all of them", len(s.Platforms), maxPlatforms)
	}
	if s.AllPlatforms && len(s.Platforms) > 0 {
		return errors.New("all platforms and some of them: ask for the one or the others")
	}
	_, err := s.refs(def)
	_, ferr := newFilter(s.Platforms, s.AllPlatforms, platforms.Platform{})
	_, nerr := parseNodes(s.Nodes)
	return errors.Join(err, ferr, nerr)
}
