package pull

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	origin, peers, duplicate atomic.Int64
	running                  prometheus.Gauge
	results                  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_pulls_running", Help: "Blobs that are being brought here now.",
		}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_pulls_total", Help: "Pulls of blobs that are over, by result: whole, failed or stopped.",
		}, []string{"result"}),
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.running, m.results)
	for _, c := range []struct {
		source string
		value  *atomic.Int64
	}{{"origin", &m.origin}, {"peer", &m.peers}} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "shoal_pull_bytes_total", Help: "Bytes of chunks that came in, by source; shoal_cache_corrupt_chunks_total says how many of them were wrong.",
			ConstLabels: prometheus.Labels{"source": c.source},
		}, func() float64 { return float64(c.value.Load()) }))
	}
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "shoal_pull_duplicate_bytes_total", Help: "Bytes of chunks that came in though they were here already.",
	}, func() float64 { return float64(m.duplicate.Load()) }))
	return m
}

func (m *metrics) bytes() Bytes {
	return Bytes{Origin: m.origin.Load(), Peers: m.peers.Load(), Duplicate: m.duplicate.Load()}
}
