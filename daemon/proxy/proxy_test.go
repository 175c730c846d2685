package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/shoal-project/shoal/bench/registry"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// TestPushAndPull: a real client pushes to a real registry and pulls from it.
// The push leaves the handler alone, the pull's content comes from it and from
// nowhere else.
func TestPushAndPull(t *testing.T) {
	t.Parallel()
	reg := registry.New(registry.Options{})
	t.Cleanup(reg.Close)
	origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if what(r) == content {
			t.Errorf("%s %s has gone to the registry", r.Method, r.URL.Path)
		}
		reg.ServeHTTP(w, r)
	})
	b := newBed(t, origin, func(http.Handler) http.Handler { return reg }, nil)
	img, err := random.Image(300_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(upstreamHost + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{remote.WithTransport(b.transport(t)), remote.WithContext(t.Context())}
	if err := remote.Write(tag, img, options...); err != nil {
		t.Fatal(err)
	}
	// A push asks whether blobs are there.
	asked := b.handled.Load()
	got, err := remote.Image(tag, options...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Fatal(err)
	}
	if n := b.handled.Load() - asked; n < 5 {
		t.Errorf("the handler has answered %d requests of the pull; the manifest, the config and 3 layers are 5", n)
	}
}

// TestWhatIsUntouched: what can be no manifest and no blob reaches the registry as
// the client has sent it, and nothing of the proxy's with it.
func TestWhatIsUntouched(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "handled") })
	}, nil)
	for _, tt := range []struct {
		method, path string
		handled      bool
	}{
		{"GET", "/v2/team/app/manifests/v1", true},
		{"GET", "/v2/app/blobs/sha256:abc", true},
		{"GET", "/v2/manifests/manifests/blobs/blobs/sha256:abc", true},
		{"PUT", "/v2/team/app/manifests/v1", false},
		{"DELETE", "/v2/team/app/manifests/v1", false},
		{"GET", "/v2/team/app/blobs/uploads/uuid", true}, // who hands it back
		{"PATCH", "/v2/team/app/blobs/uploads/uuid", false},
		{"GET", "/v2/team/app/tags/list?n=1&b=;x", false},
		{"GET", "/v2/team/app/referrers/sha256:abc", false},
		{"GET", "/v2/team/app/manifests/v1?ns=other.example", true},
		{"GET", "/v2/team%2Fapp/mani%66ests/v1", true},
		{"GET", "//v2/team/../team/app/blobs//sha256:abc", true},
		{"GET", "/v2/manifests/v1", true},
		{"GET", "/team/app/manifests/v1", false},
		{"GET", "/v2/_catalog", false},
		{"GET", "/v2/", false},
		{"GET", "/v1/search?q=x", false},
		{"GET", "/", false},
	} {
		_, got := do(t, b.client(t), tt.method, "https://"+upstreamHost+tt.path,
			"Authorization", "Bearer x", "Proxy-Authorization", "Basic c2VjcmV0", "X-Forwarded-For", "1.2.3.4", "Accept-Encoding", "zstd")
		want := tt.method + " " + tt.path + ` host=example.com auth="Bearer x" proxyauth="" xff="1.2.3.4" ae="zstd" body=""`
		if tt.handled {
			want = "handled"
		}
		if got != want {
			t.Errorf("%s %s:\n got %s\nwant %s", tt.method, tt.path, got, want)
		}
	}
}

// TestHandedBack: the handler gives a request up, and the registry answers it,
// without what the handler has put into the answer's header.
func TestHandedBack(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, func(untouched http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Mirror", "1")
			untouched.ServeHTTP(w, r)
		})
	}, nil)
	resp, err := b.client(t).Get("https://" + upstreamHost + "/v2/a/b/manifests/v1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := readAll(t, resp.Body); !strings.HasPrefix(got, "GET /v2/a/b/manifests/v1 host=example.com") || resp.Header.Get("X-Mirror") != "" {
		t.Errorf("%s %v", got, resp.Header)
	}
}

// TestSlowUpload: the registry has the beginning of a body while the client still
// has the rest.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	got := make(chan string, 2)
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 5)
		_, _ = io.ReadFull(r.Body, first)
		got <- string(first)
		rest, _ := io.ReadAll(r.Body)
		got <- string(rest)
		w.WriteHeader(http.StatusAccepted)
	}), nil, nil)
	body, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, "first")
		<-got // the registry has it
		_, _ = io.WriteString(w, "rest")
		_ = w.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, "https://"+upstreamHost+"/v2/a/blobs/uploads/1", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if rest := <-got; resp.StatusCode != http.StatusAccepted || rest != "rest" {
		t.Error(resp.Status, rest)
	}
}

