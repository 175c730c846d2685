package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"strings"
)

// A Role is what somebody may do here. Each may do what the one before may.
type Role string

const (
	// None may ask whether the node lives and is ready, as everybody may.
	None Role = "none"
	// View may read everything.
	View Role = "view"
	// Operate may start and cancel jobs, collect garbage, scrub, pin, and switch
	// offline: what costs time, and takes nothing away for good.
	Operate Role = "operate"
	// Admin may also put content in, and forbid some.
	Admin Role = "admin"
)

// level orders the roles. What is none of them may nothing.
func (r Role) level() int {
	switch r {
	case View:
		return 1
	case Operate:
		return 2
	case Admin:
		return 3
	}
	return 0
}

// Access says who may do what. Who is several of these has the highest of their
// roles.
type Access struct {
	// Local is the role of whoever comes from this machine, by loopback or a
	// unix socket. Default: Admin.
	Local Role
	// Tokens returns the tokens that are good now. It is called once a request,
	// so that they can be replaced. Nil: there are none.
	Tokens func() []Token
	// Certificates are about those that clients prove to have by TLS, whose CA
	// the listener knows.
	Certificates []Certificate
	// OpenMetrics gives /metrics to everybody.
	OpenMetrics bool
}

// A Token lets in who sends it as "Authorization: Bearer" (RFC 6750).
type Token struct {
	// Name is for the log.
	Name string
	Role Role

	sum [sha256.Size]byte
}

// NewToken returns a token of which only a hash is kept. The secret must be
// random: it can be guessed as fast as the node answers. An empty one lets in
// nobody.
func NewToken(name string, role Role, secret string) Token {
	if secret == "" {
		role = None
	}
	return Token{Name: name, Role: role, sum: sha256.Sum256([]byte(secret))}
}

// A Certificate gives a role to the common name of a certificate; "*" is any.
type Certificate struct {
	Name string
	Role Role
}

// operated are the requests that Operate may make. All others that change
// something are Admin's: what is forgotten here is not open.
var operated = map[string]bool{
	"POST /v1/jobs":                  true,
	"DELETE /v1/jobs/{id}":           true,
	"POST /v1/webhooks/distribution": true,
	"POST /v1/webhooks/harbor":       true,
	"POST /v1/cache/gc":              true,
	"POST /v1/cache/scrub":           true,
	"POST /v1/cache/pins":            true,
	"DELETE /v1/cache/pins":          true,
	"PUT /v1/offline":                true,
}

// putBlobs is the one change that is not logged: there are thousands, and they are
// nobody's until an image is put.
const putBlobs = "PUT /v1/cache/blobs/{digest}"

// needs returns the role that a route, named by its pattern, takes.
func needs(pattern string) Role {
	switch {
	case strings.HasPrefix(pattern, "GET "):
		return View
	case operated[pattern]:
		return Operate
	}
	return Admin
}

// may is h for those who have a role, or a higher one.
func (s *server) may(role Role, h http.Handler) http.Handler {
	return s.read(func(w http.ResponseWriter, r *http.Request) error {
		who, has := s.who(r)
		if has.level() < role.level() {
			return s.denied(w, r, who, has, role)
		}
		if role != View && r.Pattern != putBlobs {
			s.log.Info("admin request", "by", who, "role", string(has), "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
		}
		h.ServeHTTP(w, r)
		return nil
	})
}

// denied answers who may not do something. Who is nobody is asked for a token.
func (s *server) denied(w http.ResponseWriter, r *http.Request, who string, has, needs Role) error {
	s.log.Debug("admin request denied", "by", who, "role", string(has), "needs", string(needs), "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
	if has.level() > 0 {
		return refuse(http.StatusForbidden, "this takes the role %s, and %s has %s", needs, who, has)
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="shoal admin"`)
	return refuse(http.StatusUnauthorized, "this takes the role %s: send a token of admin.tokens as Authorization: Bearer (--admin-token-file), or show a certificate of admin.certificates (--admin-cert, --admin-key)", needs)
}

// who returns who sent a request, and the highest role that it has shown.
func (s *server) who(r *http.Request) (name string, has Role) {
	name, has = "somebody", None
	better := func(n string, role Role) {
		if role.level() > has.level() {
			name, has = n, role
		}
	}
	if s.cfg.Access.Tokens != nil {
		if t, ok := match(s.cfg.Access.Tokens(), bearer(r.Header.Get("Authorization"))); ok {
			better("token "+t.Name, t.Role)
		}
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		cn := r.TLS.VerifiedChains[0][0].Subject.CommonName
		for _, c := range s.cfg.Access.Certificates {
			if c.Name == cn || c.Name == "*" {
				better("certificate "+cn, c.Role)
			}
		}
	}
	if local(r) {
		role := s.cfg.Access.Local
		if role == "" {
			role = Admin
		}
		better("this machine", role)
	}
	return name, has
}

// match returns the token that was sent, in a time that does not depend on how
// much of which of them is right.
func match(tokens []Token, sent string) (found Token, ok bool) {
	sum := sha256.Sum256([]byte(sent))
	for _, t := range tokens {
		if subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1 && sent != "" {
			found, ok = t, true
		}
	}
	return found, ok
}

// bearer returns the token in an Authorization header (RFC 6750, section 2.1),
// or "".
func bearer(header string) string {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// local reports whether a request comes from this machine, and is nobody else's
// that a reverse proxy on it passes on.
func local(r *http.Request) bool {
	for _, passedOn := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(passedOn) != "" {
			return false
		}
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return true // a unix socket has no addresses
	}
	return at.Addr().Unmap().IsLoopback()
}
