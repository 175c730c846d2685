package jobs

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

func TestJobHere(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "eu")
	img := b.push(t, "team/app", "1", 3_000_000, 1000, 0)
	job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1"}}).ID)
	if job.State != Done || job.Error != "" || job.Ended.IsZero() {
		t.Fatalf("job = %+v", job)
	}
	n.whole(t, img)
	want := ImageProgress{
		Image: "team/app:1", Digest: img.Manifest.Digest, State: Done,
		Blobs: 5, BlobsDone: 5, Bytes: img.Size(), BytesDone: img.Size(),
	}
	if len(job.Nodes) != 1 || job.Nodes[0].Node != "a" || job.Nodes[0].Zone != "eu" || job.Nodes[0].Images[0] != want {
		t.Errorf("nodes = %+v, want one with %+v", job.Nodes, want)
	}
	if done, total := job.Progress(); done != total || total != img.Size() {
		t.Errorf("progress = %d of %d, want all of %d", done, total, img.Size())
	}
	if got := n.tags.get(upstream + "/team/app:1"); got != img.Manifest.Digest {
		t.Errorf("the tag names %q", got)
	}
	if c := b.reg.Count(); c.ManifestHeads != 1 || c.ManifestGets != 1 || c.BlobHeads != 0 {
		t.Errorf("%+v at the origin, want 1 HEAD for the tag, 1 GET of the manifest, and no question about blobs", c)
	}
}

func TestJobOnAllNodes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	nodes := []*node{b.node(t, "a", "eu/1"), b.node(t, "b", "eu/2"), b.node(t, "c", "us")}
	img := b.push(t, "team/app", "1", 500_000, 500_000)
	other := b.push(t, "team/other", "2", 1000)
	b.push(t, "team/third", "3", 1000)
	job := nodes[1].ended(t, nodes[1].start(t, Spec{Images: []string{"team/app:1", "team/other:2"}, Nodes: "all"}).ID)
	if job.State != Done || len(job.Nodes) != 3 {
		t.Fatalf("job = %+v", job)
	}
	for i, n := range nodes {
		if s := job.Nodes[i]; s.Node != n.name || s.State != Done || s.ID != n.host.ID() {
			t.Errorf("node %d = %+v", i, s)
		}
		n.whole(t, img)
		n.whole(t, other)
		if n.tags.get(upstream+"/team/app:1") != img.Manifest.Digest || n.tags.get(upstream+"/team/other:2") != other.Manifest.Digest {
			t.Errorf("%s does not know the tags", n.name)
		}
	}
	job = nodes[2].ended(t, nodes[2].start(t, Spec{Images: []string{"team/third:3"}, Nodes: "zone:eu"}).ID)
	if job.State != Done || len(job.Nodes) != 2 || job.Nodes[0].Node != "a" || job.Nodes[1].Node != "b" {
		t.Errorf("job of a zone = %+v", job.Nodes)
	}
}

// A tag that moves meanwhile does not make two nodes bring different images.
func TestTagIsResolvedOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.node(t, "a", "")
	var opened atomic.Bool
	hold := make(chan struct{})
	a.cfg.Open = func(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
		opened.Store(true)
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return a.host.OpenJob(ctx, m)
	}
	a.stopJobs()
	a.open(t)
	a.run(t)
	c := b.node(t, "c", "")
	old := b.push(t, "team/app", "1", 1000)
	id := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	a.until(t, id, func(j Job) bool { return len(j.Nodes) == 2 })
	b.push(t, "team/app", "1", 2000)
	close(hold)
	if job := a.ended(t, id); job.State != Done || !opened.Load() {
		t.Fatalf("job = %+v", job)
	}
	c.whole(t, old)
	if got := c.tags.get(upstream + "/team/app:1"); got != old.Manifest.Digest {
		t.Errorf("the tag names %s at c, want what it named when the job began", got)
	}
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	own := "linux/" + runtime.GOARCH
	d, images := b.pushIndex(t, "team/app", "1", own, "linux/s390x", "linux/arm/v6", "linux/arm/v7")
	for _, test := range []struct {
		name string
		spec Spec
		want []string // platforms that are here then
		err  string
	}{
		{"own", Spec{}, []string{own}, ""},
		{"one", Spec{Platforms: []string{"linux/s390x"}}, []string{"linux/s390x"}, ""},
		{"two", Spec{Platforms: []string{"linux/s390x", "linux/arm"}}, []string{"linux/s390x", "linux/arm/v7"}, ""},
		{"best of what runs", Spec{Platforms: []string{"linux/arm/v6"}}, []string{"linux/arm/v6"}, ""},
		{"all", Spec{AllPlatforms: true}, []string{own, "linux/s390x", "linux/arm/v6", "linux/arm/v7", "unknown/unknown"}, ""},
		{
			"not there", Spec{Platforms: []string{own, "linux/riscv64"}}, nil,
			upstream + "/team/app@" + d.String() + ": it has no image for linux/riscv64; it has " +
				strings.Join(slices.Sorted(slices.Values([]string{own, "linux/s390x", "linux/arm/v6", "linux/arm/v7"})), ", "),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := b.node(t, "a", "")
			test.spec.Images = []string{"team/app:1"}
			job := n.ended(t, n.start(t, test.spec).ID)
			if job.Images[0].Error != test.err || (job.State == Done) != (test.err == "") || job.Images[0].Digest != d {
				t.Errorf("job = %+v, want error %q", job, test.err)
			}
			for p, img := range images {
				if got, want := n.has(t, img), slices.Contains(test.want, p); got != want {
					t.Errorf("%s is here: %t, want %t", p, got, want)
				}
			}
			if _, whole := n.cache.Whole(d); !whole {
				t.Error("the index is not here")
			}
		})
	}
}

