package origin_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// What this package promises about an origin that is limited, down, silent or
// not to be contacted, against a real registry. time_test.go, rest_test.go and
// offline_test.go have the waits.

const otherUpstream = "other.test"

// A bed is a registry with an image, and a client that knows it and another.
type bed struct {
	reg     *registry.Registry
	base    string
	img     registry.Image
	client  *origin.Client
	metrics *prometheus.Registry
}

func newBed(t *testing.T, change ...func(*origin.Config)) *bed {
	t.Helper()
	r, base := startRegistry(t, registry.Options{})
	_, other := startRegistry(t, registry.Options{})
	img, err := registry.PushImage(t.Context(), base, repository, "1", []int64{1 << 20}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.PushImage(t.Context(), other, repository, "1", []int64{1000}, 1); err != nil {
		t.Fatal(err)
	}
	r.Reset()
	b := &bed{reg: r, base: base, img: img, metrics: prometheus.NewPedanticRegistry()}
	b.client = newClient(t, at(base), append(change, func(cfg *origin.Config) {
		cfg.Registry = b.metrics
		cfg.Upstreams[otherUpstream] = at(other)
	})...)
	return b
}

func (b *bed) resolve(t *testing.T, upstream string) error {
	t.Helper()
	_, err := b.client.Resolve(t.Context(), origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true})
	return err
}

func TestRateLimited(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	b := newBed(t, func(cfg *origin.Config) { cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	b.reg.SetFaults(registry.Faults{RateLimit: "100;w=21600 76;w=21600"})
	for range 2 {
		if err := b.resolve(t, upstream); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.resolve(t, otherUpstream); err != nil {
		t.Fatal(err)
	}
	b.reg.SetFaults(registry.Faults{RateLimit: "100;w=21600 0;w=21600", ManifestStatus: 429, ManifestRetryAfter: "1800"})
	b.reg.Reset()
	begun := time.Now()
	for i := range 10 {
		err := b.resolve(t, upstream)
		if !errors.Is(err, origin.ErrUnavailable) {
			t.Fatal(err)
		}
		_, says, ok := strings.Cut(err.Error(), "left alone until ")
		until, perr := time.Parse(time.RFC3339, says[:min(len(says), len("2006-01-02T15:04:05Z"))])
		if d := until.Sub(begun); !ok || perr != nil || d < 29*time.Minute || d > 31*time.Minute {
			t.Errorf("%d: %v; want an error that says until when, half an hour from now", i, err)
		}
	}
	if heads, gets := b.reg.Lookups(repository, "1"); heads+gets != 1 {
		t.Errorf("the registry was asked %d times, want once", heads+gets)
	}
	// It concerns this registry, all of it, and no other.
	if _, err := b.client.Tags(t.Context(), upstream, repository, "", nil); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("tags: %v, want ErrUnavailable", err)
	}
	if _, err := fetch(t, b.client, b.img.Layers[0].Run()); !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("a blob: %v, want ErrUnavailable", err)
	}
	if c := b.reg.Count(); c.Lists+c.BlobGets != 0 {
		t.Errorf("counts %+v, want no lists and no blobs", c)
	}
	if err := b.resolve(t, otherUpstream); err != nil {
		t.Errorf("the other upstream: %v", err)
	}
	want := `
# HELP shoal_origin_ratelimit_limit Requests that the upstream registry allows in its window, as its last RateLimit-Limit header said.
# TYPE shoal_origin_ratelimit_limit gauge
shoal_origin_ratelimit_limit{upstream="registry.test"} 100
# HELP shoal_origin_ratelimit_remaining Requests that are left of what the upstream registry allows, as its last RateLimit-Remaining header said.
# TYPE shoal_origin_ratelimit_remaining gauge
shoal_origin_ratelimit_remaining{upstream="registry.test"} 0
# HELP shoal_origin_throttled_total Answers with which upstream registries asked to be left alone: 429, or an error with Retry-After.
# TYPE shoal_origin_throttled_total counter
shoal_origin_throttled_total{upstream="registry.test"} 1
`
	if err := testutil.GatherAndCompare(b.metrics, strings.NewReader(want),
		"shoal_origin_ratelimit_limit", "shoal_origin_ratelimit_remaining", "shoal_origin_throttled_total"); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "upstream asks to be left alone"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, log.String())
	}
}

