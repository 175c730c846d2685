package locks_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
)

// govern starts a node with a policy and an audit log. It starts the layers of
// each image that it serves.
func govern(t *testing.T, p daemon.PolicyConfig, change func(c *daemon.Config)) *bed {
	t.Helper()
	dir := t.TempDir()
	return start(t, registry.AuthNone, 1, daemon.Upstream{}, func(_ int, c *daemon.Config) {
		own := c.Policy
		c.Policy = p
		if p.Default == "" {
			c.Policy.Default = own.Default
		}
		if p.Mode == "" {
			c.Policy.Mode = own.Mode
		}
		c.Mirror.Prefetch = true
		c.Audit.File = filepath.Join(dir, "audit.log")
		if change != nil {
			change(c)
		}
	})
}

// TestLists: the parts of a policy that have keys of their own.
func TestLists(t *testing.T) {
	t.Parallel()
	b := govern(t, daemon.PolicyConfig{
		Registries:   []string{fleet.Upstream, "second.*"},
		Repositories: []string{fleet.Upstream + "/team/**", "second.test/team/app"},
		NoLatest:     true,
		Tags:         []rules.TagRule{{Repositories: []string{fleet.Upstream + "/team/versions"}, Pattern: `v[0-9]+(\.[0-9]+)*`}},
	}, func(c *daemon.Config) { c.Upstreams["third.test"] = c.Upstreams[fleet.Upstream] })
	good := newImage(t, "team/app", "v1", traits{})
	deep := newImage(t, "team/a/b", "dev", traits{})
	version := newImage(t, "team/versions", "v1.2", traits{})
	outside := newImage(t, "teams/app", "v1", traits{})
	latest := newImage(t, "team/app", "latest", traits{})
	odd := newImage(t, "team/versions", "xv1.2", traits{})
	b.put(good, deep, version, outside, latest, odd)
	b.Reset()
	b.forbidden(paths(outside.Image), "", "repositories", "add it to policy.repositories")
	b.forbidden([]string{outside.Repository + "/tags/list", outside.Repository + "/referrers/" + outside.Manifest.Digest.String()}, "", "repositories", "add it to policy.repositories")
	b.forbidden(paths(latest.Image)[:1], "", "noLatest", "latest")
	b.forbidden(paths(odd.Image)[:1], "", "tags", `must match v[0-9]+`)
	if c := b.Count(); c != (registry.Counts{}) {
		t.Errorf("the registry was asked for what nobody may have: %+v", c)
	}
	third := b.raw("third.test", paths(good.Image)[0], "")
	if !bytes.HasPrefix(third, []byte("403 ")) || !bytes.Contains(third, []byte("rule registries: ")) {
		t.Errorf("a registry that is not on the list: %s", third)
	}
	for _, i := range []image{good, deep, version} {
		b.gets(i, "")
	}
	b.untouched(outside, latest, odd)
	// Without a tag there is none to look at.
	b.forbidden(paths(latest.Image)[:1], "", "noLatest", "latest")
	if a := b.both(paths(latest.Image)[1], ""); !bytes.Equal(a.body, latest.Raw) {
		t.Errorf("by digest: status %d", a.status)
	}
}

