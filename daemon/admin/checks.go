package admin

import (
	"context"
	"net/http"
)

// CheckState is what came of a Check.
type CheckState string

const (
	// CheckOK is as it should be.
	CheckOK CheckState = "ok"
	// CheckWarn works now, and will not for long or not for all.
	CheckWarn CheckState = "warn"
	// CheckFail does not work.
	CheckFail CheckState = "fail"
	// CheckSkip was not looked at, and Detail says why.
	CheckSkip CheckState = "skip"
)

// A Check is one link of the chain from a runtime to the bytes of an image, and
// whether it holds.
type Check struct {
	// Name is what was looked at, such as "fleet" or "origin docker.io".
	Name  string     `json:"name"`
	State CheckState `json:"state"`
	// Detail is what was found, for a person. It has no secrets.
	Detail string `json:"detail"`
	// Advice is what to do about it; empty if nothing is to be done.
	Advice string `json:"advice,omitempty"`
}

// Checks has the node look at what it needs and returns what it found. It
// blocks for as long as the slowest registry takes to answer or not to.
func (c *Client) Checks(ctx context.Context) ([]Check, error) {
	var all []Check
	err := c.get(ctx, "/v1/checks", &all)
	return all, err
}

// checks answers with what the node finds.
func (s *server) checks(w http.ResponseWriter, r *http.Request) error {
	all := s.cfg.Checks(r.Context())
	if all == nil {
		all = []Check{}
	}
	s.json(w, all)
	return nil
}
