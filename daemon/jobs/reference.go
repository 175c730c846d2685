package jobs

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// dockerHub is the registry whose repositories of one component stand below
// library/.
const dockerHub = "docker.io"

// hostGrammar is that of the registry in a reference: a name or an address,
// with a port or without (the distribution project's "reference" package,
// domain).
var hostGrammar = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?$`)

// maxReference bounds a reference in bytes: a host, a repository, a tag and a
// digest at their longest.
const maxReference = 255 + 255 + 128 + 140

// ParseImage reads a reference to an image as docker does: the registry is the
// first component if it has a dot or a colon or is "localhost", and else
// defaultUpstream; docker.io's images of one component are below library/;
// without tag and digest the tag is "latest". With both, the digest says what
// is meant, and the tag is kept.
func ParseImage(s, defaultUpstream string) (origin.Ref, error) {
	ref := origin.Ref{Manifest: true}
	wrong := func(format string, args ...any) (origin.Ref, error) {
		return origin.Ref{}, fmt.Errorf("image %.300q: %w; write one such as alpine:3.20 or ghcr.io/team/app:v1", s, fmt.Errorf(format, args...))
	}
	if len(s) > maxReference {
		return wrong("more than %d characters", maxReference)
	}
	if strings.Contains(s, "://") {
		return wrong("a URL is not a reference")
	}
	name, digest, pinned := strings.Cut(s, "@")
	var err error
	if pinned {
		if ref.Digest, err = proto.ParseDigest(digest); err != nil {
			return wrong("%w", err)
		}
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		if ref.Tag, err = origin.ParseTag(name[i+1:]); err != nil {
			return wrong("%w", err)
		}
		name = name[:i]
	} else if !pinned {
		ref.Tag = "latest"
	}
	ref.Upstream, name = cutHost(name, defaultUpstream)
	if !hostGrammar.MatchString(ref.Upstream) {
		return wrong("%q is not a registry", ref.Upstream)
	}
	if ref.Upstream == dockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	if ref.Repository, err = origin.ParseRepository(name); err != nil {
		return wrong("%w", err)
	}
	return ref, nil
}

// cutHost takes the registry off a name, if it has one.
func cutHost(name, def string) (host, rest string) {
	first, rest, more := strings.Cut(name, "/")
	if !more || !strings.ContainsAny(first, ".:") && first != "localhost" {
		return def, name
	}
	if host = strings.ToLower(first); host == "index.docker.io" {
		host = dockerHub
	}
	return host, rest
}
