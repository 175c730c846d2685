package origin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// Pass asks the upstream for a list below a repository: rest is "tags/list" or
// "referrers/<digest>", rawQuery what comes after the question mark. Of header
// only Accept is sent on. It blocks until there is an answer with status 200,
// and returns it with its headers; the caller reads the body, bounds it, and
// closes it. Any other answer is an error.
func (c *Client) Pass(ctx context.Context, upstream, repository, rest, rawQuery string, header http.Header) (*http.Response, error) {
	if _, err := ParseRepository(repository); err != nil {
		return nil, err
	}
	if err := checkRest(rest); err != nil {
		return nil, err
	}
	up, err := c.upstream(upstream)
	if err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, fmt.Errorf("query string of %s: %w", rest, err)
	}
	q := query{
		kind:       kindOther,
		method:     http.MethodGet,
		path:       repository + "/" + rest,
		rawQuery:   values.Encode(),
		repository: repository,
		header:     make(http.Header),
	}
	if accept := header.Values("Accept"); len(accept) > 0 {
		q.header["Accept"] = accept
	}
	var resp *http.Response
	what := fmt.Sprintf("%s of %s/%s", rest, up.name, repository)
	err = up.try(ctx, what, func(ctx context.Context, e *endpoint) (bool, error) {
		r, err := e.do(ctx, q)
		if err != nil {
			return false, err
		}
		if r.StatusCode != http.StatusOK {
			discard(r)
			return false, statusError(r, time.Now())
		}
		resp = r
		return false, nil
	})
	return resp, err
}

// checkRest refuses what is not a list that Pass is for.
func checkRest(rest string) error {
	if rest == "tags/list" {
		return nil
	}
	digest, ok := strings.CutPrefix(rest, "referrers/")
	if !ok {
		return fmt.Errorf("%.60q is not passed on: only tags/list and referrers are", rest)
	}
	_, err := proto.ParseDigest(digest)
	return err
}
