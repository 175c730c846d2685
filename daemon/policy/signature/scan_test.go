package signature

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

func ago(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }

// The scan results that the real cosign has attested, in both forms.
func TestRealScans(t *testing.T) {
	t.Parallel()
	for name, load := range map[string]func(w *world, d proto.Digest){
		"attestation": func(w *world, _ proto.Digest) { w.load("attested", "app") },
		"bundle": func(w *world, d proto.Digest) {
			w.attach("app", "", d, typeBundle3, object{mediaType: typeBundle3, data: w.file("scanned.bundle.json")})
		},
	} {
		w := newWorld(t)
		d := w.image.Manifest.Digest
		load(w, d)
		gates := map[string]Gate{
			"":                             {MaxSeverity: "high"},
			`1 vulnerability above medium`: {},
			`"CVE-2026-1" (high)`:          {MaxSeverity: "none"},
			`older than 1h`:                {MaxSeverity: "high", MaxAge: time.Hour},
			`no scan result`:               {Key: "other"},
			`no scan result signed`:        {Types: []string{typeInTotoVulns1}},
		}
		for want, g := range gates {
			g.Name, g.Repositories = "gate", []string{testUpstream + "/*"}
			if g.Key == "" {
				g.Key = "real"
			}
			err := scanOf(t, w.verifier([]Key{realKey, otherKey}, g), "app", d)
			var rejected *Rejected
			if (want == "") != (err == nil) || want != "" && (!errors.As(err, &rejected) || !strings.Contains(err.Error(), want) || rejected.Gate != "gate") {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

func TestScans(t *testing.T) {
	t.Parallel()
	s, stranger := newSigner(t), newSigner(t)
	w := newWorld(t)
	moved := w.pushImage("moved", 2).Manifest.Digest
	clean := func(age time.Duration) string { return cosignVuln(ago(age), trivyReport()) }
	bad := func(age time.Duration) string {
		return cosignVuln(ago(age), trivyReport("CVE-2026-1", "CRITICAL", "CVE-2026-1", "LOW", "CVE-2026-2", "HIGH", "CVE-2026-3", "LOW"))
	}
	type results []object
	for i, test := range []struct {
		name string
		gate Gate
		put  func(d proto.Digest) results
		want string // part of the message; "" for passed
	}{
		{"clean", Gate{}, func(d proto.Digest) results { return results{s.envelope(statementOf(d, typeCosignVuln, clean(0)))} }, ""},
		{"bad", Gate{}, func(d proto.Digest) results { return results{s.envelope(statementOf(d, typeCosignVuln, bad(0)))} },
			`2 vulnerabilities above medium: "CVE-2026-1" (critical), "CVE-2026-2" (high)`},
		{"bad, but ignored", Gate{Ignore: []string{"cve-2026-1", "CVE-2026-2"}},
			func(d proto.Digest) results { return results{s.envelope(statementOf(d, typeCosignVuln, bad(0)))} }, ""},
		{"bad, in part ignored", Gate{Ignore: []string{"CVE-2026-1"}},
			func(d proto.Digest) results { return results{s.envelope(statementOf(d, typeCosignVuln, bad(0)))} }, `1 vulnerability above medium: "CVE-2026-2"`},
		{"in-toto 0.1", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeInTotoVulns1, inTotoVulns(ago(0), `[{"vulnerability":{"id":"CVE-1","severity":[{"method":"nvd","score":"9.8"}]}}]`)))}
		}, `"CVE-1" (critical)`},
		{"in-toto 0.2", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeInTotoVulns2, inTotoVulns(ago(0), `[]`)))}
		}, ""},
		{"another statement", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, "https://spdx.dev/Document", clean(0)))}
		}, "no scan result"},
		{"by a stranger", Gate{}, func(d proto.Digest) results {
			return results{stranger.envelope(statementOf(d, typeCosignVuln, clean(0)))}
		}, "no scan result"},
		{"of another image", Gate{}, func(proto.Digest) results { return results{s.envelope(statementOf(moved, typeCosignVuln, clean(0)))} }, "no scan result"},
		{"nothing", Gate{}, func(proto.Digest) results { return nil }, "no scan result"},
		{"nothing needed", Gate{Missing: "allow"}, func(proto.Digest) results { return nil }, ""},
		{"bad though nothing is needed", Gate{Missing: "allow"},
			func(d proto.Digest) results { return results{s.envelope(statementOf(d, typeCosignVuln, bad(0)))} }, "2 vulnerabilities"},
		{"in time", Gate{MaxAge: 2 * time.Hour}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, clean(time.Hour)))}
		}, ""},
		{"too old", Gate{MaxAge: time.Hour, Missing: "allow"},
			func(d proto.Digest) results {
				return results{s.envelope(statementOf(d, typeCosignVuln, clean(2*time.Hour)))}
			}, "older than 1h"},
		{"in the future", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, clean(-time.Hour)))}
		}, "in the future"},
		{"no time", Gate{MaxAge: time.Hour}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, cosignVuln("", trivyReport())))}
		}, "does not say when"},
		{"no time needed", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, cosignVuln("", trivyReport())))}
		}, ""},
		{"newest is clean", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, bad(time.Hour))), s.envelope(statementOf(d, typeCosignVuln, clean(time.Minute)))}
		}, ""},
		{"newest is bad", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, bad(time.Minute))), s.envelope(statementOf(d, typeCosignVuln, clean(time.Hour)))}
		}, "2 vulnerabilities"},
		{"newest cannot be read", Gate{}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, clean(time.Hour))), s.envelope(statementOf(d, typeCosignVuln, cosignVuln(ago(0), `{"a":1}`)))}
		}, "cannot be read: the scanner's report is in no format that is known"},
		{"one without a time cannot be read", Gate{Missing: "allow"}, func(d proto.Digest) results {
			return results{s.envelope(statementOf(d, typeCosignVuln, `[]`)), s.envelope(statementOf(d, typeCosignVuln, clean(0)))}
		}, "cannot be read"},
		{"tampered", Gate{}, func(d proto.Digest) results {
			good, forged := s.envelope(statementOf(d, typeCosignVuln, bad(0))), stranger.envelope(statementOf(d, typeCosignVuln, clean(0)))
			i, j := strings.Index(string(good.data), `"sig"`), strings.Index(string(forged.data), `"sig"`)
			forged.data = []byte(string(forged.data[:j]) + string(good.data[i:]))
			return results{forged}
		}, "no scan result"},
	} {
		img := w.pushImage("app", uint64(i)+100)
		d := img.Manifest.Digest
		if all := test.put(d); all != nil {
			w.attach("app", attTag(d), d, "", all...)
		}
		g := test.gate
		g.Name, g.Key, g.Repositories = "gate", "scanner", []string{testUpstream + "/**"}
		v := w.verifier([]Key{s.named("scanner")}, g)
		err := scanOf(t, v, "app", d)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		// A key for scans is not asked for signatures.
		w.registry.Reset()
		if got := w.signedBy(v, "app", d); got != "" || w.registry.Count().Lists > 0 {
			t.Errorf("%s: signed by %q", test.name, got)
		}
		if err := scanOf(t, v, "nowhere", d); err != nil && !strings.Contains(err.Error(), "no scan result") {
			t.Error(err)
		}
	}
}

