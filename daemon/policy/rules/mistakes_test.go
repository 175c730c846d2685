package rules

import (
	"strings"
	"testing"
)

// TestMistakes: each is found at the start, and the error says where it is.
func TestMistakes(t *testing.T) {
	t.Parallel()
	rule := func(condition string) Config {
		return Config{Rules: []Rule{{Name: "r", If: condition, Do: "deny"}}}
	}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Default: "no"}, `policy.default: "no" is neither allow nor deny`},
		{Config{Mode: "dry"}, `policy.mode: "dry" is neither enforce nor audit`},
		{Config{Registries: []string{"ghcr.io", ""}}, "policy.registries[1]: the pattern is empty"},
		{Config{Registries: []string{"https://ghcr.io"}}, "policy.registries[0]:"},
		{Config{Repositories: []string{"ghcr.io/[a"}}, "policy.repositories[0]:"},
		{Config{Repositories: []string{"ghcr.io/**/a"}}, "policy.repositories[0]:"},
		{Config{Repositories: []string{"ghcr.io/a@sha256:x"}}, "policy.repositories[0]:"},
		{Config{Registries: []string{"docker.io"}, Repositories: []string{"ghcr.io/team/**"}}, "policy.repositories[0]: policy.registries has no ghcr.io"},
		{Config{Tags: []TagRule{{Pattern: "("}}}, "policy.tags[0].pattern:"},
		{Config{Tags: []TagRule{{Pattern: "a)|(b"}}}, "policy.tags[0].pattern:"},
		{Config{Tags: []TagRule{{}}}, "policy.tags[0].pattern: there is none"},
		{Config{Tags: []TagRule{{Repositories: []string{"[a"}, Pattern: "a"}}}, "policy.tags[0].repositories[0]:"},
		{Config{Rules: []Rule{{If: "true", Do: "deny"}}}, "policy.rules[0].name:"},
		{Config{Rules: []Rule{{Name: "a\nb", If: "true", Do: "deny"}}}, "policy.rules[0].name:"},
		{Config{Rules: []Rule{{Name: "default", If: "true", Do: "deny"}}}, "default is the name of a built-in rule"},
		{Config{Rules: []Rule{{Name: "a", If: "true", Do: "deny"}, {Name: "a", If: "true", Do: "deny"}}}, "policy.rules[1].name: another rule is called a"},
		{Config{Rules: []Rule{{Name: "a", If: "true"}}}, `policy.rules[0] (a).do: ""`},
		{Config{Rules: []Rule{{Name: "a", If: "true", Do: "deny", Mode: "x"}}}, `policy.rules[0] (a).mode: "x"`},
		{Config{Rules: []Rule{{Name: "a", If: "true", Do: "allow", Mode: "audit"}}}, "a rule that allows has no mode"},
		{Config{Rules: make([]Rule, maxRules+1)}, "more than"},
		{rule(""), "policy.rules[0] (r).if: there is no condition"},
		{rule("registri == 'x'"), "policy.rules[0] (r).if: line 1, column 1: undeclared reference to 'registri'"},
		{rule("registry"), "the condition is a string, and must be true or false"},
		{rule("registry == 1"), "line 1, column 10: found no matching overload"},
		{rule("dyn(registry)"), "the condition is a dyn"},
		{rule("tag ="), "policy.rules[0] (r).if: line 1, column 5:"},
		{rule("tag.matches('(')"), "policy.rules[0] (r).if: line 1"},
		{rule("tag.matches('(a{1000}){1000}')"), "policy.rules[0] (r).if: line 1"},
		{rule("age > duration('a week')"), "policy.rules[0] (r).if: line 1"},
		{rule("glob(repository, 'a/[')"), "is not a pattern"},
		{rule("inNetwork(client.address, '10.0.0.0')"), "is not a network"},
		{rule("true" + strings.Repeat(" && true", 2000)), "policy.rules[0] (r).if:"},
		{rule(strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500)), "policy.rules[0] (r).if:"},
		{rule("[1].all(a, [1].all(b, [1].all(c, [1].all(d, true))))"), "policy.rules[0] (r).if:"},
	} {
		_, err := Compile(tt.cfg)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200v: %v, want %s", tt.cfg, err, tt.want)
		}
	}
	_, err := Compile(Config{Default: "x", Mode: "y", Rules: []Rule{{Name: "a", If: "b", Do: "c"}}})
	if err == nil || strings.Count(err.Error(), "\npolicy.") != 3 {
		t.Errorf("not all four mistakes are told: %v", err)
	}
}
