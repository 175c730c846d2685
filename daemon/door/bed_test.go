package door

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is far more than anything here takes, for a machine that is busy.
const within = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a door for a handler and serves until the test ends.
func open(t testing.TB, cfg Config, h http.HandlerFunc) *Door {
	t.Helper()
	return openPatient(t, cfg, 0, h)
}

// openPatient is open with another patience than the default, if it is not 0.
func openPatient(t testing.TB, cfg Config, patience time.Duration, h http.HandlerFunc) *Door {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "mirror"
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Server == nil {
		cfg.Server = &http.Server{}
	}
	cfg.Server.Handler = h
	d, err := Listen(cfg)
	must(t, err)
	if patience != 0 {
		d.waiting = patience
	}
	done := make(chan error, 1)
	go func() { done <- d.Serve() }()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

// ok answers with a word.
func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// browser returns a client that does not share connections with other tests.
func browser(t testing.TB, change ...func(*http.Transport)) *http.Client {
	t.Helper()
	tr := &http.Transport{DisableCompression: true}
	for _, f := range change {
		f(tr)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: within}
}

// from makes a client connect from another address of this machine.
func from(ip string) func(*http.Transport) {
	return func(tr *http.Transport) {
		tr.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext
	}
}

func unixTo(path string) func(*http.Transport) {
	return func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
}

func trusting(pool *x509.CertPool, certs ...tls.Certificate) func(*http.Transport) {
	return func(tr *http.Transport) {
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: certs}
		tr.ForceAttemptHTTP2 = true
	}
}

func get(t testing.TB, c *http.Client, url string) (status int, body string) {
	t.Helper()
	resp, err := c.Get(url)
	must(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(data)
}

// dial opens a connection that the test closes.
func dial(t testing.TB, d *Door) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", d.Addr())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	must(t, c.SetDeadline(time.Now().Add(within)))
	return c
}

// An authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// issue returns a certificate and its key in PEM.
func (a *authority) issue(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &k.PublicKey, a.key)
	must(t, err)
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder})
}

// files writes a certificate and its key for a server.
func (a *authority) files(t testing.TB, dir, name string) *TLS {
	t.Helper()
	files := &TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	cert, key := a.issue(t, name)
	must(t, os.WriteFile(files.Cert, cert, 0o600))
	must(t, os.WriteFile(files.Key, key, 0o600))
	return files
}

// zeros is a file of so many bytes.
func zeros(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	must(t, f.Truncate(size))
	return f
}

// pem returns the authority's own certificate.
func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}
