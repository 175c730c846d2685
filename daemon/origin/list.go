package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// MaxList is the size in bytes of the longest list that is accepted. 100,000
// tags are half of it; whoever has more asks for pages.
const MaxList = 8 << 20

// A List is an upstream's list of tags or referrers, or a page of one.
type List struct {
	Body        []byte // JSON, unchanged
	ContentType string
	// Header has Link (to the next page, at the upstream) and
	// OCI-Filters-Applied, where the upstream sent them.
	Header http.Header
}

const (
	// indexType is what a list of referrers is (distribution-spec, "Listing
	// Referrers").
	indexType = "application/vnd.oci.image.index.v1+json"
	// noReferrers is the answer where nothing refers to a manifest.
	noReferrers = `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[]}`
)

// Tags asks the upstream for the tags of a repository. rawQuery is what comes
// after the question mark ("n=100&last=1.0"); of header only Accept is sent on.
// It blocks like Resolve. A repository that is not there is ErrNotFound, a list
// of more than MaxList bytes ErrTooLarge.
func (c *Client) Tags(ctx context.Context, upstream, repository, rawQuery string, header http.Header) (*List, error) {
	q, err := listQuery(repository, "tags/list", rawQuery, header, "application/json")
	if err != nil {
		return nil, err
	}
	return c.list(ctx, upstream, "tags of", repository, func(ctx context.Context, e *endpoint) (*List, error) {
		resp, err := e.do(ctx, q)
		if err != nil {
			return nil, err
		}
		return readList(resp, "application/json")
	})
}

// Referrers asks the upstream for what refers to the manifest d: an image
// index. rawQuery and header are as for Tags. An upstream without the referrers
// API is asked for the tag that stands in for it (distribution-spec,
// "Unavailable Referrers API"), which knows no filter: then OCI-Filters-Applied
// is not in Header. Where that is missing too, the list is empty. It blocks
// like Resolve.
func (c *Client) Referrers(ctx context.Context, upstream, repository string, d proto.Digest, rawQuery string, header http.Header) (*List, error) {
	if d.IsZero() {
		return nil, errors.New("referrers without a digest")
	}
	q, err := listQuery(repository, "referrers/"+d.String(), rawQuery, header, indexType)
	if err != nil {
		return nil, err
	}
	fallback := manifestQuery(http.MethodGet, repository, referrersTag(d))
	fallback.header.Set("Accept", indexType)
	l, err := c.list(ctx, upstream, "referrers of "+d.String()+" in", repository, func(ctx context.Context, e *endpoint) (*List, error) {
		resp, err := e.do(ctx, q)
		if err != nil {
			return nil, err
		}
		if !lacksReferrers(resp) {
			return readList(resp, indexType)
		}
		discard(resp)
		if resp, err = e.do(ctx, fallback); err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK && !isIndex(resp) {
			discard(resp)
			return nil, &attemptError{class: ErrNotFound, final: true, text: "the tag " + referrersTag(d) + " is not an image index"}
		}
		return readList(resp, indexType)
	})
	if errors.Is(err, ErrNotFound) {
		return &List{Body: []byte(noReferrers), ContentType: indexType, Header: make(http.Header)}, nil
	}
	return l, err
}

// list puts a question for a list to an upstream.
func (c *Client) list(ctx context.Context, upstream, what, repository string, attempt func(context.Context, *endpoint) (*List, error)) (*List, error) {
	up, err := c.upstream(upstream)
	if err != nil {
		return nil, err
	}
	var l *List
	what = fmt.Sprintf("%s %s/%s", what, up.name, repository)
	err = up.try(ctx, what, c.cfg.shortWait(), func(ctx context.Context, e *endpoint) (bool, error) {
		var err error
		l, err = attempt(ctx, e)
		return false, err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func listQuery(repository, rest, rawQuery string, header http.Header, accept string) (query, error) {
	if _, err := ParseRepository(repository); err != nil {
		return query{}, err
	}
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return query{}, fmt.Errorf("query string of %s: %w", rest, err)
	}
	q := query{
		kind:       kindOther,
		method:     http.MethodGet,
		path:       repository + "/" + rest,
		rawQuery:   values.Encode(),
		repository: repository,
		header:     http.Header{"Accept": {accept}, "Accept-Encoding": {"identity"}},
	}
	if accept := header.Values("Accept"); len(accept) > 0 {
		q.header["Accept"] = accept
	}
	return q, nil
}

// referrersTag returns the tag of the index that stands in for the referrers
// API (distribution-spec, "Referrers Tag Schema"): at most 32 characters of the
// algorithm and 64 of the hash.
func referrersTag(d proto.Digest) string {
	alg, hash, _ := strings.Cut(d.String(), ":")
	return alg[:min(len(alg), 32)] + "-" + hash[:min(len(hash), 64)]
}

// lacksReferrers reports whether resp is that of a registry which does not know
// the referrers API. The specification has 404 for that. Registries from before
// it, and those that serve a web page wherever they know nothing better, answer
// otherwise.
func lacksReferrers(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	case http.StatusOK:
		return !isIndex(resp)
	}
	return false
}

func isIndex(resp *http.Response) bool {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && t == indexType
}

// readList reads a list to its end and closes resp. contentType is for a
// registry that says none.
func readList(resp *http.Response, contentType string) (*List, error) {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		discard(resp)
		return nil, statusError(resp, time.Now())
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxList+1))
	switch {
	case err != nil:
		return nil, cut(err)
	case len(body) > MaxList:
		return nil, &attemptError{class: ErrTooLarge, final: true,
			text: fmt.Sprintf("a list of more than %d bytes: ask for pages with ?n=", MaxList)}
	case !json.Valid(body):
		return nil, protocolError("a list that is not JSON") // a portal's page, or so
	}
	l := &List{Body: body, ContentType: contentType, Header: make(http.Header)}
	if t := resp.Header.Get("Content-Type"); t != "" {
		l.ContentType = t
	}
	for _, name := range []string{"Link", "OCI-Filters-Applied"} {
		for _, value := range resp.Header.Values(name) {
			l.Header.Add(name, value)
		}
	}
	return l, nil
}
