package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
)

func TestAllowRepositories(t *testing.T) {
	for _, test := range []struct {
		pattern string
		yes, no string // names, separated by spaces
	}{
		{"team/app", "team/app", "team team/app2 team/app/web other/team/app xteam/app"},
		{"team/*", "team/app team/a-b", "team team/app/web other/app"},
		{"team/web-*", "team/web-a team/web-", "team/web team/aweb-b team/web-a/b"},
		{"team/**", "team/app team/app/web team/a/b/c", "team teams/app other/team/app"},
		{"*/app/**", "team/app/x other/app/x/y", "team/app app/app team/web/x"},
		{"**", "app team/app a/b/c/d", ""},
		{"*", "app", "team/app"},
		{"**/app", "team/app", "a/b/app app"}, // ** means * but at the end
		{"team/[", "", "team/[ team/a team"},  // does not parse
		{"team/[/**", "", "team/[/a team/a/b"},
		{"", "", "app team/app"},
		{"/**", "", "app team/app"},
	} {
		rule := AllowRepositories("registry.test", []string{"not/this/one", test.pattern})
		for _, name := range strings.Fields(test.yes) {
			if err := rule(t.Context(), origin.Ref{Upstream: "registry.test", Repository: name}); err != nil {
				t.Errorf("pattern %q refuses %q: %v", test.pattern, name, err)
			}
		}
		for _, name := range strings.Fields(test.no) {
			err := rule(t.Context(), origin.Ref{Upstream: "registry.test", Repository: name})
			if !errors.Is(err, ErrDenied) {
				t.Errorf("pattern %q of %q = %v, want ErrDenied", test.pattern, name, err)
			}
		}
	}
}

func TestAllowRepositoriesOfOneUpstream(t *testing.T) {
	rule := AllowRepositories("registry.test", nil)
	if err := rule(t.Context(), origin.Ref{Upstream: "other.test", Repository: "a"}); err != nil {
		t.Errorf("rule for registry.test refuses other.test: %v", err)
	}
	if err := rule(t.Context(), origin.Ref{Upstream: "Registry.Test", Repository: "a"}); !errors.Is(err, ErrDenied) {
		t.Errorf("the same upstream in other letters = %v, want ErrDenied", err)
	}
	err := rule(t.Context(), origin.Ref{Upstream: "registry.test", Repository: "a"})
	const want = `denied by policy: rule upstreams.allow: this mirror may not serve repository a of registry.test: add it to upstreams."registry.test".allow if it may`
	if err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
}

func TestAllowRepositoriesKeepsNothingOfItsArgument(t *testing.T) {
	patterns := []string{"a"}
	rule := AllowRepositories("registry.test", patterns)
	patterns[0] = "b"
	if err := rule(t.Context(), origin.Ref{Upstream: "registry.test", Repository: "b"}); !errors.Is(err, ErrDenied) {
		t.Errorf("a later change of the list is seen: %v", err)
	}
}
