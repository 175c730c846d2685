package tags

import (
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"
)

func TestParseRule(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, value string
		want           Rule
		err            string // part of it; "" for none
	}{
		{"v*", "immutable", Rule{Pattern: "v*", Immutable: true}, ""},
		{"latest", "10m", Rule{Pattern: "latest", TTL: 10 * time.Minute}, ""},
		{"*", "0s", Rule{Pattern: "*"}, ""},
		{"*", "0", Rule{Pattern: "*"}, ""},
		{"[0-9]*.[0-9]*", "1h30m", Rule{Pattern: "[0-9]*.[0-9]*", TTL: 90 * time.Minute}, ""},
		{"", "10m", Rule{}, "is empty"},
		{"v[", "10m", Rule{}, "is not a pattern"},
		{`v\`, "10m", Rule{}, "is not a pattern"},
		{"app:v*", "10m", Rule{}, "no tag has"},
		{"team/app", "10m", Rule{}, "no tag has"},
		{"sha256@x", "10m", Rule{}, "no tag has"},
		{"v*", "", Rule{}, "neither immutable nor a duration"},
		{"v*", "immutabel", Rule{}, "neither immutable nor a duration"},
		{"v*", "60", Rule{}, "neither immutable nor a duration"},
		{"v*", "-1s", Rule{}, "negative"},
	} {
		got, err := ParseRule(test.pattern, test.value)
		if test.err == "" {
			if err != nil || got != test.want {
				t.Errorf("%q: %q: %+v, %v, want %+v", test.pattern, test.value, got, err, test.want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), test.pattern) {
			t.Errorf("%q: %q: error %v, want %q and the pattern", test.pattern, test.value, err, test.err)
		}
	}
}

func TestOf(t *testing.T) {
	t.Parallel()
	var rules []Rule
	for pattern, value := range map[string]string{
		"*": "1m", "v*": "immutable", "v1.*": "10m", "v1.[01]*": "11m", "v1.0": "5m", "*-rc": "2m", "?": "7m", `\*`: "8m",
	} {
		r, err := ParseRule(pattern, value)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	for range 20 { // a configuration file has no order
		rand.Shuffle(len(rules), func(i, j int) { rules[i], rules[j] = rules[j], rules[i] })
		for tag, want := range map[string]time.Duration{
			"latest": time.Minute, "v1.0": 5 * time.Minute, "v1.2": 10 * time.Minute,
			"v1.1": 10 * time.Minute, // three letters each; v1.* comes first in the alphabet
			"v2":   0, "v2-rc": 2 * time.Minute, "x": time.Minute,
		} {
			ttl, immutable, ok := Of(rules, tag)
			if !ok || ttl != want || immutable != (tag == "v2") {
				t.Errorf("%s: %s, immutable %t, %t, want %s", tag, ttl, immutable, ok, want)
			}
		}
	}
	if _, _, ok := Of(rules[:0], "latest"); ok {
		t.Error("no rules say something")
	}
	if _, _, ok := Of([]Rule{{Pattern: "v*"}}, "latest"); ok {
		t.Error("a rule that does not match says something")
	}
}

func FuzzParseRule(f *testing.F) {
	f.Add("v*", "immutable", "v1")
	f.Add("[a-z]*", "10m", "latest")
	f.Add(`\[[\]]?`, "0s", "x")
	f.Add("[^a", "-1s", "")
	f.Add("[", "1e9h", "\x00")
	f.Fuzz(func(t *testing.T, pattern, value, tag string) {
		r, err := ParseRule(pattern, value)
		if err != nil {
			if r != (Rule{}) {
				t.Errorf("%+v along with %v", r, err)
			}
			return
		}
		if r.TTL < 0 || r.Immutable && r.TTL != 0 || r.Pattern != pattern {
			t.Errorf("%q, %q: %+v", pattern, value, r)
		}
		ok, err := path.Match(pattern, tag)
		if err != nil {
			t.Errorf("%q is accepted, and then %v for the tag %q", pattern, err, tag)
		}
		ttl, immutable, found := Of([]Rule{r}, tag)
		if found != ok || ok && (ttl != r.TTL || immutable != r.Immutable) {
			t.Errorf("%q of %q: %s, %t, %t", tag, pattern, ttl, immutable, found)
		}
		if n := letters(pattern); n < 0 || n > len(pattern) {
			t.Errorf("%d letters in %q", n, pattern)
		}
	})
}
