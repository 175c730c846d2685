package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

// A watched is a Source that tells what it was asked for.
type watched struct {
	pull.Source
	mu   *sync.Mutex
	runs *[]proto.Run
}

func (w watched) Fetch(ctx context.Context, r proto.Run, to io.Writer) error {
	w.mu.Lock()
	*w.runs = append(*w.runs, r)
	w.mu.Unlock()
	return w.Source.Fetch(ctx, r, to)
}

// watchThrough has the mirror pass on from the registry, and tell about it.
func watchThrough(mu *sync.Mutex, runs *[]proto.Run) func(*Config) {
	return func(c *Config) {
		from := c.Origin
		c.Through = func(o proto.Origin) pull.Source { return watched{from.Source(o), mu, runs} }
	}
}

// With no room for anything, everything is still served as it would be, and
// nothing is kept.
func TestNoRoomAtAll(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{prefetch: true, cache: cache.Options{Quota: cache.Bytes(10)}})
	img := b.push(t, "team/app", "1", 2*mib, 1000, 0)
	layer := img.Layers[0]
	content := b.content(t, "team/app", layer.Digest)
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK || !bytes.Equal(a.body, img.Raw) {
		t.Fatalf("the manifest: %d %s", a.status, a.body)
	}
	for _, blob := range img.Blobs() {
		a := b.get(t, blobPath("team/app", blob.Digest))
		if a.status != http.StatusOK || a.err != nil || proto.DigestOf(a.body) != blob.Digest {
			t.Errorf("%s: %d, %d bytes, %v", blob.Digest, a.status, len(a.body), a.err)
		}
	}
	for _, test := range []struct {
		rng      string
		from, to int
	}{
		{"0-0", 0, 1},
		{"0-", 0, 2 * mib},
		{"300000-900000", 300000, 900001},
		{"1000000-1000009", 1000000, 1000010},
		{"-500", 2*mib - 500, 2 * mib},
		{fmt.Sprintf("%d-", 2*mib-1), 2*mib - 1, 2 * mib},
	} {
		a := b.get(t, blobPath("team/app", layer.Digest), "Range: bytes="+test.rng)
		if a.status != http.StatusPartialContent || a.err != nil || !bytes.Equal(a.body, content[test.from:test.to]) {
			t.Errorf("%s: %d, %d bytes, %v", test.rng, a.status, len(a.body), a.err)
		}
	}
	for _, ranges := range []string{"5-7,1000000-1000009", "1000000-1000009,5-7"} {
		a := b.get(t, blobPath("team/app", layer.Digest), "Range: bytes="+ranges)
		_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if a.status != http.StatusPartialContent || err != nil || a.err != nil {
			t.Errorf("%s: %d %v, %v", ranges, a.status, a.header, a.err)
			continue
		}
		parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
		for _, want := range strings.Split(ranges, ",") {
			var from, to int
			_, _ = fmt.Sscanf(want, "%d-%d", &from, &to)
			part, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, content[from:to+1]) {
				t.Errorf("%s: part of %d bytes, %v", ranges, len(got), err)
			}
		}
	}
	b.close()
	if n := testutil.ToFloat64(b.handler.metrics.requests.WithLabelValues(upstream, "blob", sourceThrough)); n != 3+6+2 {
		t.Errorf("%v requests were passed on, want 11", n)
	}
	if _, ok := b.cache.Whole(layer.Digest); ok {
		t.Error("the layer is here: this is no test of a full disk")
	}
}

