package rules

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// FuzzCondition: whatever is written as a condition and whatever is asked, it
// neither panics nor takes long, and what was decided without the content is
// what is decided with it.
func FuzzCondition(f *testing.F) {
	for _, condition := range []string{
		`true`, `registry == "ghcr.io" && !("release" in signedBy)`, `annotations["a"] == "b"`, `annotations.a.matches("^[a-z]+$")`,
		`age > duration("24h") || client.address == "unix"`, `glob(registry + "/" + repository, "ghcr.io/**")`,
		`inNetwork(client.address, "10.0.0.0/8") ? platform == "linux/amd64" : tag.startsWith("v")`,
		`annotations.exists(k, k.contains("x") && annotations[k] != "")`, `signedBy.map(k, k + tag).size() > 0`,
		`[platform].all(p, p == "")`, `{"a": digest}["b"] == ""`, `int(tag) / 0 == 1`, `timestamp("2020-01-01T00:00:00Z") + age > timestamp(tag)`,
		`[1,2,3].all(i, [1,2,3].all(j, [1,2,3].exists(k, i*j*k > 9223372036854775807)))`, `glob(repository, tag)`, `inNetwork(tag, tag)`,
		`dyn(tag) == 1`, `type(tag) == string`, `has(annotations.a) && size(annotations.a) > 3`, `bytes(tag).size() > 2 || "\u00ff" in annotations`,
		`optional.of(tag)`, `cel.bind(x, tag, x)`, `tag.format([])`, `signedBy.exists_one(k, k == user)`, "\"\x00\"==tag",
	} {
		f.Add(condition, "ghcr.io", "team/app", "v1", "10.1.2.3", "a", "b", int64(time.Hour), true)
	}
	f.Add(`client.user == "x"`, "REG:5000", "", "", "fe80::1%eth0", "\xff", "\xfe", int64(-1), false)
	language, err := newLanguage()
	if err != nil {
		f.Fatal(err)
	}
	down := errors.New("down")
	f.Fuzz(func(t *testing.T, condition, registry, repository, tag, address, key, value string, age int64, signers bool) {
		e, err := language.compile(condition)
		if err != nil {
			return
		}
		s := &Set{steps: []step{{name: "r", deny: true, holds: e.holds}}, content: e.content, signatures: e.signatures}
		facts := Facts{
			Kind: KindManifest, Registry: registry, Repository: repository, Tag: tag,
			Client:   Client{Door: "mirror", Address: address, User: value},
			Platform: key, MediaType: value, Annotations: map[string]string{key: value, "a": tag}, Age: time.Duration(age),
			SignedBy: func() ([]string, error) {
				if !signers {
					return nil, down
				}
				return []string{key, "release"}, nil
			},
		}
		start := time.Now()
		before, err := s.Judge(t.Context(), facts)
		if err != nil {
			t.Fatalf("%q without content: %v", condition, err)
		}
		facts.HasContent = true
		facts.Digest = "sha256:" + strings.Repeat("0", 64)
		after, err := s.Judge(t.Context(), facts)
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("%q took %s", condition, took)
		}
		if err != nil && !(errors.Is(err, down) && e.signatures && !signers) {
			t.Fatalf("%q with content: %v", condition, err)
		}
		if err == nil && !after.Decided {
			t.Fatalf("%q is not decided with all that there is to know", condition)
		}
		if !before.Decided && !e.content {
			t.Fatalf("%q is not decided, and asks for no content", condition)
		}
		// More is computed with the content, so that its cost may be too high.
		if before.Decided && err == nil && before.Allow != after.Allow && !strings.Contains(after.Message, "limit exceeded") {
			t.Fatalf("%q: %+v without content, %+v with it", condition, before, after)
		}
		if before.Decided && err != nil {
			t.Fatalf("%q: %+v without content, %v with it", condition, before, err)
		}
	})
}

// FuzzConfig: a configuration is refused or good to use.
func FuzzConfig(f *testing.F) {
	f.Add("ghcr.io", "ghcr.io/team/**", "v[0-9.]+", "deny", "audit", "name", "ghcr.io", "team/app", "v1")
	f.Add("*", "**", "(", "", "", "", "", "", "")
	f.Add("[", "a/**/b", "a)|(b", "allow", "enforce", "x\ny", "a/b", "[", "\xff")
	f.Fuzz(func(t *testing.T, registryPattern, repositoryPattern, tagPattern, word, mode, name, registry, repository, tag string) {
		s, err := Compile(Config{
			Default: word, Mode: mode, NoLatest: true, Registries: []string{registryPattern}, Repositories: []string{repositoryPattern},
			Tags:  []TagRule{{Repositories: []string{repositoryPattern}, Pattern: tagPattern}},
			Rules: []Rule{{Name: name, If: `tag != ""`, Do: word, Mode: mode}},
		})
		if err != nil {
			return
		}
		v, err := s.Judge(t.Context(), Facts{Kind: KindManifest, Registry: registry, Repository: repository, Tag: tag})
		if err != nil || !v.Decided {
			t.Fatalf("%+v, %v", v, err)
		}
		if tag == "latest" && v.Allow && !v.Audit {
			t.Fatalf("latest is let through: %+v", v)
		}
	})
}

// FuzzGlob: a pattern without special letters is a name; ** at the end never
// reaches what is not below.
func FuzzGlob(f *testing.F) {
	f.Add("ghcr.io/team/app", "ghcr.io/team/**")
	f.Add("a/b", "*/b")
	f.Add("", "**")
	f.Add("a", "[")
	f.Add("a/b/c", "a//**")
	f.Fuzz(func(t *testing.T, s, pattern string) {
		ok, err := glob(s, pattern)
		if err != nil {
			if ok {
				t.Fatal("both an error and true")
			}
			if _, again := glob("other", pattern); again == nil {
				t.Fatalf("%q is a pattern for some names only: %v", pattern, err)
			}
			return
		}
		if !strings.ContainsAny(pattern, `*?[\`) && ok != (s == pattern) {
			t.Fatalf("%q and %q: %t", s, pattern, ok)
		}
		if top, below := strings.CutSuffix(pattern, "/**"); below && !strings.ContainsAny(top, `*?[\`) && ok != (strings.HasPrefix(s, top+"/")) {
			t.Fatalf("%q and %q: %t", s, pattern, ok)
		}
	})
}
