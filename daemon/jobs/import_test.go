package jobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// content returns n bytes that repeat, and the blob that they are.
func content(n int) ([]byte, proto.Blob) {
	data := bytes.Repeat([]byte("shoal "), n/6+1)[:n]
	return data, proto.Blob{Digest: proto.DigestOf(data), Size: int64(n)}
}

func TestPutBlob(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "")
	broken := errors.New("the stick was pulled out")
	for _, size := range []int{0, 1, 1000, 300_000, 3_000_000} {
		data, b := content(size)
		wrong := bytes.Clone(data)
		if size > 0 {
			wrong[size/2] ^= 1
			for name, test := range map[string]struct {
				r    io.Reader
				want error
			}{
				"short":  {bytes.NewReader(data[:size-1]), ErrIncomplete},
				"long":   {io.MultiReader(bytes.NewReader(data), strings.NewReader("x")), cache.ErrSize},
				"broken": {io.MultiReader(bytes.NewReader(data[:size/2]), errReader{broken}), broken},
			} {
				if err := n.jobs.PutBlob(t.Context(), b, test.r); !errors.Is(err, test.want) {
					t.Errorf("%d bytes, %s: %v, want %v", size, name, err, test.want)
				}
				if _, here := n.cache.Known(b.Digest); here {
					t.Fatalf("%d bytes, %s: something stays", size, name)
				}
			}
			err := n.jobs.PutBlob(t.Context(), b, bytes.NewReader(wrong))
			if !errors.Is(err, cache.ErrDigest) && !errors.Is(err, cache.ErrCorrupt) {
				t.Errorf("%d wrong bytes: %v", size, err)
			}
			if _, here := n.cache.Known(b.Digest); here {
				t.Fatalf("%d wrong bytes stay", size)
			}
		}
		for range 2 { // it may come twice
			if err := n.jobs.PutBlob(t.Context(), b, bytes.NewReader(data)); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			if got, ok := n.cache.Whole(b.Digest); !ok || got != b {
				t.Errorf("%d bytes are not here", size)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data, b := content(500)
	if err := n.jobs.PutBlob(ctx, b, bytes.NewReader(data)); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has gone: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// take takes a blob of the registry in.
func (n *node) take(t *testing.T, repository string, b proto.Blob, manifest bool) {
	t.Helper()
	var data bytes.Buffer
	from := proto.Origin{Upstream: upstream, Repository: repository, Manifest: manifest}
	if b.Size > 0 {
		if err := n.cfg.Origin.Source(from).Fetch(t.Context(), b.Run(), &data); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.jobs.PutBlob(t.Context(), b, &data); err != nil {
		t.Fatal(err)
	}
}

func TestPutImage(t *testing.T) {
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
	img := b.push(t, "team/app", "1", 1000, 2000)
	i := Image{
		Upstream: upstream, Repository: "team/copy", Tag: "2",
		Digest: img.Manifest.Digest, Size: img.Manifest.Size, MediaType: img.MediaType,
	}
	put := func(want error, text string, change func(*Image)) {
		t.Helper()
		tried := i
		change(&tried)
		err := n.jobs.PutImage(t.Context(), tried)
		if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("PutImage(%+v) = %v, want %v with %q", tried, err, want, text)
		}
	}
	same := func(*Image) {}
	put(ErrInvalid, "is not configured", func(i *Image) { i.Upstream = "other.test" })
	put(ErrInvalid, "is not valid", func(i *Image) { i.Repository = "Team" })
	put(ErrInvalid, "is not valid", func(i *Image) { i.Tag = "a b" })
	put(ErrInvalid, "denied by policy", func(i *Image) { i.Repository = "secret/app" })
	put(ErrInvalid, "media type", func(i *Image) { i.MediaType = "text/plain" })
	put(ErrInvalid, "a manifest of 0 bytes", func(i *Image) { i.Size = 0 })
	put(ErrIncomplete, "is not here", same)
	n.take(t, "team/app", img.Manifest, true)
	put(ErrIncomplete, img.Layers[1].Digest.String(), same)
	n.take(t, "team/app", img.Config, false)
	n.take(t, "team/app", img.Layers[0], false)
	put(ErrIncomplete, img.Layers[1].Digest.String(), same)
	if !n.tags.get(upstream + "/team/copy:2").IsZero() {
		t.Error("the tag of an incomplete image is known")
	}
	n.take(t, "team/app", img.Layers[1], false)
	put(nil, "", same)
	if n.tags.get(upstream+"/team/copy:2") != img.Manifest.Digest {
		t.Error("the tag is not known")
	}
	// All of it is the repository's now, without a word of the origin.
	b.reg.Reset()
	ref := origin.Ref{Upstream: upstream, Repository: "team/copy", Digest: img.Manifest.Digest, Manifest: true}
	if _, err := n.cfg.Gate.Admit(t.Context(), ref, policy.Caller{}); err != nil {
		t.Error(err)
	}
	for _, l := range img.Blobs() {
		if _, err := n.cfg.Gate.Admit(t.Context(), origin.Ref{Upstream: upstream, Repository: "team/copy", Digest: l.Digest}, policy.Caller{}); err != nil {
			t.Error(err)
		}
	}
	if c := b.reg.Count(); c != (registry.Counts{}) {
		t.Errorf("%+v at the origin", c)
	}
}

// Of an index, some of the images may be left out, but none may have holes.
func TestPutIndex(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "")
	d, images := b.pushIndex(t, "team/app", "1", "linux/amd64", "linux/s390x")
	desc, err := n.cfg.Origin.Resolve(t.Context(), origin.Ref{Upstream: upstream, Repository: "team/app", Digest: d, Manifest: true})
	if err != nil {
		t.Fatal(err)
	}
	i := Image{Upstream: upstream, Repository: "team/app", Tag: "1", Digest: d, Size: desc.Blob.Size, MediaType: string(types.OCIImageIndex)}
	n.take(t, "team/app", desc.Blob, true)
	if err := n.jobs.PutImage(t.Context(), i); !errors.Is(err, ErrIncomplete) {
		t.Errorf("an index of nothing: %v", err)
	}
	for k, p := range []string{"linux/amd64", "linux/s390x"} {
		img := images[p]
		h, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		size, err := img.Size()
		if err != nil {
			t.Fatal(err)
		}
		n.take(t, "team/app", proto.Blob{Digest: digest(t, h), Size: size}, true)
		if err := n.jobs.PutImage(t.Context(), i); !errors.Is(err, ErrIncomplete) {
			t.Errorf("%d and an image without its layers: %v", k, err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range append(m.Layers, m.Config) {
			n.take(t, "team/app", proto.Blob{Digest: digest(t, l.Digest), Size: l.Size}, false)
		}
		if err := n.jobs.PutImage(t.Context(), i); err != nil {
			t.Errorf("%d images of 2: %v", k+1, err)
		}
	}
}
