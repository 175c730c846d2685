package locks_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/proxy"
	"github.com/shoal-project/shoal/proto"
)

// proxied configures a forward proxy with a CA for hosts.
func proxied(t *testing.T, c *daemon.Config, hosts ...string) {
	t.Helper()
	dir := t.TempDir()
	c.Proxy.Listen, c.Proxy.Tunnel = "127.0.0.1:0", false
	c.Proxy.CA, c.Proxy.Key = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := proxy.InitCA(proxy.InitOptions{CertFile: c.Proxy.CA, KeyFile: c.Proxy.Key, Hosts: hosts}); err != nil {
		t.Fatal(err)
	}
}

// A proxyBed is a bed whose registry speaks TLS, and is reached through the
// forward proxy of its node.
type proxyBed struct {
	*bed
	host string // of the registry, which is also the upstream's name
	out  *http.Client
}

func startProxy(t *testing.T, login registry.Auth, auth string, change func(c *daemon.Config)) *proxyBed {
	t.Helper()
	ca, dir := newCA(t), t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), string(ca.PEM))
	var handler atomic.Pointer[registry.Registry]
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.Load().ServeHTTP(w, r) }))
	var err error
	if s.TLS, err = ca.TLS("127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	p := &proxyBed{host: strings.TrimPrefix(s.URL, "https://")}
	p.bed = start(t, login, 1, daemon.Upstream{}, func(_ int, c *daemon.Config) {
		up := daemon.Upstream{URL: s.URL, CA: filepath.Join(dir, "ca.pem"), Auth: auth}
		if auth == "passthrough" {
			up.GrantTTL = time.Nanosecond
		}
		c.Upstreams[p.host] = up
		proxied(t, c, "127.0.0.1")
		if change != nil {
			change(c)
		}
	})
	handler.Store(p.Registry)
	pem, err := os.ReadFile(p.fleet.Nodes[0].Config.Proxy.CA)
	if err != nil {
		t.Fatal(err)
	}
	p.out = client(t, func(tr *http.Transport) {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: p.fleet.Nodes[0].ProxyAddr()})
		tr.TLSClientConfig.RootCAs = x509.NewCertPool() // the proxy's CA and no other: what comes otherwise fails
		tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem)
	})
	return p
}

// fetch asks for a path below /v2/ at the registry, by way of the proxy.
func (p *proxyBed) fetch(t *testing.T, method, path, authorization string, header ...string) answer {
	t.Helper()
	a, _ := send(t, p.out, method, "https://"+p.host+"/v2/"+path, authorization, header...)
	return a
}

// TestProxyServesFromTheCache: manifests and blobs that somebody fetches through
// the proxy come from the registry once, and are right; policies hold there too,
// and pushes are passed on.
func TestProxyServesFromTheCache(t *testing.T) {
	t.Parallel()
	p := startProxy(t, registry.AuthNone, "", func(c *daemon.Config) {
		c.Policy.Rules = []rules.Rule{{Name: "not-here", If: `repository == "team/forbidden" && client.door == "proxy"`, Do: "deny", Message: "not through the proxy"}}
	})
	i, bad := newImage(t, "team/app", "v1", traits{}), newImage(t, "team/forbidden", "v1", traits{})
	p.put(i, bad)
	p.Reset()
	for range 3 {
		for _, path := range paths(i.Image) {
			want := i.Raw
			if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
				want = i.blob(digest)
			}
			if a := p.fetch(t, "GET", path, ""); a.status != http.StatusOK || !bytes.Equal(a.body, want) {
				t.Errorf("%s: status %d, %d bytes", path, a.status, len(a.body))
			}
			if a := p.fetch(t, "HEAD", path, ""); a.status != http.StatusOK || a.header.Get("Content-Length") != fmt.Sprint(len(want)) {
				t.Errorf("HEAD %s: status %d, length %s", path, a.status, a.header.Get("Content-Length"))
			}
		}
	}
	for _, blob := range i.Blobs() {
		if least, most := p.Copies(blob.Digest); least != 1 || most != 1 {
			t.Errorf("%s left the registry between %d and %d times", blob.Digest, least, most)
		}
	}
	if c := p.Count(); c.ManifestGets != 1 || c.BlobHeads > 0 || c.BlobBytes != i.Config.Size+i.Layers[0].Size {
		t.Errorf("three pulls made %+v", c)
	}
	for _, path := range paths(bad.Image) {
		for _, authorization := range []string{"", basic("ann", passwords["ann"])} { // never left to the client's own credentials
			if a := p.fetch(t, "GET", path, authorization); a.status != http.StatusForbidden || !strings.Contains(string(a.body), "rule not-here: not through the proxy") {
				t.Errorf("%s: status %d: %.200s", path, a.status, a.body)
			}
		}
	}
	// However it is written: a registry may read it as the same.
	tag, blob := paths(bad.Image)[0], paths(bad.Image)[3]
	for _, path := range []string{
		tag + "?x=1", blob + "?x=1", tag + "?ns=" + fleet.Upstream, strings.Replace(tag, "/v1", "/%76%31", 1), strings.Replace(tag, "team/", "team%2F", 1),
		strings.Replace(tag, "manifests", "mani%66ests", 1), "/" + tag, "./" + tag, "team/app/../" + strings.TrimPrefix(tag, "team/"), strings.Replace(blob, "blobs/", "blobs//", 1),
	} {
		a := p.fetch(t, "GET", path, "", "Accept", ociManifest)
		if a.status < 400 || a.status >= 500 || bytes.Equal(a.body, bad.Raw) || len(a.body) > 10_000 {
			t.Errorf("%s: status %d: %.200s", path, a.status, a.body)
		}
	}
	p.untouched(bad)

	p.Reset()
	data := []byte("pushed through the proxy")
	upload := p.fetch(t, "POST", "team/pushed/blobs/uploads/", "")
	location := upload.header.Get("Location")
	if upload.status != http.StatusAccepted || location == "" {
		t.Fatalf("push: status %d: %.200s", upload.status, upload.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), "PUT", location+"&digest="+url.QueryEscape(proto.DigestOf(data).String()), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.out.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("push: %s", resp.Status)
	}
	if a := p.fetch(t, "GET", "team/pushed/blobs/"+proto.DigestOf(data).String(), ""); a.status != http.StatusOK || !bytes.Equal(a.body, data) {
		t.Errorf("what was pushed: status %d", a.status)
	}
}

