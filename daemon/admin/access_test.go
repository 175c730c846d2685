package admin_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/daemon/admin"
)

// secret returns a token for a test, which is found again in what is printed.
func secret(role admin.Role) string { return "planted-" + string(role) + "-0123456789abcdef" }

var tokens = []admin.Token{
	admin.NewToken("grafana", admin.View, secret(admin.View)),
	admin.NewToken("cron", admin.Operate, secret(admin.Operate)),
	admin.NewToken("boss", admin.Admin, secret(admin.Admin)),
	admin.NewToken("gone", admin.None, secret(admin.None)),
	admin.NewToken("empty", admin.Admin, ""),
}

const (
	here  = "127.0.0.1:40000"
	there = "192.0.2.7:40000"
)

// Each endpoint is for those who have its role, or a higher one.
func TestRoles(t *testing.T) {
	t.Parallel()
	cfg := (&asked{}).config()
	cfg.Status, cfg.Ready, cfg.Gatherer = node, func() error { return nil }, prometheus.NewRegistry()
	cfg.Access.Tokens = func() []admin.Token { return tokens }
	h := admin.New(cfg)

	everybody := []admin.Role{"", admin.None, admin.View, admin.Operate, admin.Admin}
	for _, tt := range []struct {
		request string
		needs   admin.Role
	}{
		{"GET /healthz", ""},
		{"GET /readyz", ""},
		{"GET /metrics", admin.View},
		{"GET /v1/status", admin.View},
		{"HEAD /v1/status", admin.View},
		{"GET /v1/members", admin.View},
		{"GET /v1/pulls", admin.View},
		{"GET /v1/jobs", admin.View},
		{"GET /v1/jobs/" + job.ID, admin.View},
		{"GET /v1/cache", admin.View},
		{"GET /v1/cache/scrub", admin.View},
		{"GET /v1/cache/pins", admin.View},
		{"GET /v1/offline", admin.View},
		{"POST /v1/jobs", admin.Operate},
		{"DELETE /v1/jobs/" + job.ID, admin.Operate},
		{"POST /v1/webhooks/distribution", admin.Operate},
		{"POST /v1/webhooks/harbor", admin.Operate},
		{"POST /v1/cache/gc", admin.Operate},
		{"POST /v1/cache/scrub", admin.Operate},
		{"POST /v1/cache/pins", admin.Operate},
		{"DELETE /v1/cache/pins?pattern=a", admin.Operate},
		{"PUT /v1/offline", admin.Operate},
		{"PUT /v1/cache/blobs/" + blob.Digest.String() + "?size=5", admin.Admin},
		{"PUT /v1/cache/images", admin.Admin},
	} {
		for _, role := range everybody {
			method, path, _ := strings.Cut(tt.request, " ")
			r := httptest.NewRequest(method, path, strings.NewReader(`{"images":["a"]}`))
			r.RemoteAddr = there
			r.Header.Set("Content-Type", "application/json")
			if role != "" {
				r.Header.Set("Authorization", "Bearer "+secret(role))
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			enough := slices.Index(everybody, role) >= slices.Index(everybody, tt.needs)
			denied := w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden
			if denied == enough {
				t.Errorf("%s as %q: %d %s", tt.request, role, w.Code, w.Body)
			}
			if known := slices.Index(everybody, role) > 1; denied && known != (w.Code == http.StatusForbidden) {
				t.Errorf("%s as %q: %d, want 403 for those who are known and 401 for others", tt.request, role, w.Code)
			}
			if (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("%s as %q: %d with the challenge %q", tt.request, role, w.Code, w.Header().Get("WWW-Authenticate"))
			}
		}
	}
}

// Who is who.
func TestWho(t *testing.T) {
	t.Parallel()
	secured := func(cn string, verified bool) *tls.ConnectionState {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
		s := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if verified {
			s.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
		return s
	}
	access := func(local admin.Role) admin.Access {
		return admin.Access{
			Local: local, Tokens: func() []admin.Token { return tokens },
			Certificates: []admin.Certificate{{Name: "ops", Role: admin.Operate}},
		}
	}
	any := admin.Access{Local: admin.None, Certificates: []admin.Certificate{{Name: "*", Role: admin.View}, {Name: "ops", Role: admin.Operate}}}
	for _, tt := range []struct {
		name   string
		access admin.Access
		remote string
		tls    *tls.ConnectionState
		header [2]string
		want   int // of a request that takes Operate
	}{
		{"this machine, by default", admin.Access{}, here, nil, [2]string{}, 200},
		{"this machine, IPv6", admin.Access{}, "[::1]:4", nil, [2]string{}, 200},
		{"this machine, mapped", admin.Access{}, "[::ffff:127.0.0.1]:4", nil, [2]string{}, 200},
		{"a unix socket", admin.Access{}, "@", nil, [2]string{}, 200},
		{"elsewhere", admin.Access{}, there, nil, [2]string{}, 401},
		{"a proxy on this machine", admin.Access{}, here, nil, [2]string{"X-Forwarded-For", "192.0.2.7"}, 401},
		{"another proxy on this machine", admin.Access{}, here, nil, [2]string{"Forwarded", "for=192.0.2.7"}, 401},
		{"this machine may look", access(admin.View), here, nil, [2]string{}, 403},
		{"this machine may nothing", access(admin.None), here, nil, [2]string{}, 401},
		{"this machine, a role that there is not", access("root"), here, nil, [2]string{}, 401},
		{"this machine may look, with a token", access(admin.View), here, nil, [2]string{"Authorization", "Bearer " + secret(admin.Operate)}, 200},
		{"this machine may more than its token", access(admin.Admin), here, nil, [2]string{"Authorization", "Bearer " + secret(admin.View)}, 200},
		{"token", access(""), there, nil, [2]string{"Authorization", "bearer  " + secret(admin.Operate) + " "}, 200},
		{"no token", access(""), there, nil, [2]string{"Authorization", "Bearer "}, 401},
		{"half a token", access(""), there, nil, [2]string{"Authorization", "Bearer " + secret(admin.Operate)[:8]}, 401},
		{"token without its scheme", access(""), there, nil, [2]string{"Authorization", secret(admin.Operate)}, 401},
		{"token as a password", access(""), there, nil, [2]string{"Authorization", "Basic " + secret(admin.Operate)}, 401},
		{"certificate", access(""), there, secured("ops", true), [2]string{}, 200},
		{"certificate of another", access(""), there, secured("dev", true), [2]string{}, 401},
		{"certificate without a name", access(""), there, secured("", true), [2]string{}, 401},
		{"certificate that is not proven", access(""), there, secured("ops", false), [2]string{}, 401},
		{"TLS without a certificate", access(""), there, &tls.ConnectionState{}, [2]string{}, 401},
		{"any certificate", any, there, secured("dev", true), [2]string{}, 403},
		{"the higher of two roles", any, there, secured("ops", true), [2]string{}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var printed bytes.Buffer
			cfg := (&asked{}).config()
			cfg.Status, cfg.Ready, cfg.Access = node, func() error { return nil }, tt.access
			cfg.Log = slog.New(slog.NewTextHandler(&printed, &slog.HandlerOptions{Level: slog.LevelDebug}))
			r := httptest.NewRequest("POST", "/v1/cache/gc", strings.NewReader("{}"))
			r.RemoteAddr, r.TLS = tt.remote, tt.tls
			r.Header.Set("Content-Type", "application/json")
			if tt.header[0] != "" {
				r.Header.Set(tt.header[0], tt.header[1])
			}
			w := httptest.NewRecorder()
			admin.New(cfg).ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Errorf("%d %s, want %d", w.Code, w.Body, tt.want)
			}
			if said := printed.String() + w.Body.String(); strings.Contains(said, "planted") {
				t.Errorf("a secret was printed: %s", said)
			}
		})
	}
}

