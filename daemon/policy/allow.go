package policy

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
)

// AllowRepositories returns the rule that of the upstream only repositories
// that match a pattern are served. It says nothing about other upstreams. Their
// names are compared without regard to case, as package origin does.
//
// A pattern is one of path.Match, whose * stays within a component of the
// name, or such a pattern and /** for everything below it:
//
//	team/app    this repository
//	team/*      all directly under team
//	team/web-*  those whose name starts with web-
//	team/**     all under team, however deep, but not team itself
//	**          all
//
// The name of a docker.io repository with one component is library/name. No
// pattern at all allows nothing, and neither does one that does not parse.
func AllowRepositories(upstream string, patterns []string) Rule {
	patterns = append([]string(nil), patterns...)
	return func(_ context.Context, ref origin.Ref) error {
		if !strings.EqualFold(ref.Upstream, upstream) {
			return nil
		}
		for _, p := range patterns {
			if MatchRepository(p, ref.Repository) {
				return nil
			}
		}
		return &Denial{Rule: ruleAllow, Message: fmt.Sprintf("this mirror may not serve repository %s of %s: add it to upstreams.%q.allow if it may",
			ref.Repository, upstream, upstream)}
	}
}

// MatchRepository reports whether a repository's name matches a pattern, as
// AllowRepositories says. A pattern that does not parse matches nothing.
func MatchRepository(pattern, name string) bool { return rules.Match(pattern, name) }