// Gates stand where they are put, and all of them count.
func TestGatesByRepository(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.attach("app", attTag(d), d, "", s.envelope(statementOf(d, typeCosignVuln, cosignVuln(ago(time.Hour), trivyReport("CVE-1", "HIGH")))))
	gate := func(name, maxSeverity string, repositories ...string) Gate {
		return Gate{Name: name, Key: "scanner", MaxSeverity: maxSeverity, Repositories: repositories}
	}
	v := w.verifier([]Key{s.named("scanner")}, gate("lax", "high", "**"), gate("strict", "low", strings.ToUpper(testUpstream)+"/app"), gate("elsewhere", "none", "other.test/**"))
	if err := scanOf(t, v, "app", d); err == nil || !strings.Contains(err.Error(), `gate "strict"`) {
		t.Errorf("error = %v", err)
	}
	v = w.verifier([]Key{s.named("scanner")}, gate("lax", "high", "**"), gate("elsewhere", "none", "other.test/**"))
	if err := scanOf(t, v, "app", d); err != nil {
		t.Error(err)
	}
}

// An image that has passed goes on to pass while the registry fails, until the
// scan is too old; one that has not is not known to.
func TestScanIsRemembered(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w := newWorld(t)
	good, bad := w.image.Manifest.Digest, w.pushImage("app", 2).Manifest.Digest
	w.attach("app", attTag(good), good, "", s.envelope(statementOf(good, typeCosignVuln, cosignVuln(ago(time.Hour), trivyReport("CVE-1", "HIGH")))))
	w.attach("app", attTag(bad), bad, "", s.envelope(statementOf(bad, typeCosignVuln, cosignVuln(ago(time.Hour), trivyReport("CVE-1", "CRITICAL")))))
	gate := Gate{Name: "gate", Key: "scanner", MaxSeverity: "high", MaxAge: 2 * time.Hour, Repositories: []string{"**"}}
	keys := []Key{s.named("scanner")}
	v := w.verifier(keys, gate)
	var rejected *Rejected
	for range 2 {
		if err := scanOf(t, v, "app", good); err != nil {
			t.Error(err)
		}
		if err := scanOf(t, v, "app", bad); !errors.As(err, &rejected) {
			t.Error(err)
		}
	}
	if n := w.registry.ReferrerLists("app", good); n != 1 {
		t.Errorf("%d questions, want 1", n)
	}
	w.registry.SetFaults(registry.Faults{ManifestStatus: http.StatusServiceUnavailable})
	again := w.verifier(keys, gate)
	if err := scanOf(t, again, "app", good); err != nil {
		t.Errorf("passed before, and now %v", err)
	}
	if err := scanOf(t, again, "app", bad); err == nil || errors.As(err, &rejected) {
		t.Errorf("not passed before, and now %v", err)
	}
	short, strict := gate, gate
	short.MaxAge, strict.MaxSeverity = time.Minute, "low"
	for _, g := range []Gate{short, strict} {
		if err := scanOf(t, w.verifier(keys, g), "app", good); err == nil || errors.As(err, &rejected) {
			t.Errorf("by another gate, %v", err)
		}
	}
}

