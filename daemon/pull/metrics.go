package pull

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	from      [len(classes)]atomic.Int64 // by Class
	duplicate atomic.Int64
	running   prometheus.Gauge
	results   *prometheus.CounterVec
}

// classes are the Classes as metrics call them.
var classes = [...]string{ClassOrigin: "origin", ClassSeed: "seed", ClassZone: "zone", ClassFar: "far"}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_pulls_running", Help: "Blobs that are being brought here now.",
		}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_pulls_total", Help: "Pulls of blobs that are over, by result: whole, failed, stopped (by the daemon's end) or abandoned (nobody wanted them any more).",
		}, []string{"result"}),
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.running, m.results)
	for class, source := range classes {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "shoal_pull_bytes_total", Help: "Bytes that came in, by source: the origin, a seed (scheduler process), daemons of this zone, daemons of others (far). shoal_cache_corrupt_chunks_total says how many chunks were wrong.",
			ConstLabels: prometheus.Labels{"source": source},
		}, func() float64 { return float64(m.from[class].Load()) }))
	}
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "shoal_pull_duplicate_bytes_total", Help: "Bytes that came in for nothing: of chunks that were here already, and of pieces of chunks whose rest did not come.",
	}, func() float64 { return float64(m.duplicate.Load()) }))
	return m
}

func (m *metrics) bytes() Bytes {
	return Bytes{
		Origin: m.from[ClassOrigin].Load(), Seed: m.from[ClassSeed].Load(),
		Zone: m.from[ClassZone].Load(), Far: m.from[ClassFar].Load(),
		Duplicate: m.duplicate.Load(),
	}
}