// What is wrong with one image is said of it, and the others come.
func TestImagesThatCannotBeHad(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	refused := func(_ context.Context, ref origin.Ref) error {
		if ref.Repository == "secret/app" {
			return policy.ErrDenied
		}
		return nil
	}
	n := b.node(t, "a", "", func(c *Config) {
		c.Gate = policy.New(policy.Config{Origin: c.Origin, Index: c.Cache.Index(), Allow: []policy.Rule{refused}})
	})
	img := b.push(t, "team/app", "1", 1000)
	b.push(t, "secret/app", "1", 1000)
	absent := proto.DigestOf([]byte("x"))
	job := n.ended(t, n.start(t, Spec{Images: []string{
		"team/none:1", "team/app:1", "team/app:2", "team/app@" + absent.String(), "secret/app:1", "other.test/app:1",
	}}).ID)
	if job.State != Partial {
		t.Errorf("job is %s, want partial", job.State)
	}
	n.whole(t, img)
	for i, want := range []string{"not found", "", "not found", "not found", "denied by policy", `"other.test" is not configured`} {
		got := job.Images[i]
		if (got.State == Done) != (want == "") || !strings.Contains(got.Error, want) {
			t.Errorf("image %d = %+v, want an error with %q", i, got, want)
		}
	}
	job = n.ended(t, n.start(t, Spec{Images: []string{"team/none:1"}}).ID)
	if job.State != Failed || !strings.Contains(job.Images[0].Error, "not found") || len(job.Nodes) != 0 {
		t.Errorf("job of nothing = %+v", job)
	}
}

// A layer that the origin does not have makes its image fail, and not the
// other.
func TestLayerThatCannotBeHad(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "")
	b.push(t, "team/app", "1", 1000)
	b.reg.SetFaults(registry.Faults{Status: 404})
	job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1"}}).ID)
	if job.State != Failed || !strings.Contains(job.Images[0].Error, "not found") {
		t.Errorf("job = %+v", job)
	}
	if got := n.tags.get(upstream + "/team/app:1"); got.IsZero() {
		t.Error("the origin's word on the tag is lost")
	}
}

func TestNodesThatFail(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.node(t, "a", "", func(c *Config) { c.Patience = 300 * time.Millisecond })
	gone, full := b.node(t, "gone", ""), b.node(t, "full", "")
	gone.stopHost()
	full.jobs.serving = maxServing
	img := b.push(t, "team/app", "1", 1000)
	job := a.ended(t, a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID)
	a.whole(t, img)
	if job.State != Partial || job.Images[0].State != Partial {
		t.Errorf("job = %+v, want partial", job)
	}
	for i, want := range []string{"", "the node refuses: it does 16 jobs", "job stream to"} {
		s := job.Nodes[i]
		if (s.State == Done) != (want == "") || !strings.Contains(s.Error, want) || s.Images[0].State != s.State {
			t.Errorf("node %s = %+v, want an error with %q", s.Node, s, want)
		}
	}
}

// A node that takes an order and hangs is not waited for.
func TestNodeThatSaysNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.node(t, "a", "", func(c *Config) { c.Patience, c.Silence = 300*time.Millisecond, 200*time.Millisecond })
	mute := b.node(t, "mute", "")
	mute.host.HandleJobs(func(_ context.Context, _ string, s io.ReadWriteCloser) { _, _ = io.Copy(io.Discard, s) })
	b.push(t, "team/app", "1", 1000)
	job := a.ended(t, a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID)
	if s := job.Nodes[1]; job.State != Partial || s.State != Failed || s.Error != "it said nothing for 200ms" {
		t.Errorf("job = %+v", job)
	}
}