// A report may be larger than a signature, up to a bound.
func TestLargeScans(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	large := func(n int) object {
		report := fmt.Sprintf(`{"SchemaVersion":2,"ArtifactName":"app","Metadata":%q}`, strings.Repeat("x", n))
		return s.envelope(statementOf(d, typeCosignVuln, cosignVuln(ago(0), report)))
	}
	gate := Gate{Name: "gate", Key: "scanner", Repositories: []string{"**"}}
	w.attach("app", attTag(d), d, "", large(2*maxLayer))
	if err := scanOf(t, w.verifier([]Key{s.named("scanner")}, gate), "app", d); err != nil {
		t.Error(err)
	}
	w.attach("app", attTag(d), d, "", large(maxReport*3/4))
	w.registry.Reset()
	if err := scanOf(t, w.verifier([]Key{s.named("scanner")}, gate), "app", d); err == nil || w.registry.Count().BlobGets > 0 {
		t.Errorf("too large: %v, after %d fetches", err, w.registry.Count().BlobGets)
	}
}

// A gate's key may be keyless.
func TestKeylessScan(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	w := newWorld(t)
	d := w.image.Manifest.Digest
	w.attach("app", "", d, typeBundle3, s.bundle(testIdentity, testIssuer, statementOf(d, typeCosignVuln, cosignVuln(ago(0), trivyReport()))))
	gate := Gate{Name: "gate", Key: "team", Repositories: []string{"**"}}
	if err := scanOf(t, w.verifier([]Key{s.named("team")}, gate), "app", d); err != nil {
		t.Error(err)
	}
}

