//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// configure has shoal write a runtime's configuration, for images of registries.
func configure(t *testing.T, runtime, file, mirror, registries string, more ...string) string {
	t.Helper()
	return run(t, nil, shoal, append([]string{"configure", runtime, "--file", file, "--mirror", "http://" + mirror, "--registries", registries}, more...)...)
}

// unconfigure has it undone, and checks that all is as it was.
func unconfigure(t *testing.T, runtime, file, was string) {
	t.Helper()
	run(t, nil, shoal, "configure", runtime, "--file", file, "--undo")
	if data, err := os.ReadFile(file); was == "" && !os.IsNotExist(err) || was != "" && string(data) != was {
		t.Errorf("after undo %s has\n%s%v", file, data, err)
	}
}

// TestConfigureContainerd: the CRI of a containerd that has what a person wrote
// and what shoal configure added pulls through the node, and after an undo it
// does not.
func TestConfigureContainerd(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 4*mib, 1000)
	n := startAlone(t, dir, o, upstream)
	home := filepath.Join(dir, "containerd")
	file := filepath.Join(home, "config.toml")
	was := fmt.Sprintf(`# mine
version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    stream_server_port = "0" # any
    [plugins."io.containerd.grpc.v1.cri".cni]
      conf_dir = %q
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q`, filepath.Join(home, "root"), filepath.Join(home, "state"), home, socketIn(home), filepath.Join(home, "opt"))
	write(t, file, was)
	boot := func() *process.Process {
		p := start(t, process.Options{Name: "containerd", Path: "containerd", Args: []string{"--config", file}})
		line(t, p, "containerd successfully booted")
		return p
	}

	p := boot()
	if err := pullCRI(t, dialCRI(t, socketIn(home)), img, nil); err == nil {
		t.Fatal("containerd pulls without a mirror, so the test shows nothing")
	}
	if out := configure(t, "containerd", file, n.Mirror, upstream); !strings.Contains(out, "systemctl restart containerd") {
		t.Errorf("no word of a restart: %s", out)
	}
	dump := run(t, nil, "containerd", "--config", file, "config", "dump")
	if want := fmt.Sprintf("config_path = %q", filepath.Join(home, "certs.d")); !strings.Contains(dump, want) || !strings.Contains(dump, `stream_server_port = "0"`) {
		t.Errorf("containerd reads\n%s\nwithout %s", dump, want)
	}
	if err := p.Stop(grace); err != nil {
		t.Fatal(err)
	}
	p = boot()
	if err := pullCRI(t, dialCRI(t, socketIn(home)), img, nil); err != nil {
		t.Fatal(err)
	}
	img.checkOnce(t, o)

	// hosts.toml is read for each pull: an undo needs no restart to take effect.
	other := o.push(t, "team/other", false, 1000)
	unconfigure(t, "containerd", file, was)
	if err := pullCRI(t, dialCRI(t, socketIn(home)), other, nil); err == nil {
		t.Error("containerd still uses the mirror after the undo")
	}
	if err := p.Stop(grace); err != nil {
		t.Fatal(err)
	}
}

// TestConfigureContainerd2: containerd 2 takes what is written for it. Its CRI is
// not in the program that tests use, so what it reads is seen in its dump, and
// that hosts.toml is right by a pull with ctr.
func TestConfigureContainerd2(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 4*mib, 1000)
	n := startAlone(t, dir, o, upstream)
	c := startContainerd2(t, dir, "containerd", "127.0.0.1:1", 0) // its own hosts.toml leads nowhere
	for version, table := range map[string]string{
		"2": `plugins."io.containerd.grpc.v1.cri".registry`, "3": `plugins."io.containerd.cri.v1.images".registry`, "4": `plugins."io.containerd.cri.v1.images".registry`,
	} {
		home := filepath.Join(dir, "version-"+version)
		file := filepath.Join(home, "config.toml")
		was := "version = " + version + "\n[debug]\n  level = 'warn'\n"
		write(t, file, was)
		configure(t, "containerd", file, n.Mirror, upstream)
		if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "["+table+"]") {
			t.Errorf("%s%v", data, err)
		}
		dump := run(t, nil, filepath.Join(containerd2Dir(), "containerd"), "--config", file, "config", "dump")
		if want := fmt.Sprintf("config_path = '%s'", filepath.Join(home, "certs.d")); !strings.Contains(dump, want) {
			t.Errorf("containerd 2 reads of a file of version %s\n%s\nwithout %s", version, dump, want)
		}
		if _, err := c.ctr(t, "images", "pull", "--hosts-dir", filepath.Join(home, "certs.d"), img.name()); err != nil {
			t.Error(err)
		}
		c.forget(t, img)
		unconfigure(t, "containerd", file, was)
	}
	img.checkOnce(t, o)
}

