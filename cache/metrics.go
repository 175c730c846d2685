package cache

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	bytes, blobs prometheus.Gauge
	corrupt      prometheus.Counter
	care         careMetrics
	space        spaceMetrics

	registry   prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics(c *Cache) metrics {
	return metrics{
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_bytes",
			Help: "Bytes of the whole blobs in the cache.",
		}),
		blobs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_blobs",
			Help: "Whole blobs in the cache.",
		}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_cache_corrupt_chunks_total",
			Help: "Chunks whose bytes were not what they should be, as they arrived or on the disk.",
		}),
		care:  newCareMetrics(),
		space: newSpaceMetrics(c),
	}
}

// register registers the metrics with r, if it is not nil.
func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	m.registry = r
	for _, c := range append([]prometheus.Collector{
		m.bytes, m.blobs, m.corrupt,
		m.care.scrubbed, m.care.damaged, m.care.adoptedBlobs, m.care.adoptedBytes,
		m.space.evictions, m.space.evicted,
	}, m.space.funcs...) {
		if err := r.Register(c); err != nil {
			m.unregister()
			return fmt.Errorf("register metrics of the cache: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

// unregister lets another cache be opened with the same registry.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registry.Unregister(c)
	}
	m.registered = nil
}
