package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Results of a CONNECT, or of a request in plain http that is refused.
const (
	resultIntercepted = "intercepted"
	resultTunnelled   = "tunnelled"
	resultRefused     = "refused"
)

type metrics struct {
	connects  *prometheus.CounterVec
	untouched prometheus.Counter
	sent      prometheus.Counter
	received  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, ca *CA) *metrics {
	f := promauto.With(r)
	moved := f.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_proxy_tunnel_bytes_total",
		Help: "Bytes that tunnels of the forward proxy have moved, by direction: sent by clients, received by them.",
	}, []string{"direction"})
	m := &metrics{
		connects: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_proxy_connects_total",
			Help: "Connections through the forward proxy, by what became of them: intercepted (a configured upstream), tunnelled (any other host), refused.",
		}, []string{"result"}),
		untouched: f.NewCounter(prometheus.CounterOpts{
			Name: "shoal_proxy_untouched_requests_total",
			Help: "Requests that the forward proxy has sent to registries as they came: pings, lists, pushes.",
		}),
		sent:     moved.WithLabelValues("sent"),
		received: moved.WithLabelValues("received"),
	}
	for _, result := range []string{resultIntercepted, resultTunnelled, resultRefused} {
		m.connects.WithLabelValues(result)
	}
	f.NewGauge(prometheus.GaugeOpts{
		Name: "shoal_proxy_ca_expiry_timestamp_seconds",
		Help: "When the forward proxy's CA ends, in seconds since 1970.",
	}).Set(float64(ca.Expires().Unix()))
	return m
}

// open registers the gauge of open connections.
func (*metrics) open(r prometheus.Registerer, l *lines) {
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_proxy_connections",
		Help: "Connections through the forward proxy that are open now, after their CONNECT.",
	}, func() float64 { return float64(l.count()) })
}
