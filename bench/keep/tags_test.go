package keep_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
)

func TestOneLookupHoweverManyAsk(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	img := b.push("team/app", "v1", 1, 1000)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			a, err := b.try(t.Context(), b.node, "HEAD", "team/app/manifests/v1")
			if err != nil || a.status != 200 || a.header.Get("Docker-Content-Digest") != img.Manifest.Digest.String() {
				t.Errorf("%v %v %v", a.status, a.header, err)
			}
		})
	}
	wg.Wait()
	if c := b.Count(); c.ManifestHeads != 1 || c.ManifestGets != 0 {
		t.Errorf("the origin was asked %d times by HEAD and %d times by GET, want 1 and 0", c.ManifestHeads, c.ManifestGets)
	}
}

func TestTagIsBelievedForItsTime(t *testing.T) {
	t.Parallel()
	const ttl = 300 * time.Millisecond
	b := start(t, func(c *daemon.Config) {
		c.Tags.TTL, c.Tags.Revalidate = ttl, 0
		u := c.Upstreams["origin.test"]
		u.Tags = map[string]string{"v*": "immutable"}
		c.Upstreams["origin.test"] = u
	})
	old := b.push("team/app", "latest", 1, 1000)
	b.push("team/app", "v1", 1, 1000)
	for _, tag := range []string{"v1", "latest"} { // so that the time of v1 is over when that of latest is
		a := b.want(b.ask("HEAD", "team/app/manifests/"+tag), 200)
		if got := a.header.Get("Docker-Content-Digest"); got != old.Manifest.Digest.String() {
			t.Fatalf("%s is %s", tag, got)
		}
	}
	moved := b.push("team/app", "latest", 2, 1000)
	b.push("team/app", "v1", 2, 1000) // which nobody should do
	waitFor(t, "the tag to move", func() bool {
		return b.ask("HEAD", "team/app/manifests/latest").header.Get("Docker-Content-Digest") == moved.Manifest.Digest.String()
	})
	a := b.ask("HEAD", "team/app/manifests/v1")
	if got := a.header.Get("Docker-Content-Digest"); got != old.Manifest.Digest.String() {
		t.Errorf("an immutable tag has moved to %s", got)
	}
}

func TestMissingTagIsRemembered(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	b.push("team/app", "v1", 1, 1000)
	for range 5 {
		b.want(b.ask("GET", "team/app/manifests/missing"), 404)
	}
	if c := b.Count(); c.ManifestHeads+c.ManifestGets != 1 {
		t.Errorf("the origin was asked %d times by HEAD and %d times by GET, want once in all", c.ManifestHeads, c.ManifestGets)
	}
}

func TestRefusalIsNotRemembered(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	b.push("team/app", "v1", 1, 1000)
	for _, status := range []int{401, 403} {
		b.SetFaults(registry.Faults{ManifestStatus: status})
		b.want(b.ask("GET", "team/app/manifests/v1"), 403)
	}
	b.SetFaults(registry.Faults{})
	b.want(b.ask("GET", "team/app/manifests/v1"), 200)
}

// TestOriginDown is of cached tags, cached digests and what is not cached.
func TestOriginDown(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(b *bed){
		"down": func(b *bed) { b.SetFaults(registry.Faults{Down: true}) },
		"429":  func(b *bed) { b.SetFaults(registry.Faults{ManifestStatus: 429, RetryAfter: "60", Status: 429}) },
		"503":  func(b *bed) { b.SetFaults(registry.Faults{ManifestStatus: 503, Status: 503}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
			img := b.push("team/app", "v1", 1, 1000, 300<<10)
			other := b.push("team/other", "v1", 2, 1000)
			b.pull(img)
			break_(b)
			a := b.want(b.ask("GET", "team/app/manifests/v1"), 200)
			if w := a.header.Get("Warning"); !strings.HasPrefix(w, "110 ") || string(a.body) != string(img.Raw) {
				t.Errorf("Warning is %q, body %.100q", w, a.body)
			}
			b.want(b.ask("GET", "team/app/manifests/"+img.Manifest.Digest.String()), 200)
			for _, blob := range img.Blobs() {
				b.blob("team/app", blob)
			}
			b.want(b.ask("GET", "team/other/manifests/v1"), 503)
			b.want(b.ask("GET", "team/other/manifests/"+other.Manifest.Digest.String()), 503)
			if name == "503" {
				return // its HEAD of a blob is answered, so that the client has a 200 before the GET fails
			}
			b.want(b.ask("GET", "team/other/blobs/"+other.Layers[0].Digest.String()), 503)
		})
	}
}

func TestStaleTagSurvivesARestart(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	img := b.push("team/app", "v1", 1, 1000)
	b.pull(img)
	b.SetFaults(registry.Faults{ManifestStatus: 500})
	b.restart()
	a := b.want(b.ask("GET", "team/app/manifests/v1"), 200)
	if a.header.Get("Warning") == "" {
		t.Error("no Warning")
	}
}

func TestStaleHasABound(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate, c.Tags.MaxStale = 0, 0, time.Millisecond })
	img := b.push("team/app", "v1", 1, 1000)
	b.pull(img)
	b.SetFaults(registry.Faults{ManifestStatus: 500})
	time.Sleep(2 * time.Millisecond) // the age that the bound is about
	b.want(b.ask("GET", "team/app/manifests/v1"), 503)
}

func TestNeverStaleOnARefusal(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	b.pull(b.push("team/app", "v1", 1, 1000))
	for _, status := range []int{401, 403} {
		b.SetFaults(registry.Faults{ManifestStatus: status})
		b.want(b.ask("GET", "team/app/manifests/v1"), 403)
	}
	b.SetFaults(registry.Faults{ManifestStatus: 404})
	b.want(b.ask("GET", "team/app/manifests/v1"), 404)
}

func TestOffline(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	img := b.push("team/app", "v1", 1, 1000)
	other := b.push("team/other", "v1", 2, 1000)
	b.pull(img)
	before := b.Count()
	if err := b.admin().SetOffline(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	b.pull(img)
	for _, path := range []string{
		"team/other/manifests/v1",
		"team/other/manifests/" + other.Manifest.Digest.String(),
		"team/other/blobs/" + other.Layers[0].Digest.String(),
		"team/other/tags/list",
	} {
		if a := b.want(b.ask("GET", path), 404); !strings.Contains(string(a.body), "offline") {
			t.Errorf("%s: the answer does not say offline: %s", path, a.body)
		}
	}
	if after := b.Count(); after != before {
		t.Errorf("the origin was asked while offline: %+v, before %+v", after, before)
	}
	if err := b.admin().SetOffline(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	b.pull(other)
}

func TestOfflineFromTheStart(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Offline = true })
	b.push("team/app", "v1", 1, 1000)
	if a := b.want(b.ask("GET", "team/app/manifests/v1"), 404); !strings.Contains(string(a.body), "offline") {
		t.Errorf("the answer does not say offline: %s", a.body)
	}
	if c := b.Count(); c.ManifestHeads+c.ManifestGets != 0 {
		t.Error("the origin was asked")
	}
}
