package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

// TestDecisions: what each check makes of what was found. One that is not ok
// says what to do.
func TestDecisions(t *testing.T) {
	t.Parallel()
	a := proto.Member{ID: "a", Name: "node-a", Roles: proto.RoleDaemon, Addr: "10.0.0.1:7051"}
	b := proto.Member{ID: "b", Name: "node-b", Roles: proto.RoleScheduler, Addr: "10.0.0.2:7051"}
	c := proto.Member{ID: "c", Name: "node-c", Roles: proto.RoleDaemon, Addr: "10.0.0.3:7051"}
	all, no := []proto.Member{a, b, c}, errors.New("no route")
	const gib = 1 << 30
	for _, tt := range []struct {
		name string
		got  admin.Check
		want admin.CheckState
		says string
	}{
		{"ready", readyCheck(nil), admin.CheckOK, ""},
		{"not ready", readyCheck(errors.New("draining")), admin.CheckFail, "draining"},

		{"alone", fleetCheck(false, all[:1]), admin.CheckOK, "fleet of one"},
		{"in a fleet", fleetCheck(true, all), admin.CheckOK, "3 members, 1 of them"},
		{"joined nobody", fleetCheck(true, all[:1]), admin.CheckFail, "gossip.join"},
		{"was joined", fleetCheck(false, all), admin.CheckOK, "3 members"},

		{"another schedules", schedulerCheck(true, "b", "a", all), admin.CheckOK, "node-b (10.0.0.2:7051)"},
		{"this node schedules", schedulerCheck(true, "a", "a", all), admin.CheckOK, "this node"},
		{"nobody schedules", schedulerCheck(true, "", "a", all), admin.CheckFail, "no member"},
		{"no link", schedulerCheck(false, "b", "a", all), admin.CheckFail, "no member"},

		{"no members", dialCheck("a", nil, nil), admin.CheckSkip, ""},
		{"all peers", dialCheck("a", all, make([]error, 3)), admin.CheckOK, "3 members"},
		{"only itself", dialCheck("a", all[:1], make([]error, 1)), admin.CheckOK, "10.0.0.1:7051"},
		{"a peer is away", dialCheck("a", all, []error{nil, no, nil}), admin.CheckWarn, "node-b: no route"},
		{"all peers are away", dialCheck("a", all, []error{nil, no, no}), admin.CheckFail, "node-c: no route"},
		{"wrong advertise", dialCheck("a", all, []error{no, nil, nil}), admin.CheckWarn, "node-a: no route"},

		{"origin", originCheck("docker.io", time.Second, nil), admin.CheckOK, "1s"},
		{"origin away", originCheck("docker.io", time.Second, no), admin.CheckFail, "no route"},

		{"no clock", clockCheck(nil), admin.CheckSkip, ""},
		{"right clock", clockCheck([]time.Duration{-9 * time.Second, time.Second, 9 * time.Second}), admin.CheckOK, "agrees"},
		{"fast", clockCheck([]time.Duration{11 * time.Second}), admin.CheckWarn, "11s ahead of"},
		{"slow", clockCheck([]time.Duration{-2 * time.Minute}), admin.CheckFail, "2m0s behind"},
		{"a registry's clock is wrong", clockCheck([]time.Duration{time.Hour, 0, time.Second}), admin.CheckOK, "agrees"},

		{"space", spaceCheck(cache.Use{Free: 50 * gib, Reserve: 10 * gib, Bytes: gib, Quota: 100 * gib}), admin.CheckOK, "50 GiB free"},
		{"no space, nothing cached", spaceCheck(cache.Use{Free: gib, Reserve: 10 * gib}), admin.CheckFail, "1.0 GiB free"},
		{"no space", spaceCheck(cache.Use{Free: gib, Reserve: 10 * gib, Bytes: gib}), admin.CheckWarn, "1.0 GiB free"},
		{"pinned", spaceCheck(cache.Use{Free: 50 * gib, Reserve: gib, Quota: 10 * gib, PinnedBytes: 9*gib + 1<<29}), admin.CheckWarn, ""},

		{"inodes", inodesLeft(900_000, 1_000_000), admin.CheckOK, "900000"},
		{"no limit of inodes", inodesLeft(0, 0), admin.CheckOK, "no limit"},
		{"no limit of inodes either", inodesLeft(5, math.MaxUint64), admin.CheckOK, "no limit"},
		{"few inodes", inodesLeft(10_000, 1_000_000), admin.CheckWarn, "10000"},
		{"no inodes", inodesLeft(10, 1_000_000), admin.CheckFail, "10 of"},
	} {
		if tt.got.State != tt.want || !strings.Contains(tt.got.Detail, tt.says) {
			t.Errorf("%s: %+v, want %s with %q", tt.name, tt.got, tt.want, tt.says)
		}
		if bad := tt.want == admin.CheckWarn || tt.want == admin.CheckFail; bad != (tt.got.Advice != "") {
			t.Errorf("%s: the advice is %q", tt.name, tt.got.Advice)
		}
	}
}

