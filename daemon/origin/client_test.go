package origin_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
)

func TestNewRefusesMistakes(t *testing.T) {
	t.Parallel()
	noPEM := filepath.Join(t.TempDir(), "ca.pem")
	badConfig := filepath.Join(t.TempDir(), "config.json")
	badAuth := configFile(t, "a.test", `{"auth": "%%%"}`)
	badHelper := filepath.Join(t.TempDir(), "helper.json")
	write(t, badHelper, `{"credsStore": "../../bin/hunter2"}`, 0o600)
	for _, f := range []string{noPEM, badConfig} {
		if err := os.WriteFile(f, []byte("hunter2"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		name string
		u    origin.Upstream
		err  string
	}{
		"no scheme":             {"a.test", at("a.test"), "must be https://host"},
		"no host":               {"a.test", at("https:///x"), "must be https://host"},
		"ftp":                   {"a.test", at("ftp://a.test"), "must be https://host"},
		"not a url":             {"a.test", at("https://x:hunter2@a.test/%zz"), "cannot be parsed"},
		"password in url":       {"a.test", at("https://x:hunter2@a.test"), "credentials have keys of their own"},
		"query in url":          {"a.test", at("https://a.test?token=hunter2"), "no user, password, query"},
		"name is no host":       {"a.test/x", origin.Upstream{}, "not a registry host"},
		"empty name":            {"", origin.Upstream{}, "not a registry host"},
		"unknown auth":          {"a.test", origin.Upstream{Auth: "passthru"}, "not known: use anonymous, node or passthrough"},
		"node with nothing":     {"a.test", origin.Upstream{Auth: "node"}, "needs credentialsFile"},
		"user without password": {"a.test", origin.Upstream{Auth: "node", Username: "x"}, "needs credentialsFile"},
		"both":                  {"a.test", origin.Upstream{Auth: "node", Username: "x", CredentialsFile: badAuth}, "keep one"},
		"two passwords":         {"a.test", origin.Upstream{Auth: "node", Username: "x", Password: "hunter2", PasswordFile: noPEM}, "keep one"},
		"two kinds of files":    {"a.test", origin.Upstream{Auth: "node", PasswordFile: noPEM, CredentialsFile: badAuth}, "keep one"},
		"no password file":      {"a.test", origin.Upstream{Auth: "node", Username: "x", PasswordFile: "/nowhere/password"}, "/nowhere/password"},
		"empty password file":   {"a.test", origin.Upstream{Auth: "node", Username: "x", PasswordFile: os.DevNull}, "is empty"},
		"no file in directory":  {"a.test", origin.Upstream{Auth: "node", CredentialsFile: t.TempDir()}, ".dockerconfigjson"},
		"helper with a path":    {"a.test", origin.Upstream{Auth: "node", CredentialsFile: badHelper}, "not a name"},
		"passthrough with user": {"a.test", origin.Upstream{Auth: "passthrough", Username: "x", Password: "hunter2"}, "never uses"},
		"passthrough to two":    {"a.test", passthrough("https://a.test", "https://b.test"), "of different domains"},
		"passthrough, no TLS":   {"a.test", passthrough("https://a.test", "http://a.test"), "of different domains"},
		"* with passthrough":    {"*", passthrough(), "an entry of its own"},
		"basic without callers": {"a.test", origin.Upstream{Basic: true}, "for auth: passthrough only"},
		"anonymous with user":   {"a.test", origin.Upstream{Username: "x", Password: "hunter2"}, "set auth: node"},
		"no CA file":            {"a.test", origin.Upstream{CA: "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		"CA without PEM":        {"a.test", origin.Upstream{CA: noPEM}, "no PEM certificate"},
		"no credentials file":   {"a.test", origin.Upstream{Auth: "node", CredentialsFile: "/nowhere/config.json"}, "/nowhere/config.json"},
		"bad credentials file":  {"a.test", origin.Upstream{Auth: "node", CredentialsFile: badConfig}, "not a docker config.json"},
		"bad base64":            {"a.test", origin.Upstream{Auth: "node", CredentialsFile: badAuth}, "base64 of user:password"},
		"* with url":            {"*", at("https://a.test"), "an entry of its own"},
		"* with password":       {"*", as("x", "hunter2", origin.Upstream{}), "an entry of its own"},
		"public over http":      {"a.test", origin.Upstream{URLs: []string{"http://a.test"}, Public: true}, "not https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := origin.New(origin.Config{Upstreams: map[string]origin.Upstream{tc.name: tc.u}})
			if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), fmt.Sprintf("upstream %q", tc.name)) {
				t.Fatalf("error %v, want %q of upstream %q", err, tc.err, tc.name)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error gives a secret away: %v", err)
			}
		})
	}
}

func TestKnows(t *testing.T) {
	t.Parallel()
	named := map[string]origin.Upstream{"docker.io": {}, "Registry.local:5000": at("http://10.0.0.1:5000"), "localhost": at("http://localhost")}
	closed, err := origin.New(origin.Config{Upstreams: named})
	if err != nil {
		t.Fatal(err)
	}
	named["*"] = origin.Upstream{}
	open, err := origin.New(origin.Config{Upstreams: named})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ closed, open bool }{
		"docker.io":                     {true, true},
		"DOCKER.io":                     {true, true},
		"registry.local:5000":           {true, true},
		"localhost":                     {true, true},
		"quay.io":                       {false, true},
		"quay.io:443":                   {false, true},
		"Ghcr.IO":                       {false, true},
		"a-b.c1.example":                {false, true},
		"":                              {false, false},
		"*":                             {false, false},
		"registry":                      {false, false},
		"localhost:5000":                {false, false},
		"127.0.0.1":                     {false, false},
		"127.0.0.1:5000":                {false, false},
		"[::1]:5000":                    {false, false},
		"::1":                           {false, false},
		"quay.io:":                      {false, false},
		"quay.io:0":                     {false, false},
		"quay.io:080":                   {false, false},
		"quay.io:65536":                 {false, false},
		"quay.io:x":                     {false, false},
		"quay.io/x":                     {false, false},
		"x@quay.io":                     {false, false},
		"quay..io":                      {false, false},
		".quay.io":                      {false, false},
		"quay.io.":                      {false, false},
		"-quay.io":                      {false, false},
		"quay_.io":                      {false, false},
		"quäy.io":                       {false, false},
		"quay.io\r\nx":                  {false, false},
		"a." + strings.Repeat("x", 64):  {false, false},
		strings.Repeat("a.", 130) + "b": {false, false},
	} {
		if got := closed.Knows(name); got != want.closed {
			t.Errorf("without *: Knows(%q) = %v", name, got)
		}
		if got := open.Knows(name); got != want.open {
			t.Errorf("with *: Knows(%q) = %v", name, got)
		}
	}
}

