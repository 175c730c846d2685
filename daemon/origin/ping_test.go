package origin_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
)

// Any answer but a plea to come back later shows that a registry is there, with
// its clock.
func TestPing(t *testing.T) {
	t.Parallel()
	noon := time.Date(2020, 1, 2, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		status int
		path   string // of the upstream's URL
		asked  string
		err    error
	}{
		{200, "", "/v2/", nil},
		{401, "", "/v2/", nil},
		{403, "", "/v2/", nil},
		{404, "", "/v2/", nil},
		{307, "", "/v2/", nil},
		{200, "/artifactory", "/artifactory/v2/", nil},
		{200, "/v2/dockerhub", "/v2/", nil},
		{200, "/a/v2/b/c", "/a/v2/", nil},
		{500, "", "/v2/", origin.ErrUnavailable},
		{429, "", "/v2/", origin.ErrUnavailable},
	} {
		var asked, authorization string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			asked, authorization = req.URL.Path, req.Header.Get("Authorization")
			w.Header().Set("Date", noon.Format(http.TimeFormat))
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(tc.status)
		}))
		t.Cleanup(s.Close)
		c := newClient(t, as("ann", "s3cret", at(s.URL+tc.path)), func(cfg *origin.Config) { cfg.Tries = 1 })
		date, err := c.Ping(t.Context(), upstream)
		if !errors.Is(err, tc.err) || tc.err == nil && !date.Equal(noon) || asked != tc.asked || authorization != "" {
			t.Errorf("%d at %q: %v, %v; asked for %s as %q", tc.status, tc.path, date, err, asked, authorization)
		}
	}

	c := newClient(t, at("http://127.0.0.1:1"), func(cfg *origin.Config) { cfg.Tries = 1 })
	if _, err := c.Ping(t.Context(), upstream); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("where nobody is: %v, want ErrUnavailable", err)
	}
	if _, err := c.Ping(t.Context(), "elsewhere.test"); !errors.Is(err, origin.ErrUnknownUpstream) {
		t.Errorf("%v, want ErrUnknownUpstream", err)
	}
	c.SetOffline(true)
	if _, err := c.Ping(t.Context(), upstream); !errors.Is(err, origin.ErrOffline) {
		t.Errorf("%v, want ErrOffline", err)
	}
}

// A real registry with TLS and a login of its own, whose clock is ours.
func TestPingTLS(t *testing.T) {
	t.Parallel()
	ca, err := registry.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	r := registry.New(registry.Options{Login: registry.AuthToken})
	t.Cleanup(r.Close)
	s := httptest.NewUnstartedServer(r)
	if s.TLS, err = ca.TLS("127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	u := passthrough(s.URL)
	u.CA = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(u.CA, ca.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, u)
	date, err := c.Ping(t.Context(), upstream)
	if d := time.Since(date); err != nil || d < -time.Minute || d > time.Minute {
		t.Errorf("%v, %v", date, err)
	}
	err = c.Challenge(t.Context(), upstream, "")
	challenged, ok := errors.AsType[*origin.ChallengeError](err)
	if want := fmt.Sprintf(`[Bearer realm="%s/token",service="shoal test registry"]`, s.URL); !ok || fmt.Sprint(challenged.Challenges) != want {
		t.Errorf("%q, want %s", challenged, want)
	}
}

func TestNamed(t *testing.T) {
	t.Parallel()
	c, err := origin.New(origin.Config{Upstreams: map[string]origin.Upstream{
		"docker.io":           at("https://mirror.test:5000", "https://registry-1.docker.io:443"),
		"Ghcr.io":             {},
		"plain.test":          at("http://plain-1.test"),
		"registry.local:5000": at("http://registry.local:5000"),
		"hub.corp":            at("https://harbor.corp/v2/dockerhub"),
		"quay.corp":           at("https://harbor.corp/v2/quay"),
		"single.corp":         at("https://nexus.corp/v2/hub"),
		"one.test":            at("https://shared.test"),
		"two.test":            at("https://shared.test/v2/"),
		"taken.test":          {},
		"other.test":          at("https://taken.test"),
		"*":                   {},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"docker.io":                "docker.io",
		"DOCKER.io:443":            "docker.io",
		"registry-1.docker.io":     "docker.io",
		"registry-1.docker.io:443": "docker.io",
		"registry-1.docker.io:80":  "",
		"mirror.test:5000":         "docker.io",
		"mirror.test":              "",
		"ghcr.io":                  "ghcr.io",
		"plain.test":               "plain.test",
		"plain-1.test:80":          "plain.test",
		"plain-1.test":             "", // that would be https
		"registry.local:5000":      "registry.local:5000",
		"registry.local":           "",
		"harbor.corp":              "", // its repositories have other names there
		"nexus.corp":               "",
		"shared.test":              "", // whose would it be?
		"taken.test":               "taken.test",
		"elsewhere.test":           "",
		"":                         "",
	} {
		got, ok := c.Named(host)
		if got != want || ok != (want != "") {
			t.Errorf("Named(%q) = %q, %t; want %q", host, got, ok, want)
		}
	}
}

func TestAuthMode(t *testing.T) {
	t.Parallel()
	upstreams := map[string]origin.Upstream{
		"a.test": {}, "n.test": as("ann", "x", origin.Upstream{}), "p.test": {Auth: origin.AuthPassthrough},
	}
	check := func(want map[string]string) {
		t.Helper()
		c, err := origin.New(origin.Config{Upstreams: upstreams})
		if err != nil {
			t.Fatal(err)
		}
		for name, mode := range want {
			if got := c.Auth(name); got != mode {
				t.Errorf("Auth(%q) = %q, want %q", name, got, mode)
			}
		}
	}
	check(map[string]string{"a.test": "anonymous", "N.test": "node", "p.test": "passthrough", "other.test": ""})
	upstreams["*"] = origin.Upstream{}
	check(map[string]string{"p.test": "passthrough", "other.test": "anonymous", "localhost": ""})
	file := configFile(t, "other.test", `{"username": "a", "password": "b"}`)
	upstreams["*"] = origin.Upstream{Auth: origin.AuthNode, CredentialsFile: file}
	check(map[string]string{"a.test": "anonymous", "other.test": "node"})
}
