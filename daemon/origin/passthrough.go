package origin

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A callerAuthorization is what a context of WithAuthorization carries. It is a
// struct, because a context that is printed shows strings that are in it.
type callerAuthorization struct {
	value string
	given bool
}

type authorizationKey struct{}

// WithAuthorization returns ctx's child under which Resolve, Tags and Referrers
// send exactly value as Authorization to passthrough upstreams: what a caller
// sent, or nothing if it is empty. Then a 401 is a *ChallengeError, and no other
// Authorization is tried. Other upstreams, and Fetch, take no notice of it.
func WithAuthorization(ctx context.Context, value string) context.Context {
	return context.WithValue(ctx, authorizationKey{}, callerAuthorization{value, true})
}

// withoutAuthorization takes WithAuthorization back.
func withoutAuthorization(ctx context.Context) context.Context {
	if _, given := authorization(ctx); !given {
		return ctx
	}
	return context.WithValue(ctx, authorizationKey{}, callerAuthorization{})
}

func authorization(ctx context.Context) (value string, given bool) {
	a, _ := ctx.Value(authorizationKey{}).(callerAuthorization)
	return a.value, a.given
}

// A ChallengeError is a passthrough upstream's 401 to the Authorization that a
// caller sent, or to none. It is ErrDenied.
type ChallengeError struct {
	// Challenges are values of WWW-Authenticate that may be relayed to the
	// caller, in the upstream's order. They are written anew from what was
	// understood. There are none if the upstream offers nothing that a caller
	// may be sent to: a realm on a foreign host, or Basic without Upstream.Basic.
	Challenges []string
	why        string
}

func (e *ChallengeError) Error() string { return "401 Unauthorized: " + e.why }
func (e *ChallengeError) Unwrap() error { return ErrDenied }

// maxChallenge is the length in bytes of the longest challenge that is relayed.
// Clients' limits for all headers together begin at 4 KiB.
const maxChallenge = 2 << 10

// challengeError says what the 401 with these values of WWW-Authenticate means
// to a caller.
func (e *endpoint) challengeError(values []string) *ChallengeError {
	c := &ChallengeError{why: "it offers no way to log in that can be relayed"}
	var bearer, basic bool
	for _, offered := range parseChallenges(strings.Join(values, ", ")) {
		switch {
		case offered.scheme == "bearer" && !bearer:
			bearer = true
			if text, err := e.auth.relayable(offered); err != nil {
				c.why = err.Error()
			} else {
				c.Challenges = append(c.Challenges, text)
			}
		case offered.scheme == "basic" && !basic:
			basic = true
			if !e.up.relayBasic {
				continue
			}
			if text, ok := formatChallenge("Basic", offered.params, "realm"); ok {
				c.Challenges = append(c.Challenges, text)
			}
		}
	}
	switch {
	case len(c.Challenges) > 0:
		c.why = "a login of the caller's own is needed"
	case basic && !bearer:
		c.why = "it wants a user name and password, and callers are not asked for those: set basic: true for this upstream if they may be"
	}
	return c
}

// relayable returns a Bearer challenge as it may be relayed: with the very realm
// that was found to be allowed.
func (a *authenticator) relayable(c challenge) (string, error) {
	realm, err := a.realm(c)
	if err != nil {
		return "", err
	}
	params := make(map[string]string, len(c.params))
	for k, v := range c.params {
		params[k] = v
	}
	params["realm"] = realm.String()
	text, ok := formatChallenge("Bearer", params, "realm", "service", "scope", "error", "error_description")
	if !ok {
		return "", denied("401 Unauthorized with a challenge that cannot be relayed")
	}
	return text, nil
}

// formatChallenge writes a challenge with those of names that params have, the
// first of which is needed. It is not ok if it would be too long or not be a
// valid header.
func formatChallenge(scheme string, params map[string]string, names ...string) (text string, ok bool) {
	var b strings.Builder
	b.WriteString(scheme)
	for i, name := range names {
		value, there := params[name]
		if !there {
			if i == 0 {
				return "", false
			}
			continue
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return "", false
		}
		b.WriteString(map[bool]string{true: " ", false: ","}[i == 0])
		b.WriteString(name)
		b.WriteString(`="`)
		b.WriteString(quoted.Replace(value))
		b.WriteByte('"')
	}
	return b.String(), b.Len() <= maxChallenge
}

// quoted escapes the content of a quoted string (RFC 9110, section 5.6.4).
var quoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// sendForCaller is send for a passthrough upstream: with ctx's Authorization, or
// with those that were granted for the repository, the newest first.
func (e *endpoint) sendForCaller(ctx context.Context, q query) (*http.Response, error) {
	if value, given := authorization(ctx); given {
		resp, err := e.follow(ctx, q, e.url(q.path, q.rawQuery), value)
		if err != nil || !e.unauthorized(resp) {
			return resp, err
		}
		discard(resp)
		return nil, &abortError{e.challengeError(resp.Header.Values("WWW-Authenticate"))}
	}
	grants := &e.up.client.grants
	live := grants.live(e.up.name, q.repository, time.Now())
	// What a redirect led to is as good as the login that it took.
	resp, err := e.sendToTarget(ctx, q, func(t target) bool {
		return slices.ContainsFunc(live, func(g *granted) bool { return g.number == t.grant })
	})
	if resp != nil || err != nil {
		return resp, err
	}
	for _, g := range live {
		resp, err := e.follow(ctx, q, e.url(q.path, q.rawQuery), g.authorization)
		if err != nil {
			return nil, err
		}
		forbidden := resp.StatusCode == http.StatusForbidden && sameOrigin(resp.Request.URL, e.base)
		if !forbidden && !e.unauthorized(resp) {
			e.keep(q, resp, g.number)
			return resp, nil
		}
		discard(resp)
		grants.drop(g)
	}
	return nil, denied("it refuses what callers brought for %s: a caller's token is needed", q.repository)
}

// lacksGrant is the error if e is a passthrough upstream's and there is nothing
// to send to it.
func (e *endpoint) lacksGrant(ctx context.Context, q query) error {
	if _, given := authorization(ctx); given || !e.up.passthrough || e.up.client.Granted(e.up.name, q.repository) {
		return nil
	}
	return denied("auth is %s, and no caller has brought a token for %s lately: a caller's token is needed", AuthPassthrough, q.repository)
}

// unauthorized reports whether resp is e's own 401, and not that of a host that
// it redirected to.
func (e *endpoint) unauthorized(resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized && sameOrigin(resp.Request.URL, e.base)
}
