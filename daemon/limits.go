package daemon

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/daemon/rate"
)

// openLimits makes the limits that the peers' requests and the pulls wait for.
func (d *Daemon) openLimits() error {
	plan, err := d.cfg.Limits.Plan()
	if err != nil {
		return err
	}
	d.limits = rate.NewLimits(plan, d.log)
	for _, l := range []struct {
		kind    rate.Kind
		limiter *rate.Limiter
	}{{rate.Upload, d.limits.Upload}, {rate.Download, d.limits.Download}, {rate.Origin, d.limits.Origin}} {
		if err := registerLimit(d.registry, l.kind, l.limiter); err != nil {
			return fmt.Errorf("metrics of limits: %w", err)
		}
	}
	return nil
}

func registerLimit(r prometheus.Registerer, kind rate.Kind, l *rate.Limiter) error {
	labels := prometheus.Labels{"kind": kind.String()}
	err := r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_limit_bytes_per_second", ConstLabels: labels,
		Help: "Limit that holds now, by kind: upload is to peers, download from peers and origins, origin from origins alone; 0 is no limit.",
	}, func() float64 { return float64(l.Rate()) }))
	if err != nil {
		return err
	}
	return r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "shoal_limit_waited_seconds_total", ConstLabels: labels,
		Help: "Time that transfers have waited for the limit, by kind, added up over all transfers.",
	}, func() float64 { return l.Waited().Seconds() }))
}
