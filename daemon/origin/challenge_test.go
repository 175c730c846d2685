package origin

import (
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	t.Parallel()
	type params = map[string]string
	for s, want := range map[string][]challenge{
		"":      nil,
		"Basic": {{"basic", params{}}},
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull"`: {
			{"bearer", params{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/alpine:pull"}}},
		`bearer Realm = "a" , SERVICE=b`:            {{"bearer", params{"realm": "a", "service": "b"}}},
		`Basic realm="a, b", Bearer realm="c"`:      {{"basic", params{"realm": "a, b"}}, {"bearer", params{"realm": "c"}}},
		`Negotiate, Basic realm="x"`:                {{"negotiate", params{}}, {"basic", params{"realm": "x"}}},
		`Basic realm="say \"hi\" \\"`:               {{"basic", params{"realm": `say "hi" \`}}},
		`Basic realm="never closed`:                 {{"basic", params{"realm": "never closed"}}},
		`Basic realm=a, realm=b`:                    {{"basic", params{"realm": "a"}}},
		`realm="nobody's"`:                          nil,
		`Basic realm="a" ; junk`:                    {{"basic", params{"realm": "a"}}},
		`Bearer realm="https://a/?x=1,2",error="e"`: {{"bearer", params{"realm": "https://a/?x=1,2", "error": "e"}}},
	} {
		if got := parseChallenges(s); !reflect.DeepEqual(got, want) {
			t.Errorf("parseChallenges(%q) = %v, want %v", s, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io"`,
		`Basic realm="a, b", Bearer realm="c"`, `Negotiate abc==`, `Basic realm="x`, "=", `a "`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n := 0
		for _, c := range parseChallenges(s) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("%q has the scheme %q", s, c.scheme)
			}
			for k, v := range c.params {
				n += len(k) + len(v)
			}
		}
		if n > 2*len(s) {
			t.Errorf("%d bytes came out of %d", n, len(s))
		}
	})
}

func TestRealmAllowed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		base, realm string
		listed      []string
		want        bool
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io/token", nil, true},
		{"https://ghcr.io", "https://ghcr.io/token", nil, true},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", nil, true},
		{"https://registry.cn-hangzhou.aliyuncs.com", "https://dockerauth.cn-hangzhou.aliyuncs.com/auth", nil, true},
		{"https://a.test:5000", "https://a.test:5001/token", nil, true},
		{"https://A.test", "https://a.TEST/token", nil, true},
		{"https://10.0.0.1:5000", "https://10.0.0.1/token", nil, true},
		{"https://registry", "https://registry/token", nil, true},

		{"https://registry-1.docker.io", "http://auth.docker.io/token", nil, false},
		{"https://registry-1.docker.io", "http://registry-1.docker.io/token", nil, false},
		{"https://registry-1.docker.io", "https://auth.docker.com/token", nil, false},
		{"https://registry-1.docker.io", "https://docker.io.evil.test/token", nil, false},
		{"https://registry-1.docker.io", "https://notdocker.io/token", nil, false},
		{"https://a.github.io", "https://b.github.io/token", nil, false},
		{"https://a.co.uk", "https://b.co.uk/token", nil, false},
		{"https://10.0.0.1", "https://20.0.0.1/token", nil, false},
		{"https://10.0.0.1", "https://10.0.0.2/token", nil, false},
		{"https://registry", "https://auth/token", nil, false},

		{"http://a.test:5000", "http://a.test:5001/token", nil, true},
		{"http://a.test:5000", "https://a.test:5001/token", nil, true},
		{"http://a.test:5000", "https://auth.a.test/token", nil, true},
		{"http://a.test:5000", "http://auth.a.test/token", nil, false},
		{"http://127.0.0.1:5000", "http://localhost:5000/token", nil, false},

		{"https://a.test", "https://auth.other.test/token", []string{"auth.other.test"}, true},
		{"https://a.test", "https://auth.other.test:8443/token", []string{"Auth.other.test:8443"}, true},
		{"https://a.test", "https://auth.other.test:8443/token", []string{"auth.other.test:8444"}, false},
		{"https://a.test", "https://other.test/token", []string{"auth.other.test"}, false},
		{"https://a.test", "http://auth.other.test/token", []string{"auth.other.test"}, false},
		{"http://a.test", "http://auth:5001/token", []string{"auth:5001"}, true},
	} {
		base, err := url.Parse(tc.base)
		if err != nil {
			t.Fatal(err)
		}
		realm, err := url.Parse(tc.realm)
		if err != nil {
			t.Fatal(err)
		}
		if got := realmAllowed(base, realm, tc.listed); got != tc.want {
			t.Errorf("realmAllowed(%s, %s, %v) = %v", tc.base, tc.realm, tc.listed, got)
		}
	}
}

func TestCredentialHosts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, base string
		want       []string
	}{
		{"docker.io", "https://registry-1.docker.io", []string{"registry-1.docker.io", "docker.io", "index.docker.io"}},
		{"docker.io", "https://mirror.corp.test", []string{"mirror.corp.test"}},
		{"ghcr.io", "https://ghcr.io", []string{"ghcr.io"}},
		{"a.test:5000", "https://a.test", []string{"a.test", "a.test:5000"}},
		{"a.test:5000", "http://10.0.0.1:5000", []string{"10.0.0.1:5000"}},
	} {
		base, err := url.Parse(tc.base)
		if err != nil {
			t.Fatal(err)
		}
		if got := credentialHosts(tc.name, base); !slices.Equal(got, tc.want) {
			t.Errorf("credentialHosts(%s, %s) = %v, want %v", tc.name, tc.base, got, tc.want)
		}
	}
}

