//go:build e2e

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
)

// startDocker starts a dockerd with everything of its own, a containerd
// included, and returns the docker command for it.
func startDocker(t *testing.T, dir, mirror string) func(t *testing.T, args ...string) string {
	t.Helper()
	c := startContainerd(t, dir, "containerd", mirror)
	root := filepath.Join(dir, "docker")
	socket := "unix://" + filepath.Join(root, "docker.sock")
	config := filepath.Join(root, "daemon.json") // not the machine's
	write(t, config, "{}\n")
	d := start(t, process.Options{
		Name: "dockerd", Path: "dockerd", Args: []string{
			"--config-file", config, "--data-root", filepath.Join(root, "data"), "--exec-root", filepath.Join(root, "exec"),
			"--pidfile", filepath.Join(root, "pid"), "--host", socket, "--containerd", c.socket,
			"--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
			"--registry-mirror", "http://" + mirror,
		},
	})
	line(t, d, "API listen on")
	return func(t *testing.T, args ...string) string {
		t.Helper()
		return run(t, []string{"DOCKER_CONFIG=" + root}, "docker", append([]string{"--host", socket}, args...)...)
	}
}
