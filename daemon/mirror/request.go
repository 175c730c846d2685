package mirror

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// A kind says what a request asks for. It is a label of the metrics too.
type kind string

const (
	kindOther     kind = "other" // nothing that this API has
	kindPing      kind = "ping"
	kindManifest  kind = "manifest"
	kindBlob      kind = "blob"
	kindTags      kind = "tags"
	kindReferrers kind = "referrers"
)

// A request is what a URL of the distribution API asks for.
type request struct {
	kind kind
	// ref is what is asked for. A list of tags has neither tag nor digest; the
	// referrers have the digest of their subject.
	ref origin.Ref
	// ns is the query parameter as the client sent it, empty without one.
	ns string
	// query is what else was in the query, encoded.
	query string
	// pinged is the upstream that a ping means, "" if it is not known here.
	pinged string
}

// reference returns the tag or the digest that was asked for, or "".
func (r request) reference() string {
	if !r.ref.Digest.IsZero() {
		return r.ref.Digest.String()
	}
	return r.ref.Tag
}

// dockerHub is the name of the registry whose repositories of one component
// stand below library/.
const dockerHub = "docker.io"

// parseRequest reads the path and the raw query of a URL. The upstream is
// chosen by ?ns=, else by a first component that is the host of a registry
// that knows accepts, else it is def. The error is a *failure. The request that
// comes with it says as much as was understood.
func parseRequest(path, rawQuery, def string, knows func(upstream string) bool) (request, error) {
	return parse(path, rawQuery, def, func(r *request, name string, query url.Values) error {
		return r.upstream(name, query, def, knows)
	}, knows)
}

// parseProxied is parseRequest for a URL of the upstream itself: nothing in it
// names a registry.
func parseProxied(path, rawQuery, upstream string) (request, error) {
	return parse(path, rawQuery, upstream, func(r *request, name string, _ url.Values) (err error) {
		r.ref.Upstream = upstream
		if r.ref.Repository, err = origin.ParseRepository(name); err != nil {
			return fail(http.StatusBadRequest, codeNameInvalid, "%v", err)
		}
		return nil
	}, func(u string) bool { return u == upstream })
}

// parse reads the path and the raw query of a URL. choose sets the upstream and
// the repository of a request for something that a repository has.
func parse(path, rawQuery, def string, choose func(*request, string, url.Values) error, knows func(string) bool) (request, error) {
	req := request{kind: kindOther}
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return req, fail(http.StatusBadRequest, codeNameInvalid, "the query does not parse: %v", err)
	}
	rest, ok := strings.CutPrefix(path, "/v2")
	switch {
	case ok && (rest == "" || rest == "/"):
		req.kind = kindPing
		req.pinged = meant(query, def, knows)
		return req, nil
	case !ok || rest[0] != '/':
		return req, fail(http.StatusNotFound, codeUnsupported, "no such path: this is a registry mirror, its API is below /v2/")
	}
	name, reference, ok := req.split(rest[1:])
	if !ok {
		return req, fail(http.StatusNotFound, codeUnsupported,
			"no such endpoint: a mirror has manifests, blobs, tags/list and referrers below /v2/<name>/")
	}
	if err := choose(&req, name, query); err != nil {
		return req, err
	}
	query.Del("ns")
	req.query = query.Encode()
	return req, req.named(reference)
}

// meant returns the upstream that a ping with this query means, if it is known. A
// ping is answered in any case: who asks for nothing needs no registry.
func meant(query url.Values, def string, knows func(string) bool) string {
	upstream := def
	if query.Has("ns") {
		upstream, _ = parseHost(query.Get("ns"))
	}
	if upstream == "" || !knows(upstream) {
		return ""
	}
	return upstream
}

