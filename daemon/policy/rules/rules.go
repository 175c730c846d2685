package rules

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Names of what decides without a Rule of the configuration.
const (
	nameRegistries   = "registries"
	nameRepositories = "repositories"
	nameNoLatest     = "noLatest"
	nameTags         = "tags"
	nameDefault      = "default"
)

// reserved are names that no Rule may have, since its denials would be taken for
// those of another part of the policy: the built-in rules, and what package
// policy refuses by itself.
func reserved() []string {
	return []string{
		nameRegistries, nameRepositories, nameNoLatest, nameTags, nameDefault,
		"upstreams.allow", "blocklist", "signature", "content", "private",
	}
}

// maxRules bounds how many a Config may have: each is asked in every request.
const maxRules = 1000

// A Set is a compiled Config. Its methods may be called concurrently, and on
// nil, which allows everything.
type Set struct {
	// immutable
	steps       []step
	denyDefault bool
	audit       bool // the default's
	content     bool
	signatures  bool
}

// A step is one condition and what it is for.
type step struct {
	name    string
	deny    bool
	audit   bool // it only says that it would deny
	message string
	holds   condition
}

// A condition says whether it holds of a request. An error is either a failed,
// which is the condition's own fault, or the reason why nobody can say.
type condition func(ctx context.Context, v *values) (answer, error)

// An answer is that of a condition. More than yes and no, it may be that the
// request is not known well enough yet.
type answer int

const (
	no answer = iota
	yes
	unknown
)

// failed is an error of a condition that could not be evaluated.
type failed struct{ err error }

func (f *failed) Error() string { return f.err.Error() }
func (f *failed) Unwrap() error { return f.err }

// Compile checks cfg and makes it ready. The error has a line for each mistake,
// with the key of the configuration that it is in.
func Compile(cfg Config) (*Set, error) {
	var errs []error
	wrong := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("policy."+key+": "+format, args...))
	}
	s := &Set{}
	switch cfg.Default {
	case "", "allow":
	case "deny":
		s.denyDefault = true
	default:
		wrong("default", "%.40q is neither allow nor deny", cfg.Default)
	}
	switch cfg.Mode {
	case "", "enforce":
	case "audit":
		s.audit = true
	default:
		wrong("mode", "%.40q is neither enforce nor audit", cfg.Mode)
	}
	s.builtIn(cfg, wrong)
	s.own(cfg.Rules, wrong)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// own adds the rules of the configuration.
func (s *Set) own(rules []Rule, wrong func(key, format string, args ...any)) {
	if len(rules) == 0 {
		return
	}
	if len(rules) > maxRules {
		wrong("rules", "%d rules are more than the %d that are accepted", len(rules), maxRules)
		return
	}
	language, err := newLanguage()
	if err != nil {
		wrong("rules", "%w", err)
		return
	}
	names := reserved()
	for i, r := range rules {
		key := fmt.Sprintf("rules[%d]", i)
		switch {
		case !goodName(r.Name):
			wrong(key+".name", "%.80q is not a name: 1 to 64 letters, digits, and . _ - are", r.Name)
		case slices.Contains(reserved(), r.Name):
			wrong(key+".name", "%s is the name of a built-in rule: take another", r.Name)
		case slices.Contains(names, r.Name):
			wrong(key+".name", "another rule is called %s too: whoever is refused could not tell which it was", r.Name)
		default:
			key += " (" + r.Name + ")"
		}
		names = append(names, r.Name)
		st := step{name: r.Name, audit: s.audit, message: r.Message}
		if st.message == "" {
			st.message = "the condition of this rule is true of the request; policy.rules of the node has it"
		}
		switch r.Do {
		case "allow":
		case "deny":
			st.deny = true
		default:
			wrong(key+".do", "%.40q is neither allow nor deny", r.Do)
		}
		switch {
		case r.Mode == "":
		case r.Mode != "enforce" && r.Mode != "audit":
			wrong(key+".mode", "%.40q is neither enforce nor audit", r.Mode)
		case r.Do == "allow":
			wrong(key+".mode", "a rule that allows has no mode: leave it out")
		default:
			st.audit = r.Mode == "audit"
		}
		e, err := language.compile(r.If)
		if err != nil {
			wrong(key+".if", "%w", err)
			continue
		}
		st.holds = e.holds
		s.content = s.content || e.content
		s.signatures = s.signatures || e.signatures
		s.steps = append(s.steps, st)
	}
}

var names = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func goodName(s string) bool { return names.MatchString(s) }

// NeedsContent reports whether a rule speaks of what is known only with the
// manifest, or with the tag resolved (digest). Without one, every Verdict is
// Decided.
func (s *Set) NeedsContent() bool { return s != nil && s.content }

// NeedsSignatures reports whether a rule speaks of signedBy.
func (s *Set) NeedsSignatures() bool { return s != nil && s.signatures }

// Judge says whether a request may go on. It asks the rules in order and blocks
// for no longer than Facts.SignedBy does. The error is that of Facts.SignedBy
// as it is, or ctx's: then there is no verdict. A condition that cannot be
// evaluated is one, a denial.
func (s *Set) Judge(ctx context.Context, f Facts) (Verdict, error) {
	if s == nil {
		return Verdict{Decided: true, Allow: true}, nil
	}
	v := newValues(f)
	var would *Verdict // by the first that only audits
	for _, st := range s.steps {
		a, err := st.holds(ctx, v)
		deny, message := st.deny, st.message
		var fail *failed
		switch {
		case errors.As(err, &fail):
			// An allow that failed must not let the default allow it, nor a
			// deny that failed let it pass.
			deny, message = true, fmt.Sprintf("the rule could not be evaluated: %v", fail)
		case err != nil:
			return Verdict{}, err
		case a == no:
			continue
		case a == unknown:
			return Verdict{}, nil
		}
		if deny && st.audit {
			if would == nil {
				would = &Verdict{Decided: true, Allow: true, Audit: true, Rule: st.name, Message: message}
			}
			continue
		}
		return decide(!deny, st.name, message, would), nil
	}
	const nobody = "no rule allows this, and what no rule allows is refused"
	if s.denyDefault && !s.audit {
		return decide(false, nameDefault, nobody, would), nil
	}
	if s.denyDefault && would == nil {
		would = &Verdict{Decided: true, Allow: true, Audit: true, Rule: nameDefault, Message: nobody}
	}
	return decide(true, "", "", would), nil
}

// decide returns a verdict. What only audits is told where nothing else denied.
func decide(allow bool, rule, message string, would *Verdict) Verdict {
	switch {
	case !allow:
		return Verdict{Decided: true, Rule: rule, Message: message}
	case would != nil:
		return *would
	}
	return Verdict{Decided: true, Allow: true, Rule: rule}
}

// registryOf splits a repository pattern into those of its two parts.
func registryOf(pattern string) (registry, repository string) {
	registry, repository, _ = strings.Cut(pattern, "/")
	return registry, repository
}
