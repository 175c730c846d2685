package rules

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// builtIn adds the steps for what the configuration has keys of its own for.
func (s *Set) builtIn(cfg Config, wrong func(key, format string, args ...any)) {
	add := func(name, message string, holds func(v *values) bool) {
		s.steps = append(s.steps, step{name: name, deny: true, audit: s.audit, message: message,
			holds: func(_ context.Context, v *values) (answer, error) {
				if holds(v) {
					return yes, nil
				}
				return no, nil
			}})
	}
	if registries := patterns("registries", cfg.Registries, wrong); len(registries) > 0 {
		add(nameRegistries, "images of this registry may not be pulled: add it to policy.registries if they may",
			func(v *values) bool { return !anyGlob(registries, v.registry) })
	}
	if repositories := patterns("repositories", cfg.Repositories, wrong); len(repositories) > 0 {
		s.contradiction(cfg, repositories, wrong)
		add(nameRepositories, "images of this repository may not be pulled: add it to policy.repositories if they may",
			func(v *values) bool { return !anyGlob(repositories, v.registry+"/"+v.repository) })
	}
	if cfg.NoLatest {
		add(nameNoLatest, "the tag latest may not be pulled, since it says nothing about what it names: name a version or a digest",
			func(v *values) bool { return v.tag == "latest" })
	}
	for i, t := range cfg.Tags {
		key := fmt.Sprintf("tags[%d]", i)
		repositories := patterns(key+".repositories", t.Repositories, wrong)
		whole, err := regexp.Compile("^(?:" + t.Pattern + ")$")
		if _, own := regexp.Compile(t.Pattern); err != nil || own != nil {
			wrong(key+".pattern", "%.200q is not a regular expression: %w", t.Pattern, errors.Join(own, err))
			continue
		}
		if t.Pattern == "" {
			wrong(key+".pattern", "there is none: write a regular expression that the tags must match, such as v[0-9.]+")
			continue
		}
		add(nameTags, fmt.Sprintf("tags of this repository must match %s", t.Pattern), func(v *values) bool {
			return v.tag != "" && !whole.MatchString(v.tag) &&
				(len(repositories) == 0 || anyGlob(repositories, v.registry+"/"+v.repository))
		})
	}
}

// contradiction says where a repository is allowed whose registry is not: it
// could not be pulled, and whoever wrote that meant something else.
func (s *Set) contradiction(cfg Config, repositories []string, wrong func(key, format string, args ...any)) {
	if len(cfg.Registries) == 0 {
		return
	}
	for i, p := range repositories {
		registry, _ := registryOf(p)
		if !strings.ContainsAny(registry, `*?[\`) && !anyGlob(patterns("", cfg.Registries, func(string, string, ...any) {}), registry) {
			wrong(fmt.Sprintf("repositories[%d]", i), "policy.registries has no %s, so that none of these could be pulled: add it there too", registry)
		}
	}
}

// patterns returns those that are patterns, in lower case as names are.
func patterns(key string, all []string, wrong func(key, format string, args ...any)) []string {
	var good []string
	for i, p := range all {
		if err := checkGlob(p); err != nil {
			wrong(fmt.Sprintf("%s[%d]", key, i), "%w", err)
			continue
		}
		if strings.Contains(p, ":/") || strings.Contains(p, "@") {
			wrong(fmt.Sprintf("%s[%d]", key, i), "%.200q is not a name as images have it: write ghcr.io/team/**", p)
			continue
		}
		good = append(good, strings.ToLower(p))
	}
	return good
}

func anyGlob(patterns []string, s string) bool {
	for _, p := range patterns {
		if ok, err := glob(s, p); ok && err == nil {
			return true
		}
	}
	return false
}

// checkGlob says what is wrong with a pattern.
func checkGlob(pattern string) error {
	_, err := glob("", pattern)
	return err
}

// glob reports whether a pattern of path.Match is one of s. A closing /**
// stands for everything below, however deep, and ** alone for everything.
func glob(s, pattern string) (bool, error) {
	if pattern == "" {
		return false, errors.New("the pattern is empty: write ** for everything")
	}
	head := strings.TrimSuffix(pattern, "/**")
	if _, err := path.Match(head, ""); pattern != "**" && (err != nil || strings.Contains(head, "**")) {
		return false, fmt.Errorf("%.200q is not a pattern: * stands for any letters but /, ? for one, [a-z] for one of these, and /** at the end for everything below", pattern)
	}
	return Match(pattern, s), nil
}

// Match reports whether a name of components between slashes matches a pattern:
// path.Match's, or one that ends in /** for everything below, or ** for
// everything. A pattern that does not parse matches nothing.
func Match(pattern, name string) bool {
	if pattern == "**" {
		return true
	}
	if head, below := strings.CutSuffix(pattern, "/**"); below {
		depth := strings.Count(head, "/") + 1
		parts := strings.SplitN(name, "/", depth+1)
		if len(parts) <= depth {
			return false
		}
		pattern, name = head, strings.Join(parts[:depth], "/")
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