// A disk that fills up in the middle of a response: the client notices nothing,
// and what is here is not fetched again.
func TestNoRoomInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, rng := range []string{"", "bytes=300000-", "bytes=300000-3000000", "bytes=5-7,300000-3000000", "bytes=3000000-3000009,300000-300009"} {
		t.Run(rng, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var runs []proto.Run
			b := newBed(t, options{config: watchThrough(&mu, &runs)})
			layer := b.push(t, "team/app", "1", 4*mib).Layers[0]
			content := b.content(t, "team/app", layer.Digest)
			b.reg.SetFaults(registry.Faults{StallAfter: mib})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.addr+blobPath("team/app", layer.Digest), nil)
			if err != nil {
				t.Fatal(err)
			}
			if rng != "" {
				req.Header.Set("Range", rng)
			}
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got := make([]byte, 10)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Fatal(err)
			}
			cb, ok := b.cache.Known(layer.Digest)
			if !ok {
				t.Fatal("nothing is here")
			}
			defer cb.Release()
			here := cb.Have()
			b.reg.SetFaults(registry.Faults{Rate: 1 << 30}) // those that have stalled go on; others do not stall
			cb.Fail(fmt.Errorf("test: %w", cache.ErrFull))
			rest, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("%d bytes, %v", len(rest), err)
			}
			got = append(got, rest...)
			want := content
			switch rng {
			case "bytes=300000-":
				want = content[300000:]
			case "bytes=300000-3000000":
				want = content[300000:3000001]
			case "bytes=5-7,300000-3000000", "bytes=3000000-3000009,300000-300009":
				first, second := content[5:8], content[300000:3000001]
				if strings.HasPrefix(rng, "bytes=3") {
					first, second = content[3000000:3000010], content[300000:300010]
				}
				if !bytes.Contains(got, first) || !bytes.Contains(got, second) {
					t.Errorf("the parts are not there, in %d bytes", len(got))
				}
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, not the %d that they should be", len(got), len(want))
			}
			mu.Lock()
			defer mu.Unlock()
			for _, run := range runs {
				for c := run.First; c < run.First+run.Count; c++ {
					// The cache holds the last one back until it has all.
					if here.Has(c) && c < run.Blob.Chunks()-1 {
						t.Errorf("chunk %d was here and was fetched once more", c)
					}
				}
			}
		})
	}
}

// Content that is passed on and is wrong never ends as if it were right.
func TestPassedOnAndWrong(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{cache: cache.Options{Quota: cache.Bytes(10)}})
	img := b.push(t, "team/app", "1", mib, 1000)
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Fatal(a.status)
	}
	b.reg.SetFaults(registry.Faults{WrongBytes: -1})
	for _, rng := range []string{"", "bytes=0-", "bytes=10-20", "bytes=600000-", "bytes=-100", "bytes=5-7,900-910"} {
		for _, layer := range img.Layers {
			a := b.get(t, blobPath("team/app", layer.Digest), "Range: "+rng)
			if a.status >= http.StatusBadRequest {
				continue
			}
			if a.err == nil || !errors.Is(a.err, io.ErrUnexpectedEOF) {
				t.Errorf("%s of %d bytes: ended with %v after %d bytes", rng, layer.Size, a.err, len(a.body))
			}
			if strings.Contains(rng, ",") {
				continue // the headers of the first part come before any content
			}
			var total int
			_, _ = fmt.Sscan(a.header.Get("Content-Length"), &total)
			if held := total - len(a.body); held < min(total, holdSize) {
				t.Errorf("%s of %d bytes: only the last %d of %d were held back", rng, layer.Size, held, total)
			}
		}
	}
	b.close()
	// One of the ranges is after the end of the small one.
	if n := testutil.ToFloat64(b.handler.metrics.requests.WithLabelValues(upstream, "blob", sourceError)); n != 11 {
		t.Errorf("%v requests failed, want 11", n)
	}
}

// A manifest that is passed on is verified before its status is sent.
func TestManifestPassedOnAndWrong(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{cache: cache.Options{Quota: cache.Bytes(10)}})
	raw := []byte(`{"schemaVersion":2}`)
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", proto.DigestOf(raw).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
		_, _ = w.Write(bytes.ToUpper(raw))
		return true
	})
	b.get(t, manifestPath("team/app", "1")).want(t, http.StatusBadGateway, "DIGEST_INVALID")
}