// TestContinue: a client that waits for the registry's word before it sends a
// body waits for the registry's, not for the proxy's.
func TestContinue(t *testing.T) {
	t.Parallel()
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/no" {
			w.Header().Set("Www-Authenticate", "Bearer")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}), nil, nil)
	for path, want := range map[string]string{"no": "HTTP/1.1 401 ", "yes": "HTTP/1.1 100 "} {
		c := b.inside(t)
		if _, err := io.WriteString(c, "PUT /v2/"+path+" HTTP/1.1\r\nHost: example.com\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%s: %q, %v", path, line, err)
		}
	}
}

// TestUpgrade: after a 101 the bytes go both ways, those that the client has
// sent too early as well, and each side can end its own direction.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		word := make([]byte, 5)
		_, _ = io.ReadFull(rw, word)
		_, _ = conn.Write(bytes.ToUpper(word))
	}), nil, nil)
	c := b.inside(t)
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	if got := readAll(t, r); got != "EARLY" {
		t.Errorf("got %q", got)
	}
}

// TestCutIsSeen: an answer that the registry cuts short is not a whole one to
// the client, also where it has no length.
func TestCutIsSeen(t *testing.T) {
	t.Parallel()
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			w.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}), nil, nil)
	for _, path := range []string{"/chunked", "/long"} {
		resp, err := b.client(t).Get("https://" + upstreamHost + path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != "some" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: got %q, %v", path, got, err)
		}
	}
}

// TestStream: the client has the first part of an answer before there is a
// second.
func TestStream(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "one")
		_ = http.NewResponseController(w).Flush()
		<-next
	}), nil, nil)
	resp, err := b.client(t).Get("https://" + upstreamHost + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	close(next)
}

// TestKeepAlive: one connection answers several requests, and one that asks for
// another host than its CONNECT is refused.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, nil)
	c := b.inside(t)
	r := bufio.NewReader(c)
	for _, tt := range []struct {
		host string
		want int
	}{
		{"example.com", 200}, {"example.com:443", 200}, {"EXAMPLE.com", 200}, {"example.com", 200},
		{"other.example", 421}, {"example.com:444", 421},
	} {
		if _, err := io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(tt.host, err)
		}
		if body := readAll(t, resp.Body); resp.StatusCode != tt.want {
			t.Errorf("%s: %s %s", tt.host, resp.Status, body)
		}
	}
	if n := b.lines.count(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestPing: a registry that cannot be reached, or fails, is answered for by the
// handler; one that says no is not.
func TestPing(t *testing.T) {
	t.Parallel()
	status := http.StatusUnauthorized
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }),
		func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "handler "+r.URL.Path)
			})
		}, nil)
	c := b.client(t)
	for _, tt := range []struct {
		status, want int
		body         string
	}{
		{http.StatusUnauthorized, http.StatusUnauthorized, ""},
		{http.StatusForbidden, http.StatusForbidden, ""},
		{http.StatusBadGateway, http.StatusOK, "handler /v2/"},
		{http.StatusTooManyRequests, http.StatusOK, "handler /v2/"},
	} {
		status = tt.status
		if got, body := do(t, c, http.MethodGet, "https://"+upstreamHost+"/v2/"); got != tt.want || body != tt.body {
			t.Errorf("the registry says %d, the client gets %d %q", tt.status, got, body)
		}
	}
	b.origin.CloseClientConnections()
	b.origin.Close()
	if got, body := do(t, c, http.MethodGet, "https://"+upstreamHost+"/v2/"); got != http.StatusOK || body != "handler /v2/" {
		t.Errorf("the registry is gone, the client gets %d %q", got, body)
	}
	if got, body := do(t, c, http.MethodGet, "https://"+upstreamHost+"/v2/_catalog"); got != http.StatusBadGateway || !strings.Contains(body, "UNAVAILABLE") {
		t.Errorf("the registry is gone, the client gets %d %q", got, body)
	}
}

