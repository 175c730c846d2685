package cache

import (
	"fmt"
	"path"
	"strings"

	"github.com/shoal-project/shoal/proto"
)

// A PinPattern says which images stay. See ParsePin.
type PinPattern struct {
	text       string
	digest     proto.Digest // if it is of one digest, and nothing below is
	repository []string     // components, the upstream first; each is a pattern of path.Match, or **
	tag        string       // a pattern of path.Match; "" is any
}

// ParsePin reads a pattern of what is pinned:
//
//	sha256:…                          a blob, or an image by its manifest
//	docker.io/library/alpine:3.20     the image that a tag names, whatever that is at the time
//	docker.io/library/alpine          all tags of a repository
//	docker.io/library/alpine@sha256:… an image by its digest
//	docker.io/library/*:v*            * matches within a part of the name, or a tag
//	ghcr.io/team/**                   ** matches any number of parts
//
// The upstream is always named, as the configuration has it.
func ParsePin(s string) (PinPattern, error) {
	s = strings.TrimSpace(s)
	bad := func(format string, args ...any) (PinPattern, error) {
		return PinPattern{}, fmt.Errorf("pin %.200q: %s", s, fmt.Sprintf(format, args...))
	}
	if s == "" {
		return bad("it is empty: write an image such as docker.io/library/alpine:3.20, a digest, or a pattern such as ghcr.io/team/**")
	}
	if strings.ContainsAny(s, " \t\r\n\x00") || len(s) > 1024 {
		return bad("no reference has blanks in it or is longer than 1,024 bytes")
	}
	p := PinPattern{text: s}
	if d, err := proto.ParseDigest(s); err == nil {
		p.digest = d
		return p, nil
	}
	name, digest, byDigest := strings.Cut(s, "@")
	if byDigest {
		d, err := proto.ParseDigest(digest)
		if err != nil {
			return bad("%v", err)
		}
		p.digest = d
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name, p.tag = name[:colon], name[colon+1:]
		if p.tag == "" {
			return bad("there is no tag after the colon")
		}
		if _, err := path.Match(p.tag, ""); err != nil {
			return bad("the tag is not a pattern: %v", err)
		}
	}
	p.repository = strings.Split(name, "/")
	for _, part := range p.repository {
		if part == "" {
			return bad("a part of the name is empty")
		}
		if _, err := path.Match(part, ""); err != nil {
			return bad("%q is not a pattern: %v", part, err)
		}
	}
	if first := p.repository[0]; len(p.repository) < 2 || !strings.ContainsAny(first, ".:*") && first != "localhost" {
		return bad("it does not begin with a registry: write docker.io/library/alpine:3.20, a digest sha256:…, or a pattern such as ghcr.io/team/**")
	}
	if byDigest {
		p.repository, p.tag = nil, ""
	}
	return p, nil
}

// String returns what ParsePin was given.
func (p PinPattern) String() string { return p.text }

// Matches reports whether p is of the tag n.
func (p PinPattern) Matches(n TagName) bool {
	if !p.digest.IsZero() {
		return false
	}
	if p.tag != "" {
		if ok, _ := path.Match(p.tag, n.Tag); !ok {
			return false
		}
	}
	return matchParts(p.repository, append([]string{n.Upstream}, strings.Split(n.Repository, "/")...))
}

// matchParts matches the parts of a name. It keeps what it would go back to for
// the last ** only, which is enough, so it takes no more than the product of
// the lengths.
func matchParts(pattern, name []string) bool {
	i, k := 0, 0
	star, from := -1, 0
	for k < len(name) {
		if i < len(pattern) && pattern[i] == "**" {
			star, from = i, k
			i++
			continue
		}
		if i < len(pattern) {
			if ok, _ := path.Match(pattern[i], name[k]); ok {
				i++
				k++
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		i, k = star+1, from
	}
	for i < len(pattern) && pattern[i] == "**" {
		i++
	}
	return i == len(pattern)
}
