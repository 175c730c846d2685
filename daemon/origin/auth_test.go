package origin_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// withLogin are the options of a registry whose repository is ann's.
var withLogin = registry.Options{
	Users:   map[string]string{"ann": "s3cret"},
	Private: []string{repository},
}

// as returns u with a user's name and password.
func as(user, password string, u origin.Upstream) origin.Upstream {
	u.Auth, u.Username, u.Password = origin.AuthNode, user, password
	return u
}

// configFile writes a docker config.json with one entry.
func configFile(t *testing.T, host, entry string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths": {%q: %s}}`, host, entry), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLogin(t *testing.T) {
	t.Parallel()
	pair := fmt.Sprintf(`{"auth": %q}`, base64.StdEncoding.EncodeToString([]byte("ann:s3cret")))
	for _, auth := range []registry.Auth{registry.AuthBasic, registry.AuthToken} {
		r, url := startRegistry(t, withLogin)
		host := strings.TrimPrefix(url, "http://")
		content, b := push(t, url, 1, 1000)
		r.SetFaults(registry.Faults{Auth: auth})
		inFile := func(key, entry string) origin.Upstream {
			u := at(url)
			u.Auth, u.CredentialsFile = origin.AuthNode, configFile(t, key, entry)
			return u
		}
		for name, tc := range map[string]struct {
			u   origin.Upstream
			err string // empty: the blob
		}{
			"password":        {as("ann", "s3cret", at(url)), ""},
			"wrong password":  {as("ann", "guess", at(url)), "401 Unauthorized"},
			"anonymous":       {at(url), "auth is anonymous: set auth: node"},
			"config.json":     {inFile(host, pair), ""},
			"with scheme":     {inFile("http://"+host+"/v2/", pair), ""},
			"plain entry":     {inFile(host, `{"username": "ann", "password": "s3cret"}`), ""},
			"other host":      {inFile("elsewhere.test", pair), "has none for " + host},
			"upstream's name": {inFile(upstream, pair), "has none for " + host}, // the URL is on another domain
			"namespace entry": {inFile(host+"/library", pair), "has none for " + host},
		} {
			t.Run(fmt.Sprint(auth, " ", name), func(t *testing.T) {
				t.Parallel()
				got, err := fetch(t, newClient(t, tc.u), b.Run())
				if tc.err == "" {
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					return
				}
				if !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), tc.err) || len(got) != 0 {
					t.Errorf("%d bytes, %v; want ErrDenied with %q", len(got), err, tc.err)
				}
			})
		}
	}
}

// Many fetches at once share one token, and a login that is known costs no
// challenge.
func TestTokenIsShared(t *testing.T) {
	t.Parallel()
	r, url := startRegistry(t, withLogin)
	content, b := push(t, url, 2, 1000)
	r.SetFaults(registry.Faults{Auth: registry.AuthToken})
	c := newClient(t, as("ann", "s3cret", at(url)))
	together := func(n int) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				got, err := fetch(t, c, b.Run())
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
	}
	r.Reset()
	together(16)
	if n := r.Count().Tokens; n != 1 {
		t.Errorf("%d tokens asked for, want 1", n)
	}
	r.Reset()
	together(16)
	if n := r.Count(); n.Tokens != 0 || n.Challenges != 0 {
		t.Errorf("%d tokens and %d challenges the second time, want none", n.Tokens, n.Challenges)
	}

	// The registry forgets the token before its time.
	r.RevokeTokens()
	r.Reset()
	together(1)
	if n := r.Count(); n.Tokens != 1 || n.Challenges != 1 {
		t.Errorf("%d tokens and %d challenges after a revocation, want one of each", n.Tokens, n.Challenges)
	}
}

