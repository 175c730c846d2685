package jobs

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/proto"
)

// A job has no token of its own, and those that callers have left are not for
// it: neither a tag is looked up with them nor a byte fetched.
func TestJobOnPassthrough(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "", func(c *Config) {
		client, err := origin.New(origin.Config{
			Upstreams: map[string]origin.Upstream{upstream: {URLs: []string{b.url}, Auth: origin.AuthPassthrough}},
			Backoff:   time.Millisecond, Tries: 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		client.Grant(upstream, "team/app", "Bearer of a caller", time.Now().Add(time.Hour))
		c.Origin = client
		c.Gate = policy.New(policy.Config{Origin: client, Index: c.Cache.Index(), Auth: client.Auth, Upstreams: []string{upstream}})
	})
	img := b.push(t, "team/app", "1", 1000)
	job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1", "team/app@" + img.Manifest.Digest.String()}}).ID)
	for _, i := range job.Images {
		if i.State != Failed || !strings.Contains(i.Error, "auth: node") {
			t.Errorf("%+v, want an error that says what to do", i)
		}
	}
	if c := b.reg.Count(); c.ManifestHeads+c.ManifestGets+c.BlobHeads+c.BlobGets != 0 {
		t.Errorf("the registry was asked: %+v", c)
	}
}

// A job brings nothing of an image that the rules refuse, and what they allow
// all of.
func TestJobAndContentRules(t *testing.T) {
	t.Parallel()
	set, err := rules.Compile(rules.Config{Rules: []rules.Rule{{Name: "sig", If: `!("release" in signedBy)`, Do: "deny"}}})
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t)
	good, bad := b.push(t, "team/app", "1", 1000), b.push(t, "team/app", "2", 2000)
	n := b.node(t, "a", "", func(c *Config) {
		c.Gate = policy.New(policy.Config{
			Origin: c.Origin, Index: c.Cache.Index(), Rules: set,
			SignedBy: func(_ context.Context, _, _ string, d proto.Digest) ([]string, error) {
				return map[bool][]string{true: {"release"}}[d == good.Manifest.Digest], nil
			},
		})
	})
	job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1", "team/app:2"}}).ID)
	if job.State != Partial || len(job.Nodes) != 1 {
		t.Fatalf("%+v", job)
	}
	n.whole(t, good)
	if e := job.Nodes[0].Images[1].Error; !strings.Contains(e, "rule sig") {
		t.Errorf("the image that is not signed: %q", e)
	}
	for _, l := range bad.Layers {
		if _, ok := n.cache.Whole(l.Digest); ok {
			t.Error("a layer of it was brought")
		}
	}
}