// startTLS starts a real registry with TLS and returns its URL and CA file.
func startTLS(t *testing.T) (r *registry.Registry, url, ca string) {
	t.Helper()
	r = registry.New(registry.Options{})
	s := httptest.NewUnstartedServer(r)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(r.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return r, s.URL, ca
}

func TestTLS(t *testing.T) {
	t.Parallel()
	r, tlsURL, ca := startTLS(t)
	plain := httptest.NewServer(r)
	t.Cleanup(plain.Close)
	content, b := push(t, plain.URL, 1, 1000)

	trusting := at(tlsURL)
	trusting.CA = ca
	if got, err := fetch(t, newClient(t, trusting), b.Run()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("with its CA: %d bytes, %v", len(got), err)
	}

	r.Reset()
	_, err := fetch(t, newClient(t, at(tlsURL)), b.Run())
	if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "name its file in the upstream's ca") {
		t.Errorf("without its CA: %v", err)
	}
	if n := r.Count().BlobGets; n != 0 {
		t.Errorf("a registry that is not trusted was asked %d times", n)
	}

	_, err = fetch(t, newClient(t, at(strings.Replace(plain.URL, "http:", "https:", 1))), b.Run())
	if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "configure the upstream's url as http://") {
		t.Errorf("https to a plain registry: %v", err)
	}

	// The object storage of the test registry is plain http.
	r.SetFaults(registry.Faults{Redirect: true})
	got, err := fetch(t, newClient(t, trusting), b.Run())
	if !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "redirect from https to plain http") || len(got) != 0 {
		t.Errorf("a redirect to plain http: %d bytes, %v", len(got), err)
	}
}

// What stands for "any registry" does not reach into the private network.
func TestPublicUpstreamRefusesPrivateAddress(t *testing.T) {
	t.Parallel()
	r, tlsURL, ca := startTLS(t)
	_, b := pulltest.Content(2, 1000)
	u := origin.Upstream{URLs: []string{tlsURL}, CA: ca, Public: true}
	_, err := fetch(t, newClient(t, u), b.Run())
	if !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "127.0.0.1 is not a public address") {
		t.Errorf("%v, want ErrDenied", err)
	}
	if n := r.Count().BlobGets; n != 0 {
		t.Errorf("it was asked %d times all the same", n)
	}
}

