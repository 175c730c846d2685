package registry

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // where content is
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/shoal-project/shoal/proto"
)

// LeakedGoroutine is the function of the one goroutine that a distribution
// registry starts and has no way to end. Tests that look for leaks ignore it:
// goleak.IgnoreTopFunction(registry.LeakedGoroutine).
const LeakedGoroutine = "github.com/docker/go-events.(*Broadcaster).run"

// Options of a Registry.
type Options struct {
	// Dir is where content is kept. Empty: in a temporary directory that Close
	// removes.
	Dir string
	// Login is distribution's own authentication: AuthBasic is an htpasswd file,
	// AuthToken signed tokens (JWT) of a token server at /token. Unlike
	// Faults.Auth it cannot be switched off. Faults.Realm does not concern it.
	Login Auth
	// Users are the passwords of those who may log in, by user name. They may
	// pull and push everything, if Access does not say otherwise.
	Users map[string]string
	// Access are the only repositories that a user may pull and push, by user
	// name. It concerns Login's AuthToken: an htpasswd file knows users only.
	Access map[string][]string
	// Private are the repositories that need a login with AuthToken. The token
	// server lets anybody pull the others.
	Private []string
	// TokenLife is how long tokens live. Default 5 minutes; rounded down to
	// whole seconds.
	TokenLife time.Duration
}

// A Registry is a distribution v3 registry that counts what it sends and fails
// as it is told. It is an http.Handler; Close ends it.
type Registry struct {
	// immutable
	opts   Options
	ctx    context.Context
	config configuration.Configuration
	inside *handlers.App // without a login, for who has shown a signature
	login  *login        // of Options.Login; nil without
	temp   string        // directory to remove; empty if there is none
	key    string        // signs redirects

	mu     sync.Mutex // protects the fields below
	app    *handlers.App
	faults Faults
	closed bool
	limit  *rate.Limiter // nil: unlimited
	counts Counts
	sent   map[proto.Digest]*content
	asked  map[question]int
	// referrers are what SetReferrers was told.
	referrers map[question][]byte
	tokens    map[string]grant
	storage   *http.Server // where redirects lead; nil until the first
	epoch     int          // of signatures; a new one makes the old ones invalid

	serving sync.WaitGroup // storage
}

// New returns a Registry without faults. It panics if there is no place for its
// content.
func New(o Options) *Registry {
	if o.TokenLife == 0 {
		o.TokenLife = 5 * time.Minute
	}
	// The library logs each request and error to the process's logrus logger,
	// which nothing else here uses, and offers no other way to quiet it.
	logrus.SetOutput(io.Discard)
	temp := ""
	if o.Dir == "" {
		var err error
		if temp, err = os.MkdirTemp("", "shoal-registry-"); err != nil {
			panic(err)
		}
		o.Dir = temp
	}
	storage := configuration.Storage{
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		"delete":      {"enabled": true},
		"redirect":    {"disable": true},
		"cache":       {"blobdescriptor": "inmemory"},
		"filesystem":  {"rootdirectory": o.Dir},
	}
	config := configuration.Configuration{Storage: storage}
	config.HTTP.Secret = rand.Text()
	// An index may be pushed without all of its images.
	config.Validation.Disabled = true
	r := &Registry{
		opts:      o,
		ctx:       context.Background(),
		config:    config,
		login:     newLogin(o),
		temp:      temp,
		key:       rand.Text(),
		faults:    Faults{over: make(chan struct{})},
		sent:      make(map[proto.Digest]*content),
		asked:     make(map[question]int),
		referrers: make(map[question][]byte),
		tokens:    make(map[string]grant),
	}
	r.startApps(config)
	return r
}

// Close ends answers that are stalled and the server that redirects lead to,
// and removes the content if it was temporary. Close the server in front of
// the Registry as well.
func (r *Registry) Close() {
	r.mu.Lock()
	storage := r.storage
	if !r.closed {
		r.closed = true
		close(r.faults.over)
	}
	r.mu.Unlock()
	if storage != nil {
		_ = storage.Close()
	}
	r.serving.Wait()
	_ = r.inside.Shutdown() // fails for pull-through registries only
	_ = r.current().Shutdown()
	if r.login != nil {
		_ = os.RemoveAll(r.login.dir)
	}
	if r.temp != "" {
		_ = os.RemoveAll(r.temp) // what is left is the test machine's
	}
}

// ServeHTTP serves the distribution API below /v2/ and tokens at /token.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	t := parsePath(req.URL.Path)
	r.mu.Lock()
	f := r.faults
	r.counts.request(t, req.Method)
	if t.kind == kindManifest || t.kind == kindTags || t.kind == kindReferrers {
		r.asked[question{t.kind, req.Method, t.repository, t.reference}]++
	}
	r.mu.Unlock()
	r.refuse(f)
	switch {
	case t.kind == kindToken && r.login != nil && r.login.how == AuthToken:
		r.serveJWT(w, req)
		return
	case t.kind == kindToken:
		r.serveToken(w, req)
		return
	case r.login != nil:
		w, req = &challengeCounter{w, r}, r.login.prepared(req)
	}
	if !r.authorized(w, req, f, t.repository) {
		return
	}
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	switch {
	case t.kind == kindBlob && req.Method == http.MethodGet:
		r.serveBlob(w, req, t, f)
	case t.kind == kindManifest && read:
		r.serveManifest(w, req, f)
	case (t.kind == kindTags || t.kind == kindReferrers) && req.Method == http.MethodGet:
		r.serveList(w, req, t, f)
	default:
		r.current().ServeHTTP(w, req)
	}
}

// current returns the distribution registry that answers now.
func (r *Registry) current() *handlers.App {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.app
}

// refuse ends a request without an answer if the registry is down.
func (r *Registry) refuse(f Faults) {
	if !f.Down {
		return
	}
	r.mu.Lock()
	r.counts.Dropped++
	r.mu.Unlock()
	panic(http.ErrAbortHandler)
}

// Kinds of paths.
const (
	kindToken     = "token"
	kindPing      = "ping"
	kindManifest  = "manifest"
	kindBlob      = "blob"
	kindTags      = "tags"
	kindReferrers = "referrers"
	kindOther     = "other"
)

// A thing is what a path of the distribution API names.
type thing struct {
	kind       string
	repository string
	digest     proto.Digest // of a blob
	reference  string       // tag or digest of a manifest, or digest that referrers refer to
}

func parsePath(path string) thing {
	if path == "/token" {
		return thing{kind: kindToken}
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || rest == "" {
		return thing{kind: kindPing}
	}
	if i := strings.LastIndex(rest, "/manifests/"); i >= 0 {
		return thing{kind: kindManifest, repository: rest[:i], reference: rest[i+len("/manifests/"):]}
	}
	if i := strings.LastIndex(rest, "/blobs/"); i >= 0 {
		if d, err := proto.ParseDigest(rest[i+len("/blobs/"):]); err == nil {
			return thing{kind: kindBlob, repository: rest[:i], digest: d}
		}
		return thing{kind: kindOther, repository: rest[:i]} // an upload
	}
	if i := strings.LastIndex(rest, "/tags/"); i >= 0 {
		return thing{kind: kindTags, repository: rest[:i]}
	}
	if i := strings.LastIndex(rest, "/referrers/"); i >= 0 {
		return thing{kind: kindReferrers, repository: rest[:i], reference: rest[i+len("/referrers/"):]}
	}
	return thing{kind: kindOther}
}
