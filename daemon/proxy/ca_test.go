package proxy

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func initCA(t *testing.T, hosts ...string) *CA {
	t.Helper()
	dir := t.TempDir()
	ca, err := InitCA(InitOptions{CertFile: filepath.Join(dir, "sub", "ca.crt"), KeyFile: filepath.Join(dir, "sub", "ca.key"), Hosts: hosts, Node: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// believed reports whether a client that trusts the CA believes a certificate
// for a host that was signed with its key, be it by the proxy or by whoever has
// stolen the key.
func believed(t *testing.T, ca *CA, host string) bool {
	t.Helper()
	der, err := forge(ca, host)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
	return err == nil
}

// TestConstraints: a CA can be the hosts that it was made for and no others, of
// whichever kind they are.
func TestConstraints(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		hosts     []string
		is, isNot string
	}{
		{[]string{"ghcr.io", "*.gcr.io:443"}, "ghcr.io eu.gcr.io a.b.gcr.io", "docker.io xgcr.io 127.0.0.1 ::1 invalid"},
		{[]string{"10.0.0.7:5000"}, "10.0.0.7", "10.0.0.8 ghcr.io ::1"},
		{[]string{"2001:db8::1", "reg.example"}, "2001:db8::1 reg.example x.reg.example", "2001:db8::2 10.0.0.1"},
		{[]string{"*"}, "ghcr.io 10.0.0.1 ::1 localhost", ""},
	} {
		ca := initCA(t, tt.hosts...)
		for host := range strings.FieldsSeq(tt.is) {
			if !believed(t, ca, host) {
				t.Errorf("%v: %s is not believed", tt.hosts, host)
			}
		}
		for host := range strings.FieldsSeq(tt.isNot) {
			if believed(t, ca, host) {
				t.Errorf("%v: %s is believed", tt.hosts, host)
			}
		}
		if got := len(ca.Hosts()); (got == 0) != (tt.isNot == "") {
			t.Errorf("%v: it says that it is limited to %v", tt.hosts, ca.Hosts())
		}
		if ca.cert.PermittedDNSDomainsCritical != (tt.isNot != "") {
			t.Errorf("%v: critical: %t", tt.hosts, ca.cert.PermittedDNSDomainsCritical)
		}
	}
	for _, hosts := range [][]string{nil, {"ghcr.io", "a b"}, {"*.10.0.0.1"}, {"*.*.io"}, {"**"}} {
		if _, err := InitCA(InitOptions{CertFile: filepath.Join(t.TempDir(), "c"), KeyFile: filepath.Join(t.TempDir(), "k"), Hosts: hosts}); err == nil {
			t.Errorf("a CA for %q", hosts)
		}
	}
}

// TestOpenSSL: the other library that clients verify with agrees.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here")
	}
	limited, wide := initCA(t, "ghcr.io"), initCA(t, "*")
	for _, tt := range []struct {
		key  *CA
		host string
		ok   bool
	}{{limited, "ghcr.io", true}, {wide, "docker.io", true}, {limited, "docker.io", false}, {limited, "10.0.0.1", false}} {
		ca := tt.key
		dir := t.TempDir()
		root, leafFile := filepath.Join(dir, "ca"), filepath.Join(dir, "leaf")
		leaf, err := forge(ca, tt.host)
		if err != nil {
			t.Fatal(err)
		}
		for file, der := range map[string][]byte{root: ca.chain[0], leafFile: leaf} {
			if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), openssl, "verify", "-purpose", "sslserver", "-CAfile", root, leafFile).CombinedOutput()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %s", tt.host, out)
		}
	}
}

// forge signs for a host without a look at the result, as who has stolen the
// key would.
func forge(ca *CA, host string) ([]byte, error) {
	leaf, err := ca.make(host, time.Now())
	if err != nil {
		return nil, err
	}
	return leaf.Certificate[0], nil
}

