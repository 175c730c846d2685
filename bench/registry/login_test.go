package registry_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/shoal-project/shoal/bench/registry"
)

const (
	repo      = "library/app"
	otherRepo = "library/other"
)

// startLogin starts a registry with a login of distribution's own and an image
// in two private repositories, of which ann may use the first only.
func startLogin(t *testing.T, o registry.Options) (*registry.Registry, string, registry.Image) {
	t.Helper()
	o.Users = map[string]string{"ann": "s3cret", "root": "t0p"}
	o.Access = map[string][]string{"ann": {repo}}
	o.Private = []string{repo, otherRepo}
	r := registry.New(o)
	t.Cleanup(r.Close)
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	as := strings.Replace(s.URL, "http://", "http://root:t0p@", 1)
	var img registry.Image
	for _, to := range []string{repo, otherRepo, "library/public"} {
		var err error
		if img, err = registry.PushImage(t.Context(), as, to, "1", []int64{100_000}, 1); err != nil {
			t.Fatal(err)
		}
	}
	r.Reset()
	return r, s.URL, img
}

// askAs sends a request with an Authorization and returns the status and the first
// challenge.
func askAs(t *testing.T, method, url, authorization string) (status int, challenge string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	client := &http.Client{CheckRedirect: func(next *http.Request, _ []*http.Request) error {
		next.Header.Del("Authorization") // net/http keeps it for another port
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("WWW-Authenticate")
}

// Whatever is asked for: who may have it gets it, and to the others no byte of it
// leaves.
func TestLogin(t *testing.T) {
	t.Parallel()
	basic := func(user, password string) string {
		req := &http.Request{Header: make(http.Header)}
		req.SetBasicAuth(user, password)
		return req.Header.Get("Authorization")
	}
	type who map[string]struct {
		authorization func(r *registry.Registry) string
		status        int
		challenge     string
	}
	is := func(s string) func(*registry.Registry) string { return func(*registry.Registry) string { return s } }
	token := func(life time.Duration, repository string) func(*registry.Registry) string {
		return func(r *registry.Registry) string { return "Bearer " + r.Token("ann", life, repository) }
	}
	for how, callers := range map[registry.Auth]who{
		registry.AuthBasic: {
			"nobody":         {is(""), 401, `Basic realm="the test registry"`},
			"user":           {is(basic("ann", "s3cret")), 200, ""},
			"wrong password": {is(basic("ann", "guess")), 401, `Basic `},
			"removed": {func(r *registry.Registry) string {
				r.RemoveUser("ann")
				return basic("ann", "s3cret")
			}, 401, `Basic `},
			"added": {func(r *registry.Registry) string {
				r.AddUser("bob", "b")
				return basic("bob", "b")
			}, 200, ""},
		},
		registry.AuthToken: {
			"nobody":           {is(""), 401, `/token",service="shoal test registry",scope="repository:library/app:pull"`},
			"good":             {token(time.Minute, repo), 200, ""},
			"other repository": {token(time.Minute, otherRepo), 401, `error="insufficient_scope"`},
			"expired":          {token(-time.Second, repo), 401, `error="invalid_token"`},
			"nonsense":         {is("Bearer abc"), 401, `error="invalid_token"`},
			"password":         {is(basic("ann", "s3cret")), 401, `Bearer realm="http://127.0.0.1:`},
			"revoked": {func(r *registry.Registry) string {
				old := "Bearer " + r.Token("ann", time.Minute, repo)
				r.RevokeTokens()
				return old
			}, 401, `error="invalid_token"`},
			"after a revocation": {func(r *registry.Registry) string {
				r.RevokeTokens()
				return "Bearer " + r.Token("ann", time.Minute, repo)
			}, 200, ""},
		},
	} {
		for caller, tc := range callers {
			t.Run(caller, func(t *testing.T) {
				t.Parallel()
				r, base, img := startLogin(t, registry.Options{Login: how})
				authorization := tc.authorization(r)
				root := base + "/v2/" + repo
				asked := 0
				for _, redirect := range []bool{false, true} {
					r.SetFaults(registry.Faults{Redirect: redirect})
					for _, path := range []string{
						"/manifests/1", "/manifests/" + img.Manifest.Digest.String(),
						"/blobs/" + img.Layers[0].Digest.String(), "/tags/list",
					} {
						for _, method := range []string{http.MethodGet, http.MethodHead} {
							if method == http.MethodHead && path == "/tags/list" {
								continue // there is none
							}
							asked++
							status, challenge := askAs(t, method, root+path, authorization)
							if status != tc.status || !strings.Contains(challenge, tc.challenge) {
								t.Errorf("%s %s: %d, challenge %q; want %d, %q", method, path, status, challenge, tc.status, tc.challenge)
							}
						}
					}
				}
				c := r.Count()
				if tc.status == 200 {
					if want := int64(4 * len(img.Raw)); c.ManifestBytes != want || c.BlobBytes != 200_000 || c.Challenges != 0 || c.Leaks != 0 {
						t.Errorf("counts %+v", c)
					}
				} else if c.ManifestBytes != 0 || c.BlobBytes != 0 || c.Redirects != 0 || c.Challenges != asked {
					t.Errorf("counts %+v, want no bytes and %d challenges", c, asked)
				}
			})
		}
	}
}

// A real client gets its tokens from the token server, for what it may have, and
// a new one when the old one's time is over.
func TestTokenServer(t *testing.T) {
	t.Parallel()
	r, base, _ := startLogin(t, registry.Options{Login: registry.AuthToken, TokenLife: time.Second})
	host := strings.TrimPrefix(base, "http://")
	pull := func(repository, user, password string) error {
		ref, err := name.ParseReference(host+"/"+repository+":1", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		auth := authn.Anonymous
		if user != "" {
			auth = &authn.Basic{Username: user, Password: password}
		}
		img, err := remote.Image(ref, remote.WithAuth(auth), remote.WithContext(t.Context()))
		if err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		rc, err := layers[0].Compressed()
		if err != nil {
			return err
		}
		defer rc.Close()
		_, err = io.Copy(io.Discard, rc)
		return err
	}
	for _, tc := range []struct {
		repository, user, password string
		ok                         bool
	}{
		{repo, "ann", "s3cret", true},
		{repo, "ann", "guess", false},
		{repo, "", "", false},
		{otherRepo, "ann", "s3cret", false},
		{otherRepo, "root", "t0p", true},
		{"library/public", "", "", true},
	} {
		r.Reset()
		err := pull(tc.repository, tc.user, tc.password)
		if (err == nil) != tc.ok {
			t.Errorf("%s by %q: %v", tc.repository, tc.user, err)
		}
		if c := r.Count(); c.Tokens == 0 || tc.ok != (c.BlobBytes > 0) {
			t.Errorf("%s by %q: %+v", tc.repository, tc.user, c)
		}
	}

	short := "Bearer " + r.Token("ann", time.Second, repo)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil { // a second at most
		if status, _ := askAs(t, http.MethodHead, base+"/v2/"+repo+"/manifests/1", short); status == 401 {
			break
		}
	}
	if ctx.Err() != nil {
		t.Error("a token of a second does not end")
	}

	// OAuth2, as containerd asks first.
	form := url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"s3cret"},
		"service": {"shoal test registry"}, "scope": {"repository:" + repo + ":pull"}}
	for password, want := range map[string]int{"s3cret": 200, "guess": 401} {
		form.Set("password", password)
		resp, err := http.PostForm(base+"/token", form)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("POST with the password %s: %s", password, resp.Status)
		}
	}
}

// A server of the CA is trusted by those who trust the CA, and its tokens' realm
// is https as well.
func TestCA(t *testing.T) {
	t.Parallel()
	ca, err := registry.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	r := registry.New(registry.Options{Login: registry.AuthToken})
	t.Cleanup(r.Close)
	s := httptest.NewUnstartedServer(r)
	if s.TLS, err = ca.TLS("127.0.0.1", "registry.test"); err != nil {
		t.Fatal(err)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig.RootCAs = ca.Pool()
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Get(s.URL + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if c := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || !strings.HasPrefix(c, `Bearer realm="`+s.URL+`/token"`) {
		t.Errorf("%s, challenge %q", resp.Status, c)
	}
	if err := resp.TLS.PeerCertificates[0].VerifyHostname("registry.test"); err != nil {
		t.Error(err)
	}
}