// A node that leaves in the middle fails after the patience; one that cannot be
// reached for a moment does not.
func TestNodeThatLeaves(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.node(t, "a", "", func(c *Config) { c.Patience = 500 * time.Millisecond })
	c := b.node(t, "c", "")
	b.push(t, "team/app", "1", 3_000_000)
	b.reg.SetFaults(registry.Faults{StallAfter: 2_000_000})
	id := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	a.until(t, id, func(j Job) bool {
		return len(j.Nodes) == 2 && len(j.Nodes[1].Images) == 1 && j.Nodes[1].Images[0].BytesDone > 1_000_000
	})
	c.stopHost()
	c.leave()
	a.until(t, id, func(j Job) bool { return j.Nodes[1].State == Failed })
	b.reg.SetFaults(registry.Faults{})
	job := a.ended(t, id)
	if job.State != Partial || job.Nodes[0].State != Done || job.Nodes[1].Error != errLeft.Error() {
		t.Errorf("job = %+v", job)
	}
}

func TestNodeThatComesBack(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a, c := b.node(t, "a", ""), b.node(t, "c", "")
	img := b.push(t, "team/app", "1", 1000)
	missed := make(chan struct{})
	var once sync.Once
	a.cfg.Members = func() []proto.Member {
		ms := b.alive()
		if len(ms) == 1 {
			once.Do(func() { close(missed) })
		}
		return ms
	}
	tries := 0
	a.cfg.Open = func(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
		if tries++; tries > 1 {
			return a.host.OpenJob(ctx, m)
		}
		c.leave()
		return nil, errors.New("it restarts")
	}
	a.stopJobs()
	a.open(t)
	a.run(t)
	id := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	<-missed
	b.join(c)
	a.jobs.MembersChanged()
	if job := a.ended(t, id); job.State != Done || job.Ended.Sub(job.Created) > patience/2 {
		t.Errorf("job = %+v", job)
	}
	c.whole(t, img)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.node(t, "a", "", func(c *Config) { c.AtOnce = 1 })
	c := b.node(t, "c", "")
	b.push(t, "team/app", "1", 3_000_000)
	b.reg.SetFaults(registry.Faults{StallAfter: 1_000_000})
	running := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	a.until(t, running, func(j Job) bool { return len(j.Nodes) == 2 && j.Nodes[1].State == Running })
	waiting := a.start(t, Spec{Images: []string{"team/app:1"}})
	if same := a.start(t, Spec{Images: []string{"team/app:1"}}); same.ID != waiting.ID || same.State != Waiting {
		t.Errorf("the same asked for twice: %s and %s", waiting.ID, same.ID)
	}
	for _, id := range []string{waiting.ID, running} {
		if err := a.jobs.Cancel(id); err != nil {
			t.Fatal(err)
		}
		if job := a.ended(t, id); job.State != Cancelled || job.Images[0].State != Cancelled || job.Error != "" {
			t.Errorf("job = %+v", job)
		}
		if err := a.jobs.Cancel(id); !errors.Is(err, ErrEnded) {
			t.Errorf("Cancel twice = %v", err)
		}
	}
	if err := a.jobs.Cancel("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Cancel of none = %v", err)
	}
	// The other node has stopped too.
	until(t, func() bool { c.jobs.mu.Lock(); defer c.jobs.mu.Unlock(); return c.jobs.serving == 0 })
	b.reg.SetFaults(registry.Faults{}) // before the stalled answers are waited for
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "eu/1")
	many := make([]string, maxImages+1)
	for _, test := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "0 images"},
		{Spec{Images: many}, "1001 images"},
		{Spec{Images: []string{"Team/App"}}, "is not valid"},
		{Spec{Images: []string{"a"}, Platforms: []string{"linux/amd64/v1/x"}}, "write one such as linux/amd64"},
		{Spec{Images: []string{"a"}, Platforms: []string{"linux/amd64"}, AllPlatforms: true}, "the one or the others"},
		{Spec{Images: []string{"a"}, Nodes: "some"}, "write all, zone:<zone>"},
		{Spec{Images: []string{"a"}, Nodes: "zone:us"}, `no daemon in zone "us" or below it; the zones are "eu/1"`},
	} {
		if _, err := n.jobs.Start(t.Context(), test.spec); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Start(%.100v) = %v, want it to say %q", test.spec, err, test.want)
		}
	}
	if all := n.jobs.List(); len(all) != 0 {
		t.Errorf("%d jobs came of errors", len(all))
	}
}

