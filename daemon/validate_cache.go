package daemon

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/daemon/tags"
)

// tags checks for how long tags are believed.
func (m *mistakes) tags(t TagsConfig) {
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"ttl", t.TTL}, {"notFound", t.NotFound}, {"revalidate", t.Revalidate}, {"maxStale", t.MaxStale}} {
		if d.value < 0 {
			m.add("tags."+d.key, "%s is less than nothing; write a duration such as 60s, or 0s for not at all", d.value)
		}
	}
}

// cache checks how much is kept, and when it is looked after.
func (m *mistakes) cache(c CacheConfig) {
	if c.Quota.IsZero() {
		m.add("cache.quota", "is empty, so that nothing could be kept; write bytes such as 200GiB, or a share of the file system such as 50%%")
	}
	high, low := m.share("cache.high", c.High), m.share("cache.low", c.Low)
	if high > 0 && low > high {
		m.add("cache.low", "%s is more than cache.high, %s: eviction would end before it begins; write a lower share", c.Low, c.High)
	}
	if c.Keep < 0 {
		m.add("cache.keep", "%s is less than nothing; write a duration such as 10m, or 0s to evict what was just asked for", c.Keep)
	}
	m.cron("cache.gc", c.GC)
	m.cron("cache.scrub", c.Scrub)
	if c.ScrubRate != rate.Unlimited && !(c.ScrubRate >= minLimit) {
		m.add("cache.scrubRate", "%s is so slow that a scrub would never end; write %s or more, or %s", c.ScrubRate, minLimit, rate.Unlimited)
	}
	for _, p := range c.Pins {
		if _, err := cache.ParsePin(p); err != nil {
			m.add("cache.pins", "%w", err)
		}
	}
	for _, dir := range c.Adopt {
		if !filepath.IsAbs(dir) {
			m.add("cache.adopt", "%q is not an absolute path; write that of containerd's content store, such as /var/lib/containerd/io.containerd.content.v1.content", dir)
		}
	}
}

// share checks a share of the quota and returns it in hundredths.
func (m *mistakes) share(key string, a cache.Amount) int64 {
	if !a.IsShare() {
		m.add(key, "%q is not a share of the quota; write one such as 95%%", a)
		return 0
	}
	return a.Of(100)
}

func (m *mistakes) cron(key, expression string) {
	if expression == "" {
		return
	}
	if err := checkCron(expression); err != nil {
		m.add(key, "%w", err)
	}
}

// prefetch checks the images that are wanted at certain times.
func (m *mistakes) prefetch(c Config) {
	for i, p := range c.Prefetch {
		key := fmt.Sprintf("prefetch[%d]", i)
		m.spec(key, c.Mirror.Default, jobs.Spec{Images: []string{p.Image}, Platforms: p.Platforms, AllPlatforms: p.AllPlatforms, Nodes: p.Nodes})
		if p.At == "" {
			m.add(key+".at", "is missing; write when, as a cron expression such as \"0 5 * * *\"")
		}
		m.cron(key+".at", p.At)
	}
}

func (m *mistakes) spec(key, upstream string, s jobs.Spec) {
	if err := s.Validate(upstream); err != nil {
		m.add(key, "%w", err)
	}
}

// webhook checks the rules for pushes.
func (m *mistakes) webhook(c Config) {
	for i, r := range c.Webhook.Rules {
		key := fmt.Sprintf("webhook.rules[%d]", i)
		for _, p := range []struct{ key, pattern string }{{"repository", strings.TrimSuffix(r.Repository, "/**")}, {"tag", r.Tag}} {
			if _, err := path.Match(p.pattern, ""); err != nil {
				m.add(key+"."+p.key, "%q is not a pattern; write a name, or one such as team/* or v*", p.pattern)
			}
		}
		if _, known := c.Upstreams[r.Upstream]; r.Upstream != "" && !known {
			m.add(key+".upstream", "%q is not among the upstreams; add it there, or name another one", r.Upstream)
		}
		m.spec(key, c.Mirror.Default, jobs.Spec{Images: []string{"any"}, Platforms: r.Platforms, AllPlatforms: r.AllPlatforms, Nodes: r.Nodes})
	}
}

// tagRules checks the rules for tags of an upstream.
func (m *mistakes) tagRules(key string, u Upstream) {
	if u.TagTTL < 0 {
		m.add(key+".tagTTL", "%s is less than nothing; write a duration such as 5m", u.TagTTL)
	}
	for _, pattern := range slices.Sorted(maps.Keys(u.Tags)) {
		if _, err := tags.ParseRule(pattern, u.Tags[pattern]); err != nil {
			m.add(key+".tags", "%w", err)
		}
	}
}