// What is passed on survives an origin that cuts, as a pull does.
func TestPassedOnAndCut(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{cache: cache.Options{Quota: cache.Bytes(10)}})
	layer := b.push(t, "team/app", "1", 3*mib).Layers[0]
	b.reg.SetFaults(registry.Faults{CutAfter: mib / 2})
	a := b.get(t, blobPath("team/app", layer.Digest))
	if a.err != nil || proto.DigestOf(a.body) != layer.Digest {
		t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
	}
	// An origin that loses the content in the middle is a clean cut.
	b.setFront(answering(http.StatusNotFound, isBlob))
	a = b.get(t, blobPath("team/app", layer.Digest))
	if a.err == nil && a.status < http.StatusBadRequest {
		t.Errorf("without an origin: %d, %d bytes", a.status, len(a.body))
	}
}

// A client that leaves ends what is passed on to it.
func TestPassedOnToAClientThatLeaves(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{cache: cache.Options{Quota: cache.Bytes(10)}})
	layer := b.push(t, "team/app", "1", 8*mib).Layers[0]
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
	b.close() // waits for the handler, and goleak for its fetch
}

// A file that is whole and ends too soon: the client gets the rest from the
// origin, and the cache is told.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	const size = 2 * mib
	tests := []struct {
		rng      string
		from, to int
	}{
		{"", 0, size},
		{"bytes=0-", 0, size},
		{"bytes=1000000-1900000", 1000000, 1900001},
		{"bytes=1900000-", 1900000, size},
	}
	var mu sync.Mutex
	var doubted []proto.Digest
	dir := t.TempDir()
	b := newBed(t, options{dir: dir, config: func(c *Config) {
		c.Doubt = func(d proto.Digest) {
			mu.Lock()
			defer mu.Unlock()
			doubted = append(doubted, d)
		}
	}})
	img := b.push(t, "team/app", "1", slices.Repeat([]int64{size}, len(tests)+1)...)
	content := make([][]byte, len(img.Layers))
	for i, layer := range img.Layers {
		content[i] = b.content(t, "team/app", layer.Digest)
		b.get(t, blobPath("team/app", layer.Digest))
	}
	b.get(t, manifestPath("team/app", "1"))
	for _, blob := range append(img.Layers, img.Manifest) {
		whole(t, b, blob)
		settled(t, dir, blob)
		// One that nobody has open is looked at when it is opened.
		cb, ok := b.cache.Known(blob.Digest)
		if !ok {
			t.Fatal("it is not here")
		}
		defer cb.Release()
		cut(t, dir, blob, blob.Size/2)
	}
	for i, test := range tests {
		a := b.get(t, blobPath("team/app", img.Layers[i].Digest), "Range: "+test.rng)
		if a.err != nil || !bytes.Equal(a.body, content[i][test.from:test.to]) {
			t.Errorf("%s: %d, %d bytes, %v", test.rng, a.status, len(a.body), a.err)
		}
	}
	// Nobody can say where in several ranges it happened.
	last := img.Layers[len(tests)]
	if a := b.get(t, blobPath("team/app", last.Digest), "Range: bytes=5-7,1900000-1900009"); a.err == nil {
		t.Errorf("several ranges: %d, %d bytes", a.status, len(a.body))
	}
	if a := b.get(t, manifestPath("team/app", img.Manifest.Digest.String())); a.status != http.StatusOK || !bytes.Equal(a.body, img.Raw) {
		t.Errorf("the manifest: %d %s", a.status, a.body)
	}
	b.close()
	mu.Lock()
	defer mu.Unlock()
	for _, blob := range append(img.Layers, img.Manifest) {
		if !slices.Contains(doubted, blob.Digest) {
			t.Errorf("%s of %d bytes is not doubted", blob.Digest, blob.Size)
		}
	}
}

// A client that goes away is no reason to doubt what it was reading.
func TestClientThatLeavesRaisesNoDoubt(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{config: func(c *Config) {
		c.Doubt = func(d proto.Digest) { t.Errorf("%s is doubted", d) }
	}})
	layer := b.push(t, "team/app", "1", 32*mib).Layers[0]
	b.get(t, blobPath("team/app", layer.Digest))
	whole(t, b, layer)
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.addr+blobPath("team/app", layer.Digest), nil)
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
		_ = resp.Body.Close()
	}
	b.close()
}

