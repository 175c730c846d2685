package registry

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/auth"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd" // Options.Login
	_ "github.com/distribution/distribution/v3/registry/auth/token"    // Options.Login
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/bcrypt"
)

// A login is distribution's own authentication, as Options.Login has it.
type login struct {
	// immutable
	how Auth
	dir string // of the files that distribution reads

	// Registry.mu protects the fields below.
	users  map[string]string
	key    ed25519.PrivateKey // signs tokens
	keyID  string
	checks auth.AccessController // the same that the app has, for answers that are not the app's
	writes int                   // of the htpasswd file
}

// issuer is who hands tokens out.
const issuer = "the test registry's token server"

func newLogin(o Options) *login {
	if o.Login == AuthNone {
		return nil
	}
	dir, err := os.MkdirTemp("", "shoal-registry-login-")
	if err != nil {
		panic(err) // no place for its files: no test can run
	}
	l := &login{how: o.Login, dir: dir, users: make(map[string]string)}
	for name, password := range o.Users {
		l.users[name] = password
	}
	return l
}

// config returns what distribution is told, after it has written the files that
// distribution reads at its start. Registry.mu is held, or nobody else knows l.
func (l *login) config() configuration.Auth {
	if l.how == AuthBasic {
		l.writeHtpasswd()
		return configuration.Auth{"htpasswd": {"realm": "the test registry", "path": l.file()}}
	}
	l.newKey()
	return configuration.Auth{"token": {
		"realm":            "https://realm.invalid/token", // wanted, but not used
		"autoredirect":     true,                          // the realm is at the host that was asked
		"autoredirectpath": "/token",
		"service":          serviceName,
		"issuer":           issuer,
		"jwks":             l.file(),
	}}
}

func (l *login) file() string {
	return filepath.Join(l.dir, map[Auth]string{AuthBasic: "htpasswd", AuthToken: "jwks.json"}[l.how])
}

func (l *login) write(data []byte) {
	if err := os.WriteFile(l.file(), data, 0o600); err != nil {
		panic(err)
	}
}

// writeHtpasswd writes the users out. distribution reads the file again when its
// time has changed, so each one gets a time of its own.
func (l *login) writeHtpasswd() {
	var lines strings.Builder
	for name, password := range l.users {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			panic(err) // a password of more than 72 bytes
		}
		fmt.Fprintf(&lines, "%s:%s\n", name, hash)
	}
	l.write([]byte(lines.String()))
	l.writes++
	at := time.Unix(int64(l.writes), 0)
	if err := os.Chtimes(l.file(), at, at); err != nil {
		panic(err)
	}
}

// newKey makes the key that tokens are signed with from now on, and the file by
// which distribution knows it.
func (l *login) newKey() {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	l.key, l.keyID = private, rand.Text()
	jwks, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
		"kid": l.keyID, "x": base64.RawURLEncoding.EncodeToString(public),
	}}})
	if err != nil {
		panic(err)
	}
	l.write(jwks)
}

// startApps starts distribution, with l's authentication if it is not nil.
// Registry.mu is held, or nobody else knows r.
func (r *Registry) startApps(config configuration.Configuration) {
	if r.inside == nil {
		r.inside = handlers.NewApp(r.ctx, &config)
		r.app = r.inside
	}
	l := r.login
	if l == nil {
		return
	}
	config.Auth = l.config()
	r.app = handlers.NewApp(r.ctx, &config)
	checks, err := auth.GetAccessController(config.Auth.Type(), config.Auth.Parameters())
	if err != nil {
		panic(err) // NewApp has taken the same
	}
	l.checks = checks
}

// AddUser lets a user in from now on, or changes the password. With
// Options.Login only.
func (r *Registry) AddUser(name, password string) {
	r.changeUsers(func(users map[string]string) { users[name] = password })
}

// RemoveUser lets a user in no more. Tokens that the user has hold until they
// expire, as everywhere. With Options.Login only.
func (r *Registry) RemoveUser(name string) {
	r.changeUsers(func(users map[string]string) { delete(users, name) })
}

func (r *Registry) changeUsers(change func(map[string]string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r.login.users)
	if r.login.how == AuthBasic {
		r.login.writeHtpasswd()
	}
}

