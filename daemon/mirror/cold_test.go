package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// TestRangeOfAColdBlob: a Range of a blob of which nothing is here is answered
// for less than three chunks from the origin. Then the rest comes as well.
func TestRangeOfAColdBlob(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, rng string
		at        int64 // of the first byte
	}{
		{"inside", "bytes=5000000-5000999", 5000000},
		{"open end", "bytes=5000000-", 5000000},
		{"suffix", "bytes=-500000", 8*mib - 500000},
		{"first of several", "bytes=5000000-5000009,100-109", -1},
		{"from the start", "bytes=0-99", 0},
		{"none", "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, options{})
			layer := b.push(t, "team/app", "1", 8*mib).Layers[0] // in chunks of 256 KiB
			content := b.content(t, "team/app", layer.Digest)
			// A chunk takes 125 ms, so that a counter that is read after the first
			// byte has come is not far behind.
			b.reg.SetFaults(registry.Faults{Rate: 2 * mib})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.addr+blobPath("team/app", layer.Digest), nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.rng != "" {
				req.Header.Set("Range", test.rng)
			}
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body := io.Reader(resp.Body)
			if test.at < 0 {
				_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
				if err != nil {
					t.Fatal(err)
				}
				if body, err = multipart.NewReader(resp.Body, params["boundary"]).NextPart(); err != nil {
					t.Fatal(err)
				}
				test.at = 5000000
			}
			got := make([]byte, 1)
			if _, err := io.ReadFull(body, got); err != nil || got[0] != content[test.at] {
				t.Fatalf("the first byte: %q, %v", got, err)
			}
			if n := b.reg.Count().BlobBytes; n >= 3*layer.ChunkSize() {
				t.Errorf("%d bytes have left the origin before the first byte was here, 3 chunks are %d", n, 3*layer.ChunkSize())
			}
			b.reg.SetFaults(registry.Faults{})
			_, _ = io.Copy(io.Discard, resp.Body)
			whole(t, b, layer)
		})
	}
}

// TestRangeOfAPartialBlob: what is here is served at once, what is not comes
// first, and nothing comes twice.
func TestRangeOfAPartialBlob(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	layer := b.push(t, "team/app", "1", 4*mib).Layers[0]
	content := b.content(t, "team/app", layer.Digest)
	cb, err := b.cache.Blob(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Release()
	for _, i := range []int{0, 1, 7} {
		c := layer.Chunk(i)
		if err := cb.Put(i, content[c.Offset:c.Offset+c.Size]); err != nil {
			t.Fatal(err)
		}
	}
	// A manifest has said that it is there, so that the origin need not be asked.
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Fatal(a.status)
	}
	b.setFront(func(_ http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		<-r.Context().Done()
		return true
	})
	size := layer.ChunkSize()
	for _, test := range []struct{ from, to int64 }{{0, 10}, {size - 5, size + 5}, {7 * size, 8 * size}} {
		a := b.get(t, blobPath("team/app", layer.Digest), fmt.Sprintf("Range: bytes=%d-%d", test.from, test.to-1))
		if a.status != http.StatusPartialContent || !bytes.Equal(a.body, content[test.from:test.to]) {
			t.Errorf("%d to %d, which is here: %d, %d bytes", test.from, test.to, a.status, len(a.body))
		}
	}
	b.setFront(nil)
	a := b.get(t, blobPath("team/app", layer.Digest), fmt.Sprintf("Range: bytes=%d-", size))
	if a.status != http.StatusPartialContent || !bytes.Equal(a.body, content[size:]) {
		t.Errorf("the rest: %d, %d bytes", a.status, len(a.body))
	}
	whole(t, b, layer)
	if n := b.reg.Count().BlobBytes; n > layer.Size-3*size {
		t.Errorf("%d bytes left the origin, %d were missing", n, layer.Size-3*size)
	}
}

