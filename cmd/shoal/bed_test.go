package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

// startRegistry starts a registry and returns its URL.
func startRegistry(t *testing.T) string {
	t.Helper()
	reg := registry.New(registry.Options{Dir: t.TempDir()})
	srv := httptest.NewServer(reg)
	t.Cleanup(func() {
		srv.Close()
		reg.Close()
	})
	return srv.URL
}

// startNode starts a daemon in front of a registry, which is fleet.Upstream to
// it.
func startNode(t *testing.T, url string) *fleet.Node {
	t.Helper()
	f, err := fleet.Start(t.Context(), fleet.Options{
		Nodes: 1, Origin: url, Dir: t.TempDir(),
		Configure: func(_ int, c *daemon.Config) { c.Admin.Listen = "127.0.0.1:0" },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	})
	return f.Nodes[0]
}

// pushIndex pushes an index with an image for each platform and returns it.
func pushIndex(ctx context.Context, registry, repo, tag string, platforms ...string) (v1.ImageIndex, error) {
	index := v1.ImageIndex(empty.Index)
	for _, text := range platforms {
		p, err := v1.ParsePlatform(text)
		if err != nil {
			return nil, err
		}
		img, err := random.Image(100<<10, 2)
		if err != nil {
			return nil, err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		config = config.DeepCopy()
		config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
		if img, err = mutate.ConfigFile(img, config); err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	to, err := name.NewTag(strings.TrimPrefix(registry, "http://")+"/"+repo+":"+tag, name.Insecure)
	if err != nil {
		return nil, err
	}
	return index, remote.WriteIndex(to, index, remote.WithContext(ctx))
}

// pushRaw pushes a manifest as it is, and the blobs that it names.
func pushRaw(t *testing.T, registry, repo, tag, mediaType, manifest string, blobs ...[2]string) {
	t.Helper()
	send := func(method, at, contentType, body string, want int) string {
		req, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want {
			t.Fatalf("%s %s: %s %s", method, at, resp.Status, said)
		}
		return resp.Header.Get("Location")
	}
	for _, b := range blobs {
		at := send(http.MethodPost, registry+"/v2/"+repo+"/blobs/uploads/", "", "", http.StatusAccepted)
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set("digest", b[0])
		u.RawQuery = q.Encode()
		send(http.MethodPut, u.String(), "application/octet-stream", b[1], http.StatusCreated)
	}
	send(http.MethodPut, registry+"/v2/"+repo+"/manifests/"+tag, mediaType, manifest, http.StatusCreated)
}

// artifact returns an OCI manifest of an artifact with one layer, which is named
// by its SHA-512, and the blobs that it names.
func artifact(content string) (manifest string, blobs [][2]string) {
	sum := sha512.Sum512([]byte(content))
	digest := "sha512:" + hex.EncodeToString(sum[:])
	config := proto.DigestOf([]byte("{}")).String()
	manifest = fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.example",`+
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/vnd.example.thing","digest":%q,"size":%d}]}`, config, digest, len(content))
	return manifest, [][2]string{{config, "{}"}, {digest, content}}
}

// quiet returns a meter that shows nothing.
func quiet() *meter { return &meter{w: io.Discard, rows: make(map[string]*row)} }

// A tap is a proxy in front of a mirror that counts and cuts.
type tap struct {
	addr string // host:port

	mu    sync.Mutex     // protects the fields below
	asked map[string]int // by the last part of the path
	cut   int64          // bytes after which the body of a blob is cut; 0: never
	lie   string         // digest of the blob that has wrong bytes
}

func startTap(t *testing.T, mirror string) *tap {
	t.Helper()
	p := &tap{asked: make(map[string]int)}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: mirror})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		digest := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		p.mu.Lock()
		p.asked[digest]++
		c := &tapped{ResponseWriter: w, left: -1, lie: p.lie == digest}
		if p.cut > 0 && strings.Contains(r.URL.Path, "/blobs/") {
			c.left = p.cut
		}
		p.mu.Unlock()
		proxy.ServeHTTP(c, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.Close)
	p.addr = srv.Listener.Addr().String()
	return p
}

// count returns how often what has this digest, or anything, was asked for, and
// forgets it.
func (p *tap) count(digest string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, times := range p.asked {
		if digest == "" || d == digest {
			n += times
		}
	}
	clear(p.asked)
	return n
}

func (p *tap) set(cut int64, lie string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.lie = cut, lie
}

type tapped struct {
	http.ResponseWriter
	left int64 // -1: all
	lie  bool
}

func (c *tapped) Write(p []byte) (int, error) {
	if c.lie {
		p = bytes.Repeat([]byte("?"), len(p))
	}
	if c.left < 0 {
		return c.ResponseWriter.Write(p)
	}
	n, err := c.ResponseWriter.Write(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == nil && n < len(p) {
		_ = http.NewResponseController(c.ResponseWriter).Flush() // the cut may lose it
		panic(http.ErrAbortHandler)
	}
	return n, err
}
