package origin

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Kinds of requests, as metrics name them.
const (
	kindManifest = "manifest"
	kindBlob     = "blob"
	kindToken    = "token"
	kindOther    = "other"
)

type metrics struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_requests_total",
			Help: "HTTP requests sent to upstream registries, their token servers and object storage, by status code, or \"error\" if there was no answer.",
		}, []string{"upstream", "kind", "code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_bytes_total",
			Help: "Bytes of manifests, blobs and lists received from upstream registries.",
		}, []string{"upstream"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.bytes} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the origin's metrics: %w", err)
		}
	}
	return m, nil
}

// answered counts a request that got the given status, or none (0).
func (m *metrics) answered(upstream, kind string, status int) {
	code := "error"
	if status != 0 {
		code = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(upstream, kind, code).Inc()
}
