package tags

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// immutable is the value of a rule whose tags never move.
const immutable = "immutable"

// A Rule says for how long what a tag names is remembered, for tags that match
// a pattern.
type Rule struct {
	Pattern   string // of path.Match
	TTL       time.Duration
	Immutable bool // TTL is then 0
}

// ParseRule reads a rule: a pattern of path.Match such as "v*" or "latest", and
// "immutable" or a duration of time.ParseDuration such as "10m". A duration of
// 0 asks the origin each time. The error says which of the two is wrong.
func ParseRule(pattern, value string) (Rule, error) {
	if err := checkPattern(pattern); err != nil {
		return Rule{}, fmt.Errorf("tag pattern %.140q %w", pattern, err)
	}
	if value == immutable {
		return Rule{Pattern: pattern, Immutable: true}, nil
	}
	ttl, err := time.ParseDuration(value)
	if err != nil {
		return Rule{}, fmt.Errorf("tags that match %q: %.40q is neither %s nor a duration such as 10m", pattern, value, immutable)
	}
	if ttl < 0 {
		return Rule{}, fmt.Errorf("tags that match %q: the duration %s is negative: 0 asks the registry each time", pattern, value)
	}
	return Rule{Pattern: pattern, TTL: ttl}, nil
}

// checkPattern refuses what is no pattern, and what has a letter that no tag
// can have, which is a digest or a whole reference by mistake.
func checkPattern(pattern string) error {
	if pattern == "" {
		return fmt.Errorf("is empty: write * for all tags")
	}
	if strings.ContainsAny(pattern, ":/@") {
		return fmt.Errorf("has a :, / or @, which no tag has: write the part after the colon, such as v*")
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("is not a pattern: * stands for any letters, ? for one, [a-z] for one of these; a bracket needs its other one")
	}
	return nil
}

// Match reports whether the rule is for the tag.
func (r Rule) Match(tag string) bool {
	ok, err := path.Match(r.Pattern, tag)
	return ok && err == nil
}

// Of returns what the rules say of a tag; ok is false if none of them matches.
// Of several that match, the one whose pattern has the most letters of its own
// counts ("v1.*" before "v*", and "v1.0" before both), whatever their order: a
// configuration file has none.
func Of(rules []Rule, tag string) (ttl time.Duration, immutable bool, ok bool) {
	var best Rule
	for _, r := range rules {
		if r.Match(tag) && (!ok || r.before(best)) {
			best, ok = r, true
		}
	}
	return best.TTL, best.Immutable, ok
}

// before reports whether r counts more than o where both match. For those that
// are equally exact it is the alphabet, so that all nodes agree.
func (r Rule) before(o Rule) bool {
	if a, b := letters(r.Pattern), letters(o.Pattern); a != b {
		return a > b
	}
	return r.Pattern < o.Pattern
}

// letters counts the letters of a pattern that stand for themselves.
func letters(pattern string) int {
	n := 0
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '*', '?':
		case '[':
			i += skipClass(pattern[i:])
		case '\\':
			i++
			n++
		default:
			n++
		}
	}
	return n
}

// skipClass returns the index of the bracket that closes the class s begins
// with.
func skipClass(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ']':
			return i
		}
	}
	return len(s)
}
