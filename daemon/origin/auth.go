package origin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// tokenLife is how long a token lives whose server does not say (Docker
	// token authentication specification, "expires_in").
	tokenLife = time.Minute
	// maxToken bounds a token server's answer, in bytes.
	maxToken = 1 << 20
	// maxTokens bounds the repositories whose tokens are kept per URL.
	maxTokens = 1024
)

// An authenticator knows what one endpoint wants to see in Authorization.
type authenticator struct {
	// immutable
	endpoint *endpoint
	realms   []string
	login    *login

	mu sync.Mutex // protects the fields below
	// stamp is what login's was when the answers below were found.
	stamp string
	// basic is the header that answers the endpoint's Basic challenge.
	basic string
	// tokens are by repository: a token's scope is one repository.
	tokens map[string]*token
}

func newAuthenticator(e *endpoint, u Upstream) *authenticator {
	return &authenticator{
		endpoint: e,
		realms:   u.Realms,
		login:    u.newLogin(e.up.name, e.base),
		tokens:   make(map[string]*token),
	}
}

// A token is a Bearer token and what it takes to get the next one.
type token struct {
	// turn has one element, which whoever asks the token server takes. It is a
	// lock that a context can give up on, so that one question is asked however
	// many wait for the answer.
	turn chan struct{}

	mu        sync.Mutex // protects the fields below
	challenge challenge
	value     string
	expires   time.Time
	// asked counts the token server's answers; err is the last one's error.
	// Whoever finds asked changed after the wait for turn has that answer too.
	asked int
	err   error
}

// header returns the Authorization header for a repository, or "" if the
// registry never asked for one. It may ask the token server. An error is an
// *attemptError or ctx's.
func (a *authenticator) header(ctx context.Context, repository string) (string, error) {
	basic, t := a.known(repository)
	if basic != "" || t == nil {
		return basic, nil
	}
	value, asked := t.current()
	if value != "" {
		return "Bearer " + value, nil
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { t.turn <- struct{}{} }()
	value, err := t.since(asked)
	if value == "" && err == nil {
		value, err = a.renew(ctx, repository, t)
	}
	if err != nil {
		return "", err
	}
	return "Bearer " + value, nil
}

// known returns what was found for a repository with the login that counts now.
func (a *authenticator) known(repository string) (basic string, t *token) {
	stamp := a.login.stamp()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setStamp(stamp)
	return a.basic, a.tokens[repository]
}

// setStamp forgets what was found with another login; mu is held.
func (a *authenticator) setStamp(stamp string) {
	if a.stamp != stamp {
		a.stamp, a.basic = stamp, ""
		clear(a.tokens) // what is under way ends in tokens that nobody finds
	}
}

// current returns the token, or "" if there is none that is valid, and how
// often the token server has answered.
func (t *token) current() (value string, asked int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.expires) {
		value = t.value
	}
	return value, t.asked
}

// since returns what the token server has answered since it had answered so
// often, or neither a token nor an error.
func (t *token) since(asked int) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.expires) {
		return t.value, nil
	}
	if t.asked != asked {
		return "", t.err
	}
	return "", nil
}

