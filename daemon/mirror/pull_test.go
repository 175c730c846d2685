package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

const mib = 1 << 20

// once fails the test unless every byte of the image's blobs has left the
// registry exactly once.
func once(t *testing.T, reg *registry.Registry, img registry.Image) {
	t.Helper()
	for _, blob := range img.Blobs() {
		if least, most := reg.Copies(blob.Digest); blob.Size > 0 && (least != 1 || most != 1) {
			t.Errorf("blob %s of %d bytes left the origin %d to %d times", blob.Digest, blob.Size, least, most)
		}
	}
}

// podman, skopeo, crane and so on: no ns, the registry as a prefix of the path.
func TestGoContainerregistryPullsByPrefix(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{prefetch: true})
	pushed := b.push(t, "team/app", "1", 3*mib, 10, 0)
	opts := []remote.Option{remote.WithTransport(b.client.Transport), remote.WithContext(t.Context())}
	ref, err := name.ParseReference(b.addr+"/"+upstream+"/team/app:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // cold, warm
		img, err := remote.Image(ref, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := img.RawConfigFile(); err != nil || proto.DigestOf(raw) != pushed.Config.Digest {
			t.Errorf("config: %v", err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers {
			rc, err := layer.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			if want, _ := layer.Digest(); err != nil || proto.DigestOf(data).String() != want.String() {
				t.Errorf("layer %s: %d bytes, %v", want, len(data), err)
			}
			_ = rc.Close()
		}
	}
	once(t, b.reg, pushed)
	n := b.reg.Count()
	if n.BlobHeads != 0 || n.ManifestGets != 1 || n.ManifestHeads != 2 {
		t.Errorf("2 pulls by tag: %+v at the origin, want 2 HEADs and 1 GET of the manifest, no HEAD of a blob", n)
	}
	// crane's digest and manifest: HEAD, then GET by digest.
	head, err := remote.Head(ref, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if head.Digest.String() != pushed.Manifest.Digest.String() || head.Size != pushed.Manifest.Size || string(head.MediaType) != pushed.MediaType {
		t.Errorf("HEAD = %+v, want %+v", head, pushed.Manifest)
	}
	desc, err := remote.Get(ref.Context().Digest(head.Digest.String()), opts...)
	if err != nil || !bytes.Equal(desc.Manifest, pushed.Raw) {
		t.Errorf("GET by digest = %v", err)
	}
}

// TestManifestOrder: the schedulers hear of the blobs of a manifest in its
// order, the config first, before the client has the manifest.
func TestManifestOrder(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var joined []proto.Digest
	b := newBed(t, options{prefetch: true, join: func(d proto.Digest) {
		mu.Lock()
		defer mu.Unlock()
		joined = append(joined, d)
	}})
	img := b.push(t, "team/app", "1", slices.Repeat([]int64{1000}, 30)...)
	want := []proto.Digest{img.Manifest.Digest}
	for _, blob := range img.Blobs() {
		want = append(want, blob.Digest)
	}
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Fatalf("the manifest: %d %s", a.status, a.body)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(joined, want) {
		t.Errorf("joined were %v, want %v", joined, want)
	}
}

// dockerd: neither ns nor prefix, so docker.io, with and without library/.
func TestDefaultUpstreamPull(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "library/app", "1", mib)
	for _, repo := range []string{"app", "library/app", "docker.io/app", "index.docker.io/library/app"} {
		ref, err := name.ParseReference(b.addr+"/"+repo+":1", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(ref, remote.WithTransport(b.client.Transport), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := img.Digest(); err != nil || got.String() != pushed.Manifest.Digest.String() {
			t.Errorf("%s: %v, %v", repo, got, err)
		}
	}
}

// hostsDir writes a hosts.toml for the bed's upstream as an operator would. The
// registry itself can't be reached, so everything has to come from the mirror.
func hostsDir(t *testing.T, b *bed) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), upstream)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", b.addr)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(dir)
}

func TestContainerdPulls(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{prefetch: true})
	pushed := b.push(t, "team/app", "1", 3*mib, 10)
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{
			HostDir: config.HostDirFromRoot(hostsDir(t, b)),
			UpdateClient: func(c *http.Client) error {
				c.Transport = b.client.Transport // to be closed at the end
				return nil
			},
		}),
	})
	ref := upstream + "/team/app:1"
	for range 2 { // cold, warm
		_, desc, err := resolver.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if desc.Digest.String() != pushed.Manifest.Digest.String() || desc.MediaType != pushed.MediaType || desc.Size != pushed.Manifest.Size {
			t.Fatalf("resolved to %+v", desc)
		}
		fetcher, err := resolver.Fetcher(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := fetch(t, fetcher, desc); !bytes.Equal(got, pushed.Raw) {
			t.Error("wrong manifest")
		}
		var wg sync.WaitGroup
		for _, blob := range pushed.Blobs() {
			wg.Go(func() {
				fetch(t, fetcher, ocispec.Descriptor{
					Digest: digest.Digest(blob.Digest.String()), Size: blob.Size, MediaType: ocispec.MediaTypeImageLayer,
				})
			})
		}
		wg.Wait()
	}
	once(t, b.reg, pushed)
	if n := b.reg.Count(); n.BlobHeads != 0 || n.ManifestGets != 1 || n.ManifestHeads != 2 {
		t.Errorf("%+v at the origin, want 2 HEADs and 1 GET of the manifest, no HEAD of a blob", n)
	}
	// As an index, an unknown tag is the mirror's word, and then the registry's.
	if _, _, err := resolver.Resolve(t.Context(), upstream+"/team/app:none"); err == nil {
		t.Error("a tag that is not there was resolved")
	}
}