// TestRules: a rule in CEL for each thing that rules can speak of. What one of
// them refuses is refused by every way to it, and what is beside it is served.
func TestRules(t *testing.T) {
	t.Parallel()
	const user = "Basic YW5uOng=" // ann:x
	old, young := time.Now().Add(-90*24*time.Hour), time.Now().Add(-time.Hour)
	recalled := newImage(t, "team/digests", "bad", traits{})
	type example struct {
		rule, condition string
		bad, good       image
		goodAs          string // Authorization
		byTag           bool   // only a request by tag is refused
		blind           bool   // decided without the content
	}
	in := func(repository, condition string) string {
		return fmt.Sprintf("repository == %q && (%s)", repository, condition)
	}
	examples := []example{
		{rule: "by-registry", condition: `repository == "team/strangers" && registry != "second.test"`, blind: true,
			bad: newImage(t, "team/strangers", "v1", traits{}), good: newImage(t, "team/friends", "v1", traits{})},
		{rule: "by-repository", condition: `glob(repository, "team/forbidden/**")`, blind: true,
			bad: newImage(t, "team/forbidden/app", "v1", traits{}), good: newImage(t, "team/forbiddens", "v1", traits{})},
		{rule: "by-tag", condition: in("team/tags", `tag.startsWith("dev-")`), byTag: true, blind: true,
			bad: newImage(t, "team/tags", "dev-1", traits{}), good: newImage(t, "team/tags", "v1", traits{})},
		{rule: "by-platform", condition: in("team/platforms", `platform.startsWith("linux/arm")`),
			bad: newImage(t, "team/platforms", "arm", traits{architecture: "arm64"}), good: newImage(t, "team/platforms", "amd", traits{})},
		{rule: "by-media-type", condition: in("team/types", `mediaType.contains("docker")`),
			bad: newImage(t, "team/types", "docker", traits{mediaType: dockerManifest}), good: newImage(t, "team/types", "oci", traits{})},
		{rule: "by-annotation", condition: in("team/stages", `!("stage" in annotations) || annotations["stage"] != "release"`),
			bad:  newImage(t, "team/stages", "test", traits{annotations: map[string]string{"stage": "test"}}),
			good: newImage(t, "team/stages", "release", traits{annotations: map[string]string{"stage": "release"}})},
		{rule: "by-age", condition: in("team/ages", `age > duration("720h")`),
			bad: newImage(t, "team/ages", "old", traits{created: old}), good: newImage(t, "team/ages", "young", traits{created: young})},
		{rule: "by-missing-age", condition: in("team/ageless", `age > duration("720h")`),
			bad: newImage(t, "team/ageless", "v1", traits{}), good: newImage(t, "team/ageless", "young", traits{created: young})},
		{rule: "by-address", condition: in("team/addresses", `!inNetwork(client.address, "10.0.0.0/8")`), blind: true,
			bad: newImage(t, "team/addresses", "v1", traits{}), good: newImage(t, "team/address", "v1", traits{})},
		{rule: "by-user", condition: in("team/users", `client.user != "ann"`), blind: true,
			bad: newImage(t, "team/users", "v1", traits{}), good: newImage(t, "team/users", "v2", traits{}), goodAs: user},
		{rule: "by-door", condition: in("team/doors", `client.door == "mirror"`), blind: true,
			bad: newImage(t, "team/doors", "v1", traits{}), good: newImage(t, "team/door", "v1", traits{})},
		{rule: "by-mistake", condition: in("team/mistakes", `annotations["none"] == "x"`),
			bad: newImage(t, "team/mistakes", "v1", traits{}), good: newImage(t, "team/mistakes", "v2", traits{annotations: map[string]string{"none": "y"}})},
		// Last, since it can say nothing of any image before it is known.
		{rule: "by-digest", condition: fmt.Sprintf("digest == %q", recalled.Manifest.Digest),
			bad: recalled, good: newImage(t, "team/digests", "good", traits{})},
	}
	var p daemon.PolicyConfig
	for _, e := range examples {
		p.Rules = append(p.Rules, rules.Rule{Name: e.rule, If: e.condition, Do: "deny", Message: "see the handbook of " + e.rule})
	}
	b := govern(t, p, nil)
	for _, e := range examples {
		b.put(e.bad, e.good)
	}
	for _, e := range examples {
		t.Run(e.rule, func(t *testing.T) {
			b := *b
			b.t = t
			b.Reset()
			message := "see the handbook of " + e.rule
			if e.rule == "by-missing-age" || e.rule == "by-mistake" {
				message = "could not be evaluated"
			}
			refused := paths(e.bad.Image)
			if e.byTag {
				refused = refused[:1]
			}
			for range 2 { // not known yet, and known
				b.forbidden(refused, "", e.rule, message)
			}
			if c := b.Count(); e.blind && c.BlobGets+c.ManifestGets > 0 || c.BlobGets > 1 {
				t.Errorf("a refused image made %+v", c)
			}
			b.untouched(e.bad)
			for range 2 {
				b.gets(e.good, e.goodAs)
			}
			b.untouched(e.bad) // nothing has come late either
		})
	}
}