// A webhook's own token is all that it needs, and lets in nowhere else.
func TestWebhookFromElsewhere(t *testing.T) {
	t.Parallel()
	cfg := (&asked{}).config()
	cfg.Status, cfg.Ready, cfg.WebhookToken = node, func() error { return nil }, "hook"
	h := admin.New(cfg)
	for request, want := range map[string]int{
		"/v1/webhooks/distribution hook":  202,
		"/v1/webhooks/distribution wrong": 401,
		"/v1/webhooks/distribution ":      401,
		"/v1/jobs hook":                   401,
	} {
		path, token, _ := strings.Cut(request, " ")
		r := httptest.NewRequest("POST", path, strings.NewReader(`{"events":[]}`))
		r.RemoteAddr = there
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d %s, want %d", request, w.Code, w.Body, want)
		}
	}
}

func TestOpenMetrics(t *testing.T) {
	t.Parallel()
	for open, want := range map[bool]int{true: 200, false: 401} {
		h := admin.New(admin.Config{
			Status: node, Ready: func() error { return nil }, Gatherer: prometheus.NewRegistry(), Access: admin.Access{OpenMetrics: open},
		})
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.RemoteAddr = there
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("open %t: %d", open, w.Code)
		}
	}
}

// No header is let in but the right one.
func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Bearer", "Bearer ", "Bearer x", "Bearer  ", "Basic Og==", "Bearer " + secret(admin.View), "bearer\t" + secret(admin.Admin), "Bearer \x00", secret(admin.Admin)} {
		f.Add(seed)
	}
	h := admin.New(admin.Config{
		Status: node, Ready: func() error { return nil },
		Access: admin.Access{Tokens: func() []admin.Token { return tokens }},
	})
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("GET", "/v1/status", nil)
		r.RemoteAddr = there
		r.Header["Authorization"] = []string{header}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		right := slices.ContainsFunc([]admin.Role{admin.View, admin.Operate, admin.Admin}, func(role admin.Role) bool {
			scheme, token, _ := strings.Cut(header, " ")
			return strings.EqualFold(scheme, "Bearer") && strings.TrimSpace(token) == secret(role)
		})
		if (w.Code == http.StatusOK) != right {
			t.Errorf("%q: %d", header, w.Code)
		}
	})
}

