package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
)

// start runs the program and returns its URL and a function that ends it.
func start(t *testing.T, s settings) (url string, stop func() error) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, w, "127.0.0.1:0", s) }()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http://"
	if s.ca != "" {
		scheme = "https://"
	}
	return scheme + strings.TrimSpace(line), func() error {
		cancel()
		return <-ended
	}
}

func count(t *testing.T, url string) (c registry.Counts) {
	t.Helper()
	resp, err := http.Get(url + "/count")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServesCountsAndKeeps(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	dir := t.TempDir() + "/made/if/absent"
	url, stop := start(t, in(dir))
	img, err := registry.PushImage(t.Context(), url, "library/app", "1", []int64{1000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	pull := func(url string) {
		resp, err := http.Get(url + "/v2/library/app/blobs/" + img.Layers[0].Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); n != 1000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	pull(url)
	if n := count(t, url).BlobBytes; n != 1000 {
		t.Errorf("counted %d bytes, want 1000", n)
	}
	req, _ := http.NewRequest(http.MethodDelete, url+"/count", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := count(t, url).BlobBytes; n != 0 {
		t.Errorf("counted %d bytes after DELETE, want 0", n)
	}
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}

	// The content is there again after a restart.
	url, stop = start(t, in(dir))
	pull(url)
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func in(dir string) settings { return settings{Options: registry.Options{Dir: dir}} }

// With a login and TLS: nobody gets in without them, and the CA's file is all that
// it takes to trust it.
func TestLoginAndTLS(t *testing.T) {
	s := in(t.TempDir())
	s.login, s.ca, s.hosts = "token", t.TempDir()+"/ca.pem", "127.0.0.1"
	s.Private = []string{"library/app"}
	if err := s.Set("ann:s3:cret"); err != nil {
		t.Fatal(err)
	}
	base, stop := start(t, s)
	pem, err := os.ReadFile(s.ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	get := func(path, authorization string) (status int, token string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		if authorization == "" {
			req.SetBasicAuth("ann", "s3:cret")
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct{ Token string }
		_ = json.NewDecoder(resp.Body).Decode(&answer) // an error has none
		return resp.StatusCode, answer.Token
	}
	if status, _ := get("/v2/", "none"); status != 401 {
		t.Errorf("%d without a login, want 401", status)
	}
	status, token := get("/token?service=shoal+test+registry&scope=repository:library/app:pull", "")
	if status != 200 {
		t.Fatalf("%d from the token server", status)
	}
	if status, _ := get("/v2/library/app/manifests/1", "Bearer "+token); status != 404 {
		t.Errorf("%d with a token, want 404: there is no image", status)
	}
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestMistakes(t *testing.T) {
	bad := func(change func(*settings)) settings {
		s := in(t.TempDir())
		change(&s)
		return s
	}
	for listen, tc := range map[string]struct {
		s   settings
		err string
	}{
		"127.0.0.1:0": {in(""), "-dir"},
		"nowhere":     {in(t.TempDir()), "address nowhere"},
		"[::1]:0":     {bad(func(s *settings) { s.login = "magic" }), "basic or token"},
		"localhost:0": {bad(func(s *settings) { s.ca = "/nowhere/ca.pem" }), "/nowhere/ca.pem"},
	} {
		if err := run(t.Context(), io.Discard, listen, tc.s); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("at %s: %v, want %q", listen, err, tc.err)
		}
	}
	for _, user := range []string{"ann", ":x", "ann:"} {
		if new(settings).Set(user) == nil {
			t.Errorf("-user %s went through", user)
		}
	}
}
