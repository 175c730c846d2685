package floor

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
)

// BenchmarkFirstByte has 8 clients ask a node at once for a blob of 64 MiB that
// it has never heard of, from an origin of so many megabits a second. It reports
// the median over rounds of the time to the slowest client's first byte, beyond
// that of one client at the origin itself (extra-ms), and how many copies of the
// blob left the origin.
func BenchmarkFirstByte(b *testing.B) {
	for _, mbit := range []int64{100, 400} {
		b.Run(fmt.Sprintf("%dmbit", mbit), func(b *testing.B) {
			const size, clients = 64 << 20, 8
			r := registry.New(registry.Options{})
			server := httptest.NewServer(r)
			b.Cleanup(func() { server.Close(); r.Close() })
			n := startNode(b, "daemon", "first", server.URL, "")
			converge(b, n)
			c := newClient(b)
			first := func(url string) (time.Duration, error) {
				start := time.Now()
				resp, err := c.http.Get(url)
				if err != nil {
					return 0, err
				}
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
					return 0, err
				}
				took := time.Since(start)
				m, err := io.Copy(io.Discard, resp.Body)
				if err == nil && (m != size-1 || resp.StatusCode != http.StatusOK) {
					err = fmt.Errorf("%s and %d bytes", resp.Status, m+1)
				}
				return took, err
			}
			var direct, extra []time.Duration
			var copies int
			round := 0
			for b.Loop() {
				b.StopTimer()
				r.SetFaults(registry.Faults{})
				repository := fmt.Sprintf("bench/first-%d-%d", mbit, round)
				layer := push(b, server.URL, repository, uint64(round), size).Layers[0]
				round++
				r.Reset()
				r.SetFaults(registry.Faults{Rate: mbit * 1e6 / 8})
				b.StartTimer()
				them, err := first(fmt.Sprintf("%s/v2/%s/blobs/%s", server.URL, repository, layer.Digest))
				if err != nil {
					b.Fatal(err)
				}
				r.Reset()
				times := make([]time.Duration, clients)
				errs := make([]error, clients)
				var wg sync.WaitGroup
				for i := range clients {
					wg.Go(func() { times[i], errs[i] = first(n.blobURL(repository, layer.Digest)) })
				}
				wg.Wait()
				last := time.Duration(0)
				for i := range clients {
					if errs[i] != nil {
						b.Fatal(errs[i])
					}
					last = max(last, times[i])
				}
				_, most := r.Copies(layer.Digest)
				copies = max(copies, most)
				direct, extra = append(direct, them), append(extra, last-them)
			}
			b.ReportMetric(median(extra)*1e3, "extra-ms")
			b.ReportMetric(median(direct)*1e3, "direct-ms")
			b.ReportMetric(float64(copies), "copies")
		})
	}
}