func TestDockerConfig(t *testing.T) {
	t.Parallel()
	config, err := parseDockerConfig([]byte(`{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "YW5uOnNlOmNyZXQ="},
			"quay.io/org": {"username": "org", "password": "x"},
			"Registry.test:5000": {"username": "bob", "password": "y"},
			"id.test": {"identitytoken": "z"},
			"helped.test": {}
		},
		"credHelpers": {"helped.test": ""},
		"HttpHeaders": {"x": "y"}
	}`), false)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]credential{
		"index.docker.io":    {username: "ann", password: "se:cret"},
		"registry.test:5000": {username: "bob", password: "y"},
		"id.test":            {identityToken: "z"},
		"quay.io":            {missing: ", and FILE has none for quay.io"},
		"helped.test":        {missing: ", and FILE has none for helped.test"},
	} {
		l := Upstream{CredentialsFile: "FILE"}.newLogin(host, &url.URL{Host: host})
		l.hosts = []string{host}
		if got, err := l.find(t.Context(), config, ""); err != nil || got != want {
			t.Errorf("for %s: %+v, %v; want %+v", host, got, err, want)
		}
	}
}

func FuzzParseDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths": {"a": {"auth": "YTpi"}}}`), false)
	f.Add([]byte(`{"auths": {"a": {"auth": "%"}}}`), false)
	f.Add([]byte(`{"a": {"auth": "YTpi"}}`), true)
	f.Add([]byte(`{"credsStore": "../x", "credHelpers": {"a": "ecr-login"}}`), false)
	f.Add([]byte(`null`), true)
	f.Fuzz(func(t *testing.T, data []byte, legacy bool) {
		config, err := parseDockerConfig(data, legacy)
		if err != nil {
			return
		}
		for _, name := range append(slices.Collect(maps.Values(config.CredHelpers)), config.CredsStore) {
			if strings.ContainsAny(name, "/\\ \x00") || strings.HasPrefix(name, ".") {
				t.Errorf("the helper %q", name)
			}
		}
		for h, a := range config.Auths {
			if a.Auth != "" && strings.Contains(a.Username, ":") {
				t.Errorf("%s has the user name %q", h, a.Username)
			}
		}
	})
}
