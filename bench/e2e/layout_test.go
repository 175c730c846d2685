//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// TestLayout carries images between nodes in OCI image layouts: skopeo and
// crane read what Shoal exports, and Shoal imports what they write. The node
// that imports is offline and has never seen the registry.
func TestLayout(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 8*mib, 1000)
	docker := o.push(t, "team/docker", true, 1*mib)
	n := startAlone(t, dir, o, upstream)

	out := filepath.Join(dir, "out")
	run(t, nil, shoal, "cache", "export", "--admin", n.Admin, "--images", img.name()+","+docker.name(), "-o", out)
	// skopeo checks each blob that it copies, and takes the image of this
	// machine's platform. Of a layout it reads OCI's media types only.
	copied := filepath.Join(dir, "copied")
	run(t, nil, "skopeo", "--insecure-policy", "copy", "oci:"+out+":"+img.name(), "dir:"+copied)
	img.checkDir(t, copied)

	// ctr reads the layout as a tar file, under its whole names.
	file := filepath.Join(dir, "out.tar")
	run(t, nil, "tar", "-C", out, "-cf", file, ".")
	c := startContainerd(t, dir, "containerd", n.Mirror)
	if said, err := c.ctr(t, "images", "import", file); err != nil {
		t.Errorf("ctr images import: %v\n%s", err, said)
	}
	if said, err := c.ctr(t, "images", "ls", "-q"); err != nil || !strings.Contains(said, img.name()) || !strings.Contains(said, docker.name()) {
		t.Errorf("ctr has %s, %v", said, err)
	}

	// crane pushes a layout with one image.
	single := filepath.Join(dir, "single")
	run(t, nil, shoal, "cache", "export", "--admin", n.Admin, "--platform", "linux/"+runtime.GOARCH, "--images", img.name(), "-o", single)
	to := o.registry + "/team/pushed:v1"
	run(t, nil, "crane", "push", "--insecure", single, to)
	if got := strings.TrimSpace(run(t, nil, "crane", "digest", "--insecure", to)); got != img.digest {
		t.Errorf("crane pushed %s, want %s", got, img.digest)
	}
	run(t, nil, "crane", "validate", "--insecure", "--remote", to)
	list := filepath.Join(dir, "list")
	run(t, nil, shoal, "cache", "export", "--mirror", n.Mirror, "--images", docker.name(), "-o", list)
	run(t, nil, "crane", "push", "--insecure", list, o.registry+"/team/list:v1")
	want := run(t, nil, "crane", "digest", "--insecure", o.registry+"/team/docker:v1")
	if got := run(t, nil, "crane", "digest", "--insecure", o.registry+"/team/list:v1"); got != want {
		t.Errorf("crane pushed %s, want %s", got, want)
	}

	// What skopeo and crane write.
	bySkopeo, byCrane := filepath.Join(dir, "by-skopeo"), filepath.Join(dir, "by-crane")
	run(t, nil, "skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false",
		"docker://"+o.registry+"/team/app:v1", "oci:"+bySkopeo+":v2")
	run(t, nil, "crane", "pull", "--insecure", "--format", "oci", o.registry+"/team/app:v1", byCrane)

	config := filepath.Join(dir, "away.yaml")
	write(t, config, fmt.Sprintf("data: %s\noffline: true\nmirror: {default: %[2]s}\nupstreams: {%[2]s: {url: \"http://127.0.0.1:1\"}}\n", filepath.Join(dir, "away"), upstream))
	a := startNode(t, process.NodeOptions{Name: "away", Command: "daemon", Args: []string{"--config", config}})
	run(t, nil, shoal, "cache", "import", "--admin", a.Admin, out)
	run(t, nil, shoal, "cache", "import", "--admin", a.Admin, "--as", upstream+"/team/skopeo", bySkopeo)
	run(t, nil, shoal, "cache", "import", "--admin", a.Admin, "--as", upstream+"/team/crane:v3", byCrane)
	conf := registriesConf(t, dir, a.Mirror)
	for i, name := range []string{img.name(), upstream + "/team/skopeo:v2", upstream + "/team/crane:v3"} {
		copied := filepath.Join(dir, "away-"+string(rune('a'+i)))
		run(t, nil, "skopeo", "--insecure-policy", "--registries-conf", conf, "copy", "docker://"+name, "dir:"+copied)
		img.checkDir(t, copied)
	}
	if out, err := try(t, nil, "crane", "manifest", "--insecure", a.Mirror+"/"+upstream+"/team/app:v9"); err == nil || !strings.Contains(err.Error(), "offline") {
		t.Errorf("crane asked an offline node for an image that is not there and got %q, %v", out, err)
	}

	// A layout that has been damaged on its way is refused.
	layer := img.layers[1].Digest
	if err := os.Truncate(filepath.Join(out, "blobs", layer.Algorithm, layer.Hex), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, nil, shoal, "cache", "import", "--admin", a.Admin, out); err == nil || !strings.Contains(err.Error(), "has 10 bytes instead of") {
		t.Errorf("a damaged layout: %v", err)
	}
}
