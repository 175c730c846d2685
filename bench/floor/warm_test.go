package floor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// BenchmarkWarm reads a blob of 256 MiB that a node has whole, and in turn the
// same file from nginx. It reports our throughput over nginx's (x-nginx, 1 and
// more is good), and our CPU time over its own (cpu-x-nginx).
func BenchmarkWarm(b *testing.B) {
	const size = 256 << 20
	origin := startOrigin(b)
	img := push(b, origin, "bench/warm", 1, size)
	n := startNode(b, "daemon", "warm", origin, "")
	converge(b, n)
	blob, c := img.Layers[0], newClient(b)
	ours := n.blobURL(img.Repository, blob.Digest)
	c.get(b, ours, size)
	web, theirs := startNginx(b, blobFile(b, n, blob.Digest))
	c.get(b, ours, size)
	c.get(b, theirs, size)

	var us, them []time.Duration
	usCPU, themCPU := cpuTime(b, n.PID()), cpuTime(b, web.PID())
	b.SetBytes(size)
	for b.Loop() {
		turns(b, len(us),
			func() { us = append(us, c.get(b, ours, size)) },
			func() { them = append(them, c.get(b, theirs, size)) })
	}
	usCPU, themCPU = cpuTime(b, n.PID())-usCPU, cpuTime(b, web.PID())-themCPU
	b.ReportMetric(median(them)/median(us), "x-nginx")
	b.ReportMetric(size/1e6/median(them), "nginx-MB/s")
	if themCPU > 0 {
		b.ReportMetric(float64(usCPU)/float64(themCPU), "cpu-x-nginx")
	}
}

// turns calls ours, and the floor with the timer stopped, one after the other,
// and in the other order in every second round.
func turns(b *testing.B, round int, ours, floor func()) {
	untimed := func() {
		b.StopTimer()
		floor()
		b.StartTimer()
	}
	if round%2 == 1 {
		untimed()
		ours()
		return
	}
	ours()
	untimed()
}

// blobFile returns the file in which a node has a blob, once it is there: the
// node serves a blob before it has put it into its place.
func blobFile(b *testing.B, n *node, d proto.Digest) string {
	b.Helper()
	name := d.String()[len("sha256:"):]
	file := filepath.Join(n.data, "blobs", "sha256", name[:2], name)
	for range 1000 {
		if _, err := os.Stat(file); err == nil {
			return file
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatalf("%s is not there", file)
	return ""
}

// cpuTime returns the CPU time that a process has taken, to 10 ms; 0 where
// there is no /proc.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc(5): the name is in parentheses and may have blanks; utime and stime
	// are the fields 14 and 15, in hundredths of a second on all Linuxes.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[11:13] {
		t, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += t
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
