package origin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// challengeTTL is how long is remembered what an upstream answers to those who
// do not log in. Realms change when a registry moves.
const challengeTTL = 5 * time.Minute

// A welcome is what an upstream last answered to those who do not log in.
type welcome struct {
	// turn has one element, which whoever asks takes; see token.
	turn chan struct{}
	// until and err belong to whoever has turn. A nil err is a 200.
	until time.Time
	err   *ChallengeError
}

// Challenge asks a passthrough upstream whether it takes an Authorization at all
// (distribution-spec, "Determining Support"): nil if so, a *ChallengeError if
// not. The answer to none ("") is remembered for 5 minutes. For upstreams that
// are not passthrough it is nil at once, and nothing is sent. It blocks like
// Resolve.
func (c *Client) Challenge(ctx context.Context, upstream, authorization string) error {
	up, err := c.upstream(upstream)
	if err != nil || !up.passthrough {
		return err
	}
	if authorization != "" {
		return up.challenge(ctx, authorization)
	}
	w := &up.welcome
	select {
	case <-w.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { w.turn <- struct{}{} }()
	if c.Offline() || !time.Now().Before(w.until) {
		err = up.challenge(ctx, "")
		asked, challenged := errors.AsType[*ChallengeError](err)
		if err != nil && !challenged {
			return err
		}
		w.err, w.until = asked, time.Now().Add(challengeTTL)
	}
	if w.err != nil {
		return w.err
	}
	return nil
}

// challenge asks without memory.
func (up *upstream) challenge(ctx context.Context, authorization string) error {
	return up.try(ctx, "login at "+up.name, up.client.cfg.shortWait(), func(ctx context.Context, e *endpoint) (bool, error) {
		resp, err := e.ping(ctx, authorization)
		if err != nil {
			return false, err
		}
		defer discard(resp)
		switch {
		case resp.StatusCode == http.StatusOK:
			return false, nil
		case e.unauthorized(resp):
			return false, &abortError{e.challengeError(resp.Header.Values("WWW-Authenticate"))}
		}
		return false, statusError(resp, time.Now())
	})
}

// Ping reports whether an upstream can be reached: whether one of its URLs gives
// an answer other than 429 and 5xx, a 401 included. Nobody is logged in. date is
// the upstream's own clock, in whole seconds, or zero if it did not say. It
// blocks like Resolve.
func (c *Client) Ping(ctx context.Context, upstream string) (date time.Time, err error) {
	up, err := c.upstream(upstream)
	if err != nil {
		return time.Time{}, err
	}
	err = up.try(ctx, "ping "+up.name, c.cfg.shortWait(), func(ctx context.Context, e *endpoint) (bool, error) {
		resp, err := e.ping(ctx, "")
		if err != nil {
			return false, err
		}
		defer discard(resp)
		if passes(resp.StatusCode) {
			return false, statusError(resp, time.Now())
		}
		date, err = http.ParseTime(resp.Header.Get("Date"))
		if err != nil {
			date = time.Time{}
		}
		return false, nil
	})
	return date, err
}

// ping asks for the API's root, which may be above the place where repositories
// begin. A redirect is an answer, and is not followed.
func (e *endpoint) ping(ctx context.Context, authorization string) (*http.Response, error) {
	asked := time.Now()
	q := query{kind: kindOther, method: http.MethodGet, header: make(http.Header)}
	resp, err := e.roundTrip(ctx, q, e.root(), authorization)
	e.answered(asked, resp, err)
	return resp, err
}

// root returns the address of the distribution API: base up to its "v2".
func (e *endpoint) root() *url.URL {
	u := *e.base
	var path strings.Builder
	for element := range strings.SplitSeq(strings.Trim(u.Path, "/"), "/") {
		path.WriteString("/" + element)
		if element == "v2" {
			break
		}
	}
	u.Path = path.String() + "/"
	return &u
}
