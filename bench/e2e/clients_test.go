//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/proto"
)

// clients are the programs that TestClients runs.
var clients = []struct {
	name     string
	upstream string // that images are named with
	docker   bool   // the image has Docker's media types
	// start makes the client ready to pull an image through a node. What it
	// returns pulls the image, with nothing of it there before, checks what
	// came, and removes it.
	start func(t *testing.T, dir string, n *process.Node, img image) (pull func(t *testing.T))
}{
	{"containerd 1.6", upstream, false, pullContainerd},
	{"containerd 2", upstream, false, pullContainerd2},
	{"containerd 2 with ranges in parallel", upstream, true, pullRanges},
	{"podman", upstream, false, pullPodman},
	{"skopeo", upstream, false, pullSkopeo},
	{"crane", upstream, false, pullCrane},
	{"regctl", upstream, false, pullRegctl},
	{"dockerd", "docker.io", true, pullDocker},
}

// TestClients: each client pulls an image through a node that has nothing of it,
// and it leaves the registry once; pulls it again, and nothing leaves; and once
// more when the registry is gone and the node's answer for the tag has expired.
func TestClients(t *testing.T) {
	for _, c := range clients {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			dir := workDir(t)
			o := startOrigin(t, dir)
			img := o.push(t, "team/app", c.docker, 24*mib, 12*mib, 1000)
			n := startAlone(t, dir, o, c.upstream, "--tags.ttl", "100ms", "--tags.revalidate", "1ms")
			pull := c.start(t, dir, n, img)

			pull(t)
			img.checkOnce(t, o)

			before := o.total()
			pull(t)
			if got := o.total() - before; got != 0 {
				t.Errorf("the node had the image, and %d bytes left the registry", got)
			}

			o.stop()
			url := fmt.Sprintf("http://%s/v2/%s/manifests/v1?ns=%s", n.Mirror, img.repository, c.upstream)
			waitFor(t, "the tag to be stale", func() bool { return stale(t, url) })
			pull(t)
		})
	}
}

// stale reports whether a manifest comes with the warning that the registry may
// have another one by now (RFC 9111, section 5.5, warn-code 110).
func stale(t *testing.T, url string) bool {
	t.Helper()
	resp, err := http.Head(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("HEAD %s: %s", url, resp.Status)
	}
	return strings.HasPrefix(resp.Header.Get("Warning"), "110 ")
}

func pullContainerd(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	c := startContainerd(t, dir, "containerd", n.Mirror)
	return func(t *testing.T) {
		if err := c.pull(t, img); err != nil {
			t.Fatal(err)
		}
		c.runContainer(t, img)
		c.forget(t, img)
	}
}

func pullContainerd2(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	return pullMounted(startContainerd2(t, dir, "containerd", n.Mirror, 0), img)
}

// pullRanges fetches each layer with several requests at once. That it does is
// seen by a proxy between it and the node.
func pullRanges(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.Mirror})
	proxy.FlushInterval = -1
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) } // a client that left
	var tails atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if at := r.Header.Get("Range"); at != "" && at != "bytes=0-" {
			tails.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	pull := pullMounted(startContainerd2(t, dir, "containerd", strings.TrimPrefix(srv.URL, "http://"), 2*mib), img)
	return func(t *testing.T) {
		before := tails.Load()
		pull(t)
		if got, want := tails.Load()-before, img.size/(4*mib); got < want {
			t.Errorf("%d requests for the rest of a layer, want %d at least: was anything fetched in parallel?", got, want)
		}
	}
}

func pullMounted(c *containerd, img image) func(*testing.T) {
	return func(t *testing.T) {
		if err := c.pull(t, img); err != nil {
			t.Fatal(err)
		}
		c.checkMounted(t, img)
		c.forget(t, img)
	}
}

func pullPodman(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	p := newPodman(t, dir, registriesConf(t, dir, n.Mirror))
	return func(t *testing.T) {
		p.run(t, "pull", img.name())
		p.checkContainer(t, img, img.name())
		p.run(t, "rmi", "--force", img.name())
	}
}

func pullSkopeo(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	conf := registriesConf(t, dir, n.Mirror)
	copied := filepath.Join(dir, "copied")
	return func(t *testing.T) {
		run(t, nil, "skopeo", "--insecure-policy", "--registries-conf", conf, "copy", "docker://"+img.name(), "dir:"+copied)
		img.checkDir(t, copied)
		remove(t, copied)
	}
}

// pullCrane pulls from the mirror as if it were the registry, with the
// upstream's name before the repository's.
func pullCrane(_ *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	file := filepath.Join(dir, "app.tar")
	return func(t *testing.T) {
		run(t, nil, "crane", "pull", "--insecure", "--platform", "linux/"+runtime.GOARCH, n.Mirror+"/"+img.name(), file)
		run(t, nil, "crane", "validate", "--tarball", file)
		img.checkTarball(t, file)
		remove(t, file)
	}
}

// pullRegctl pulls likewise, into an OCI layout.
func pullRegctl(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	layout := filepath.Join(dir, "layout")
	env := []string{"HOME=" + dir} // not the user's configuration
	return func(t *testing.T) {
		run(t, env, "regctl", "--host", "reg="+n.Mirror+",tls=disabled", "image", "copy", "--platform", "linux/"+runtime.GOARCH,
			n.Mirror+"/"+img.name(), "ocidir://"+layout+":v1")
		img.checkLayout(t, layout)
		remove(t, layout)
	}
}

func pullDocker(t *testing.T, dir string, n *process.Node, img image) func(*testing.T) {
	docker := startDocker(t, dir, n.Mirror)
	ref := img.repository + ":v1"
	return func(t *testing.T) {
		docker(t, "pull", ref)
		img.checkSums(t, "docker", docker(t, "run", "--rm", "--network", "none", ref))
		docker(t, "rmi", "--force", ref)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// checkLayout checks the blobs of an OCI layout: each is what its name says, and
// all of the image are there.
func (i image) checkLayout(t *testing.T, dir string) {
	t.Helper()
	got := make(map[string]bool)
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		d := proto.DigestOf(data)
		if d.Hex() != filepath.Base(f) {
			t.Errorf("the file %s has the digest %s", f, d)
		}
		got[d.String()] = true
	}
	if !got[i.digest] {
		t.Errorf("the manifest %s is not in the layout", i.digest)
	}
	for _, l := range i.layers {
		if !got[l.Digest.String()] {
			t.Errorf("the layer %s is not in the layout", l.Digest)
		}
	}
}