// TestPlatformsOfAnIndex: an index is served, and of its images those that the
// rules let pass.
func TestPlatformsOfAnIndex(t *testing.T) {
	t.Parallel()
	b := govern(t, daemon.PolicyConfig{Rules: []rules.Rule{
		{Name: "amd64-only", If: `platform != "" && platform != "linux/amd64"`, Do: "deny", Message: "we have no such machines"},
	}}, nil)
	arm, amd := newImage(t, "team/app", "arm", traits{architecture: "arm64"}), newImage(t, "team/app", "amd", traits{})
	index := newIndex(t, "team/app", "v1", arm, amd)
	b.put(arm, amd, index)
	b.Reset()
	b.gets(index, "")
	b.forbidden(paths(arm.Image), "", "amd64-only", "we have no such machines")
	b.gets(amd, "")
	b.untouched(arm)
}

// TestDefaultDeny: what no rule allows is refused, and a rule that allows by
// content allows the image with its blobs and nothing beside them.
func TestDefaultDeny(t *testing.T) {
	t.Parallel()
	b := govern(t, daemon.PolicyConfig{Default: "deny", Rules: []rules.Rule{
		{Name: "known", If: `repository == "team/known"`, Do: "allow"},
		{Name: "released", If: `"stage" in annotations && annotations["stage"] == "release"`, Do: "allow"},
	}}, nil)
	known := newImage(t, "team/known", "v1", traits{})
	released := newImage(t, "team/app", "v1", traits{annotations: map[string]string{"stage": "release"}})
	other := newImage(t, "team/app", "v2", traits{})
	b.put(known, released, other)
	b.Reset()
	b.forbidden(paths(other.Image), "", "default", "no rule allows this")
	b.gets(known, "")
	b.gets(released, "")
	b.forbidden(paths(other.Image), "", "default", "no rule allows this")
	b.untouched(other)
}

// TestAuditOnly: in mode audit everything is served, and what would not have been
// is written down and counted. What is blocked is refused all the same.
func TestAuditOnly(t *testing.T) {
	t.Parallel()
	signed := newSigner(t).named("release", fleet.Upstream+"/team/signed")
	b := govern(t, daemon.PolicyConfig{Mode: "audit", Signatures: signed, NoLatest: true, Rules: []rules.Rule{
		{Name: "stage", If: `repository == "team/stages" && !("stage" in annotations)`, Do: "deny", Message: "say which stage"},
		{Name: "nobody", If: `repository == "team/nobody"`, Do: "deny", Message: "not this one"},
	}}, nil)
	would := map[string]image{
		"stage": newImage(t, "team/stages", "v1", traits{}), "nobody": newImage(t, "team/nobody", "v1", traits{}),
		"noLatest": newImage(t, "team/app", "latest", traits{}), "signature": newImage(t, "team/signed", "v1", traits{}),
	}
	for _, i := range would {
		b.put(i)
		b.gets(i, "")
	}
	text := b.metrics()
	for rule := range would {
		if !strings.Contains(text, fmt.Sprintf(`shoal_policy_refusals_total{rule=%q,verdict="would-deny"} `, rule)) {
			t.Errorf("%s is not counted", rule)
		}
	}
	if !strings.Contains(text, `shoal_policy_unsigned_pulls_total{upstream="origin.test"} 2`) {
		t.Error("the pulls of what is not signed are not counted, by tag and by digest")
	}
	if regexp.MustCompile(`shoal_policy_refusals_total\{.*verdict="denied"\} [1-9]`).MatchString(text) {
		t.Errorf("something counts as refused:\n%s", text)
	}
	blocked := would["nobody"]
	if _, err := admin.NewClient(b.fleet.Nodes[0].AdminAddr()).Block(t.Context(), fleet.Upstream+"/team/nobody@"+blocked.Manifest.Digest.String(), "recalled"); err != nil {
		t.Fatal(err)
	}
	b.forbidden(paths(blocked.Image)[:2], "", "blocklist", "recalled")
	lines := b.audited()
	for rule, i := range would {
		noted := 0
		for _, l := range lines {
			switch {
			case l.Repository != i.Repository || l.Rule == "blocklist":
			case l.Verdict == "denied" || l.Status != http.StatusOK:
				t.Errorf("%s: refused: %+v", rule, l)
			case l.Verdict == "would-deny":
				if noted++; l.Rule != rule || l.Reason == "" {
					t.Errorf("%s: %+v", rule, l)
				}
			}
		}
		if noted == 0 {
			t.Errorf("%s: nothing is written down of it", rule)
		}
	}
}

