package keep_test

import (
	"flag"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMetricNames compares the metrics that a node has after a bit of
// everything with a list: dashboards and alerts go by their names.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *daemon.Config) { c.Tags.TTL, c.Tags.Revalidate = 0, 0 })
	img := b.push("team/app", "v1", 1, 1<<20)
	b.SetFaults(registry.Faults{RateLimit: "100;w=21600 76;w=21600"})
	b.pull(img)
	b.pull(img)
	b.want(b.ask("GET", "team/app/tags/list"), 200)
	b.want(b.ask("GET", "team/app/manifests/missing"), 404)
	if _, err := b.admin().Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.SetFaults(registry.Faults{ManifestStatus: 429, RetryAfter: "60"})
	b.pull(img)

	resp, err := b.client.Get("http://" + b.node.AdminAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	sample := regexp.MustCompile(`^(shoal_[a-z_]+)(?:\{(.*)\})? `)
	label := regexp.MustCompile(`([a-z_]+)="`)
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if kind, ok := strings.CutPrefix(line, "# TYPE shoal_"); ok {
			seen["shoal_"+strings.TrimSpace(kind)] = true
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		var labels []string
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				labels = append(labels, l[1])
			}
		}
		name := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if short := strings.TrimSuffix(name, suffix); short != name && seen[short+" histogram"] {
				name = short
			}
		}
		if len(labels) > 0 {
			seen[name+"{"+strings.Join(labels, ",")+"}"] = true
		}
	}
	got := strings.Join(slices.Sorted(maps.Keys(seen)), "\n") + "\n"
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the metrics are not those of %s; if that is meant, run the test with -update:\n%s", golden, got)
	}
}