func TestInitCA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := InitOptions{CertFile: filepath.Join(dir, "ca.crt"), KeyFile: filepath.Join(dir, "ca.key"), Hosts: []string{"ghcr.io"}, Node: "node1"}
	first, err := InitCA(o)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(o.KeyFile); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if !strings.HasPrefix(first.Name(), "Shoal proxy CA of node1 ") || len(first.Fingerprint()) != 64 {
		t.Error(first.Name(), first.Fingerprint())
	}
	if _, err := InitCA(o); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Error("it was overwritten:", err)
	}
	again, err := LoadCA(o.CertFile, o.KeyFile)
	if err != nil || again.Fingerprint() != first.Fingerprint() {
		t.Error(err)
	}
	o.Force = true
	second, err := InitCA(o)
	if err != nil || second.Fingerprint() == first.Fingerprint() {
		t.Error("it was not replaced:", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".ca-*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
	for at, want := range map[time.Duration]string{0: "", -1: "it begins", caLife - expirySoon + time.Hour: "it ends", caLife + time.Hour: "it has ended"} {
		now := first.cert.NotBefore.Add(leafMargin + at)
		if at < 0 {
			now = first.cert.NotBefore.Add(-time.Hour)
		}
		if got := strings.Join(first.Problems(now), "; "); want == "" && got != "" || !strings.HasPrefix(got, want) {
			t.Errorf("after %s: %q, want %q", at, got, want)
		}
	}
}

func TestLoadCA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := LoadCA(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "shoal ca init") {
		t.Error(err)
	}
	a, b := initCA(t, "a.example"), initCA(t, "b.example")
	cert := func(c *CA) string { return strings.TrimSuffix(c.keyFile, ".key") + ".crt" }
	if _, err := LoadCA(cert(a), b.keyFile); err == nil {
		t.Error("the key of another CA")
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(a.keyFile, 0o644); err != nil {
			t.Fatal(err)
		}
		if a, err := LoadCA(cert(a), a.keyFile); err != nil || len(a.Problems(time.Now())) != 1 {
			t.Error("a key that everybody can read:", err)
		}
	}
	// A certificate that is no CA's.
	leaf, err := a.sign("a.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	crt, pkey := filepath.Join(dir, "leaf.crt"), filepath.Join(dir, "leaf.key")
	for file, block := range map[string]*pem.Block{crt: {Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}, pkey: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := LoadCA(crt, pkey); err == nil || !strings.Contains(err.Error(), "not the certificate of a CA") {
		t.Error(err)
	}
}

// TestLeaves: their number is bounded, and one that ends soon is replaced.
func TestLeaves(t *testing.T) {
	t.Parallel()
	s := newLeaves(initCA(t, "*"))
	filler, err := s.get("filler.example")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLeaves {
		s.byHost[fmt.Sprintf("h%d.example", i)] = filler
	}
	delete(s.byHost, "h0.example")
	if _, err := s.get("new.example"); err != nil || len(s.byHost) != maxLeaves {
		t.Errorf("%d certificates, %v", len(s.byHost), err)
	}
	old := *filler
	leaf := *filler.Leaf
	leaf.NotAfter = time.Now().Add(leafMargin - time.Minute)
	old.Leaf = &leaf
	s.byHost["old.example"] = &old
	if got, err := s.get("old.example"); err != nil || got == &old {
		t.Error("one that is about to end was kept:", err)
	}
}

// TestUncovered: a host that the CA cannot vouch for is refused with a reason,
// not with a certificate that no client believes.
func TestUncovered(t *testing.T) {
	t.Parallel()
	b := newBed(t, told, nil, func(c *Config) {
		c.Upstream = func(host string) (string, bool) { return "up", host == "uncovered.example" }
	})
	if _, _, resp := b.connect(t, "uncovered.example:443"); resp.StatusCode != 502 || !strings.Contains(resp.Status, "cannot vouch for uncovered.example") {
		t.Error(resp.Status)
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, host string
		want          bool
	}{
		{"ghcr.io", "ghcr.io:443", true}, {"ghcr.io", "ghcr.io:8443", true}, {"ghcr.io", "x.ghcr.io:443", false},
		{"ghcr.io:443", "ghcr.io:443", true}, {"ghcr.io:443", "ghcr.io:5000", false},
		{"*.gcr.io", "eu.gcr.io:443", true}, {"*.gcr.io", "a.b.gcr.io:443", true}, {"*.gcr.io", "gcr.io:443", false}, {"*.gcr.io", "xgcr.io:443", false},
		{"*.gcr.io:5000", "eu.gcr.io:443", false}, {"10.0.0.1", "10.0.0.1:5000", true}, {"[::1]:5000", "[::1]:5000", true}, {"::1", "[::1]:5000", true},
	} {
		at, err := parseTarget(tt.host, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckPattern(tt.pattern); err != nil {
			t.Error(err)
		}
		if got := at.matches(tt.pattern); got != tt.want {
			t.Errorf("%s, %s: %t", tt.pattern, tt.host, got)
		}
	}
}

// FuzzTarget: what is accepted is one host and one port, and is read the same
// when it is written again.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"ghcr.io:443", "GHCR.io.:5000", "[::1]:443", "::1", "[::ffff:1.2.3.4]:1", "a_b.c:1", "x:0", "x:99999", ":443", "[fe80::1%eth0]:443", "a\r\nb:1", "0x7f.1:443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseTarget(s, 443)
		if err != nil {
			return
		}
		if a.port == 0 || strings.ContainsAny(a.host, " \r\n\t/@?#%") || a.host == "" {
			t.Errorf("%q is %q", s, a)
		}
		if b, err := parseTarget(a.String(), 0); err != nil || a != b {
			t.Errorf("%q is %q, and that is %q, %v", s, a, b, err)
		}
		host, port, err := net.SplitHostPort(a.String())
		if err != nil || host != a.host || port == "" {
			t.Errorf("%q: %v", a, err)
		}
		_ = a.matches(s)
		_ = CheckPattern(s)
	})
}
