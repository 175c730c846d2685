package keep_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// TestColdClientsShareOneTransfer: 8 clients, 64 MiB, an origin of 200 Mbit/s.
// That the first byte is not later than the origin's own by more than 50 ms is
// measured in bench/floor, since machines that tests run on are noisy; here it
// comes while nearly all of the blob is still at the origin.
func TestColdClientsShareOneTransfer(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	const size = 64 << 20
	img := b.push("team/app", "v1", 1, size)
	layer := img.Layers[0]
	b.SetFaults(registry.Faults{Rate: 25 << 20})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := b.open(t.Context(), b.node, "GET", "team/app/blobs/"+layer.Digest.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			h := layer.Digest.NewHash()
			if _, err := io.CopyN(h, resp.Body, 1); err != nil {
				t.Error(err)
			}
			if sent := b.Count().BlobBytes; sent > size/2 {
				t.Errorf("the first byte came when %d of %d had left the origin", sent, size)
			}
			if n, err := io.Copy(h, resp.Body); err != nil || n != size-1 || !layer.Digest.Matches(h) {
				t.Errorf("the rest is %d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
	if least, most := b.Copies(layer.Digest); least != 1 || most != 1 {
		t.Errorf("bytes left the origin %d to %d times, want once", least, most)
	}
}

// TestClientThatLeaves: the others get theirs, and the blob is completed.
func TestClientThatLeaves(t *testing.T) {
	t.Parallel()
	for _, finish := range []bool{true, false} {
		t.Run(fmt.Sprint("finish ", finish), func(t *testing.T) {
			t.Parallel()
			b := start(t, func(c *daemon.Config) { c.Cache.Finish = finish })
			const size = 8 << 20
			layer := b.push("team/app", "v1", 1, size).Layers[0]
			b.SetFaults(registry.Faults{StallAfter: 1 << 20})
			ctx, leave := context.WithCancel(t.Context())
			resp, err := b.open(ctx, b.node, "GET", "team/app/blobs/"+layer.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
				t.Fatal(err)
			}
			leave()
			resp.Body.Close()
			if !finish {
				waitFor(t, "the pull to be given up", func() bool { return len(b.node.Status().Pulls) == 0 })
				b.SetFaults(registry.Faults{})
				b.blob("team/app", layer)
				return
			}
			b.SetFaults(registry.Faults{})
			waitFor(t, "the pull to be completed", func() bool { return len(b.node.Status().Pulls) == 0 })
			b.SetFaults(registry.Faults{Status: 500, ManifestStatus: 500})
			b.blob("team/app", layer)
		})
	}
}

// TestRangeOnAColdBlob: the end of a blob of many chunks is there before three
// chunks have left the origin, and the status says what it is.
func TestRangeOnAColdBlob(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	const size = 64 << 20
	layer := b.push("team/app", "v1", 1, size).Layers[0]
	chunk := layer.Chunk(0).Size
	b.SetFaults(registry.Faults{Rate: 4 << 20})
	offset := int64(40 << 20)
	resp, err := b.open(t.Context(), b.node, "GET", "team/app/blobs/"+layer.Digest.String(), "Range", fmt.Sprintf("bytes=%d-", offset))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1); err != nil {
		t.Fatal(err)
	}
	sent := b.Count().BlobBytes
	if want := fmt.Sprintf("bytes %d-%d/%d", offset, size-1, size); resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != want {
		t.Errorf("%s, Content-Range %q, want 206 and %q", resp.Status, resp.Header.Get("Content-Range"), want)
	}
	if sent >= 3*chunk {
		t.Errorf("%d bytes left the origin before the first came, three chunks are %d", sent, 3*chunk)
	}
	b.SetFaults(registry.Faults{})
}

// TestRanges are those of RFC 9110, on a blob that is cold, and then whole.
func TestRanges(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	layer := b.push("team/app", "v1", 1, 3<<20).Layers[0]
	var content []byte
	for _, state := range []string{"cold", "whole"} {
		path := "team/app/blobs/" + layer.Digest.String()
		suffix := b.want(b.ask("GET", path, "Range", "bytes=-10"), 206)
		several := b.want(b.ask("GET", path, "Range", "bytes=5-9,1000000-1000009"), 206)
		beyond := b.want(b.ask("GET", path, "Range", "bytes=9999999-"), 416)
		if beyond.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", layer.Size) {
			t.Errorf("%s: 416 with Content-Range %q", state, beyond.header.Get("Content-Range"))
		}
		if content == nil {
			content = b.want(b.ask("GET", path), 200).body
		}
		if !bytes.Equal(suffix.body, content[len(content)-10:]) {
			t.Errorf("%s: the last ten bytes are %x", state, suffix.body)
		}
		_, params, err := mime.ParseMediaType(several.header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts := multipart.NewReader(bytes.NewReader(several.body), params["boundary"])
		for _, from := range []int{5, 1000000} {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(p)
			want := content[from : from+5]
			if from != 5 {
				want = content[from : from+10]
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the part at %d is %x, %v", state, from, got, err)
			}
		}
	}
}

// TestCutsAreResumed: an origin that cuts every MiB sends no byte twice.
func TestCutsAreResumed(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	layer := b.push("team/app", "v1", 1, 24<<20).Layers[0]
	b.SetFaults(registry.Faults{CutAfter: 1 << 20})
	b.blob("team/app", layer)
	if least, most := b.Copies(layer.Digest); least != 1 || most != 1 {
		t.Errorf("bytes left the origin %d to %d times, want once", least, most)
	}
}

// TestPullGoesOnAfterARestart: what is here stays here.
func TestPullGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	const size = 32 << 20
	layer := b.push("team/app", "v1", 1, size).Layers[0]
	b.SetFaults(registry.Faults{Rate: 16 << 20})
	resp, err := b.open(t.Context(), b.node, "GET", "team/app/blobs/"+layer.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, size/2); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b.restart()
	sent := b.Count().BlobBytes
	b.SetFaults(registry.Faults{})
	b.blob("team/app", layer)
	if again := b.Count().BlobBytes - sent; again > size*6/10 {
		t.Errorf("%d of %d bytes were fetched after a restart in the middle", again, size)
	}
}

// TestBackOff: an origin that answers 429 with Retry-After is left alone, what
// is cached is served, and the gauge says how many requests are left.
func TestBackOff(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	img := b.push("team/app", "v1", 1, 1000)
	b.SetFaults(registry.Faults{RateLimit: "100;w=21600 76;w=21600"})
	b.pull(img)
	if got := b.metric(`shoal_origin_ratelimit_remaining{upstream="origin.test"}`); got != "76" {
		t.Errorf("ratelimit_remaining is %q", got)
	}
	b.Reset()
	b.SetFaults(registry.Faults{ManifestStatus: 429, Status: 429, RetryAfter: "60"})
	for range 20 {
		b.pull(img)
		b.want(b.ask("GET", "team/app/manifests/v2"), 503)
	}
	if c := b.Count(); c.ManifestHeads+c.ManifestGets > 2 {
		t.Errorf("the origin was asked %d times within the minute that it wants to be left alone", c.ManifestHeads+c.ManifestGets)
	}
}

// metric returns the value of a metric of the node, or "".
func (b *bed) metric(name string) string {
	b.t.Helper()
	resp, err := b.client.Get("http://" + b.node.AdminAddr() + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return value
		}
	}
	return ""
}

// TestWrongBytesNeverArrive: what an origin sends is not believed.
func TestWrongBytesNeverArrive(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	layer := b.push("team/app", "v1", 1, 3<<20).Layers[0]
	b.SetFaults(registry.Faults{WrongBytes: 1})
	deadline := time.Now().Add(30 * time.Second)
	for {
		a, err := b.try(t.Context(), b.node, "GET", "team/app/blobs/"+layer.Digest.String())
		if err == nil && a.status == 200 {
			if proto.DigestOf(a.body) != layer.Digest {
				t.Fatal("wrong bytes were served to the end")
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never came right: %v %v", a.status, err)
		}
	}
}