// issue writes a certificate that is its own CA, and its key.
func issue(t *testing.T, dir, cn string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, cn+".crt"), filepath.Join(dir, cn+".key")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// The client proves who it is, over all that it can reach a node by.
func TestClientProof(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, serverKey := issue(t, dir, "node")
	client, clientKey := issue(t, dir, "ops")
	stranger, strangerKey := issue(t, dir, "stranger")
	pair, err := tls.LoadX509KeyPair(server, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	data, err := os.ReadFile(client)
	if err != nil {
		t.Fatal(err)
	}
	clients.AppendCertsFromPEM(data)
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	h := admin.New(admin.Config{Status: node, Ready: func() error { return nil }, Access: admin.Access{
		Local: admin.None, Tokens: func() []admin.Token { return tokens }, Certificates: []admin.Certificate{{Name: "ops", Role: admin.View}},
	}})
	secure := httptest.NewUnstartedServer(h)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	plain := httptest.NewServer(h)
	t.Cleanup(plain.Close)
	socket := filepath.Join(dir, "admin.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}}
	unix.Start()
	t.Cleanup(unix.Close)

	https := "https://" + secure.Listener.Addr().String()
	token := file("token", secret(admin.View)+"\n")
	for _, tt := range []struct {
		name, addr string
		proof      admin.Proof
		want       string // in the error; empty: none
	}{
		{"token", https, admin.Proof{CA: server, Token: token}, ""},
		{"certificate", https, admin.Proof{CA: server, Cert: client, Key: clientKey}, ""},
		{"token on this machine", plain.Listener.Addr().String(), admin.Proof{Token: token}, ""},
		{"http", "http://" + plain.Listener.Addr().String(), admin.Proof{Token: token}, ""},
		{"token over a socket", "unix:" + socket, admin.Proof{Token: token}, ""},
		{"nothing over a socket", "unix:" + socket, admin.Proof{}, "this takes the role view"},
		{"nothing", https, admin.Proof{CA: server}, "this takes the role view"},
		{"wrong token", https, admin.Proof{CA: server, Token: file("wrong", "wrong")}, "this takes the role view"},
		{"CA unknown", https, admin.Proof{Token: token}, "certificate signed by unknown authority"},
		{"certificate of a stranger", https, admin.Proof{CA: server, Cert: stranger, Key: strangerKey}, "this takes the role view"}, // Go does not show it
		{"HTTP to HTTPS", secure.Listener.Addr().String(), admin.Proof{}, "speaks HTTPS: write https://"},
		{"token in the clear", "192.0.2.7:7053", admin.Proof{Token: token}, "a token is not sent to 192.0.2.7:7053 over plain HTTP"},
		{"no file", https, admin.Proof{Token: filepath.Join(dir, "nothing")}, "no such file"},
		{"empty file", https, admin.Proof{Token: file("empty", "\n")}, "does not have one line"},
		{"two lines", https, admin.Proof{Token: file("lines", "a\nb")}, "does not have one line"},
		{"half a pair", https, admin.Proof{Cert: client}, "give both"},
		{"no CA in the file", https, admin.Proof{CA: token}, "has no certificate in PEM"},
		{"no socket", "unix:" + socket + ".no", admin.Proof{}, "start one with `shoal daemon`"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := admin.NewClient(tt.addr).With(tt.proof).Status(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "planted") {
				t.Errorf("a secret is in the error: %v", err)
			}
		})
	}
}

// A change is logged with who made it.
func TestChangesAreLogged(t *testing.T) {
	t.Parallel()
	var printed bytes.Buffer
	cfg := (&asked{}).config()
	cfg.Status, cfg.Ready = node, func() error { return nil }
	cfg.Access.Tokens = func() []admin.Token { return tokens }
	cfg.Log = slog.New(slog.NewTextHandler(&printed, nil))
	r := httptest.NewRequest("POST", "/v1/cache/gc", strings.NewReader("{}"))
	r.RemoteAddr = there
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret(admin.Operate))
	admin.New(cfg).ServeHTTP(httptest.NewRecorder(), r)
	for _, want := range []string{`by="token cron"`, "role=operate", "client=" + there, "path=/v1/cache/gc"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("%s is not in %s", want, &printed)
		}
	}
}
