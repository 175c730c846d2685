package locks_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/proto"
)

// client returns one with a transport of its own, which the test closes.
func client(t *testing.T, change func(tr *http.Transport)) *http.Client {
	t.Helper()
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{}}
	change(tr)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// send sends a request and returns its answer and the version of HTTP.
func send(t *testing.T, c *http.Client, method, url, authorization string, header ...string) (answer, int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s after %d bytes: %v", method, url, len(body), err)
	}
	return answer{resp.StatusCode, resp.Header, body}, resp.ProtoMajor
}

// certificate makes a certificate for 127.0.0.1 and writes it to dir.
func certificate(t *testing.T, ca *registry.CA, dir string) daemon.TLSConfig {
	t.Helper()
	cert, key, err := ca.Server("127.0.0.1", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	c := daemon.TLSConfig{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	write(t, c.Key, string(key))
	write(t, c.Cert, string(cert))
	return c
}

func newCA(t *testing.T) *registry.CA {
	t.Helper()
	ca, err := registry.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// TestTLS: with a certificate the mirror speaks HTTP/2 and what comes is right. A
// certificate that is renewed is used at once, and a broken one is not.
func TestTLS(t *testing.T) {
	t.Parallel()
	before, after := newCA(t), newCA(t)
	dir := t.TempDir()
	broken := &awaited{text: "certificate was not read again", seen: make(chan struct{})}
	b := startWith(t, registry.AuthNone, daemon.Upstream{}, broken, fleet.Options{
		Nodes: 1, Configure: func(_ int, c *daemon.Config) { c.Mirror.TLS = certificate(t, before, dir) },
	})
	i := newImage(t, "team/app", "v1", traits{})
	b.put(i)
	at := "https://" + b.fleet.Nodes[0].MirrorAddr() + "/v2/"
	c := client(t, func(tr *http.Transport) { tr.TLSClientConfig.RootCAs = before.Pool() })
	for range 2 {
		for _, path := range paths(i.Image) {
			want := i.Raw
			if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
				want = i.blob(digest)
			}
			if a, version := send(t, c, "GET", at+path, ""); version != 2 || a.status != http.StatusOK || !bytes.Equal(a.body, want) {
				t.Errorf("%s: HTTP/%d, status %d, %d bytes", path, version, a.status, len(a.body))
			}
		}
	}
	a, version := send(t, c, "GET", at+"team/app/blobs/"+i.Layers[0].Digest.String(), "", "Range", "bytes=270000-270099")
	if version != 2 || a.status != http.StatusPartialContent || !bytes.Equal(a.body, i.blobs[1][270000:270100]) {
		t.Errorf("range: HTTP/%d, status %d, %d bytes", version, a.status, len(a.body))
	}
	if a, _ := send(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "GET", strings.Replace(at, "https", "http", 1), ""); a.status != http.StatusBadRequest {
		t.Errorf("in plain http: status %d", a.status)
	}

	certificate(t, after, dir)
	b.until("the new certificate is used", func() bool { return b.shakes(after.Pool()) == nil })
	if b.shakes(before.Pool()) == nil {
		t.Error("the old certificate is used as well")
	}
	broken.again()
	write(t, filepath.Join(dir, "tls.crt"), "nonsense")
	select {
	case <-broken.seen:
	case <-time.After(20 * time.Second):
		t.Error("nobody was told that the certificate is broken")
	}
	if err := b.shakes(after.Pool()); err != nil {
		t.Errorf("after the certificate was broken: %v", err)
	}
	certificate(t, before, dir)
	b.until("a certificate is used again", func() bool { return b.shakes(before.Pool()) == nil })
}

// An awaited is a log in which a text is waited for.
type awaited struct {
	text string

	mu   sync.Mutex // protects the fields below
	over bool
	seen chan struct{} // closed when it has been written
}

// again forgets what has been written so far: of a pair that is renewed, one file
// comes first.
func (a *awaited) again() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over, a.seen = false, make(chan struct{})
}

func (a *awaited) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over && bytes.Contains(p, []byte(a.text)) {
		a.over = true
		close(a.seen)
	}
	return len(p), nil
}

// shakes does a TLS handshake with node 0's mirror.
func (b *bed) shakes(roots *x509.CertPool) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", b.fleet.Nodes[0].MirrorAddr(), &tls.Config{RootCAs: roots})
	if err == nil {
		err = c.Close()
	}
	return err
}

// until waits for something that happens by itself.
func (b *bed) until(what string, is func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond) // as somebody outside would: by asking
	}
}

