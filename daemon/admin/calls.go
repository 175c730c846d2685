package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/proto"
)

// Every method blocks until the node has answered or ctx ends. If the node
// refuses, the error has what it said.

// StartJob starts a job at the node and returns it as it begins.
func (c *Client) StartJob(ctx context.Context, s jobs.Spec) (jobs.Job, error) {
	var j jobs.Job
	err := c.call(ctx, http.MethodPost, "/v1/jobs", s, &j)
	return j, err
}

// Jobs returns the jobs of the node, the newest first.
func (c *Client) Jobs(ctx context.Context) ([]jobs.Job, error) {
	var all []jobs.Job
	err := c.get(ctx, "/v1/jobs", &all)
	return all, err
}

// Job returns one job as it is now.
func (c *Client) Job(ctx context.Context, id string) (jobs.Job, error) {
	var j jobs.Job
	err := c.get(ctx, "/v1/jobs/"+url.PathEscape(id), &j)
	return j, err
}

// WatchJob returns the job as it is and then each time it has changed, until
// it has ended, which its last one shows, or ctx ends. An error is the last
// that is yielded.
func (c *Client) WatchJob(ctx context.Context, id string) iter.Seq2[jobs.Job, error] {
	return func(yield func(jobs.Job, error) bool) {
		path := "/v1/jobs/" + url.PathEscape(id) + "?watch=1"
		resp, err := c.send(ctx, http.MethodGet, path, "", nil)
		if err != nil {
			yield(jobs.Job{}, err)
			return
		}
		defer resp.Body.Close()
		lines := json.NewDecoder(resp.Body)
		ended := false
		for {
			var j jobs.Job
			err := lines.Decode(&j)
			switch {
			case errors.Is(err, io.EOF) && ended:
				return
			case err != nil:
				if errors.Is(err, io.EOF) {
					err = errors.New("the node stopped telling: it is shutting down; the job goes on when it is back")
				}
				yield(jobs.Job{}, fmt.Errorf("watch job %s at %s: %w", id, c.addr, err))
				return
			}
			ended = j.State.Ended()
			if !yield(j, nil) {
				return
			}
		}
	}
}

// CancelJob ends a job. What is there stays there.
func (c *Client) CancelJob(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/jobs/"+url.PathEscape(id), nil, nil)
}

// Cache returns what the node's cache holds.
func (c *Client) Cache(ctx context.Context) (cache.Use, error) {
	var u cache.Use
	err := c.get(ctx, "/v1/cache", &u)
	return u, err
}

// GC cleans the node's cache up, or only says what would go.
func (c *Client) GC(ctx context.Context, o cache.GCOptions) (cache.GCReport, error) {
	var r cache.GCReport
	err := c.call(ctx, http.MethodPost, "/v1/cache/gc", Collection{DryRun: o.DryRun}, &r)
	return r, err
}

// Scrub reads and checks all that the node's cache holds, which takes as long
// as the disk and the configured rate do.
func (c *Client) Scrub(ctx context.Context) (cache.ScrubReport, error) {
	var r cache.ScrubReport
	err := c.call(ctx, http.MethodPost, "/v1/cache/scrub", struct{}{}, &r)
	return r, err
}

// ScrubProgress returns how far the scrub that runs at the node is, whoever
// asked for it.
func (c *Client) ScrubProgress(ctx context.Context) (Scrubbing, error) {
	var s Scrubbing
	err := c.get(ctx, "/v1/cache/scrub", &s)
	return s, err
}

// Pins returns the pins of the node.
func (c *Client) Pins(ctx context.Context) ([]cache.Pin, error) {
	var all []cache.Pin
	err := c.get(ctx, "/v1/cache/pins", &all)
	return all, err
}

// Pin keeps what pattern names from eviction.
func (c *Client) Pin(ctx context.Context, pattern string) error {
	return c.call(ctx, http.MethodPost, "/v1/cache/pins", Pattern{pattern}, nil)
}

// Unpin takes back a Pin.
func (c *Client) Unpin(ctx context.Context, pattern string) error {
	return c.call(ctx, http.MethodDelete, "/v1/cache/pins?pattern="+url.QueryEscape(pattern), nil, nil)
}

// Offline reports whether the node contacts no origin.
func (c *Client) Offline(ctx context.Context) (bool, error) {
	var m Mode
	err := c.get(ctx, "/v1/offline", &m)
	return m.Offline, err
}

// SetOffline says whether the node may contact origins.
func (c *Client) SetOffline(ctx context.Context, offline bool) error {
	return c.call(ctx, http.MethodPut, "/v1/offline", Mode{offline}, nil)
}

// PutBlob gives the node a blob, whose bytes it reads from r and checks. Of a
// blob that the node has already nothing is read.
func (c *Client) PutBlob(ctx context.Context, b proto.Blob, r io.Reader) error {
	path := "/v1/cache/blobs/" + b.Digest.String() + "?size=" + strconv.FormatInt(b.Size, 10)
	resp, err := c.send(ctx, http.MethodPut, path, octets, r, func(req *http.Request) {
		req.ContentLength = b.Size
		req.Header.Set("Expect", "100-continue") // a node that has it does not read it
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// PutImage tells the node of an image whose blobs it has.
func (c *Client) PutImage(ctx context.Context, i jobs.Image) error {
	return c.call(ctx, http.MethodPut, "/v1/cache/images", i, nil)
}