// renew asks the token server for t's next value. The caller holds t.turn.
func (a *authenticator) renew(ctx context.Context, repository string, t *token) (string, error) {
	t.mu.Lock()
	c := t.challenge
	t.mu.Unlock()
	value, life, err := a.ask(ctx, repository, c)
	if ctx.Err() != nil {
		return "", ctx.Err() // says nothing about the token server
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked++
	t.err = err
	if err == nil {
		t.value, t.expires = value, time.Now().Add(life*9/10)
	}
	return value, err
}

// challenged takes a 401's challenges in. used is the header that was sent and
// refused. Nil means that header now returns something better.
func (a *authenticator) challenged(ctx context.Context, repository string, values []string, used string) error {
	var basic, bearer *challenge
	for _, c := range parseChallenges(strings.Join(values, ", ")) {
		switch {
		case c.scheme == "bearer" && bearer == nil:
			bearer = &c
		case c.scheme == "basic" && basic == nil:
			basic = &c
		}
	}
	switch {
	case bearer != nil:
		return a.bearerChallenged(repository, *bearer, used)
	case basic != nil:
		return a.basicChallenged(ctx)
	}
	return denied("401 Unauthorized without a Basic or Bearer challenge")
}

func (a *authenticator) basicChallenged(ctx context.Context) error {
	stamp := a.login.stamp() // before the look, so that no change is missed
	cred, err := a.login.credential(ctx)
	if err != nil {
		return err
	}
	if cred.username == "" {
		return denied("401 Unauthorized: it wants a user name and password%s", cred.missing)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setStamp(stamp)
	a.basic = basicHeader(cred.username, cred.password)
	return nil
}

// refused is the error of a 401 to what header returned.
func (a *authenticator) refused(ctx context.Context) error {
	if cred, err := a.login.credential(ctx); err == nil && cred.missing != "" {
		return denied("401 Unauthorized%s", cred.missing)
	}
	return denied("401 Unauthorized: the configured login does not give access")
}

func basicHeader(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

func (a *authenticator) bearerChallenged(repository string, c challenge, used string) error {
	if _, err := a.realm(c); err != nil {
		return err
	}
	t := a.token(repository)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.challenge = c
	if used == "Bearer "+t.value {
		t.expires = time.Time{} // refused before its time
	}
	return nil
}

// token returns the token of a repository, making room for a new one.
func (a *authenticator) token(repository string) *token {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.basic = ""
	if t := a.tokens[repository]; t != nil {
		return t
	}
	if len(a.tokens) >= maxTokens {
		clear(a.tokens) // who still uses one goes on; others are asked for anew
	}
	t := &token{turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	a.tokens[repository] = t
	return t
}

// realm returns the address of the challenge's token server, if that may be
// asked.
func (a *authenticator) realm(c challenge) (*url.URL, error) {
	u, err := url.Parse(c.params["realm"])
	if err != nil || u.Hostname() == "" || u.User != nil {
		return nil, denied("401 Unauthorized with a token realm that is not an address")
	}
	if !realmAllowed(a.endpoint.base, u, a.realms) {
		return nil, denied("its token realm %s://%.100s is not https and of the registry's own domain: add that host to the upstream's realms if you trust it with your login", u.Scheme, u.Host)
	}
	u.Fragment = ""
	return u, nil
}

// ask gets a token for a repository from the token server that c names
// (Docker token authentication specification, "Requesting a Token", and OAuth2
// for a refresh token). It returns the token and how long it lives.
func (a *authenticator) ask(ctx context.Context, repository string, c challenge) (string, time.Duration, error) {
	realm, err := a.realm(c)
	if err != nil {
		return "", 0, err
	}
	cred, err := a.login.credential(ctx)
	if err != nil {
		return "", 0, err
	}
	q := tokenQuery(realm, c, repository, cred)
	authz := ""
	if cred.username != "" && cred.identityToken == "" {
		authz = basicHeader(cred.username, cred.password)
	}
	target := *realm
	if q.method == http.MethodGet {
		target.RawQuery = q.rawQuery
	}
	resp, err := a.endpoint.follow(ctx, q, &target, authz)
	if err != nil {
		return "", 0, tokenError(realm, err)
	}
	defer discard(resp)
	if resp.StatusCode != http.StatusOK {
		return "", 0, tokenError(realm, statusError(resp, time.Now()))
	}
	return readToken(realm, resp.Body)
}

// tokenError says that it was the token server that failed.
func tokenError(realm *url.URL, err error) error {
	if a, ok := errors.AsType[*attemptError](err); ok {
		copied := *a
		copied.text = fmt.Sprintf("token server %s: %s", realm.Host, a.text)
		if a.class == ErrNotFound { // of the server's own address, not of the content
			copied.class = ErrUnavailable
		}
		return &copied
	}
	return err
}

func tokenQuery(realm *url.URL, c challenge, repository string, cred credential) query {
	scope := c.params["scope"]
	if scope == "" {
		scope = "repository:" + repository + ":pull"
	}
	values := realm.Query()
	if service := c.params["service"]; service != "" {
		values.Set("service", service)
	}
	q := query{kind: kindToken, method: http.MethodGet, header: make(http.Header)}
	if cred.identityToken != "" {
		q.method = http.MethodPost
		q.header.Set("Content-Type", "application/x-www-form-urlencoded")
		values.Set("grant_type", "refresh_token")
		values.Set("client_id", "shoal")
		values.Set("refresh_token", cred.identityToken)
		values.Set("scope", scope)
	} else {
		for s := range strings.FieldsSeq(scope) {
			values.Add("scope", s)
		}
		if cred.username != "" {
			values.Set("account", cred.username)
		}
	}
	q.rawQuery = values.Encode()
	return q
}

func readToken(realm *url.URL, body io.Reader) (string, time.Duration, error) {
	data, err := io.ReadAll(io.LimitReader(body, maxToken))
	if err != nil {
		return "", 0, tokenError(realm, cut(err))
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return "", 0, tokenError(realm, protocolError("an answer that is not JSON"))
	}
	value := answer.Token
	if value == "" {
		value = answer.AccessToken
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", 0, tokenError(realm, protocolError("an answer without a usable token"))
	}
	life := tokenLife
	if answer.ExpiresIn > 0 {
		life = time.Duration(min(answer.ExpiresIn, 24*60*60)) * time.Second
	}
	return value, life, nil
}