// TestUnixSocket: the mirror on a socket, for those who may open it.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "shoal") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "mirror.sock")
	b := govern(t, daemon.PolicyConfig{Rules: []rules.Rule{
		{Name: "away", If: `repository == "team/away" && client.address != "unix"`, Do: "deny"},
		{Name: "here", If: `repository == "team/here" && client.address == "unix"`, Do: "deny"},
	}}, func(c *daemon.Config) { c.Mirror.Listen = "unix:" + socket })
	away, here := newImage(t, "team/away", "v1", traits{}), newImage(t, "team/here", "v1", traits{})
	b.put(away, here)
	info, err := os.Stat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v; want a socket for its user and group", info.Mode(), err)
	}
	c := client(t, func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	})
	for _, path := range paths(away.Image) {
		if a, _ := send(t, c, "GET", "http://localhost/v2/"+path, ""); a.status != http.StatusOK || !strings.Contains(path, proto.DigestOf(a.body).String()) && !bytes.Equal(a.body, away.Raw) {
			t.Errorf("%s: status %d, %d bytes", path, a.status, len(a.body))
		}
	}
	if a, _ := send(t, c, "GET", "http://localhost/v2/"+paths(here.Image)[0], ""); a.status != http.StatusForbidden || !strings.Contains(string(a.body), "rule here") {
		t.Errorf("status %d: %.300s", a.status, a.body)
	}
	for _, l := range b.audited() {
		if l.Client != "unix" {
			t.Errorf("the client was %q", l.Client)
		}
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket of a node that has ended: %v", err)
	}
}

// TestAllowFrom: who is of no network on the list gets not a byte, at the mirror
// and at the proxy.
func TestAllowFrom(t *testing.T) {
	t.Parallel()
	b := start(t, registry.AuthNone, 1, daemon.Upstream{}, func(_ int, c *daemon.Config) {
		c.Mirror.AllowFrom = []string{"127.0.0.2", "10.0.0.0/8"}
		proxied(t, c, fleet.Upstream)
		c.Proxy.AllowFrom = c.Mirror.AllowFrom
	})
	for name, door := range map[string]string{"mirror": b.fleet.Nodes[0].MirrorAddr(), "proxy": b.fleet.Nodes[0].ProxyAddr()} {
		for from, may := range map[string]bool{"127.0.0.1": false, "127.0.0.2": true, "127.0.0.3": false} {
			d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.DialContext(t.Context(), "tcp", door)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") // it may be closed already
			data, _ := io.ReadAll(c)
			_ = c.Close()
			if may != bytes.HasPrefix(data, []byte("HTTP/1.1 ")) || !may && len(data) > 0 {
				t.Errorf("%s: from %s came %.100q", name, from, data)
			}
		}
	}
}

// TestAdminRoles: what each role may do at the admin door of a daemon, and that a
// token that is replaced is no good from then on.
func TestAdminRoles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokens := map[string]string{}
	ca := newCA(t)
	b := start(t, registry.AuthNone, 1, daemon.Upstream{}, func(_ int, c *daemon.Config) {
		c.Admin.LocalRole = "none"
		c.Admin.TLS = certificate(t, ca, dir)
		for _, role := range []string{"view", "operate", "admin"} {
			tokens[role] = role + " has a token of its own"
			file := filepath.Join(dir, role)
			write(t, file, tokens[role])
			c.Admin.Tokens = append(c.Admin.Tokens, daemon.AdminToken{Name: role, Role: role, File: file})
		}
	})
	at := "https://" + b.fleet.Nodes[0].AdminAddr()
	c := client(t, func(tr *http.Transport) { tr.TLSClientConfig.RootCAs = ca.Pool() })
	ask := func(method, path, token string) int {
		authorization := ""
		if token != "" {
			authorization = "Bearer " + token
		}
		a, _ := send(t, c, method, at+path, authorization, "Content-Type", "application/json")
		return a.status
	}
	level := map[string]int{"": 0, "guess": 0, "view": 1, "operate": 2, "admin": 3}
	tokens["guess"] = "a token that nobody has given out"
	for request, need := range map[string]string{
		"GET /healthz": "", "GET /readyz": "",
		"GET /metrics": "view", "GET /v1/status": "view", "GET /v1/jobs": "view", "GET /v1/blocklist": "view", "GET /v1/checks": "view",
		"POST /v1/jobs": "operate", "POST /v1/cache/gc": "operate", "POST /v1/cache/pins": "operate", "PUT /v1/offline": "operate",
		"PUT /v1/cache/images": "admin", "POST /v1/blocklist": "admin",
	} {
		method, path, _ := strings.Cut(request, " ")
		for who, has := range level {
			status := ask(method, path, tokens[who])
			if refused := status == http.StatusUnauthorized || status == http.StatusForbidden; refused == (has >= level[need]) {
				t.Errorf("%s by %q: status %d", request, who, status)
			}
			if has == 0 && need != "" && status != http.StatusUnauthorized {
				t.Errorf("%s by %q, who has shown nothing: status %d", request, who, status)
			}
		}
	}
	write(t, filepath.Join(dir, "admin"), "another token for the admin")
	b.until("the new token is good", func() bool { return ask("GET", "/v1/status", "another token for the admin") == http.StatusOK })
	if status := ask("GET", "/v1/status", tokens["admin"]); status != http.StatusUnauthorized {
		t.Errorf("the old token: status %d", status)
	}
}
