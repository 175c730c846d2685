package signature

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	signatures *prometheus.CounterVec
	scans      *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		signatures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_policy_signature_lookups_total",
			Help: "Questions to upstream registries for the signatures of an image: signed by a key that is configured, unsigned, or failed if a registry did not answer all.",
		}, []string{"result"}),
		scans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_policy_scan_lookups_total",
			Help: "Questions to upstream registries for the scan results of an image: passed, rejected, missing, or failed if a registry did not answer all.",
		}, []string{"result"}),
	}
	for _, result := range []string{"signed", "unsigned", "failed"} {
		m.signatures.WithLabelValues(result)
	}
	for _, result := range []string{"passed", "rejected", "missing", "failed"} {
		m.scans.WithLabelValues(result)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.signatures, m.scans} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of signatures: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) lookup(err error, found int) {
	switch {
	case err != nil:
		m.signatures.WithLabelValues("failed").Inc()
	case found == 0:
		m.signatures.WithLabelValues("unsigned").Inc()
	default:
		m.signatures.WithLabelValues("signed").Inc()
	}
}

func (m *metrics) scan(err error, found, passed bool) {
	switch {
	case err != nil:
		m.scans.WithLabelValues("failed").Inc()
	case !found:
		m.scans.WithLabelValues("missing").Inc()
	case passed:
		m.scans.WithLabelValues("passed").Inc()
	default:
		m.scans.WithLabelValues("rejected").Inc()
	}
}