func fetch(t *testing.T, f remotes.Fetcher, desc ocispec.Descriptor) []byte {
	t.Helper()
	rc, err := f.Fetch(t.Context(), desc)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil || digest.FromBytes(data) != desc.Digest {
		t.Errorf("fetched %s: %d bytes, %v", desc.Digest, len(data), err)
	}
	return data
}

// A manifest that was served commits the node to its blobs. A HEAD does not.
func TestManifestStartsItsBlobs(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{prefetch: true})
	pushed := b.push(t, "team/app", "1", mib, 2*mib, 10)
	path := manifestPath("team/app", pushed.Tag)
	if a := b.ask(t, http.MethodHead, path); a.status != http.StatusOK {
		t.Fatalf("HEAD: %d", a.status)
	}
	if a := b.ask(t, http.MethodHead, blobPath("team/app", pushed.Layers[0].Digest)); a.status != http.StatusOK {
		t.Fatalf("HEAD: %d", a.status)
	}
	if pulls := b.puller.Pulls(); len(pulls) != 0 {
		t.Errorf("HEADs started %d pulls", len(pulls))
	}
	if a := b.get(t, path); a.status != http.StatusOK || !bytes.Equal(a.body, pushed.Raw) {
		t.Fatalf("GET: %d", a.status)
	}
	for _, blob := range pushed.Blobs() {
		whole(t, b, blob)
	}
	once(t, b.reg, pushed)
}

// whole waits until a blob that was started is whole here.
func whole(t *testing.T, b *bed, blob proto.Blob) {
	t.Helper()
	cb, ok := b.cache.Known(blob.Digest)
	if !ok {
		t.Errorf("nobody has started %s", blob.Digest)
		return
	}
	defer cb.Release()
	select {
	case <-cb.Done():
	case <-time.After(20 * time.Second): // only so that a failure is no hang
		t.Errorf("%s does not become whole", blob.Digest)
	}
}

// An index starts nothing, but its images are known without another question.
func TestIndexStartsNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{prefetch: true})
	pushed := b.push(t, "team/app", "1", 1000)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageIndex, pushed.MediaType, pushed.Manifest.Digest, pushed.Manifest.Size)
	b.pushManifest(t, "team/app", "all", ocispec.MediaTypeImageIndex, []byte(index))
	a := b.get(t, manifestPath("team/app", "all"))
	if a.status != http.StatusOK || string(a.body) != index || a.header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
		t.Fatalf("GET of the index: %d %s", a.status, a.body)
	}
	if _, ok := b.cache.Known(pushed.Manifest.Digest); ok {
		t.Error("an index started one of its images")
	}
	before := b.reg.Count().ManifestHeads
	a = b.ask(t, http.MethodHead, manifestPath("team/app", pushed.Manifest.Digest.String()))
	if a.status != http.StatusOK || a.header.Get("Content-Type") != pushed.MediaType {
		t.Errorf("HEAD of the image: %d %q", a.status, a.header.Get("Content-Type"))
	}
	if n := b.reg.Count().ManifestHeads - before; n != 0 {
		t.Error("the origin was asked about what the index had said")
	}
}

