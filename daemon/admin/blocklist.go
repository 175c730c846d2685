package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/shoal-project/shoal/daemon/blocklist"
)

// A Blocklist is what the fleet may not have. What is nil is not offered.
type Blocklist struct {
	// List returns what is blocked, the latest first.
	List func() []blocklist.Entry
	// Block blocks a digest, or what an image is now, and returns what is
	// blocked by that. Unblock takes it back. Both may return entries and an
	// error: then it is done, but not for good.
	Block   func(ctx context.Context, image, reason string) ([]blocklist.Entry, error)
	Unblock func(ctx context.Context, image string) ([]blocklist.Entry, error)
}

// Blocking is the body of a request to block something.
type Blocking struct {
	// Image is a digest, an image with a digest, or one with a tag: then what
	// that names now.
	Image string `json:"image"`
	// Reason is for whoever is refused.
	Reason string `json:"reason,omitempty"`
}

func (s *server) blocklistRoutes() []route {
	b := s.cfg.Blocklist
	asJSON := only(jsonType)
	return []route{
		{b.List != nil, "GET /v1/blocklist", s.read(func(w http.ResponseWriter, _ *http.Request) error {
			s.json(w, list(b.List()))
			return nil
		})},
		{b.Block != nil, "POST /v1/blocklist", s.change(asJSON, s.block)},
		{b.Unblock != nil, "DELETE /v1/blocklist", s.change(asJSON, s.unblock)},
	}
}

func (s *server) block(w http.ResponseWriter, r *http.Request) error {
	var b Blocking
	if err := body(w, r, &b); err != nil {
		return err
	}
	if b.Image == "" {
		return refuse(http.StatusBadRequest, `what is to be blocked? say {"image":"sha256:…"}`)
	}
	entries, err := s.cfg.Blocklist.Block(r.Context(), b.Image, b.Reason)
	if err != nil {
		return blocklistError(err)
	}
	s.json(w, list(entries))
	return nil
}

func (s *server) unblock(w http.ResponseWriter, r *http.Request) error {
	image := r.URL.Query().Get("image")
	if image == "" {
		return refuse(http.StatusBadRequest, "what is to be unblocked? say ?image=")
	}
	entries, err := s.cfg.Blocklist.Unblock(r.Context(), image)
	if err != nil {
		return blocklistError(err)
	}
	s.json(w, list(entries))
	return nil
}

// blocklistError says whose fault an error of the blocklist is.
func blocklistError(err error) error {
	switch {
	case errors.Is(err, blocklist.ErrInvalid):
		return &refusal{http.StatusBadRequest, err}
	case errors.Is(err, blocklist.ErrNotBlocked):
		return &refusal{http.StatusNotFound, err}
	case errors.Is(err, blocklist.ErrFull):
		return &refusal{http.StatusInsufficientStorage, err}
	}
	return err
}

func list(entries []blocklist.Entry) []blocklist.Entry {
	if entries == nil {
		return []blocklist.Entry{}
	}
	return entries
}

// Blocked returns what is blocked, as far as the node knows, the latest first.
func (c *Client) Blocked(ctx context.Context) ([]blocklist.Entry, error) {
	var all []blocklist.Entry
	err := c.get(ctx, "/v1/blocklist", &all)
	return all, err
}

// Block blocks a digest, or what an image is now, in the whole fleet, and
// returns what is blocked by that.
func (c *Client) Block(ctx context.Context, image, reason string) ([]blocklist.Entry, error) {
	var done []blocklist.Entry
	err := c.call(ctx, http.MethodPost, "/v1/blocklist", Blocking{image, reason}, &done)
	return done, err
}

// Unblock takes a Block back, and returns what is no longer blocked.
func (c *Client) Unblock(ctx context.Context, image string) ([]blocklist.Entry, error) {
	var done []blocklist.Entry
	err := c.call(ctx, http.MethodDelete, "/v1/blocklist?image="+url.QueryEscape(image), nil, &done)
	return done, err
}