func TestTooManyParts(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "", func(c *Config) {
		c.Members = func() []proto.Member {
			return slices.Repeat([]proto.Member{{ID: "x", Roles: proto.RoleDaemon}}, maxParts/2+1)
		}
	})
	_, err := n.jobs.Start(t.Context(), Spec{Images: []string{"a", "b"}, Nodes: "all"})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "make several jobs of it") {
		t.Errorf("Start = %v", err)
	}
}

func TestTooManyJobs(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "")
	n.stopJobs()
	n.open(t) // and nothing runs
	for range maxWaiting - 1 {
		n.jobs.queue = append(n.jobs.queue, &entry{})
	}
	n.start(t, Spec{Images: []string{"team/app:1"}})
	_, err := n.jobs.Start(t.Context(), Spec{Images: []string{"team/app:2"}})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("Start = %v, want ErrBusy", err)
	}
	files, err := os.ReadDir(n.cfg.Dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%d files, %v, want that of the job that waits", len(files), err)
	}
}

// With the origin down a tag is what it named last, and the job says so; a tag
// that nobody has asked for is an error.
func TestOriginDown(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "", func(c *Config) {
		resolver := tags.New(tags.Config{Origin: c.Origin, Index: c.Cache.Index()})
		background(t, resolver.Run)
		c.Gate = policy.New(policy.Config{Origin: c.Origin, Index: c.Cache.Index(), Tags: resolver})
		c.SetTag = resolver.Set
	})
	img := b.push(t, "team/app", "1", 1000)
	b.push(t, "team/app", "2", 2000)
	n.ended(t, n.start(t, Spec{Images: []string{"team/app:1"}}).ID)
	b.reg.SetFaults(registry.Faults{ManifestStatus: 503, Status: 503})
	job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1", "team/app:2"}}).ID)
	if job.State != Partial || job.Images[0].Digest != img.Manifest.Digest || !strings.Contains(job.Images[0].Stale, "503") ||
		job.Images[1].State != Failed || !strings.Contains(job.Images[1].Error, "503") {
		t.Errorf("job = %+v", job)
	}
	n.cfg.Origin.SetOffline(true)
	job = n.ended(t, n.start(t, Spec{Images: []string{"team/app:1", "team/app:2"}}).ID)
	if job.State != Partial || !strings.Contains(job.Images[0].Stale, "offline") || !strings.Contains(job.Images[1].Error, "offline") {
		t.Errorf("job = %+v", job)
	}
}

// What a tag names is asked of the origin for each job, however fresh the
// answer is that is remembered: a webhook comes in the moment after a push.
func TestTagIsAskedFor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "", func(c *Config) {
		resolver := tags.New(tags.Config{Origin: c.Origin, Index: c.Cache.Index(), TTL: time.Hour})
		background(t, resolver.Run)
		c.Gate = policy.New(policy.Config{Origin: c.Origin, Index: c.Cache.Index(), Tags: resolver})
		c.SetTag = resolver.Set
	})
	tag := origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}
	for size := range int64(2) {
		img := b.push(t, "team/app", "1", 1000+size)
		job := n.ended(t, n.start(t, Spec{Images: []string{"team/app:1"}}).ID)
		if job.State != Done || job.Images[0].Digest != img.Manifest.Digest {
			t.Errorf("job = %+v, want %s", job, img.Manifest.Digest)
		}
		if a, err := n.cfg.Gate.Admit(t.Context(), tag, policy.Caller{}); err != nil || a.Blob != img.Manifest {
			t.Errorf("for others the tag names %v, %v", a.Blob, err)
		}
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "", func(c *Config) {
		c.Rules = []Rule{{Repository: "team/**", Tag: "v*", Upstream: upstream}}
	})
	img := b.push(t, "team/app", "v1", 1000)
	started, err := n.jobs.Notify(t.Context(), []Event{
		{Registry: "registry:5000", Repository: "team/app", Tag: "v1", Digest: img.Manifest.Digest},
		{Registry: "registry:5000", Repository: "other/app", Tag: "v1"},
	})
	if err != nil || len(started) != 1 {
		t.Fatalf("Notify = %+v, %v", started, err)
	}
	if job := n.ended(t, started[0].ID); job.State != Done || job.Images[0].Digest != img.Manifest.Digest {
		t.Errorf("job = %+v", job)
	}
	if _, err := New(Config{Dir: t.TempDir(), Rules: []Rule{{Tag: "["}}}); err == nil || !strings.Contains(err.Error(), `"[" is not a pattern`) {
		t.Errorf("New with a rule that does not parse = %v", err)
	}
}