// TestPlain: requests in plain http, with whole URLs.
func TestPlain(t *testing.T) {
	t.Parallel()
	var b *bed
	plain := httptest.NewServer(told)
	t.Cleanup(plain.Close)
	known := strings.TrimPrefix(plain.URL, "http://")
	foreign := httptest.NewServer(told)
	t.Cleanup(foreign.Close)
	b = newBed(t, told, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "handled") })
	}, func(c *Config) {
		c.Upstream = func(host string) (string, bool) { return "up", host == known }
		loopback(foreign.Listener.Addr().String())(c)
	})
	c := b.client(t)
	if _, got := do(t, c, "GET", plain.URL+"/v2/a/manifests/v1"); got != "handled" {
		t.Error(got)
	}
	if _, got := do(t, c, "GET", plain.URL+"/v2/", "Proxy-Authorization", "Basic x"); !strings.HasPrefix(got, "GET /v2/ host="+known) || !strings.Contains(got, `proxyauth=""`) {
		t.Error(got)
	}
	if _, got := do(t, c, "GET", foreign.URL+"/v2/a/manifests/v1"); !strings.HasPrefix(got, "GET /v2/a/manifests/v1 host=") {
		t.Error(got)
	}
	for target, want := range map[string]int{
		"GET / HTTP/1.1":                   400,
		"GET https://x.example/ HTTP/1.1":  400,
		"GET http://127.0.0.1:1/ HTTP/1.1": 403,
	} {
		conn, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, target+"\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != want {
			t.Error(target, resp, err)
		}
		conn.Close()
	}
}

// TestHeaderBomb: nobody inside of an intercepted connection can make the proxy
// keep more of a header than it wants.
func TestHeaderBomb(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, nil)
	c := b.inside(t)
	go func() {
		_, _ = io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: example.com\r\n")
		for range 1 << 12 {
			if _, err := io.WriteString(c, "X-A: "+strings.Repeat("a", 1000)+"\r\n"); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Error(resp, err)
	}
	if err := b.Shutdown(t.Context()); err != nil { // net/http lingers, so that the client gets the answer
		t.Error(err)
	}
}

// TestClose: what is under way ends with the proxy.
func TestClose(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	b := newBed(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}), nil, nil)
	done := make(chan error, 1)
	c := b.client(t)
	go func() {
		resp, err := c.Get("https://" + upstreamHost + "/wait")
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := b.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("a request was under way, and Shutdown says", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("the request has ended well")
	}
	if n := b.lines.count(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Error(resp, err)
	}
}

// TestShutdown: it waits for requests, and refuses new connections meanwhile.
func TestShutdown(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	b := newBed(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-release
		_, _ = io.WriteString(w, "whole")
	}), nil, nil)
	body := make(chan string, 1)
	c := b.client(t)
	go func() {
		resp, err := c.Get("https://" + upstreamHost + "/slow")
		if err != nil {
			body <- err.Error()
			return
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		body <- string(data)
	}()
	<-started
	down := make(chan error, 1)
	go func() { down <- b.Shutdown(t.Context()) }()
	for !b.lines.isDraining() {
		time.Sleep(time.Millisecond)
	}
	if _, _, resp := b.connect(t, upstreamHost+":443"); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(resp.Status, "shutting down") {
		t.Error(resp.Status)
	}
	close(release)
	if got := <-body; got != "whole" {
		t.Error(got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// TestCertificate: it is for the host of the CONNECT and nothing else, speaks no
// HTTP/2, and is the same at the next time.
func TestCertificate(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, nil)
	var first []byte
	for range 2 {
		conn, _, _ := b.connect(t, "Example.COM.:443")
		tc := tls.Client(conn, &tls.Config{RootCAs: b.roots, ServerName: upstreamHost, NextProtos: []string{"h2", "http/1.1"}})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		s := tc.ConnectionState()
		leaf := s.PeerCertificates[0]
		if s.NegotiatedProtocol != "http/1.1" || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != upstreamHost || leaf.IsCA {
			t.Errorf("%q %v", s.NegotiatedProtocol, leaf.DNSNames)
		}
		if first != nil && !bytes.Equal(first, leaf.Raw) {
			t.Error("another certificate at the second time")
		}
		first = leaf.Raw
	}
	conn, _, _ := b.connect(t, upstreamHost+":443")
	if err := tls.Client(conn, &tls.Config{RootCAs: b.roots, ServerName: "other.example"}).Handshake(); err == nil {
		t.Error("it is for another host too")
	}
}