// TestProxyMatrix is TestMatrix through the proxy, for what is on its disk.
func TestProxyMatrix(t *testing.T) {
	t.Parallel()
	p := startProxy(t, registry.AuthToken, "passthrough", nil)
	img, public := p.pushSecret(), newImage(t, publicRepo, "v1", traits{})
	p.put(public)
	good := p.as("ann", secretRepo)
	bad := []caller{
		{"anonymous", ""}, {"token for another repository", p.as("bob", otherRepo)},
		{"expired", "Bearer " + p.Token("ann", -time.Minute, secretRepo)}, {"garbage", "Bearer " + strings.Repeat("x", 4000)},
	}
	for range 2 { // before and after somebody else had it
		for _, r := range requests {
			path := secretRepo + "/" + r.path(img.Image)
			for _, c := range bad {
				for _, method := range []string{"GET", "HEAD"} {
					a := p.fetch(t, method, path, c.authorization, r.header...)
					unknown := r.blob && a.status == http.StatusNotFound // no manifest here names it yet
					if a.status != http.StatusUnauthorized && !unknown {
						t.Errorf("%s, %s of %s: status %d: %.200s", c.name, method, r.name, a.status, a.body)
					}
					if challenge := a.header.Get("Www-Authenticate"); !unknown && !strings.Contains(challenge, `scope="repository:`+secretRepo+`:pull"`) {
						t.Errorf("%s, %s of %s: challenge %q", c.name, method, r.name, challenge)
					}
					if what := img.leaked(a, path); what != "" {
						t.Errorf("%s, %s of %s: got %s", c.name, method, r.name, what)
					}
				}
			}
			want := http.StatusOK
			if r.header != nil {
				want = http.StatusPartialContent
			}
			if a := p.fetch(t, "GET", path, good, r.header...); a.status != want || !bytes.Equal(a.body, r.right(img.Image, img.layer)) {
				t.Errorf("who may have it: %s: status %d, %d bytes", r.name, a.status, len(a.body))
			}
		}
	}
	bob := p.as("bob", publicRepo)
	for _, path := range []string{publicRepo + "/blobs/" + img.Layers[0].Digest.String(), secretRepo + "/tags/list", secretRepo + "/manifests/" + img.Tag + "?ns=" + fleet.Upstream} {
		a := p.fetch(t, "GET", path, bob)
		if a.status < 400 || a.status >= 500 {
			t.Errorf("%s: status %d: %.200s", path, a.status, a.body)
		}
		if what := img.leaked(a, path); what != "" {
			t.Errorf("%s: got %s", path, what)
		}
	}
	if a := p.fetch(t, "GET", paths(public.Image)[0], ""); a.status != http.StatusUnauthorized && !bytes.Equal(a.body, public.Raw) {
		t.Errorf("the public image: status %d", a.status)
	}
	if a := p.fetch(t, "GET", paths(public.Image)[0], bob); !bytes.Equal(a.body, public.Raw) {
		t.Errorf("the public image: status %d", a.status)
	}
}

// TestNoTunnel: without tunnels the proxy leads to its upstreams and nowhere else,
// and says so.
func TestNoTunnel(t *testing.T) {
	t.Parallel()
	p := startProxy(t, registry.AuthNone, "", nil)
	i := newImage(t, "team/app", "v1", traits{})
	p.put(i)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request came through") }))
	defer other.Close()
	otherHost := strings.TrimPrefix(other.URL, "http://")
	for _, target := range []string{"example.org:443", otherHost, p.fleet.Nodes[0].ProxyAddr(), p.fleet.Nodes[0].AdminAddr(), "169.254.169.254:80", "localhost:25"} {
		status, reason := p.connect(t, target)
		if status < 400 || status >= 500 || len(reason) < 10 {
			t.Errorf("CONNECT %s: %d %q", target, status, reason)
		}
		if a, _ := send(t, p.out, "GET", "http://"+target+"/", ""); a.status < 400 || a.status >= 500 {
			t.Errorf("GET http://%s/: status %d", target, a.status)
		}
	}
	if a := p.fetch(t, "GET", paths(i.Image)[0], ""); a.status != http.StatusOK {
		t.Errorf("its own upstream: status %d", a.status)
	}
}

// connect sends a CONNECT and returns what it was answered with.
func (p *proxyBed) connect(t *testing.T, target string) (status int, reason string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.fleet.Nodes[0].ProxyAddr(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target)
	head := make([]byte, 512)
	n, err := c.Read(head)
	if err != nil {
		t.Fatalf("CONNECT %s: %v", target, err)
	}
	line, _, _ := strings.Cut(string(head[:n]), "\r\n")
	var version string
	if _, err := fmt.Sscanf(line, "%s %d", &version, &status); err != nil {
		t.Fatalf("CONNECT %s: %q", target, line)
	}
	_, reason, _ = strings.Cut(line, fmt.Sprintf(" %d ", status))
	return status, reason
}