// Secrets must show up neither in an error nor in the log, whatever fails.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	r, base := startRegistry(t, withLogin)
	_, b := push(t, base, 3, 100_000)
	_, absent := pulltest.Content(4, 1000)
	var seen bytes.Buffer
	log := slog.New(slog.NewTextHandler(&seen, &slog.HandlerOptions{Level: slog.LevelDebug}))
	logged := func(cfg *origin.Config) { cfg.Log, cfg.Tries = log, 2 }
	signature := func() string { // of a redirect, as the client sees it
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v2/"+repository+"/blobs/"+b.Digest.String(), nil)
		req.SetBasicAuth("ann", "s3cret")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		u, _ := url.Parse(resp.Header.Get("Location"))
		return u.Query().Get("signature")
	}
	for _, f := range []registry.Faults{
		{Status: 500},
		{CutAfter: 100},
		{Redirect: true, Status: 0, CutAfter: 100},
		{WrongDigest: true, Redirect: true},
		{LongBody: true, Redirect: true},
		{Realm: "https://elsewhere.test/token?x=s3cret"},
		{Realm: "http://127.0.0.1:1/token?x=s3cret"},
	} {
		for _, auth := range []registry.Auth{registry.AuthBasic, registry.AuthToken} {
			for _, password := range []string{"s3cret", "s3cret-wrong"} {
				f.Auth = auth
				r.SetFaults(f)
				c := newClient(t, as("ann", password, at(base)), logged)
				for _, blob := range []string{"there", "absent"} {
					run := b.Run()
					if blob == "absent" {
						run = absent.Run()
					}
					if _, err := fetch(t, c, run); err != nil {
						fmt.Fprintln(&seen, err)
					}
				}
			}
		}
	}
	r.SetFaults(registry.Faults{Redirect: true, Auth: registry.AuthBasic})
	text := seen.String()
	if !strings.Contains(text, "500 Internal Server Error") || !strings.Contains(text, "connection cut") {
		t.Fatalf("the faults did not show:\n%s", text)
	}
	for what, secret := range map[string]string{
		"password":  "s3cret",
		"header":    "Authorization",
		"basic":     "YW5uOn", // base64 of "ann:"
		"token":     "Bearer ",
		"signature": signature(),
	} {
		if secret == "" || strings.Contains(text, secret) {
			t.Errorf("the %s %q is in errors or the log:\n%s", what, secret, text)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	r, base := startRegistry(t, withLogin)
	_, b := push(t, base, 5, 1000)
	r.SetFaults(registry.Faults{Auth: registry.AuthToken, FailFirst: 1, Redirect: true})
	reg := prometheus.NewPedanticRegistry()
	c := newClient(t, as("ann", "s3cret", at("http://127.0.0.1:1", base)), func(cfg *origin.Config) { cfg.Registry = reg })
	if _, err := fetch(t, c, b.Run()); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP shoal_origin_backoff_seconds For how long the upstream registry is still left alone because it asked for that; 0: it is asked.
# TYPE shoal_origin_backoff_seconds gauge
shoal_origin_backoff_seconds{upstream="registry.test"} 0
# HELP shoal_origin_bytes_total Bytes of manifests, blobs and lists received from upstream registries.
# TYPE shoal_origin_bytes_total counter
shoal_origin_bytes_total{upstream="registry.test"} 1000
# HELP shoal_origin_requests_total HTTP requests sent to upstream registries, their token servers and object storage, by status code, or "error" if there was no answer.
# TYPE shoal_origin_requests_total counter
shoal_origin_requests_total{code="200",kind="blob",upstream="registry.test"} 1
shoal_origin_requests_total{code="200",kind="token",upstream="registry.test"} 1
shoal_origin_requests_total{code="307",kind="blob",upstream="registry.test"} 1
shoal_origin_requests_total{code="401",kind="blob",upstream="registry.test"} 1
shoal_origin_requests_total{code="503",kind="blob",upstream="registry.test"} 1
shoal_origin_requests_total{code="error",kind="blob",upstream="registry.test"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if _, err := origin.New(origin.Config{Registry: reg}); err == nil {
		t.Error("a second client registered the same metrics")
	}
}
