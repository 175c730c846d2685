package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// TestMetricNames compares the names, types, labels and texts of all metrics of
// this package with testdata/metrics.golden: dashboards and alerts go by them.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	m.requests.WithLabelValues("u", "k", "s")
	m.bytes.WithLabelValues("u", "s")
	m.firstByte.WithLabelValues("k", "s")
	m.pulls.WithLabelValues("s")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, f := range families {
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		fmt.Fprintf(&got, "%s{%s} %s\n    %s\n", f.GetName(), strings.Join(labels, ","), strings.ToLower(f.GetType().String()), f.GetHelp())
		for _, b := range f.Metric[0].GetHistogram().GetBucket() {
			fmt.Fprintf(&got, " %g", b.GetUpperBound())
		}
		if f.Metric[0].GetHistogram() != nil {
			fmt.Fprintln(&got)
		}
	}
	golden := filepath.Join("testdata", "metrics.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("metrics have changed (go test -update writes %s):\n%s", golden, got.Bytes())
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{rules: []policy.Rule{policy.AllowRepositories(upstream, []string{"team/*"})}})
	pushed := b.push(t, "team/app", "1", mib)
	layer := pushed.Layers[0]
	b.get(t, "/v2/")
	b.get(t, manifestPath("team/app", "1"))
	b.get(t, manifestPath("team/app", "none"))
	b.get(t, manifestPath("private/app", "1"))
	b.ask(t, http.MethodHead, blobPath("team/app", layer.Digest))
	b.get(t, blobPath("team/app", layer.Digest))
	whole(t, b, layer)
	b.get(t, blobPath("team/app", layer.Digest), "Range: bytes=0-99")
	b.get(t, "/v2/team/app/tags/list?ns="+upstream)
	b.get(t, "/v2/team/app/tags/list?ns=docker.io")
	b.get(t, "/elsewhere")
	b.down()
	b.get(t, manifestPath("team/app", "none"))
	b.get(t, "/v2/team/app/tags/list?ns="+upstream)
	list := len(`{"name":"team/app","tags":["1"]}` + "\n")
	want := fmt.Sprintf(`
# HELP shoal_bytes_total Bytes of content sent to container runtimes, by upstream and where they came from: hit (whole on disk), peer and origin (still arriving, most of it from there), through (from the origin, without room to keep it).
# TYPE shoal_bytes_total counter
shoal_bytes_total{source="hit",upstream="registry.test"} %d
shoal_bytes_total{source="origin",upstream="other"} %d
shoal_bytes_total{source="origin",upstream="registry.test"} %d
# HELP shoal_requests_total Requests of container runtimes, by upstream, what was asked for, and where the answer came from (hit, peer, origin, through: without room to keep it; stale) or why there was none (negative, denied, error, gone: the client; own: passed on unread by the proxy, with the client's own credentials; none: nothing to answer with).
# TYPE shoal_requests_total counter
shoal_requests_total{kind="blob",source="hit",upstream="registry.test"} 1
shoal_requests_total{kind="blob",source="origin",upstream="registry.test"} 2
shoal_requests_total{kind="manifest",source="denied",upstream="registry.test"} 1
shoal_requests_total{kind="manifest",source="error",upstream="registry.test"} 1
shoal_requests_total{kind="manifest",source="negative",upstream="registry.test"} 1
shoal_requests_total{kind="manifest",source="origin",upstream="registry.test"} 1
shoal_requests_total{kind="other",source="none",upstream="other"} 1
shoal_requests_total{kind="ping",source="none",upstream="other"} 1
shoal_requests_total{kind="tags",source="origin",upstream="other"} 1
shoal_requests_total{kind="tags",source="origin",upstream="registry.test"} 1
shoal_requests_total{kind="tags",source="stale",upstream="registry.test"} 1
`, 100+list, list, int(pushed.Manifest.Size)+mib+list)
	// The client has the last byte before the handler returns; what comes
	// after it is counted when the server has ended.
	b.close()
	if err := testutil.GatherAndCompare(b.metrics, strings.NewReader(want), "shoal_bytes_total", "shoal_requests_total"); err != nil {
		t.Error(err)
	}
	if n := b.handler.DiskBytes(); n != int64(100+list) {
		t.Errorf("DiskBytes = %d", n)
	}
	for name, want := range map[string]int{
		"shoal_first_byte_seconds": 5, // manifest, blob twice, tags twice
		"shoal_pull_seconds":       1, // of the whole blob
	} {
		if n, err := testutil.GatherAndCount(b.metrics, name); err != nil || n != want {
			t.Errorf("%d of %s, %v, want %d", n, name, err, want)
		}
	}
}

func TestOutcome(t *testing.T) {
	notFound, refused := fmt.Errorf("x: %w", origin.ErrNotFound), fail(404, codeNameUnknown, "not configured")
	for _, test := range []struct {
		name    string
		visit   visit
		content string
		status  int
		err     error
		gone    bool
		want    string
	}{
		{"from disk", visit{}, sourceHit, 200, nil, false, sourceHit},
		{"a ping", visit{}, "", 200, nil, false, sourceNone},
		{"not configured", visit{}, "", 404, refused, false, sourceNone},
		{"not there", visit{}, "", 404, notFound, false, sourceNegative},
		{"not there, from a blob's place", visit{}, sourceOrigin, 404, notFound, false, sourceNegative},
		{"refused", visit{}, "", 403, policy.ErrDenied, false, sourceDenied},
		{"down", visit{}, "", 503, origin.ErrUnavailable, false, sourceError},
		{"down, and the client has gone", visit{}, "", 503, context.Canceled, true, sourceGone},
		{"stale", visit{stale: true}, sourceHit, 200, nil, false, sourceStale},
		{"stale, but gone from the disk", visit{stale: true}, sourceOrigin, 503, origin.ErrUnavailable, false, sourceError},
		{"cut", visit{cut: true}, sourceOrigin, 200, errors.New("cut"), false, sourceError},
		{"abandoned by the client", visit{cut: true}, sourceOrigin, 206, errors.New("cut"), true, sourceOrigin},
		{"a range that makes no sense", visit{}, sourceHit, 416, fail(416, codeRangeInvalid, "x"), false, sourceNone},
	} {
		if got := outcome(&test.visit, test.content, test.status, test.err, test.gone); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A blob that is still arriving is counted by where most of it came from.
func TestSourceOfAnArrivingBlob(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{config: func(c *Config) {
		c.SourceOf = func(proto.Digest) string { return "peer" }
	}})
	layer := b.push(t, "team/app", "1", mib).Layers[0]
	b.get(t, blobPath("team/app", layer.Digest))
	b.close()
	if n := testutil.ToFloat64(b.handler.metrics.bytes.WithLabelValues(upstream, sourcePeer)); n != mib {
		t.Errorf("%v bytes from peers", n)
	}
}