func TestParseReport(t *testing.T) {
	t.Parallel()
	sarif := func(rules, results string) string {
		return `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"Trivy","rules":[` + rules + `]}},"results":[` + results + `]}]}`
	}
	grype, err := os.ReadFile("testdata/grype.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, result, want string
	}{
		{"trivy", trivyReport("A", "CRITICAL", "B", "UNKNOWN"), "A critical, B unknown"},
		{"trivy, nothing scanned for", `{"SchemaVersion":2,"ArtifactName":"x","Results":null}`, ""},
		{"trivy of another schema", `{"SchemaVersion":3,"ArtifactName":"x","Results":null}`, "error"},
		{"trivy without a severity", `{"SchemaVersion":2,"ArtifactName":"x","Results":[{"Vulnerabilities":[{"VulnerabilityID":"A"}]}]}`, "A critical"},
		{"grype", string(grype), "CVE-2023-1 high, CVE-2023-2 negligible, GHSA-1 unknown"},
		{"grype, nothing", `{"matches":[]}`, ""},
		{"as a string", `"{\"matches\":[]}"`, ""},
		{"sarif by score", sarif(`{"id":"A","properties":{"security-severity":"9.8"}},{"id":"B","properties":{"security-severity":5.5}}`,
			`{"ruleId":"B","ruleIndex":1,"level":"error"},{"ruleId":"A"}`), "B medium, A critical"},
		{"sarif by level", sarif(`{"id":"A","defaultConfiguration":{"level":"error"}}`,
			`{"ruleId":"A"},{"ruleId":"B"},{"ruleId":"C","level":"note"},{"ruleId":"D","level":"none"},{"ruleId":"E","level":"odd"}`),
			"A high, B medium, C low, D negligible, E critical"},
		{"sarif by index alone", sarif(`{"id":"A","properties":{"security-severity":"2.0"}}`, `{"ruleIndex":0},{"rule":{"index":0}},{"ruleIndex":7}`), "A low, A low,  medium"},
		{"sarif with an index of another rule", sarif(`{"id":"A","properties":{"security-severity":"2.0"}},{"id":"B","properties":{"security-severity":"9.9"}}`,
			`{"ruleId":"B","ruleIndex":0}`), "B critical"},
		{"sarif of what passed", sarif(``, `{"ruleId":"A","kind":"pass"},{"ruleId":"B","kind":"fail"}`), "B medium"},
		{"sarif with a strange score", sarif(`{"id":"A","properties":{"security-severity":"lots"}}`, `{"ruleId":"A"}`), "A critical"},
		{"sarif without a run", `{"version":"2.1.0","runs":[]}`, "error"},
		{"sarif that was interrupted", `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"x"}}}]}`, "error"},
		{"sarif and trivy at once", `{"runs":[{"results":[]}],"SchemaVersion":2,"ArtifactName":"x"}`, "error"},
		{"unknown", `{"vulnerabilities":[]}`, "error"},
		{"empty", `{}`, "error"},
		{"null", `null`, "error"},
		{"a list", `[]`, "error"},
		{"no JSON in a string", `"x"`, "error"},
	} {
		r, err := parseReport(typeCosignVuln, []byte(cosignVuln("2026-01-02T03:04:05Z", test.result)))
		check(t, test.name, r, err, test.want)
	}
	for _, test := range []struct{ name, result, want string }{
		{"nothing", `[]`, ""},
		{"several methods", `[{"id":"A","severity":[{"method":"nvd","score":"medium"},{"method":"cvss_score","score":"7.2"}]}]`, "A high"},
		{"as in the text of 0.1", `[{"vulnerability":{"id":"A","severity":[{"score":"LOW"}]}}]`, "A low"},
		{"no severity", `[{"id":"A"}]`, "A critical"},
		{"strange", `[{"id":"A","severity":[{"score":"low"},{"score":"11"}]}]`, "A critical"},
		{"null", `null`, "error"},
		{"an object", `{}`, "error"},
	} {
		r, err := parseReport(typeInTotoVulns2, []byte(inTotoVulns("2026-01-02T03:04:05Z", test.result)))
		check(t, "in-toto, "+test.name, r, err, test.want)
	}
	for _, bad := range []string{``, `[]`, `{"metadata":{"scanFinishedOn":"yesterday"},"scanner":{"result":[]}}`, `{}`} {
		if _, err := parseReport(typeInTotoVulns1, []byte(bad)); err == nil {
			t.Errorf("%s is no error", bad)
		}
	}
}

func check(t *testing.T, name string, r report, err error, want string) {
	t.Helper()
	var list []string
	for _, f := range r.Findings {
		list = append(list, f.ID+" "+f.Severity.String())
	}
	got := strings.Join(list, ", ")
	if err != nil {
		got = "error"
	}
	if got != want {
		t.Errorf("%s: %s, %v; want %s", name, got, err, want)
	}
	if at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC); !r.Finished.Equal(at) {
		t.Errorf("%s: finished at %s", name, r.Finished)
	}
}

func TestSeverity(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"": "?", "NaN": "?", "-1": "?", "10.1": "?", "1e9": "?", "Inf": "?", "severe": "?",
		"0": "negligible", "0.1": "low", "3.9": "low", "4.0": "medium", "6.9": "medium", "7": "high", "8.9": "high", "9.0": "critical", "10": "critical",
		"High": "high", " MODERATE ": "medium", "Important": "high", "Negligible": "negligible", "UNKNOWN": "unknown",
	} {
		sev, ok := parseSeverity(s)
		got := sev.String()
		if !ok {
			got = "?"
		}
		if got != want {
			t.Errorf("severity of %q is %s, want %s", s, got, want)
		}
	}
}