// Token returns a token as the token server of Options.Login gives it to a user:
// good for pulls from the repositories, for so long. Negative: expired. Unlike
// the token server it does not ask what the user may.
func (r *Registry) Token(user string, life time.Duration, repositories ...string) string {
	actions := make(map[string][]string)
	for _, repository := range repositories {
		actions[repository] = []string{"pull"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.login.sign(user, life, actions)
}

// sign makes a token (Docker token authentication specification, "Token
// Authentication Implementation"). Registry.mu is held.
func (l *login) sign(user string, life time.Duration, actions map[string][]string) string {
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	for repository, may := range actions {
		granted = append(granted, access{"repository", repository, may})
	}
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": issuer, "sub": user, "aud": serviceName, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
		"access": granted,
	})
	token.Header["kid"] = l.keyID
	text, err := token.SignedString(l.key)
	if err != nil {
		panic(err) // the key is right
	}
	return text
}

// prepared returns req as distribution's authentication should see it.
func (l *login) prepared(req *http.Request) *http.Request {
	req = req.Clone(req.Context())
	// This is where distribution learns the scheme of a realm at its own host.
	req.Header.Set("X-Forwarded-Proto", map[bool]string{true: "https", false: "http"}[req.TLS != nil])
	if value, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer "); ok && expired(value) {
		req.Header.Set("Authorization", "Bearer expired")
	}
	return req
}

// expired reports whether a token's time is over. distribution lets a minute pass
// for clocks that are wrong, which no test wants to wait for.
func expired(token string) bool {
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		return false // distribution says so
	}
	until, err := parsed.Claims.GetExpirationTime()
	return err == nil && until != nil && !time.Now().Before(until.Time)
}

// pullAllowed reports whether req may pull from a repository, and challenges it
// if not. It is for answers that do not come from distribution itself.
func (r *Registry) pullAllowed(w http.ResponseWriter, req *http.Request, repository string) bool {
	if r.login == nil {
		return true
	}
	r.mu.Lock()
	checks := r.login.checks
	r.mu.Unlock()
	_, err := checks.Authorized(req, auth.Access{Resource: auth.Resource{Type: "repository", Name: repository}, Action: "pull"})
	if err == nil {
		return true
	}
	if c, ok := err.(auth.Challenge); ok {
		c.SetHeaders(req, w)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, unauthorized)
	return false
}

// serveJWT is the token server of Options.Login. A login may come as Basic or, as
// OAuth2 has it, in a form.
func (r *Registry) serveJWT(w http.ResponseWriter, req *http.Request) {
	name, password, sent := req.BasicAuth()
	if req.Method == http.MethodPost {
		name, password = req.PostFormValue("username"), req.PostFormValue("password")
		sent = true
	}
	_ = req.ParseForm() // what cannot be parsed asks for nothing
	r.mu.Lock()
	defer r.mu.Unlock()
	want, known := r.login.users[name]
	if sent && (!known || password != want) || !sent && req.Header.Get("Authorization") != "" || req.Form.Get("service") != serviceName {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !sent {
		name = ""
	}
	actions := make(map[string][]string)
	for _, scope := range strings.Fields(strings.Join(req.Form["scope"], " ")) {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 || parts[0] != "repository" {
			continue
		}
		for action := range strings.SplitSeq(parts[2], ",") {
			if r.mayOf(name, parts[1], action) {
				actions[parts[1]] = append(actions[parts[1]], action)
			}
		}
	}
	token := r.login.sign(name, r.opts.TokenLife, actions)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token":        token,
		"access_token": token,
		"expires_in":   int(r.opts.TokenLife / time.Second),
		"issued_at":    time.Now().UTC().Format(time.RFC3339),
	})
}

// mayOf reports whether a user, or nobody (""), has the right to an action.
func (r *Registry) mayOf(user, repository, action string) bool {
	if user == "" {
		return action == "pull" && !slices.Contains(r.opts.Private, repository)
	}
	own, limited := r.opts.Access[user]
	return !limited || slices.Contains(own, repository)
}

// A challengeCounter counts a 401 that passes through it.
type challengeCounter struct {
	http.ResponseWriter
	registry *Registry
}

// Unwrap is for http.ResponseController.
func (c *challengeCounter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *challengeCounter) WriteHeader(status int) {
	if status == http.StatusUnauthorized {
		c.registry.mu.Lock()
		c.registry.counts.Challenges++
		c.registry.mu.Unlock()
	}
	c.ResponseWriter.WriteHeader(status)
}
