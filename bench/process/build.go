package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Shoal returns the path of the binary to test: what the variable BENCH_SHOAL
// names, or else one that it builds into dir, as the Makefile builds what is
// shipped. That takes seconds, and works inside the repository only.
func Shoal(dir string) (string, error) {
	if path := os.Getenv("BENCH_SHOAL"); path != "" {
		return path, nil
	}
	path := filepath.Join(dir, "shoal")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/shoal-project/shoal/cmd/shoal")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shoal: %w\n%s", err, out)
	}
	return path, nil
}