// certificates writes a PEM file of self-signed certificates that end after the
// given times from now.
func certificates(t *testing.T, file string, now time.Time, ends ...time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, end := range ends {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
			NotBefore: now.Add(min(0, end)).Add(-time.Hour), NotAfter: now.Add(end),
		}
		if end > 100*365*24*time.Hour {
			c.NotBefore = now.Add(time.Hour) // not yet
		}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificates: of a door's chain the one that ends first counts, of CAs the
// last.
func TestCertificates(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	now := time.Now()
	file := filepath.Join(t.TempDir(), "crt.pem")
	for _, tt := range []struct {
		ends        []time.Duration
		chain, cas  admin.CheckState
		certificate string
	}{
		{[]time.Duration{100 * day}, admin.CheckOK, admin.CheckOK, "good until"},
		{[]time.Duration{100 * day, 10 * day}, admin.CheckWarn, admin.CheckOK, "good until"},
		{[]time.Duration{-day, 100 * day}, admin.CheckFail, admin.CheckOK, "expired"},
		{[]time.Duration{-day}, admin.CheckFail, admin.CheckFail, "expired"},
		{[]time.Duration{200 * 365 * day}, admin.CheckFail, admin.CheckFail, "begins at"},
		{nil, admin.CheckFail, admin.CheckFail, "no certificate"},
	} {
		certificates(t, file, now, tt.ends...)
		chain, cas := certificateCheck("c", file, now, soonest), certificateCheck("c", file, now, latest)
		if chain.State != tt.chain || cas.State != tt.cas || !strings.Contains(chain.Detail, tt.certificate) {
			t.Errorf("%v: %+v and %+v, want %s (%s) and %s", tt.ends, chain, cas, tt.chain, tt.certificate, tt.cas)
		}
	}
	if c := certificateCheck("c", file+".none", now, soonest); c.State != admin.CheckFail {
		t.Errorf("%+v", c)
	}
}

// TestFileChecks: every file that the configuration names is looked at, and
// nothing of what is in a secret is told.
func TestFileChecks(t *testing.T) {
	t.Parallel()
	const planted = "planted-secret-0123456789"
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		f := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o700), os.WriteFile(f, []byte(planted+"\n"), mode), os.Chmod(f, mode)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	short := filepath.Join(dir, "short")
	if err := errors.Join(os.WriteFile(short, []byte("1234"), 0o600), os.MkdirAll(filepath.Join(dir, "mounted", "..data"), 0o700)); err != nil {
		t.Fatal(err)
	}
	crt := filepath.Join(dir, "crt.pem")
	certificates(t, crt, time.Now(), 24*time.Hour)
	c := Config{
		Data:   dir,
		Gossip: GossipConfig{SecretFile: file("secret", 0o600), AllowFile: filepath.Join(dir, "nobody")},
		Mirror: MirrorConfig{TLS: TLSConfig{Cert: crt}},
		Admin:  AdminConfig{Tokens: []AdminToken{{Name: "t", File: short}}},
		Proxy:  ProxyConfig{Listen: "127.0.0.1:7054"},
		Upstreams: map[string]Upstream{
			"a.example": {PasswordFile: file("password", 0o644)},
			"b.example": {CredentialsFile: filepath.Dir(file("mounted/.dockerconfigjson", 0o644)), CA: crt},
			"c.example": {CredentialsFile: filepath.Join(dir, "nowhere")},
			"d.example": {},
		},
	}
	want := map[string]admin.CheckState{
		"secret": admin.CheckOK, "members allowed": admin.CheckFail, "token t": admin.CheckFail, "proxy.key": admin.CheckFail,
		"credentials a.example": admin.CheckWarn, "credentials b.example": admin.CheckOK, "credentials c.example": admin.CheckFail,
		"certificate mirror.tls": admin.CheckWarn, "certificate proxy.ca": admin.CheckFail, "ca b.example": admin.CheckWarn,
	}
	got := c.fileChecks(time.Now())
	for _, k := range got {
		if k.State != want[k.Name] {
			t.Errorf("%+v, want %s", k, want[k.Name])
		}
		if strings.Contains(k.Detail+k.Advice, "planted") || strings.Contains(k.Detail+k.Advice, "1234") {
			t.Errorf("a secret is told: %+v", k)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d checks, want %d: %+v", len(got), len(want), got)
	}

	open := Config{Role: proto.RoleScheduler}
	if got := open.fileChecks(time.Now()); len(got) != 1 || got[0].Name != "secret" || got[0].State != admin.CheckWarn {
		t.Errorf("a fleet without a secret: %+v", got)
	}
	if got := (Config{}).fileChecks(time.Now()); len(got) != 0 {
		t.Errorf("a node on its own: %+v", got)
	}
}