// TestStricterAfterRestart: what came in before there was a rule against it is
// refused like everything else.
func TestStricterAfterRestart(t *testing.T) {
	t.Parallel()
	strict := false
	b := govern(t, daemon.PolicyConfig{}, func(c *daemon.Config) {
		if strict {
			c.Policy.Rules = []rules.Rule{{Name: "stage", If: `!("stage" in annotations)`, Do: "deny", Message: "say which stage"}}
		}
	})
	bad, good := newImage(t, "team/app", "v1", traits{}), newImage(t, "team/app", "v2", traits{annotations: map[string]string{"stage": "release"}})
	b.put(bad, good)
	b.gets(bad, "")
	b.gets(good, "")
	strict = true
	b.restart()
	b.SetFaults(registry.Faults{Status: http.StatusServiceUnavailable})
	b.forbidden(paths(bad.Image)[2:], "", "stage", "say which stage") // before anybody has asked for the manifest
	b.forbidden(paths(bad.Image), "", "stage", "say which stage")
	b.gets(good, "")
}

// restart ends the only node and starts another one with its data.
func (b *bed) restart() {
	b.t.Helper()
	if err := b.fleet.Nodes[0].Stop(); err != nil {
		b.t.Fatal(err)
	}
	b.fleet.Nodes = nil // not to be joined
	n, err := b.fleet.StartNode(0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.fleet.Nodes = []*fleet.Node{n}
	if err := b.fleet.Converge(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// TestAuditLog: each pull that was admitted or refused is one line, with who,
// what, why, from where and how much, and without the token that was shown.
func TestAuditLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := start(t, registry.AuthToken, 1, daemon.Upstream{Auth: "passthrough"}, func(_ int, c *daemon.Config) {
		c.Audit.File = filepath.Join(dir, "audit.log")
		c.Policy.Rules = []rules.Rule{
			{Name: "forbidden", If: `repository == "team/public" && tag == "bad"`, Do: "deny", Message: "not this one"},
			{Name: "public", If: `repository == "team/public"`, Do: "allow"},
		}
	})
	private, public, bad := newImage(t, secretRepo, "v1", traits{}), newImage(t, publicRepo, "v1", traits{}), newImage(t, publicRepo, "bad", traits{})
	b.put(private, public, bad)
	ann, bob := b.as("ann", secretRepo), b.as("bob", otherRepo, publicRepo)
	layer := private.Layers[0]
	size := private.Manifest.Size
	manifest, blob := secretRepo+"/manifests/v1", secretRepo+"/blobs/"+layer.Digest.String()
	steps := []struct {
		method, path, as string
		header           []string
		want             line
	}{
		{method: "GET", path: manifest, as: ann, want: line{User: "ann", Repository: secretRepo, Reference: "v1", Kind: "manifest", Digest: private.Manifest.Digest.String(), Verdict: "admitted", Status: 200, Source: "origin", Bytes: size}},
		{method: "GET", path: manifest, as: ann, want: line{User: "ann", Repository: secretRepo, Reference: "v1", Kind: "manifest", Digest: private.Manifest.Digest.String(), Verdict: "admitted", Status: 200, Source: "disk", Bytes: size}},
		{method: "HEAD", path: manifest, as: ann}, // no content: no pull
		{method: "GET", path: blob, as: ann, want: line{User: "ann", Repository: secretRepo, Reference: layer.Digest.String(), Kind: "blob", Digest: layer.Digest.String(), Verdict: "admitted", Status: 200, Source: "origin", Bytes: layer.Size}},
		{method: "GET", path: blob, as: ann, header: []string{"Range", "bytes=100-199"}, want: line{User: "ann", Repository: secretRepo, Reference: layer.Digest.String(), Kind: "blob", Digest: layer.Digest.String(), Verdict: "admitted", Status: 206, Source: "disk", Bytes: 100}},
		{method: "GET", path: manifest}, // the beginning of a login
		{method: "GET", path: manifest, as: bob, want: line{User: "bob", Repository: secretRepo, Reference: "v1", Kind: "manifest", Verdict: "denied", Rule: "registry", Status: 401}},
		{method: "HEAD", path: blob, as: bob, want: line{User: "bob", Repository: secretRepo, Reference: layer.Digest.String(), Kind: "blob", Verdict: "denied", Rule: "registry", Status: 401}},
		{method: "GET", path: publicRepo + "/manifests/v1", as: bob, want: line{User: "bob", Repository: publicRepo, Reference: "v1", Kind: "manifest", Digest: public.Manifest.Digest.String(), Verdict: "admitted", Rule: "public", Status: 200, Source: "origin", Bytes: public.Manifest.Size}},
		{method: "GET", path: publicRepo + "/manifests/bad", as: bob, want: line{User: "bob", Repository: publicRepo, Reference: "bad", Kind: "manifest", Verdict: "denied", Rule: "forbidden", Reason: "not this one", Status: 403}},
		{method: "GET", path: publicRepo + "/manifests/none", as: bob}, // neither admitted nor denied
	}
	b.client.Transport.(*http.Transport).MaxConnsPerHost = 1 // one after the other, to the end
	var want []line
	for _, step := range steps {
		b.ask(0, step.method, step.path, step.as, step.header...)
		if l := step.want; l != (line{}) {
			l.Node, l.Door, l.Client, l.Upstream = "node-0", "mirror", "127.0.0.1", fleet.Upstream
			want = append(want, l)
		}
	}
	got := b.audited()
	for n, l := range got {
		if since := time.Since(l.Time); since < 0 || since > time.Minute || l.TookSeconds <= 0 {
			t.Errorf("line %d is of %s and took %v s", n, l.Time, l.TookSeconds)
		}
		l.Time, l.TookSeconds = time.Time{}, 0
		if n < len(want) && want[n].Rule == "registry" { // in the registry's own words
			want[n].Reason = l.Reason
		}
		if n >= len(want) || l != want[n] {
			t.Errorf("line %d: %+v, want\n%+v", n, l, want[min(n, len(want)-1)])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %d", len(got), len(want))
	}
	text, err := os.ReadFile(b.auditFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, authorization := range []string{ann, bob} {
		token := strings.TrimPrefix(authorization, "Bearer ")
		for _, part := range strings.Split(token, ".") {
			if bytes.Contains(text, []byte(part)) {
				t.Errorf("a part of a token is in the audit log")
			}
		}
	}
	info, err := os.Stat(b.auditFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the audit log has mode %v, %v", info.Mode(), err)
	}
}

// A line is one of the audit log.
type line struct {
	Time                                          time.Time
	Node, Door, Client, User                      string
	Upstream, Repository, Reference, Digest, Kind string
	Verdict, Rule, Reason                         string
	Status                                        int
	Source                                        string
	Bytes                                         int64
	TookSeconds                                   float64
}

func (b *bed) auditFile() string { return b.fleet.Nodes[0].Config.Audit.File }

// audited stops node 0, which writes what is to be written, and returns its
// audit log.
func (b *bed) audited() []line {
	b.t.Helper()
	if err := b.fleet.Nodes[0].Stop(); err != nil {
		b.t.Fatal(err)
	}
	data, err := os.ReadFile(b.auditFile())
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []line
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		var l line
		d := json.NewDecoder(bytes.NewReader(s.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			b.t.Fatalf("%v: %s", err, s.Text())
		}
		lines = append(lines, l)
	}
	return lines
}

// metrics returns those of node 0.
func (b *bed) metrics() string {
	b.t.Helper()
	resp, err := b.client.Get("http://" + b.fleet.Nodes[0].AdminAddr() + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}
