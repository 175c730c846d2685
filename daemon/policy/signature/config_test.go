package signature

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	cosign := Cosign{Key: "cosign.pub"}
	keyless := Keyless{TrustRoot: "root.json", Identity: "x", Issuer: "y"}
	notation := Notation{Certificates: []string{"ca.pem"}, Identities: []string{"*"}}
	for _, test := range []struct {
		name  string
		keys  []Key
		gates []Gate
		want  string // part of the error; "" for none
	}{
		{"nothing", nil, nil, ""},
		{"one of each", []Key{{Name: "a", Cosign: cosign, Predicates: []string{"x"}}, {Name: "b", Keyless: keyless, Repositories: []string{"**", "ghcr.io/team/**"}}, {Name: "c", Notation: notation}},
			[]Gate{{Name: "g", Key: "a"}, {Name: "h", Key: "b", MaxSeverity: "None", MaxAge: time.Hour, Types: scanTypes, Missing: "allow"}}, ""},
		{"no name", []Key{{Cosign: cosign}}, nil, "needs a name"},
		{"a name twice", []Key{{Name: "a", Cosign: cosign}, {Name: "a", Cosign: cosign}}, nil, "another one"},
		{"no kind", []Key{{Name: "a"}}, nil, "exactly one"},
		{"two kinds", []Key{{Name: "a", Cosign: cosign, Notation: notation}}, nil, "exactly one"},
		{"keyless without an identity", []Key{{Name: "a", Keyless: Keyless{TrustRoot: "x", Issuer: "y"}}}, nil, "all of trustRoot, identity and issuer"},
		{"keyless without an issuer", []Key{{Name: "a", Keyless: Keyless{TrustRoot: "x", Identity: "y"}}}, nil, "all of trustRoot, identity and issuer"},
		{"notation without identities", []Key{{Name: "a", Notation: Notation{Certificates: []string{"x"}}}}, nil, `identities: ["*"]`},
		{"notation with predicates", []Key{{Name: "a", Notation: notation, Predicates: []string{"x"}}}, nil, "cosign and keyless only"},
		{"bad pattern", []Key{{Name: "a", Cosign: cosign, Repositories: []string{"x/[a"}}}, nil, "syntax error"},
		{"pattern without a registry", []Key{{Name: "a", Cosign: cosign, Repositories: []string{"nginx"}}}, nil, "has no registry"},
		{"gate without a name", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Key: "a"}}, "needs a name"},
		{"gate without a key", nil, []Gate{{Name: "g", Key: "a"}}, `no key called "a"`},
		{"gate of notation", []Key{{Name: "a", Notation: notation}}, []Gate{{Name: "g", Key: "a"}}, "signs no scan results"},
		{"gate twice", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Name: "g", Key: "a"}, {Name: "g", Key: "a"}}, "another one"},
		{"gate with a strange severity", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Name: "g", Key: "a", MaxSeverity: "awful"}}, "use none"},
		{"gate of the future", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Name: "g", Key: "a", MaxAge: -1}}, "negative"},
		{"gate of another type", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Name: "g", Key: "a", Types: []string{"x"}}}, "not known"},
		{"gate that may be", []Key{{Name: "a", Cosign: cosign}}, []Gate{{Name: "g", Key: "a", Missing: "maybe"}}, "deny or allow"},
	} {
		err := Validate(test.keys, test.gates)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestNewSaysWhichFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	write := func(text string) string {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for name, k := range map[string]Key{
		"no file":                {Cosign: Cosign{Key: missing}},
		"no key":                 {Cosign: Cosign{Key: write("hello")}},
		"a broken key":           {Cosign: Cosign{Key: write("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")}},
		"no trust root":          {Keyless: Keyless{TrustRoot: missing, Identity: "x", Issuer: "y"}},
		"a broken identity":      {Keyless: Keyless{TrustRoot: "testdata/public/trusted_root.json", Identity: "(", Issuer: "y"}},
		"no certificate":         {Notation: Notation{Certificates: []string{missing}, Identities: []string{"*"}}},
		"a broken certificate":   {Notation: Notation{Certificates: []string{write("x")}, Identities: []string{"*"}}},
		"a broken distinguished": {Notation: Notation{Certificates: []string{newAuthority(t, "x", time.Hour).file}, Identities: []string{"x509.subject: nobody"}}},
		"a huge file":            {Cosign: Cosign{Key: write(strings.Repeat("x", maxFile+1))}},
	} {
		k.Name = "mine"
		_, err := New(Config{Origin: w.client, Index: w.cache.Index(), Keys: []Key{k}})
		if err == nil || !strings.Contains(err.Error(), `key "mine"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRequired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := realKey, otherKey
	a.Repositories = []string{"docker.io/library/*", "ghcr.io/team/**"}
	b.Repositories = []string{"GHCR.io/team/app"}
	v := w.verifier([]Key{a, b})
	for _, test := range []struct{ upstream, repository, want string }{
		{"docker.io", "library/nginx", "real"},
		{"Docker.io", "library/nginx", "real"},
		{"docker.io", "library/deep/nginx", ""},
		{"docker.io", "library", ""},
		{"ghcr.io", "team/app", "real other"},
		{"ghcr.io", "team/app/deep", "real"},
		{"ghcr.io", "team", ""},
		{"ghcr.io.evil", "team/app", ""},
		{"evil", "ghcr.io/team/app", ""},
	} {
		if got := strings.Join(v.Required(test.upstream, test.repository), " "); got != test.want {
			t.Errorf("of %s/%s are required %q, want %q", test.upstream, test.repository, got, test.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := prometheus.NewRegistry()
	c := Config{Origin: w.client, Index: w.cache.Index(), Registry: r}
	if _, err := New(c); err != nil {
		t.Fatal(err)
	}
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range all {
		names = append(names, m.GetName())
	}
	if want := []string{"shoal_policy_scan_lookups_total", "shoal_policy_signature_lookups_total"}; !slices.Equal(names, want) {
		t.Errorf("metrics %q", names)
	}
	if _, err := New(c); err == nil {
		t.Error("registered twice")
	}
}