// Changed credentials count without a restart.
func TestCredentialsFileIsReadAnew(t *testing.T) {
	t.Parallel()
	for _, auth := range []registry.Auth{registry.AuthBasic, registry.AuthToken} {
		r, url := startRegistry(t, withLogin)
		content, b := push(t, url, 3, 1000)
		r.SetFaults(registry.Faults{Auth: auth})
		host := strings.TrimPrefix(url, "http://")
		u := at(url)
		u.Auth, u.CredentialsFile = origin.AuthNode, configFile(t, host, `{"username": "ann", "password": "old"}`)
		c := newClient(t, u)
		if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) {
			t.Fatalf("with the old password: %v, want ErrDenied", err)
		}
		data, err := os.ReadFile(configFile(t, host, `{"username": "ann", "password": "s3cret"}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(u.CredentialsFile, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := fetch(t, c, b.Run()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("with the new password: %d bytes, %v", len(got), err)
		}
	}
}

// A registry cannot send our password to a token server of its choice.
func TestForeignRealmIsRefused(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, `{"token": "x"}`)
	}))
	t.Cleanup(thief.Close)
	r, url := startRegistry(t, withLogin)
	_, b := push(t, url, 4, 1000)
	for _, realm := range []string{
		// The registry is at 127.0.0.1, so "localhost" is another host.
		strings.Replace(thief.URL, "127.0.0.1", "localhost", 1) + "/token",
		"https://auth.elsewhere.test/token",
		"http://ann:x@127.0.0.1/token",
		"ftp://127.0.0.1/token",
		"/token",
		"://",
	} {
		r.SetFaults(registry.Faults{Auth: registry.AuthToken, Realm: realm})
		_, err := fetch(t, newClient(t, as("ann", "s3cret", at(url))), b.Run())
		if !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "token realm") {
			t.Errorf("realm %s: %v, want ErrDenied", realm, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the foreign token server was asked %d times", n)
	}
}

// A host that is listed in realms may hand out tokens.
func TestListedRealmIsUsed(t *testing.T) {
	t.Parallel()
	r, url := startRegistry(t, withLogin)
	content, b := push(t, url, 5, 1000)
	realm := strings.Replace(url, "127.0.0.1", "localhost", 1) + "/token"
	r.SetFaults(registry.Faults{Auth: registry.AuthToken, Realm: realm})
	u := as("ann", "s3cret", at(url))
	u.Realms = []string{"localhost"}
	if got, err := fetch(t, newClient(t, u), b.Run()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A token server's own failures are not the registry's refusal.
func TestTokenServerFails(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, answer string
		status       int
		err          error
		text         string
	}{
		{"unavailable", "", 503, origin.ErrUnavailable, "503"},
		{"not there", "", 404, origin.ErrUnavailable, "404"},
		{"refuses", "", 401, origin.ErrDenied, "401"},
		{"not JSON", "<html>", 200, origin.ErrProtocol, "not JSON"},
		{"no token", "{}", 200, origin.ErrProtocol, "without a usable token"},
		{"bad token", `{"token": "a\nb"}`, 200, origin.ErrProtocol, "without a usable token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var s *httptest.Server
			s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path != "/token" {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.answer)
			}))
			t.Cleanup(s.Close)
			_, b := pulltest.Content(6, 1000)
			_, err := fetch(t, newClient(t, at(s.URL)), b.Run())
			if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), "token server") || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want %v of the token server, with %q", err, tc.err, tc.text)
			}
		})
	}
}

// An identity token is exchanged by OAuth2 (docker login of some registries
// writes one in place of a password).
func TestIdentityToken(t *testing.T) {
	t.Parallel()
	content, b, url := identityRegistry(t)
	u := withFile(url, configFile(t, strings.TrimPrefix(url, "http://"), `{"identitytoken": "refresh-me"}`))
	got, err := fetch(t, newClient(t, u), b.Run())
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// identityRegistry starts a registry whose token server takes the identity token
// "refresh-me" only, and returns a blob that it has.
func identityRegistry(t *testing.T) (content []byte, b proto.Blob, url string) {
	t.Helper()
	content, b = pulltest.Content(7, 1000)
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/oauth2/token":
			if req.Method != http.MethodPost || req.FormValue("grant_type") != "refresh_token" ||
				req.FormValue("refresh_token") != "refresh-me" || req.FormValue("service") != "it" ||
				req.FormValue("scope") != "repository:library/app:pull" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			fmt.Fprint(w, `{"access_token": "granted"}`)
		case req.Header.Get("Authorization") == "Bearer granted":
			_, _ = w.Write(content)
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/oauth2/token",service="it"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	return content, b, s.URL
}
