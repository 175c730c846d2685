package policy

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/tags"
	"github.com/shoal-project/shoal/proto"
)

// newTagBed is a bed whose Gate remembers tags, for ttl.
func newTagBed(t *testing.T, ttl time.Duration, rules ...Rule) *bed {
	t.Helper()
	b := newBed(t, rules...)
	b.gate.tags = tags.New(tags.Config{Origin: b.gate.origin, Index: b.index, TTL: ttl, Revalidate: -1})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.gate.tags.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return b
}

func tagRef(repository, tag string) origin.Ref {
	return origin.Ref{Upstream: upstream, Repository: repository, Tag: tag, Manifest: true}
}

func down(w http.ResponseWriter, _ *http.Request) bool {
	w.WriteHeader(http.StatusInternalServerError)
	return true
}

func TestTagIsAskedOnceAndLinked(t *testing.T) {
	t.Parallel()
	b := newTagBed(t, time.Hour)
	img := b.push(t, "team/app", "1", 1000)
	byDigest := tagRef("team/app", "")
	byDigest.Digest = img.Manifest.Digest
	for _, ref := range []origin.Ref{tagRef("team/app", "1"), tagRef("team/app", "1"), byDigest} {
		a, err := b.gate.Admit(t.Context(), ref, Caller{})
		if err != nil || a.Blob != img.Manifest || a.MediaType != img.MediaType || a.Stale != "" {
			t.Errorf("%s: %+v, %v, want %v", ref, a, err, img.Manifest)
		}
	}
	if n := b.reg.Count(); n.ManifestHeads != 1 || n.ManifestGets != 0 {
		t.Errorf("%+v at the origin, want 1 HEAD", n)
	}
	// A link that was lost is made again.
	if err := b.index.ForgetLink(upstream, "team/app", img.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []origin.Ref{tagRef("team/app", "1"), byDigest} {
		if _, err := b.gate.Admit(t.Context(), ref, Caller{}); err != nil {
			t.Error(err)
		}
	}
	if n := b.reg.Count(); n.ManifestHeads != 1 {
		t.Errorf("%d HEADs at the origin, want 1", n.ManifestHeads)
	}
}

// With the origin down or not to be asked, what is linked is served, and only
// that: the bytes of a digest may be here for another repository.
func TestWithoutTheOrigin(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end  func(b *bed)
		want error
		text string
	}{
		"down":    {func(b *bed) { b.setFront(down) }, origin.ErrUnavailable, "500"},
		"offline": {func(b *bed) { b.gate.origin.SetOffline(true) }, origin.ErrOffline, "offline"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTagBed(t, -1)
			img := b.push(t, "team/app", "1", 1000)
			if _, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.gate.Learn(upstream, "team/app", img.Raw, img.MediaType); err != nil {
				t.Fatal(err)
			}
			test.end(b)
			a, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{})
			if err != nil || a.Blob != img.Manifest || !strings.Contains(a.Stale, test.text) || a.Age <= 0 {
				t.Errorf("tag: %+v, %v, want it to be stale", a, err)
			}
			manifest := blobRef("team/app", img.Manifest.Digest)
			manifest.Manifest = true
			for _, ref := range []origin.Ref{manifest, blobRef("team/app", img.Config.Digest), blobRef("team/app", img.Layers[0].Digest)} {
				if a, err := b.gate.Admit(t.Context(), ref, Caller{}); err != nil || a.Stale != "" {
					t.Errorf("%s: %+v, %v", ref, a, err)
				}
			}
			for _, ref := range []origin.Ref{tagRef("team/app", "2"), blobRef("team/other", img.Layers[0].Digest)} {
				if a, err := b.gate.Admit(t.Context(), ref, Caller{}); !errors.Is(err, test.want) {
					t.Errorf("%s: %+v, %v, want %v", ref, a, err, test.want)
				}
			}
		})
	}
}

func TestRefusalOfATagIsNotStale(t *testing.T) {
	t.Parallel()
	b := newTagBed(t, -1)
	b.push(t, "team/app", "1", 1000)
	if _, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); err != nil {
		t.Fatal(err)
	}
	b.setFront(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if a, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); !errors.Is(err, origin.ErrDenied) {
		t.Errorf("%+v, %v, want ErrDenied", a, err)
	}
}

