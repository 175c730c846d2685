package mirror

import (
	"errors"
	"net/http"
	"regexp"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// Proxied returns the handler for requests to an upstream itself, which a proxy
// has intercepted: nothing in their URLs says which registry is meant.
//
// GET and HEAD of manifests and blobs are served as the mirror serves them.
// Everything else is left to untouched, which passes it on to the upstream, and
// so is what an anonymous upstream does not show to this node: the client's own
// credentials may do better. What rules look into is never left to it, since
// nobody would look.
func (h *Handler) Proxied(upstream string, untouched http.Handler) http.Handler {
	upstream = strings.ToLower(upstream)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ours(r) {
			untouched.ServeHTTP(w, r)
			return
		}
		h.visit(w, r, &visit{who: caller(policy.DoorProxy, r), upstream: upstream, untouched: untouched})
	})
}

// uploadPath is that of an upload that is going on.
var uploadPath = regexp.MustCompile(`^/v2/.+/blobs/uploads/[^/]*$`)

// ours reports whether a request is for a manifest or a blob. What looks like
// one and does not parse is, too: a registry could read it in another way.
func ours(r *http.Request) bool {
	path := r.URL.Path
	if r.Method != http.MethodGet && r.Method != http.MethodHead || uploadPath.MatchString(path) && !strings.Contains(path, "..") {
		return false
	}
	return strings.Contains(path, "/manifests/") || strings.Contains(path, "/blobs/")
}

// leave reports whether a request that failed with err is left to the upstream
// and the client's own credentials.
func (h *Handler) leave(r *http.Request, v *visit, err error) bool {
	if v.untouched == nil || errors.Is(err, policy.ErrDenied) || h.origin.Auth(v.upstream) != origin.AuthAnonymous {
		return false
	}
	hidden := errors.Is(err, origin.ErrNotFound) && r.Header.Get("Authorization") != "" // some registries say 404 to strangers
	return (hidden || errors.Is(err, origin.ErrDenied)) && !h.gate.NeedsContent(v.ref)
}

// untouched has a request answered by the upstream.
func (h *Handler) untouched(w *response, r *http.Request, v *visit) {
	clear(w.Header())
	t := &tally{ResponseWriter: w.ResponseWriter, check: h.gate.Recalled, request: v.request}
	v.untouched.ServeHTTP(t, r)
	w.status, w.bytes = t.status, t.bytes
	v.source, v.arriving, v.stale = sourceOwn, proto.Digest{}, false
	h.account(w, r, v, 0, t.refused)
}

// A tally counts what goes through it, and holds back content that is refused:
// which digest a tag has, the upstream says only now.
type tally struct {
	http.ResponseWriter
	request request
	check   func(proto.Digest) error
	refused error
	status  int
	bytes   int64
}

// WriteHeader is part of http.ResponseWriter.
func (t *tally) WriteHeader(status int) {
	if t.refused != nil {
		return
	}
	if d, err := proto.ParseDigest(t.Header().Get("Docker-Content-Digest")); err == nil && t.status == 0 && status/100 == 2 {
		if t.refused = t.check(d); t.refused != nil {
			clear(t.Header())
			t.status = http.StatusForbidden
			writeError(t.ResponseWriter, t.request, t.refused)
			return
		}
	}
	if t.status == 0 && status >= http.StatusOK { // those before are not the answer
		t.status = status
	}
	t.ResponseWriter.WriteHeader(status)
}

// Write is part of http.ResponseWriter.
func (t *tally) Write(p []byte) (int, error) {
	if t.status == 0 {
		t.WriteHeader(http.StatusOK)
	}
	if t.refused != nil {
		return len(p), nil // of the upstream's answer, which the client does not get
	}
	n, err := t.ResponseWriter.Write(p)
	t.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (t *tally) Unwrap() http.ResponseWriter { return t.ResponseWriter }