// TestColdClientsShareOneTransfer: of eight clients of a cold blob some leave in
// the middle. The others have all of it, and it has left the origin once. So it
// is whether or not pulls that nobody wants are given up.
func TestColdClientsShareOneTransfer(t *testing.T) {
	t.Parallel()
	for _, abandon := range []bool{false, true} {
		t.Run(fmt.Sprintf("abandon=%v", abandon), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, options{abandon: abandon})
			layer := b.push(t, "team/app", "1", 16*mib).Layers[0]
			b.reg.SetFaults(registry.Faults{StallAfter: mib})
			var begun, wg sync.WaitGroup
			begun.Add(8)
			for i := range 8 {
				wg.Go(func() {
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.addr+blobPath("team/app", layer.Digest), nil)
					if err != nil {
						t.Error(err)
						begun.Done()
						return
					}
					resp, err := b.client.Do(req)
					if err != nil {
						t.Error(err)
						begun.Done()
						return
					}
					defer resp.Body.Close()
					h := layer.Digest.NewHash()
					_, err = io.CopyN(h, resp.Body, 1000)
					begun.Done()
					begun.Wait()
					if i < 4 || err != nil {
						leave()
						return
					}
					n, err := io.Copy(h, resp.Body)
					if err != nil || !layer.Digest.Matches(h) {
						t.Errorf("client %d: %d bytes, %v", i, n, err)
					}
				})
			}
			begun.Wait()
			b.reg.SetFaults(registry.Faults{Rate: 1 << 30})
			wg.Wait()
			if least, most := b.reg.Copies(layer.Digest); least != 1 || most != 1 {
				t.Errorf("the blob left the origin %d to %d times", least, most)
			}
		})
	}
}

// TestAbandonedByItsClient: with the option, a pull that nobody wants any more
// ends, and who comes next goes on where it was.
func TestAbandonedByItsClient(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{abandon: true})
	layer := b.push(t, "team/app", "1", 16*mib).Layers[0]
	b.reg.SetFaults(registry.Faults{StallAfter: mib})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.addr+blobPath("team/app", layer.Digest), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	leave()
	_ = resp.Body.Close()
	for len(b.puller.Pulls()) > 0 {
		if t.Context().Err() != nil {
			t.Fatal("the pull goes on")
		}
	}
	b.reg.SetFaults(registry.Faults{})
	a := b.get(t, blobPath("team/app", layer.Digest))
	if a.err != nil || proto.DigestOf(a.body) != layer.Digest {
		t.Errorf("the next client: %d, %d bytes, %v", a.status, len(a.body), a.err)
	}
}

// TestOnlyThePlatformThatWasAskedFor: a client reads an index and then, as
// containerd 2 does, the manifests of all platforms. The layers of this node's
// are started, in its order, and those of no other.
func TestOnlyThePlatformThatWasAskedFor(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var joined []proto.Digest
	b := newBed(t, options{prefetch: true, join: func(d proto.Digest) {
		mu.Lock()
		defer mu.Unlock()
		joined = append(joined, d)
	}})
	other, own := b.push(t, "team/app", "other", 1000, 2000, 3000), b.push(t, "team/app", "own", 1001, 2001, 3001)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[`+
		`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"vax"}},`+
		`{"mediaType":%[2]q,"digest":%[5]q,"size":%[6]d,"platform":{"os":"linux","architecture":%[7]q}}]}`,
		ocispec.MediaTypeImageIndex, other.MediaType, other.Manifest.Digest, other.Manifest.Size, own.Manifest.Digest, own.Manifest.Size, runtime.GOARCH)
	b.pushManifest(t, "team/app", "1", ocispec.MediaTypeImageIndex, []byte(index))
	for _, reference := range []string{"1", other.Manifest.Digest.String(), own.Manifest.Digest.String()} {
		if a := b.get(t, manifestPath("team/app", reference)); a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", reference, a.status, a.body)
		}
	}
	want := []string{proto.DigestOf([]byte(index)).String(), other.Manifest.Digest.String(), own.Manifest.Digest.String()}
	for _, blob := range own.Blobs() {
		want = append(want, blob.Digest.String())
	}
	mu.Lock()
	defer mu.Unlock()
	var got []string
	for _, d := range joined {
		got = append(got, d.String())
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("joined were\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
