package policy

import (
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-project/shoal/daemon/origin"
)

type metrics struct {
	names    map[string]string // labels by lower-case upstream
	refusals *prometheus.CounterVec
	unsigned *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, upstreams []string) *metrics {
	f := promauto.With(r)
	m := &metrics{
		names: make(map[string]string),
		refusals: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_policy_refusals_total",
			Help: "Times that a rule refused a request (denied), or would have if it did not only audit (would-deny), by the rule's name. One pull can be refused several times.",
		}, []string{"rule", "verdict"}),
		unsigned: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_policy_unsigned_pulls_total",
			Help: "Manifests that were served although signatures were looked for and none was good.",
		}, []string{"upstream"}),
	}
	for _, name := range upstreams {
		m.names[strings.ToLower(name)] = name
	}
	return m
}

// refuse counts err if a rule refuses with it, and returns it.
func (g *Gate) refuse(err error) error {
	if d, ok := errors.AsType[*Denial](err); ok {
		g.metrics.refusals.WithLabelValues(d.Rule, "denied").Inc()
	} else if errors.Is(err, ErrDenied) {
		g.metrics.refusals.WithLabelValues("other", "denied").Inc()
	}
	return err
}

// Served counts a manifest that was sent, as what Admit and Judge said of it.
func (g *Gate) Served(ref origin.Ref, r Ruling) {
	if r.Would != nil {
		g.metrics.refusals.WithLabelValues(r.Would.Rule, "would-deny").Inc()
	}
	if !r.Unsigned {
		return
	}
	name, ok := g.metrics.names[strings.ToLower(ref.Upstream)]
	if !ok {
		name = "other"
	}
	g.metrics.unsigned.WithLabelValues(name).Inc()
}
