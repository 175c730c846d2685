package keep_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// put pushes a manifest as it is and returns its digest.
func (b *bed) put(repository, reference, mediaType string, manifest []byte) proto.Digest {
	b.t.Helper()
	d := proto.DigestOf(manifest)
	if reference == "" {
		reference = d.String()
	}
	req, err := http.NewRequestWithContext(b.t.Context(), "PUT", b.url+"/v2/"+repository+"/manifests/"+reference, bytes.NewReader(manifest))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b.t.Fatalf("push of a manifest: %s", resp.Status)
	}
	return d
}

// putBlob pushes a blob under a digest of any algorithm.
func (b *bed) putBlob(repository, digest string, content []byte) {
	b.t.Helper()
	resp, err := b.client.Post(b.url+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		b.t.Fatal(err)
	}
	q := at.Query()
	q.Set("digest", digest)
	at.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(b.t.Context(), "PUT", at.String(), bytes.NewReader(content))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if resp, err = b.client.Do(req); err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b.t.Fatalf("push of blob %s: %s", digest, resp.Status)
	}
}

// TestContentIsUnchanged is of every kind of manifest, spaces and order of
// keys included, cold, warm and with the origin down.
func TestContentIsUnchanged(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	config, layer := []byte(`{"architecture":"amd64","os":"linux"}`), []byte("not a tar")
	strong := fmt.Sprintf("sha512:%x", sha512.Sum512(layer))
	b.putBlob("team/app", proto.DigestOf(config).String(), config)
	b.putBlob("team/app", proto.DigestOf(layer).String(), layer)
	b.putBlob("team/app", strong, layer)
	part := func(mediaType string, digest string, size int) string {
		return fmt.Sprintf(`{ "size": %d, "digest": %q,   "mediaType": %q }`, size, digest, mediaType)
	}
	image := func(mediaType, configType, layerType string) []byte {
		return []byte(fmt.Sprintf("{\n   \"schemaVersion\": 2,\n \"mediaType\": %q, \"config\": %s,\n \"layers\": [ %s ] }\n", mediaType,
			part(configType, proto.DigestOf(config).String(), len(config)), part(layerType, proto.DigestOf(layer).String(), len(layer))))
	}
	const oci, docker = "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"
	ociImage := image(oci, "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar")
	dockerImage := image(docker, "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
	artifact := image(oci, "application/vnd.example.thing+json", "application/vnd.example.data")
	b.put("team/app", "", oci, ociImage)
	b.put("team/app", "", docker, dockerImage)
	list := func(mediaType, child string, manifest []byte) []byte {
		return []byte(fmt.Sprintf(`{"mediaType":%q,"schemaVersion":2, "manifests":[{"mediaType":%q,"size":%d,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`,
			mediaType, child, len(manifest), proto.DigestOf(manifest)))
	}
	const index, dockerList = "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"
	manifests := []struct {
		tag, mediaType string
		content        []byte
	}{
		{"oci", oci, ociImage}, {"docker", docker, dockerImage}, {"artifact", oci, artifact},
		{"index", index, list(index, oci, ociImage)}, {"list", dockerList, list(dockerList, docker, dockerImage)},
	}
	for _, m := range manifests {
		b.put("team/app", m.tag, m.mediaType, m.content)
	}
	blobs := map[string][]byte{proto.DigestOf(config).String(): config, proto.DigestOf(layer).String(): layer, strong: layer}
	for _, state := range []string{"cold", "warm", "origin down"} {
		if state == "origin down" {
			b.SetFaults(registry.Faults{ManifestStatus: 500, Status: 500})
		}
		for _, m := range manifests {
			for _, reference := range []string{m.tag, proto.DigestOf(m.content).String()} {
				for _, method := range []string{"HEAD", "GET"} {
					a := b.want(b.ask(method, "team/app/manifests/"+reference, "Accept-Encoding", "gzip, zstd"), 200)
					if method == "GET" && !bytes.Equal(a.body, m.content) {
						t.Errorf("%s: %s of %s is %q", state, method, m.tag, a.body)
					}
					h := a.header
					if h.Get("Content-Type") != m.mediaType || h.Get("Docker-Content-Digest") != proto.DigestOf(m.content).String() ||
						h.Get("Content-Encoding") != "" || h.Get("Content-Length") != fmt.Sprint(len(m.content)) {
						t.Errorf("%s: %s of %s has headers %v", state, method, m.tag, h)
					}
				}
			}
		}
		for d, content := range blobs {
			if a := b.want(b.ask("GET", "team/app/blobs/"+d, "Accept-Encoding", "gzip, zstd"), 200); !bytes.Equal(a.body, content) || a.header.Get("Docker-Content-Digest") != d {
				t.Errorf("%s: blob %s is %q, %v", state, d, a.body, a.header)
			}
		}
	}
}

func TestTagListHasPagesAndOutlivesTheOrigin(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for i := range 5 {
		b.push("team/app", fmt.Sprintf("v%d", i), 1, 1000)
	}
	walk := func() (tags []string, stale int) {
		path := "team/app/tags/list?n=2"
		for path != "" {
			a := b.want(b.ask("GET", path), 200)
			var page struct{ Tags []string }
			if err := json.Unmarshal(a.body, &page); err != nil {
				t.Fatal(err)
			}
			tags = append(tags, page.Tags...)
			if a.header.Get("Warning") != "" {
				stale++
			}
			path = ""
			if link := a.header.Get("Link"); link != "" {
				u, err := url.Parse(link[1:strings.Index(link, ">")])
				if err != nil {
					t.Fatal(err)
				}
				path = strings.TrimPrefix(u.Path, "/v2/") + "?" + u.RawQuery
			}
		}
		return tags, stale
	}
	want := "[v0 v1 v2 v3 v4]"
	if got, stale := walk(); fmt.Sprint(got) != want || stale != 0 {
		t.Errorf("tags are %v, %d pages stale", got, stale)
	}
	b.SetFaults(registry.Faults{Down: true})
	if got, stale := walk(); fmt.Sprint(got) != want || stale != 3 {
		t.Errorf("with the origin down tags are %v, %d of 3 pages with a Warning", got, stale)
	}
}

// TestReferrersByFallbackTag is for origins without the API, as this one is.
func TestReferrersByFallbackTag(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	img := b.push("team/app", "v1", 1, 1000)
	subject := img.Manifest.Digest
	none := b.want(b.ask("GET", "team/app/referrers/"+subject.String()), 200)
	var index struct {
		MediaType string
		Manifests []struct{ Digest string }
	}
	if err := json.Unmarshal(none.body, &index); err != nil || len(index.Manifests) != 0 {
		t.Fatalf("without referrers the answer is %s, %v", none.body, err)
	}
	const mediaType = "application/vnd.oci.image.index.v1+json"
	content := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.example.sbom","size":%d,"digest":%q}]}`,
		mediaType, img.Manifest.Size, subject))
	b.put("team/app", strings.Replace(subject.String(), ":", "-", 1), mediaType, content)
	for _, down := range []bool{false, true} {
		if down {
			b.SetFaults(registry.Faults{Down: true})
		}
		waitFor(t, "the referrers", func() bool {
			a := b.want(b.ask("GET", "team/app/referrers/"+subject.String()), 200)
			return bytes.Equal(a.body, content) && a.header.Get("Content-Type") == mediaType && (a.header.Get("Warning") != "") == down
		})
	}
}

