//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-project/shoal/bench/process"
)

// startCRI starts Debian's containerd with its CRI plugin, which pulls through a
// mirror, and returns a client of its image service, as a kubelet is one.
func startCRI(t *testing.T, dir, name, mirror string) cri.ImageServiceClient {
	t.Helper()
	dir = filepath.Join(dir, name)
	c := bootContainerd(t, dir, mirror, "", fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %[6]q
  conf_dir = %[6]q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socketIn(dir), filepath.Join(dir, "opt"), filepath.Join(dir, "certs.d"), filepath.Join(dir, "cni")))
	return dialCRI(t, c.socket)
}

// dialCRI returns a client of a containerd's image service.
func dialCRI(t *testing.T, socket string) cri.ImageServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return cri.NewImageServiceClient(conn)
}

// pullCRI pulls an image as a kubelet does, with the credentials of an
// imagePullSecret or none.
func pullCRI(t *testing.T, c cri.ImageServiceClient, img image, auth *cri.AuthConfig) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	_, err := c.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: img.name()}, Auth: auth})
	return err
}

// TestCRI: a kubelet's pull with the right credentials gets a private image
// through the mirror, by a token of the registry's own token server; others do
// not, not even once it is in the cache.
func TestCRI(t *testing.T) {
	dir := workDir(t)
	o := startPrivate(t)
	img := o.push(t, "team/private", false, 8*mib, 1000)
	o.Reset()
	n := o.startPassthrough(t, dir)
	mirror := &door{client: http.DefaultClient, url: "http://" + n.Mirror, query: "?ns=" + upstream}
	c := startCRI(t, dir, "containerd", n.Mirror)
	for name, auth := range map[string]*cri.AuthConfig{
		"nobody":         nil,
		"wrong password": {Username: user, Password: "guess"},
	} {
		if err := pullCRI(t, c, img, auth); err == nil {
			t.Fatalf("%s got the image", name)
		} else if !refusal.MatchString(err.Error()) {
			t.Errorf("%s failed for another reason: %v", name, err)
		}
	}
	mirror.checkStrangers(t, o, img)
	o.checkNothing(t, "for those who may not")
	if err := pullCRI(t, c, img, &cri.AuthConfig{Username: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	o.checkOnce(t, img)
	o.Reset()
	// Another node's kubelet, through the same mirror, which has it all now.
	other := startCRI(t, dir, "containerd-2", n.Mirror)
	mirror.checkStrangers(t, o, img)
	mirror.checkOwner(t, o, img)
	if err := pullCRI(t, other, img, nil); err == nil || !refusal.MatchString(err.Error()) {
		t.Errorf("nobody got the image from the cache, or failed for another reason: %v", err)
	}
	if err := pullCRI(t, other, img, &cri.AuthConfig{Username: user, Password: password}); err != nil {
		t.Errorf("from the cache: %v", err)
	}
	o.checkNothing(t, "although the node has it all")
	images, err := other.ListImages(t.Context(), &cri.ListImagesRequest{})
	if err != nil || len(images.Images) != 1 || images.Images[0].Size == 0 {
		t.Errorf("the runtime has %v, %v", images, err)
	}
}

// TestPodmanOfTheNode: podman sends a mirror no credentials, so a private image
// comes with the operator's, for the repositories that the operator names.
func TestPodmanOfTheNode(t *testing.T) {
	dir := workDir(t)
	o := startPrivate(t)
	img := o.push(t, "team/private", false, 8*mib, 1000)
	second := o.push(t, "team/private/second", false, 1000) // which the operator may have as well
	o.Reset()
	write(t, filepath.Join(dir, "password"), password+"\n")
	config := filepath.Join(dir, "node.yaml")
	write(t, config, fmt.Sprintf(`
data: %s
mirror: {default: %[2]s}
upstreams:
  %[2]s: {url: %q, auth: node, username: %s, passwordFile: %s, allow: [team/private]}
`, filepath.Join(dir, "node"), upstream, o.url, user, filepath.Join(dir, "password")))
	n := startNode(t, process.NodeOptions{Name: "node", Command: "daemon", Args: []string{"--config", config}})
	if err := process.Converge(startup(t), n); err != nil {
		t.Fatal(err)
	}
	p := newPodman(t, dir, registriesConf(t, dir, n.Mirror))
	if _, err := p.try(t, "pull", second.name()); err == nil || !refusal.MatchString(err.Error()) {
		t.Errorf("a repository that is not allowed: %v", err)
	}
	o.checkNothing(t, "for a repository that is not allowed")
	p.run(t, "pull", img.name())
	p.checkContainer(t, img, img.name())
	o.checkOnce(t, img)
}
