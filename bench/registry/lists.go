package registry

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/proto"
)

// indexType is the media type of an answer of the referrers API.
const indexType = "application/vnd.oci.image.index.v1+json"

// SetReferrers lets the registry answer GETs of the referrers of d with index.
// A query for an artifactType is said to have been applied. Nil: the registry
// does not know the referrers API, which is so for all digests at first.
func (r *Registry) SetReferrers(repository string, d proto.Digest, index []byte) {
	q := question{kindReferrers, http.MethodGet, repository, d.String()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if index == nil {
		delete(r.referrers, q)
		return
	}
	r.referrers[q] = index
}

// serveList answers the GET of tags or referrers.
func (r *Registry) serveList(w http.ResponseWriter, req *http.Request, t thing, f Faults) {
	if f.ListStatus != 0 {
		fail(w, f.ListStatus, f.RetryAfter)
		return
	}
	r.mu.Lock()
	index := r.referrers[question{t.kind, req.Method, t.repository, t.reference}]
	r.mu.Unlock()
	if index == nil {
		r.current().ServeHTTP(w, req)
		return
	}
	if !r.pullAllowed(w, req, t.repository) {
		return
	}
	w.Header().Set("Content-Type", indexType)
	w.Header().Set("Content-Length", strconv.Itoa(len(index)))
	if strings.Contains(req.URL.RawQuery, "artifactType=") {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	_, _ = w.Write(index)
}
