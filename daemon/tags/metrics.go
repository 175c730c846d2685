package tags

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Results, as metrics name them.
const (
	resultFresh       = "fresh"
	resultRevalidated = "revalidated"
	resultOrigin      = "origin"
	resultNegative    = "negative"
	resultStale       = "stale"
	resultError       = "error"
)

type metrics struct {
	names   map[string]string // labels by lower-case upstream
	lookups *prometheus.CounterVec
	stale   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, upstreams []string) *metrics {
	f := promauto.With(r)
	m := &metrics{
		names: make(map[string]string),
		lookups: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_tag_lookups_total",
			Help: "Tags that were resolved: from memory while fresh, from memory with the origin asked behind (revalidated), by the origin, from memory that there is no such tag (negative), from memory because the origin does not answer (stale), or not at all (error).",
		}, []string{"upstream", "result"}),
		stale: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_tag_stale_total",
			Help: "Tags that were resolved to what they named earlier because the origin does not answer or may not be asked.",
		}, []string{"upstream"}),
	}
	for _, name := range upstreams {
		m.names[strings.ToLower(name)] = name
	}
	return m
}

// label returns the value of the label upstream. Names that anybody can make up
// under "*" are not among them: each would be a time series for ever.
func (m *metrics) label(upstream string) string {
	if name, ok := m.names[upstream]; ok {
		return name
	}
	return "other"
}

func (m *metrics) resolved(upstream, result string) {
	m.lookups.WithLabelValues(m.label(upstream), result).Inc()
}
