package registry

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A grant is what a token allows.
type grant struct {
	until   time.Time
	actions map[string][]string // by repository
}

// RevokeTokens makes all tokens so far invalid. Signed ones can only be revoked
// by another key, which distribution reads at its start: it is started anew on
// the same content.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
	if r.login != nil && r.login.how == AuthToken {
		_ = r.app.Shutdown() // fails for pull-through registries only
		r.startApps(r.config)
	}
}

// unauthorized is the body of a 401.
const unauthorized = `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`

// authorized reports whether req may go on, and challenges it if not.
func (r *Registry) authorized(w http.ResponseWriter, req *http.Request, f Faults, repository string) bool {
	var challenge string
	switch f.Auth {
	case AuthNone:
		return true
	case AuthBasic:
		if r.user(req) != "" {
			return true
		}
		challenge = `Basic realm="the test registry"`
	case AuthToken:
		action := "pull"
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			action = "push"
		}
		if r.hasToken(req, repository, action) {
			return true
		}
		challenge = r.bearerChallenge(req, f, repository, action)
	}
	r.mu.Lock()
	r.counts.Challenges++
	r.mu.Unlock()
	w.Header().Set("WWW-Authenticate", challenge)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, unauthorized)
	return false
}

// user returns the user whose name and password req has, or "".
func (r *Registry) user(req *http.Request) string {
	name, password, ok := req.BasicAuth()
	if want, known := r.opts.Users[name]; ok && known && password == want {
		return name
	}
	return ""
}

func (r *Registry) bearerChallenge(req *http.Request, f Faults, repository, action string) string {
	realm := f.Realm
	if realm == "" {
		realm = "http://" + req.Host + "/token"
		if req.TLS != nil {
			realm = "https://" + req.Host + "/token"
		}
	}
	c := fmt.Sprintf(`Bearer realm=%q,service=%q`, realm, serviceName)
	if repository != "" {
		actions := "pull"
		if action == "push" {
			actions = "pull,push"
		}
		c += fmt.Sprintf(`,scope="repository:%s:%s"`, repository, actions)
	}
	return c
}

// serviceName is what tokens are asked for.
const serviceName = "shoal test registry"

func (r *Registry) hasToken(req *http.Request, repository, action string) bool {
	value, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g, ok := r.tokens[value]
	if !ok || time.Now().After(g.until) {
		return false
	}
	return repository == "" || slices.Contains(g.actions[repository], action)
}

// serveToken is the token server (Docker token authentication specification).
// It gives those who do not log in the right to pull what is not private.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	user := r.user(req)
	if user == "" && req.Header.Get("Authorization") != "" || q.Get("service") != serviceName {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	g := grant{until: time.Now().Add(r.opts.TokenLife), actions: make(map[string][]string)}
	for _, scope := range q["scope"] {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 || parts[0] != "repository" {
			continue
		}
		for action := range strings.SplitSeq(parts[2], ",") {
			if user != "" || action == "pull" && !slices.Contains(r.opts.Private, parts[1]) {
				g.actions[parts[1]] = append(g.actions[parts[1]], action)
			}
		}
	}
	value := rand.Text()
	r.mu.Lock()
	r.tokens[value] = g
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token":      value,
		"expires_in": int(r.opts.TokenLife / time.Second),
		"issued_at":  time.Now().UTC().Format(time.RFC3339),
	})
}