// pushManifest pushes a manifest of any kind.
func (b *bed) pushManifest(t *testing.T, repository, tag, mediaType string, data []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut,
		b.regURL+"/v2/"+repository+"/manifests/"+tag, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		t.Fatalf("push %s: %d %s", tag, resp.StatusCode, text)
	}
	b.reg.Reset()
}

// Eight clients want the same cold blob: one copy leaves the origin.
func TestClientsShareOnePull(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", 4*mib)
	layer := pushed.Layers[0]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			a := b.get(t, blobPath("team/app", layer.Digest))
			if a.err != nil || a.status != http.StatusOK || proto.DigestOf(a.body) != layer.Digest {
				t.Errorf("GET: %d, %d bytes, %v", a.status, len(a.body), a.err)
			}
		})
	}
	wg.Wait()
	if least, most := b.reg.Copies(layer.Digest); least != 1 || most != 1 {
		t.Errorf("the blob left the origin %d to %d times", least, most)
	}
	if n := b.reg.Count(); n.BlobHeads != 1 {
		t.Errorf("%d HEADs at the origin, want 1", n.BlobHeads)
	}
}

// A client that goes away does not stop the pull.
func TestPullGoesOnWithoutItsClient(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", 4*mib)
	layer := pushed.Layers[0]
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
	b.reg.SetFaults(registry.Faults{}) // go on
	whole(t, b, layer)
}

// A blob that came in through one repository is not given to those who ask
// another for it, unless that one has it too.
func TestSharedBlobOfTwoRepositories(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", mib)
	layer := pushed.Layers[0]
	if a := b.get(t, blobPath("team/app", layer.Digest)); a.status != http.StatusOK {
		t.Fatalf("GET: %d", a.status)
	}
	whole(t, b, layer)
	for range 2 {
		b.get(t, blobPath("team/other", layer.Digest)).want(t, http.StatusNotFound, "BLOB_UNKNOWN")
		if a := b.ask(t, http.MethodHead, blobPath("team/other", layer.Digest)); a.status != http.StatusNotFound {
			t.Errorf("HEAD for another repository: %d", a.status)
		}
		b.get(t, blobPath("team/other", layer.Digest), "Range: bytes=0-9").want(t, http.StatusNotFound, "BLOB_UNKNOWN")
	}
	b.push(t, "team/other", "1", mib)
	a := b.get(t, blobPath("team/other", layer.Digest))
	if a.status != http.StatusOK || proto.DigestOf(a.body) != layer.Digest {
		t.Errorf("GET after the other repository has it: %d", a.status)
	}
	if n := b.reg.Count(); n.BlobGets != 0 || n.BlobHeads != 1 {
		t.Errorf("%+v at the origin, want one HEAD of the blob and no GET", n)
	}
}

// A careless manifest gives two layers a wrong size. One is on disk with the
// right one, and is served. Of the other the origin has the last word, after
// one failure.
func TestWrongSizesInAManifest(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	pushed := b.push(t, "team/app", "1", mib, mib+1)
	here, absent := pushed.Layers[0], pushed.Layers[1]
	if a := b.get(t, blobPath("team/app", here.Digest)); a.status != http.StatusOK {
		t.Fatalf("GET: %d", a.status)
	}
	whole(t, b, here)
	wrong := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,
		"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},
		"layers":[{"mediaType":%q,"digest":%q,"size":5},{"mediaType":%[4]q,"digest":%[6]q,"size":5}]}`,
		ocispec.MediaTypeImageManifest, pushed.Config.Digest, pushed.Config.Size,
		ocispec.MediaTypeImageLayer, here.Digest, absent.Digest)
	b.pushManifest(t, "team/app", "wrong", ocispec.MediaTypeImageManifest, []byte(wrong))
	if a := b.get(t, manifestPath("team/app", "wrong")); a.status != http.StatusOK {
		t.Fatalf("GET of the manifest: %d %s", a.status, a.body)
	}
	b.get(t, blobPath("team/app", absent.Digest)).want(t, http.StatusBadGateway, "DIGEST_INVALID")
	for _, layer := range pushed.Layers {
		a := b.get(t, blobPath("team/app", layer.Digest))
		if a.status != http.StatusOK || proto.DigestOf(a.body) != layer.Digest {
			t.Errorf("GET of %s: %d, %d bytes", layer.Digest, a.status, len(a.body))
		}
	}
}