// A registry that is down says nothing about its content, and is asked again as
// soon as somebody wants something.
func TestDown(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for range 3 {
		b.reg.SetFaults(registry.Faults{Down: true})
		if err := b.resolve(t, upstream); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("Resolve: %v, want ErrUnavailable", err)
		}
		if _, err := b.client.Tags(t.Context(), upstream, repository, "", nil); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("Tags: %v, want ErrUnavailable", err)
		}
		if _, err := fetch(t, b.client, b.img.Layers[0].Run()); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("Fetch: %v, want ErrUnavailable", err)
		}
		b.reg.SetFaults(registry.Faults{})
		if err := b.resolve(t, upstream); err != nil {
			t.Errorf("Resolve after it came back: %v", err)
		}
	}
}

func TestSilentRegistry(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(cfg *origin.Config) { cfg.HeaderTimeout, cfg.Tries = 100*time.Millisecond, 2 })
	b.reg.SetFaults(registry.Faults{StallManifests: true})
	if err := b.resolve(t, upstream); !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("Resolve: %v, want ErrUnavailable and a timeout", err)
	}
}

func TestOffline(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.reg.SetFaults(registry.Faults{StallAfter: 100_000})
	var got bytes.Buffer
	arrived := make(chan struct{}, 1)
	w := writerFunc(func(p []byte) (int, error) {
		select {
		case arrived <- struct{}{}:
		default:
		}
		return got.Write(p)
	})
	running := make(chan error)
	go func() { running <- b.client.Source(blobOrigin).Fetch(t.Context(), b.img.Layers[0].Run(), w) }()
	<-arrived
	b.client.SetOffline(true)
	if err := <-running; !errors.Is(err, origin.ErrOffline) {
		t.Errorf("the transfer that was under way: %v, want ErrOffline", err)
	}
	b.reg.Reset()
	if err := b.resolve(t, upstream); !errors.Is(err, origin.ErrOffline) || !strings.HasSuffix(err.Error(), "offline: registry.test is not contacted") {
		t.Errorf("Resolve: %v", err)
	}
	if _, err := b.client.Referrers(t.Context(), upstream, repository, b.img.Manifest.Digest, "", nil); !errors.Is(err, origin.ErrOffline) {
		t.Errorf("Referrers: %v, want ErrOffline and no empty list", err)
	}
	if _, err := fetch(t, b.client, b.img.Layers[0].Run()); !errors.Is(err, origin.ErrOffline) {
		t.Errorf("Fetch: %v, want ErrOffline", err)
	}
	if c := b.reg.Count(); c != (registry.Counts{}) {
		t.Errorf("it was contacted: %+v", c)
	}
	b.client.SetOffline(false)
	b.reg.SetFaults(registry.Faults{})
	if content, err := fetch(t, b.client, b.img.Layers[0].Run()); err != nil || proto.DigestOf(content) != b.img.Layers[0].Digest {
		t.Errorf("%d bytes after that, %v", len(content), err)
	}
}

// 16 MiB that are cut after each mebibyte leave the registry once, and take as
// many requests as there are pieces.
func TestCutEveryMebibyte(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	r, base := startRegistry(t, registry.Options{})
	content, b := push(t, base, 7, 16*mib)
	r.Reset()
	r.SetFaults(registry.Faults{CutAfter: mib})
	// A wait between two pieces would be an hour.
	c := newClient(t, at(base), func(cfg *origin.Config) { cfg.Backoff = time.Hour })
	got, err := fetch(t, c, b.Run())
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := r.Count(); n.BlobGets != 16 || n.BlobBytes != b.Size {
		t.Errorf("%d requests and %d bytes, want 16 and %d", n.BlobGets, n.BlobBytes, b.Size)
	}
}