// TestConfigureDocker: dockerd reads what is written at a reload, and likewise
// that it has gone.
func TestConfigureDocker(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", true, 4*mib, 1000)
	n := startAlone(t, dir, o, "docker.io")
	c := startContainerd(t, dir, "containerd", "127.0.0.1:1")
	root := filepath.Join(dir, "docker")
	socket := "unix://" + filepath.Join(root, "docker.sock")
	file := filepath.Join(root, "daemon.json")
	was := "{\n\t\"debug\" : false, \"registry-mirrors\": [ \"http://127.0.0.1:1\" ] }"
	write(t, file, was)
	d := start(t, process.Options{Name: "dockerd", Path: "dockerd", Args: []string{
		"--config-file", file, "--data-root", filepath.Join(root, "data"), "--exec-root", filepath.Join(root, "exec"),
		"--pidfile", filepath.Join(root, "pid"), "--host", socket, "--containerd", c.socket,
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
	}})
	line(t, d, "API listen on")
	docker := func(args ...string) string {
		return run(t, []string{"DOCKER_CONFIG=" + root}, "docker", append([]string{"--host", socket}, args...)...)
	}
	mirrors := func() string {
		return strings.TrimSpace(docker("info", "--format", "{{json .RegistryConfig.Mirrors}}"))
	}
	reload := func(want string) {
		t.Helper()
		if err := d.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "dockerd to use "+want, func() bool { return mirrors() == want })
	}
	before := mirrors()
	if out := configure(t, "docker", file, n.Mirror, "docker.io"); !strings.Contains(out, "systemctl reload docker") {
		t.Errorf("no word of a reload: %s", out)
	}
	reload(fmt.Sprintf(`["http://%s/","http://127.0.0.1:1/"]`, n.Mirror))
	docker("pull", img.repository+":v1")
	img.checkOnce(t, o)
	unconfigure(t, "docker", file, was)
	reload(before)
}

// TestConfigurePodman: podman and skopeo pull through the node by the drop-in,
// which does not lose the mirror that somebody chose before.
func TestConfigurePodman(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 4*mib, 1000)
	n := startAlone(t, dir, o, upstream)
	conf := filepath.Join(dir, ".config", "containers", "registries.conf")
	write(t, conf, fmt.Sprintf("[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = \"127.0.0.1:1/old\"\ninsecure = true\n", upstream))
	file := filepath.Join(filepath.Dir(conf), "registries.conf.d", "zz-shoal.conf")
	p := newPodman(t, dir, conf)
	p.env = append(p.env, "HOME="+dir)
	if _, err := p.try(t, "pull", img.name()); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Fatalf("podman does not use the mirror that is there: %v", err)
	}
	if out := configure(t, "podman", file, n.Mirror, upstream+",registry.e2e:5000"); !strings.Contains(out, "registry.e2e:5000: a mirror for a registry with a port") {
		t.Errorf("no word of the port: %s", out)
	}
	p.run(t, "pull", img.name())
	img.checkOnce(t, o)
	other := upstream + "/team/absent:v1"
	if _, err := p.try(t, "pull", other); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("the mirror of before is not asked any more: %v", err)
	}
	unconfigure(t, "podman", file, "")
	if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the folder of the drop-in is still there: %v", err)
	}
}