// A tag that is remembered gets past no rule.
func TestRulesComeBeforeTags(t *testing.T) {
	t.Parallel()
	b := newTagBed(t, time.Hour, AllowRepositories(upstream, []string{"public/*"}))
	img := b.push(t, "private/app", "1", 1000)
	d := origin.Descriptor{Blob: img.Manifest, MediaType: img.MediaType}
	if err := b.gate.tags.Set(upstream, "private/app", "1", d); err != nil {
		t.Fatal(err)
	}
	if a, err := b.gate.Admit(t.Context(), tagRef("private/app", "1"), Caller{}); !errors.Is(err, ErrDenied) {
		t.Errorf("%+v, %v, want ErrDenied", a, err)
	}
}

// A manifest that could not be had is not what its tag goes on to name.
func TestForgetAsksForTheTagAgain(t *testing.T) {
	t.Parallel()
	b := newTagBed(t, time.Hour)
	old := b.push(t, "team/app", "1", 1000)
	if _, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); err != nil {
		t.Fatal(err)
	}
	img, err := registry.PushImage(t.Context(), b.url, "team/app", "1", []int64{1000}, 2)
	if err != nil {
		t.Fatal(err)
	}
	layer := blobRef("team/app", old.Layers[0].Digest)
	b.gate.Forget(layer) // says nothing of the tag
	if a, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); err != nil || a.Blob != old.Manifest {
		t.Errorf("%+v, %v, want %v", a, err, old.Manifest)
	}
	ref := blobRef("team/app", old.Manifest.Digest)
	ref.Manifest = true
	b.gate.Forget(ref)
	if a, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); err != nil || a.Blob != img.Manifest {
		t.Errorf("%+v, %v, want %v", a, err, img.Manifest)
	}
}

func TestTooLargeAManifestIsRefused(t *testing.T) {
	t.Parallel()
	b := newTagBed(t, time.Hour)
	img := b.push(t, "team/app", "1", 1000)
	d := origin.Descriptor{Blob: proto.Blob{Digest: img.Manifest.Digest, Size: origin.MaxManifest + 1}, MediaType: img.MediaType}
	if err := b.gate.tags.Set(upstream, "team/app", "1", d); err != nil {
		t.Fatal(err)
	}
	if a, err := b.gate.Admit(t.Context(), tagRef("team/app", "1"), Caller{}); !errors.Is(err, origin.ErrTooLarge) {
		t.Errorf("%+v, %v, want ErrTooLarge", a, err)
	}
}

// Pins reach over what a manifest names, and that from the digest by which the
// repository has it.
func TestLearnRemembersParts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000, 2000)
	index := fmt.Appendf(nil, `{"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, img.MediaType, img.Manifest.Digest, img.Manifest.Size)
	long := fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":1000}]}`, img.Layers[0].Digest)
	sum := sha512.Sum512(long)
	longDigest, err := proto.ParseDigest("sha512:" + hex.EncodeToString(sum[:]))
	if err != nil {
		t.Fatal(err)
	}
	b.gate.remember(upstream, "team/app", origin.Descriptor{
		Blob: proto.Blob{Digest: longDigest, Size: int64(len(long))}, MediaType: typeOCIManifest,
	})
	for _, test := range []struct {
		raw       []byte
		mediaType string
		digest    proto.Digest
		parts     []proto.Digest
	}{
		{img.Raw, img.MediaType, img.Manifest.Digest, []proto.Digest{img.Config.Digest, img.Layers[0].Digest, img.Layers[1].Digest}},
		{index, typeOCIIndex, proto.DigestOf(index), []proto.Digest{img.Manifest.Digest}},
		{long, typeOCIManifest, longDigest, []proto.Digest{img.Layers[0].Digest}},
	} {
		for range 2 {
			if _, err := b.gate.Learn(upstream, "team/app", test.raw, test.mediaType); err != nil {
				t.Fatal(err)
			}
			parts, err := b.index.Parts(test.digest)
			if err != nil || fmt.Sprint(parts) != fmt.Sprint(test.parts) {
				t.Errorf("parts of %s: %v, %v, want %v", test.digest, parts, err, test.parts)
			}
		}
	}
	if parts, err := b.index.Parts(proto.DigestOf(long)); err != nil || parts != nil {
		t.Errorf("parts under a digest that the repository does not have: %v, %v", parts, err)
	}
	nothing := []byte(`{"hello":"world"}`)
	if _, err := b.gate.Learn(upstream, "team/app", nothing, "application/json"); err != nil {
		t.Fatal(err)
	}
	if parts, err := b.index.Parts(proto.DigestOf(nothing)); err != nil || parts != nil {
		t.Errorf("parts of what is no manifest: %v, %v", parts, err)
	}
}
