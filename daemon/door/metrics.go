package door

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Why somebody is turned away.
const (
	reasonNetwork  = "network" // not in allowFrom
	reasonFull     = "full"    // every connection has a request
	reasonRequests = "requests"
)

// quiet is how long nothing is said of a reason after it was: a flood must not
// be one of the log too.
const quiet = time.Minute

type metrics struct {
	accepted, evicted, refusedRequests prometheus.Counter
	refused                            *prometheus.CounterVec

	mu   sync.Mutex
	said map[string]time.Time // when something was, by reason; mu protects it
}

func newMetrics(registry prometheus.Registerer, name string, d *Door) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_door_connections_total", Help: "Connections that were let in.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_door_connections_evicted_total", Help: "Idle connections that gave way to newer ones.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_door_connections_refused_total", Help: "Connections that were closed: network (not in allowFrom), or full (all have a request).",
		}, []string{"reason"}),
		refusedRequests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_door_requests_refused_total", Help: "Requests that were answered 503, since their client had too many.",
		}),
		said: make(map[string]time.Time),
	}
	m.refused.WithLabelValues(reasonNetwork)
	m.refused.WithLabelValues(reasonFull)
	if registry == nil {
		return m
	}
	registry = prometheus.WrapRegistererWith(prometheus.Labels{"door": name}, registry)
	registry.MustRegister(m.accepted, m.evicted, m.refused, m.refusedRequests,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_door_connections", Help: "Connections that are open.",
		}, func() float64 { all, _ := d.crowd.count(); return float64(all) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_door_connections_idle", Help: "Connections that are open and have no request.",
		}, func() float64 { _, idle := d.crowd.count(); return float64(idle) }),
	)
	if d.certs != nil {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_door_certificate_expiry_timestamp_seconds", Help: "When the certificate expires, in seconds since 1970.",
		}, func() float64 { return float64(d.certs.expires().Unix()) }))
	}
	return m
}

func (m *metrics) refusedConn(reason string) { m.refused.WithLabelValues(reason).Inc() }

// warn says why somebody is turned away, unless it has just been said.
func (m *metrics) warn(reason string, log *slog.Logger, text string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if last, said := m.said[reason]; said && now.Sub(last) < quiet {
		return
	}
	m.said[reason] = now
	log.Warn(text, args...)
}
