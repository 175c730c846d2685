package registry

import (
	"maps"
	"net/http"
	"slices"

	"github.com/shoal-project/shoal/proto"
)

// Counts are what a Registry has been asked and has sent so far.
type Counts struct {
	Pings         int `json:"pings"` // GET /v2/
	ManifestHeads int `json:"manifestHeads"`
	ManifestGets  int `json:"manifestGets"`
	BlobHeads     int `json:"blobHeads"`
	BlobGets      int `json:"blobGets"`   // at the registry itself, redirected ones included
	Lists         int `json:"lists"`      // GETs of tags and referrers
	Other         int `json:"other"`      // pushes, and what is not known
	Challenges    int `json:"challenges"` // 401s
	Tokens        int `json:"tokens"`     // requests at the token server
	Redirects     int `json:"redirects"`
	Storage       int `json:"storage"` // requests at the object storage that redirects lead to
	Leaks         int `json:"leaks"`   // those that carried an Authorization header
	Dropped       int `json:"dropped"` // requests that Faults.Down gave no answer to; counted as what they are too
	// BlobBytes and ManifestBytes are bytes of bodies that were written.
	BlobBytes     int64 `json:"blobBytes"`
	ManifestBytes int64 `json:"manifestBytes"`
}

func (c *Counts) request(t thing, method string) {
	switch {
	case t.kind == kindPing:
		c.Pings++
	case t.kind == kindManifest && method == http.MethodHead:
		c.ManifestHeads++
	case t.kind == kindManifest && method == http.MethodGet:
		c.ManifestGets++
	case t.kind == kindBlob && method == http.MethodHead:
		c.BlobHeads++
	case t.kind == kindBlob && method == http.MethodGet:
		c.BlobGets++
	case t.kind == kindToken:
		c.Tokens++
	case (t.kind == kindTags || t.kind == kindReferrers) && method == http.MethodGet:
		c.Lists++
	default:
		c.Other++
	}
}

// Count returns the counts so far.
func (r *Registry) Count() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Reset sets the counts to zero and forgets what has left.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts = Counts{}
	clear(r.sent)
	clear(r.asked)
}

// A question is a request for a manifest or a list.
type question struct{ kind, method, repository, reference string }

// Lookups returns how often a manifest has been asked for by that tag or
// digest.
func (r *Registry) Lookups(repository, reference string) (heads, gets int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[question{kindManifest, http.MethodHead, repository, reference}],
		r.asked[question{kindManifest, http.MethodGet, repository, reference}]
}

// TagLists returns how often the tags of a repository have been listed.
func (r *Registry) TagLists(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[question{kind: kindTags, method: http.MethodGet, repository: repository}]
}

// ReferrerLists returns how often the referrers of d have been asked for.
func (r *Registry) ReferrerLists(repository string, d proto.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[question{kindReferrers, http.MethodGet, repository, d.String()}]
}

// content is what has left of one blob.
type content struct {
	size int64
	// delta is by how much the number of copies that have left changes at an
	// offset, where it does.
	delta map[int64]int
}

// add notes that n bytes from offset on have left by more times.
func (c *content) add(offset, n int64, by int) {
	for _, d := range []struct {
		at int64
		by int
	}{{offset, by}, {offset + n, -by}} {
		if c.delta[d.at] += d.by; c.delta[d.at] == 0 {
			delete(c.delta, d.at)
		}
	}
}

// copies returns the smallest and the largest number of copies of a byte that
// have left.
func (c *content) copies() (least, most int) {
	if c.size == 0 {
		return 0, 0
	}
	least = c.delta[0]
	level := 0
	for _, at := range slices.Sorted(maps.Keys(c.delta)) {
		if at >= c.size {
			break
		}
		level += c.delta[at]
		least, most = min(least, level), max(most, level)
	}
	return least, most
}

// expect notes how long a blob is.
func (r *Registry) expect(d proto.Digest, size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent[d] == nil {
		r.sent[d] = &content{delta: make(map[int64]int)}
	}
	r.sent[d].size = size
}

// record notes that n bytes of a blob leave, by more times.
func (r *Registry) record(d proto.Digest, offset, n int64, by int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.sent[d]
	if c == nil { // Reset came in between
		return
	}
	r.counts.BlobBytes += n * int64(by)
	c.add(offset, n, by)
}

// Copies returns how many times the bytes of a blob have left: the byte that
// left least often and the one that left most. Both are 1 if each byte left
// exactly once, and 0 if none was ever sent.
func (r *Registry) Copies(d proto.Digest) (least, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.sent[d]; c != nil {
		return c.copies()
	}
	return 0, 0
}