// split takes a path below /v2/ apart and sets the kind. A name can have any of
// the API's own words as a component, so it is read from the end, where neither
// a tag nor a digest has a slash.
func (r *request) split(path string) (name, reference string, ok bool) {
	path, reference, ok = cutLast(path)
	if !ok {
		return "", "", false
	}
	name, verb, ok := cutLast(path)
	switch {
	case !ok:
		return "", "", false
	case verb == "manifests":
		r.kind = kindManifest
	case verb == "blobs":
		r.kind = kindBlob
	case verb == "tags" && reference == "list":
		r.kind = kindTags
	case verb == "referrers":
		r.kind = kindReferrers
	default:
		return "", "", false
	}
	r.ref.Manifest = r.kind != kindBlob
	return name, reference, true
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// upstream sets the upstream and the repository.
func (r *request) upstream(name string, query url.Values, def string, knows func(string) bool) error {
	values, given := query["ns"]
	var err error
	if given {
		if len(values) != 1 {
			return fail(http.StatusBadRequest, codeNameInvalid, "ns is given %d times: it must name one registry", len(values))
		}
		r.ns = values[0]
		if r.ref.Upstream, err = parseHost(r.ns); err != nil {
			return fail(http.StatusBadRequest, codeNameInvalid, "ns must be the host of a registry, such as docker.io or registry.example:5000: %v", err)
		}
	} else if r.ref.Upstream, name, err = prefixed(name, def, knows); err != nil {
		return err
	}
	if r.ref.Upstream == "" {
		return fail(http.StatusNotFound, codeNameUnknown,
			"which registry? this mirror has no default: ask with ?ns=<registry>, or for /v2/<registry>/<name>/…")
	}
	if !knows(r.ref.Upstream) {
		return unknownUpstream(r.ref.Upstream)
	}
	if r.ref.Repository, err = origin.ParseRepository(name); err != nil {
		return fail(http.StatusBadRequest, codeNameInvalid, "%v", err)
	}
	if r.ref.Upstream == dockerHub && !strings.Contains(name, "/") {
		r.ref.Repository = "library/" + name
	}
	return nil
}

// prefixed returns the upstream and what is left of name. A first component
// with a dot may also be one of a repository of the default upstream. One with
// a colon may not.
func prefixed(name, def string, knows func(string) bool) (upstream, rest string, err error) {
	first, rest, more := strings.Cut(name, "/")
	if !more || !strings.ContainsAny(first, ".:") && first != "localhost" {
		return def, name, nil
	}
	host, err := parseHost(first)
	if err == nil && knows(host) {
		return host, rest, nil
	}
	if err == nil && strings.Contains(first, ":") {
		return "", "", unknownUpstream(host)
	}
	return def, name, nil
}

func unknownUpstream(host string) error {
	return fail(http.StatusNotFound, codeNameUnknown,
		"registry %s is not configured on this mirror: add upstreams.%q to its configuration, or \"*\" for any public registry", host, host)
}

// named reads the last component of the path into ref.
func (r *request) named(reference string) (err error) {
	switch {
	case r.kind == kindTags:
		return nil
	case r.kind == kindManifest && !strings.Contains(reference, ":"):
		if r.ref.Tag, err = origin.ParseTag(reference); err != nil {
			return fail(http.StatusBadRequest, codeTagInvalid, "%v", err)
		}
		return nil
	}
	if r.ref.Digest, err = proto.ParseDigest(reference); err != nil {
		return fail(http.StatusBadRequest, codeDigestInvalid, "%v", err)
	}
	return nil
}

// hostGrammar is that of a host name in an image reference: the distribution
// project's "reference" package, domain.
var hostGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// maxHost is the longest host name, in characters (RFC 1035, section 2.3.4).
const maxHost = 255

// parseHost reads the host of a registry, with a port or without, and returns
// it in lower case. The old name of Docker Hub becomes the one that image
// references have.
func parseHost(s string) (string, error) {
	host, port := strings.ToLower(s), ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host, port = host[:i], host[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("%.300q has no port between 1 and 65535 after its colon", s)
		}
		port = ":" + port
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if addr, err := netip.ParseAddr(inner); !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", fmt.Errorf("%.300q is no IPv6 address in brackets", s)
		}
		return host + port, nil
	}
	if len(host) > maxHost || !hostGrammar.MatchString(host) {
		return "", fmt.Errorf("%.300q is no host name", s)
	}
	if host == "index.docker.io" && port == "" {
		host = dockerHub
	}
	return host + port, nil
}
