package rules

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

// request returns the Facts of a manifest by tag of an image
// "registry/repository:tag" or, with an @, of one by digest.
func request(image string) Facts {
	f := Facts{Kind: KindManifest, Client: Client{Door: "mirror", Address: "10.1.2.3", User: "ann"}}
	f.Registry, f.Repository, _ = strings.Cut(image, "/")
	if name, digest, ok := strings.Cut(f.Repository, "@"); ok {
		f.Repository, f.Digest = name, digest
	} else {
		f.Repository, f.Tag, _ = strings.Cut(f.Repository, ":")
	}
	return f
}

// with returns f with the content of an image.
func with(f Facts) Facts {
	f.HasContent = true
	f.Digest = "sha256:" + strings.Repeat("a", 64)
	f.Platform = "linux/amd64"
	f.MediaType = "application/vnd.oci.image.manifest.v1+json"
	f.Annotations = map[string]string{"team": "web"}
	f.Age = 48 * time.Hour
	f.SignedBy = func() ([]string, error) { return []string{"release"}, nil }
	return f
}

func compile(t testing.TB, cfg Config) *Set {
	t.Helper()
	s, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func judge(t testing.TB, s *Set, f Facts) Verdict {
	t.Helper()
	v, err := s.Judge(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// outcome is a Verdict in one word, with the rule.
func outcome(v Verdict) string {
	switch {
	case !v.Decided:
		return "undecided"
	case v.Audit && v.Allow:
		return "would-deny " + v.Rule
	case v.Allow:
		return strings.TrimSpace("allow " + v.Rule)
	}
	return "deny " + v.Rule
}

// TestConditions asks one rule that denies whether it holds, first without and
// then with the content.
func TestConditions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		condition     string
		without, with string // yes, no, ? or !, which is an error
	}{
		{`true`, "yes", "yes"},
		{`registry == "ghcr.io"`, "yes", "yes"},
		{`repository.startsWith("team/")`, "yes", "yes"},
		{`tag == "v1"`, "yes", "yes"},
		{`tag.matches("^v[0-9]+$")`, "yes", "yes"},
		{`kind == "blob"`, "no", "no"},
		{`glob(registry + "/" + repository, "ghcr.io/team/**")`, "yes", "yes"},
		{`glob(repository, "team/*/x")`, "no", "no"},
		{`inNetwork(client.address, "10.0.0.0/8")`, "yes", "yes"},
		{`inNetwork(client.address, "192.168.0.0/16")`, "no", "no"},
		{`client.user == "ann" && client.door == "mirror"`, "yes", "yes"},
		{`client.nothing == "x"`, "!", "!"},
		{`digest == "sha256:bad"`, "?", "no"},
		{`platform == "linux/amd64"`, "?", "yes"},
		{`mediaType.endsWith("manifest.v1+json")`, "?", "yes"},
		{`annotations.team == "web"`, "?", "yes"},
		{`annotations["team"] == "web"`, "?", "yes"},
		{`annotations.none == "web"`, "?", "!"},
		{`"none" in annotations && annotations.none == "web"`, "?", "no"},
		{`annotations.exists(k, k.startsWith("te"))`, "?", "yes"},
		{`"release" in signedBy`, "?", "yes"},
		{`!("release" in signedBy)`, "?", "no"},
		{`signedBy.size() == 0`, "?", "no"},
		{`signedBy.exists(k, k.startsWith("rel"))`, "?", "yes"},
		{`age > duration("24h")`, "?", "yes"},
		{`age < duration("24h")`, "?", "no"},
		// What is known already decides, where it can.
		{`registry == "docker.io" && !("release" in signedBy)`, "no", "no"},
		{`!("other" in signedBy) && registry == "docker.io"`, "no", "no"},
		{`registry == "ghcr.io" || age > duration("1h")`, "yes", "yes"},
		{`registry == "docker.io" ? false : platform == "linux/arm64"`, "?", "no"},
		{`registry == "ghcr.io" ? false : platform == "linux/arm64"`, "no", "no"},
		{`[registry].exists(r, r == "ghcr.io" && platform == "linux/amd64")`, "?", "yes"},
		{`[platform].all(p, p == "")`, "?", "no"},
		{`annotations.map(k, k).size() > 0`, "?", "yes"},
		{`{"a": platform}["a"] == "x"`, "?", "no"},
		{`[platform, "x"].size() == 2`, "?", "yes"},
		{`has(annotations.team)`, "?", "yes"},
		{`has(annotations.none)`, "?", "no"},
		{`string(age) == "172800s"`, "?", "yes"},
	} {
		s, err := Compile(Config{Rules: []Rule{{Name: "r", If: tt.condition, Do: "deny"}}})
		if err != nil {
			t.Errorf("%s: %v", tt.condition, err)
			continue
		}
		speaks := regexp.MustCompile(`digest|platform|mediaType|annotations|signedBy|age`).MatchString(tt.condition)
		if got := s.NeedsContent(); got != speaks {
			t.Errorf("%s: needs content: %t", tt.condition, got)
		}
		if got := s.NeedsSignatures(); got != strings.Contains(tt.condition, "signedBy") {
			t.Errorf("%s: needs signatures: %t", tt.condition, got)
		}
		for _, c := range []struct {
			f    Facts
			want string
		}{{request("ghcr.io/team/app:v1"), tt.without}, {with(request("ghcr.io/team/app:v1")), tt.with}} {
			v := judge(t, s, c.f)
			got := "no"
			switch {
			case !v.Decided:
				got = "?"
			case !v.Allow && strings.Contains(v.Message, "could not be evaluated"):
				got = "!"
			case !v.Allow:
				got = "yes"
			}
			if got != c.want {
				t.Errorf("%s, with content %t: %s (%s), want %s", tt.condition, c.f.HasContent, got, v.Message, c.want)
			}
		}
	}
}

func TestOrderModesAndDefault(t *testing.T) {
	t.Parallel()
	allowTeam := Rule{Name: "team", If: `glob(repository, "team/**")`, Do: "allow"}
	denyV2 := Rule{Name: "no-v2", If: `tag == "v2"`, Do: "deny", Message: "v2 is broken, take v3"}
	auditV2 := denyV2
	auditV2.Mode = "audit"
	enforceV2 := denyV2
	enforceV2.Mode = "enforce"
	broken := Rule{Name: "broken", If: `client.nothing == "x"`, Do: "allow"}
	signed := Rule{Name: "signed", If: `!("release" in signedBy)`, Do: "deny"}
	for _, tt := range []struct {
		name  string
		cfg   Config
		image string
		want  string
	}{
		{"nothing", Config{}, "docker.io/library/alpine:latest", "allow"},
		{"default deny", Config{Default: "deny"}, "docker.io/library/alpine:3", "deny default"},
		{"default deny, audited", Config{Default: "deny", Mode: "audit"}, "docker.io/library/alpine:3", "would-deny default"},
		{"allowed", Config{Default: "deny", Rules: []Rule{allowTeam}}, "ghcr.io/team/app:v1", "allow team"},
		{"the first decides", Config{Rules: []Rule{allowTeam, denyV2}}, "ghcr.io/team/app:v2", "allow team"},
		{"the first decides, turned round", Config{Rules: []Rule{denyV2, allowTeam}}, "ghcr.io/team/app:v2", "deny no-v2"},
		{"audited rule goes on", Config{Rules: []Rule{auditV2, allowTeam}}, "ghcr.io/team/app:v2", "would-deny no-v2"},
		{"audited rule, then a denial", Config{Default: "deny", Rules: []Rule{auditV2}}, "ghcr.io/team/app:v2", "deny default"},
		{"audited policy", Config{Mode: "audit", Rules: []Rule{denyV2}}, "ghcr.io/team/app:v2", "would-deny no-v2"},
		{"audited policy, enforced rule", Config{Mode: "audit", NoLatest: true, Rules: []Rule{enforceV2}}, "ghcr.io/team/app:v2", "deny no-v2"},
		{"audited built-in", Config{Mode: "audit", NoLatest: true}, "ghcr.io/team/app:latest", "would-deny noLatest"},
		{"failing allow denies", Config{Rules: []Rule{broken}}, "ghcr.io/team/app:v1", "deny broken"},
		{"failing allow, audited", Config{Mode: "audit", Rules: []Rule{broken}}, "ghcr.io/team/app:v1", "would-deny broken"},
		{"undecided", Config{Rules: []Rule{signed, allowTeam}}, "ghcr.io/team/app:v1", "undecided"},
		{"decided before", Config{Rules: []Rule{allowTeam, signed}}, "ghcr.io/team/app:v1", "allow team"},
		{"undecided, though audited", Config{Mode: "audit", Rules: []Rule{signed}}, "ghcr.io/team/app:v1", "undecided"},
		{"built-in before rules", Config{NoLatest: true, Rules: []Rule{allowTeam}}, "ghcr.io/team/app:latest", "deny noLatest"},
		{"built-in before what is undecided", Config{NoLatest: true, Rules: []Rule{signed}}, "ghcr.io/team/app:latest", "deny noLatest"},
	} {
		if got := outcome(judge(t, compile(t, tt.cfg), request(tt.image))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	v := judge(t, compile(t, Config{Rules: []Rule{denyV2}}), request("ghcr.io/team/app:v2"))
	if v.Message != "v2 is broken, take v3" {
		t.Errorf("message %q", v.Message)
	}
	if got := outcome(judge(t, nil, request("a/b:c"))); got != "allow" {
		t.Errorf("no set at all: %s", got)
	}
}

func TestBuiltIns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cfg         Config
		allow, deny string // images, separated by spaces
		rule        string
	}{
		{
			Config{Registries: []string{"docker.io", "*.gcr.io", "Registry.local:5000"}},
			"docker.io/library/alpine:3 eu.gcr.io/a/b:1 registry.local:5000/a:1 REGISTRY.local:5000/a@sha256:aa",
			"ghcr.io/a/b:1 gcr.io/a/b:1 docker.io.evil.test/a:1 registry.local/a:1 xdocker.io/a:1", "registries",
		},
		{
			Config{Repositories: []string{"docker.io/library/*", "ghcr.io/team/**"}},
			"docker.io/library/alpine:3 ghcr.io/team/app:1 ghcr.io/team/a/b@sha256:aa",
			"docker.io/other/alpine:3 docker.io/library/a/b:1 ghcr.io/team:1 ghcr.io/teams/a:1 evil.test/docker.io/library/alpine:3", "repositories",
		},
		{
			Config{Registries: []string{"docker.io", "ghcr.io"}, Repositories: []string{"docker.io/library/*"}},
			"docker.io/library/alpine:3", "ghcr.io/team/app:1", "repositories",
		},
		{Config{NoLatest: true}, "a.b/c:v1 a.b/c@sha256:aa a.b/latest:1 a.b/c:latest2", "a.b/c:latest", "noLatest"},
		{
			Config{Tags: []TagRule{{Repositories: []string{"a.b/team/**"}, Pattern: `v[0-9]+|stable`}}},
			"a.b/team/x:v1 a.b/team/x:stable a.b/team/x@sha256:aa a.b/other/x:nonsense",
			"a.b/team/x:v1x a.b/team/x:xv1 a.b/team/x:unstable a.b/team/x:stable2", "tags",
		},
		{Config{Tags: []TagRule{{Pattern: `[0-9.]+`}}}, "a/b:1.2", "a/b:x", "tags"},
	} {
		s := compile(t, tt.cfg)
		if s.NeedsContent() || s.NeedsSignatures() {
			t.Errorf("%+v needs more than a request", tt.cfg)
		}
		for image := range strings.FieldsSeq(tt.allow) {
			if got := outcome(judge(t, s, request(image))); got != "allow" {
				t.Errorf("%+v: %s: %s", tt.cfg, image, got)
			}
		}
		for image := range strings.FieldsSeq(tt.deny) {
			if got := outcome(judge(t, s, request(image))); got != "deny "+tt.rule {
				t.Errorf("%+v: %s: %s", tt.cfg, image, got)
			}
		}
	}
}

// TestSignaturesUnavailable: that nobody can say who signed is no verdict.
func TestSignaturesUnavailable(t *testing.T) {
	t.Parallel()
	down := errors.New("the registry is down")
	asked := 0
	f := with(request("ghcr.io/team/app:v1"))
	f.SignedBy = func() ([]string, error) { asked++; return nil, down }
	for _, condition := range []string{
		`!("release" in signedBy)`, `"release" in signedBy`, `signedBy.exists(k, k == "x")`, `signedBy.size() == 0`,
		`signedBy == []`, `!(signedBy != [])`, `"x" in signedBy || client.nothing == "x"`,
	} {
		for _, do := range []string{"allow", "deny"} {
			s := compile(t, Config{Rules: []Rule{{Name: "r", If: condition, Do: do}, {Name: "s", If: condition, Do: do}}})
			asked = 0
			v, err := s.Judge(t.Context(), f)
			if !errors.Is(err, down) || v != (Verdict{}) {
				t.Errorf("%s %s: %+v, %v", do, condition, v, err)
			}
			if asked != 1 {
				t.Errorf("asked %d times", asked)
			}
		}
	}
	// Where it makes no difference, it is no obstacle.
	s := compile(t, Config{Rules: []Rule{{Name: "r", If: `"x" in signedBy || registry == "ghcr.io"`, Do: "deny"}}})
	if got := outcome(judge(t, s, f)); got != "deny r" {
		t.Error(got)
	}
	// Nobody looks for signatures: a mistake of ours, and no consent.
	f.SignedBy = nil
	s = compile(t, Config{Rules: []Rule{{Name: "r", If: `"revoked" in signedBy`, Do: "deny"}}})
	if got := outcome(judge(t, s, f)); got != "deny r" {
		t.Error(got)
	}
	asked = 0
	f.SignedBy = func() ([]string, error) { asked++; return nil, nil }
	s = compile(t, Config{Rules: []Rule{
		{Name: "a", If: `"x" in signedBy`, Do: "allow"}, {Name: "b", If: `"y" in signedBy`, Do: "allow"},
		{Name: "c", If: `signedBy.size() == 0`, Do: "deny"},
	}})
	if got := outcome(judge(t, s, f)); got != "deny c" || asked != 1 {
		t.Errorf("%s after %d questions", got, asked)
	}
}

func TestUnknownAge(t *testing.T) {
	t.Parallel()
	f := with(request("ghcr.io/team/app:v1"))
	f.Age = -1
	for _, condition := range []string{`age > duration("24h")`, `age < duration("24h")`} {
		s := compile(t, Config{Rules: []Rule{{Name: "age", If: condition, Do: "deny"}}})
		v := judge(t, s, f)
		if outcome(v) != "deny age" || !strings.Contains(v.Message, "does not say when it was made") {
			t.Errorf("%s: %+v", condition, v)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	s := compile(t, Config{Rules: []Rule{{Name: "r", If: `true`, Do: "deny"}}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := s.Judge(ctx, request("a/b:c")); !errors.Is(err, context.Canceled) || v != (Verdict{}) {
		t.Errorf("%+v, %v", v, err)
	}
	// In the middle of a rule.
	ctx, cancel = context.WithCancel(t.Context())
	f := with(request("a/b:c"))
	big := strings.Repeat("1,", 100) + "1" // which would come to its end
	s = compile(t, Config{Rules: []Rule{{Name: "r", If: `"x" in signedBy && [` + big + `].all(i, [` + big + `].all(j, i == j))`, Do: "deny"}}})
	f.SignedBy = func() ([]string, error) { return []string{"x"}, nil }
	if v := judge(t, s, f); outcome(v) != "deny r" || v.Message == "" || strings.Contains(v.Message, "could not") {
		t.Fatalf("%+v", v)
	}
	f.SignedBy = func() ([]string, error) { cancel(); return []string{"x"}, nil }
	if v, err := s.Judge(ctx, f); !errors.Is(err, context.Canceled) || v != (Verdict{}) {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestExpensiveRules: what would take long is ended, and denies.
func TestExpensiveRules(t *testing.T) {
	t.Parallel()
	big := "[" + strings.Repeat("1,", 700) + "1]"
	long := with(request("a/b:c"))
	long.Annotations = map[string]string{"x": strings.Repeat("a", 4<<20)}
	for name, condition := range map[string]string{
		"loops":   big + `.all(i, ` + big + `.all(j, i + j > 0))`,
		"texts":   `[1,2,3,4,5,6,7,8,9,10].map(i, [1,2,3,4,5,6,7,8,9,10].map(j, annotations.x + annotations.x)).size() == 10`,
		"glob":    `glob(annotations.x, "` + strings.Repeat("*a", 500) + `b")`,
		"regexp":  `annotations.x.matches("(a*)*(a*)*(a*)*b")`,
		"address": `inNetwork(annotations.x, "10.0.0.0/8") || ` + big + `.all(i, ` + big + `.all(j, i == j || inNetwork(annotations.x, "10.0.0.0/8")))`,
	} {
		s := compile(t, Config{Rules: []Rule{{Name: "r", If: condition, Do: "allow"}}})
		start := time.Now()
		v := judge(t, s, long)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s took %s", name, took)
		} else {
			t.Logf("%s: %s: %s", name, took, v.Message)
		}
		if outcome(v) != "deny r" {
			t.Errorf("%s: %s", name, outcome(v))
		}
	}
}