// TestManifestCommitsToItsBlobs: once a manifest was served, its blobs come
// without a request, in its order, and only those of the platform asked for.
func TestManifestCommitsToItsBlobs(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	amd := b.push("team/app", "amd64", 1, 400<<10, 500<<10, 600<<10)
	arm := b.push("team/app", "arm64", 2, 400<<10)
	const mediaType = "application/vnd.oci.image.index.v1+json"
	entry := func(img registry.Image, arch string) string {
		return fmt.Sprintf(`{"mediaType":%q,"size":%d,"digest":%q,"platform":{"os":"linux","architecture":%q}}`, img.MediaType, img.Manifest.Size, img.Manifest.Digest, arch)
	}
	b.put("team/app", "v1", mediaType, []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, mediaType, entry(amd, "amd64"), entry(arm, "arm64"))))
	b.Reset()
	b.want(b.ask("GET", "team/app/manifests/v1"), 200)
	b.want(b.ask("GET", "team/app/manifests/"+amd.Manifest.Digest.String()), 200)
	for _, blob := range amd.Blobs() {
		waitFor(t, "a blob that nobody asked for", func() bool { least, _ := b.Copies(blob.Digest); return least == 1 })
	}
	waitFor(t, "the pulls to end", func() bool { return len(b.node.Status().Pulls) == 0 })
	b.SetFaults(registry.Faults{Status: 404, ManifestStatus: 404}) // it was deleted meanwhile
	for _, blob := range amd.Blobs() {
		b.blob("team/app", blob)
	}
	if _, most := b.Copies(arm.Layers[0].Digest); most != 0 {
		t.Error("a layer of another platform was fetched")
	}
}