// settled waits until a whole blob's file is where it stays.
func settled(t *testing.T, dir string, blob proto.Blob) {
	t.Helper()
	for {
		if _, err := os.Stat(blobFile(dir, blob)); err == nil {
			return
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func blobFile(dir string, blob proto.Blob) string {
	hex := strings.TrimPrefix(blob.Digest.String(), "sha256:")
	return filepath.Join(dir, "blobs", "sha256", hex[:2], hex)
}

func cut(t *testing.T, dir string, blob proto.Blob, size int64) {
	t.Helper()
	if err := os.Truncate(blobFile(dir, blob), size); err != nil {
		t.Fatal(err)
	}
}

// memory is a Source of content in memory.
type memory struct{ content []byte }

func (m memory) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	for off, end := r.Offset(), r.Offset()+r.Size(); off < end; {
		n, err := w.Write(m.content[off:min(off+100_000, end)])
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return ctx.Err()
}

// TestThroughModel: whatever is here, whatever is read, the bytes are those of
// the content, each chunk that is not here comes once, and no other but the last,
// which the cache holds back until it has all.
func TestThroughModel(t *testing.T) {
	t.Parallel()
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 10*proto.MinChunk).Draw(rt, "size")
		content := make([]byte, size)
		rng := rand.NewChaCha8([32]byte{byte(rapid.Uint8().Draw(rt, "seed"))})
		_, _ = rng.Read(content)
		blob := proto.Blob{Digest: proto.DigestOf(content), Size: int64(size)}
		kept, err := c.Blob(blob)
		if err != nil {
			rt.Fatal(err)
		}
		for i := range blob.Chunks() {
			if ch := blob.Chunk(i); blob.Chunks() > 1 && rapid.Bool().Draw(rt, "here") {
				if err := kept.Put(i, content[ch.Offset:ch.Offset+ch.Size]); err != nil {
					rt.Fatal(err)
				}
			}
		}
		here := kept.Have()
		var mu sync.Mutex
		var runs []proto.Run
		th := newThrough(t.Context(), blob, kept, watched{memory{content}, &mu, &runs})
		defer th.close()
		at := int64(0)
		for range rapid.IntRange(1, 4).Draw(rt, "reads") {
			at = rapid.Int64Range(at, blob.Size).Draw(rt, "from")
			if err := th.seek(at); err != nil {
				rt.Fatal(err)
			}
			got := make([]byte, rapid.Int64Range(0, blob.Size-at).Draw(rt, "n"))
			if _, err := io.ReadFull(th, got); err != nil || !bytes.Equal(got, content[at:at+int64(len(got))]) {
				rt.Fatalf("read %d at %d: %v", len(got), at, err)
			}
			at += int64(len(got))
		}
		if err := th.verify(); err != nil {
			rt.Fatal(err)
		}
		times := make([]int, blob.Chunks())
		mu.Lock()
		defer mu.Unlock()
		for _, run := range runs {
			for i := run.First; i < run.First+run.Count; i++ {
				times[i]++
			}
		}
		for i, n := range times {
			held := i == blob.Chunks()-1 && !kept.Whole()
			if want := map[bool]int{true: 0, false: 1}[here.Has(i) && !held]; n != want {
				rt.Fatalf("chunk %d was fetched %d times, want %d", i, n, want)
			}
		}
	})
}

// TestThroughBackAgain: that the last chunk is here, and held back, does not keep the
// others from being read from the cache when all is read once more.
func TestThroughBackAgain(t *testing.T) {
	t.Parallel()
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	content := bytes.Repeat([]byte("0123456789abcdef"), 4*proto.MinChunk/16)
	blob := proto.Blob{Digest: proto.DigestOf(content), Size: int64(len(content))}
	kept, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 3} {
		if err := kept.Put(i, content[i*proto.MinChunk:(i+1)*proto.MinChunk]); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var runs []proto.Run
	th := newThrough(t.Context(), blob, kept, watched{memory{content}, &mu, &runs})
	defer th.close()
	for range 2 {
		if err := th.seek(0); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(th); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	want := proto.Run{Blob: blob, First: 1, Count: 3}
	if len(runs) != 2 || runs[0] != want || runs[1] != want {
		t.Errorf("fetched %+v, want twice %+v", runs, want)
	}
}
