package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/process"
)

// TestTimerSlack: each thread of a daemon has the slack, those of the runtime
// that are older than main included, in the process that was started.
func TestTimerSlack(t *testing.T) {
	bin, err := process.Shoal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(process.Options{Name: "daemon", Path: bin, Args: []string{
		"daemon", "--data", t.TempDir(), "--drain", "0s", "--mirror.listen", "127.0.0.1:0", "--admin.listen", "127.0.0.1:0",
		"--peer.listen", "127.0.0.1:0", "--gossip.listen", "127.0.0.1:0",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := p.Line(ctx, func(l string) bool { return strings.Contains(l, "shoal is up") }); err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.PID()))
	if err != nil || len(threads) < 3 {
		t.Fatalf("threads %v, %v", threads, err)
	}
	for _, thread := range threads {
		b, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
		if os.IsNotExist(err) {
			continue // it has ended
		}
		if os.IsPermission(err) {
			t.Skip("another process's timer slack is root's to read: run this test as root")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(b)); got != fmt.Sprint(timerSlack.Nanoseconds()) {
			t.Errorf("thread %s has a slack of %s ns", filepath.Base(thread), got)
		}
	}
	p.Terminate()
	<-p.Done()
}
