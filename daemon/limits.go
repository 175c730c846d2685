package daemon

import (
	"context"
	"fmt"
	"io"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
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

// through returns the source of what is passed on to a client and not kept. It
// takes its share of the limits as a pull does.
func (d *Daemon) through(o proto.Origin) pull.Source {
	return limited{source: d.origin.Source(o), limits: d.limits}
}

// A limited source is one whose bytes wait for the limits.
type limited struct {
	source pull.Source
	limits *rate.Limits
}

// Fetch is part of pull.Source.
func (l limited) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	return l.source.Fetch(ctx, r, &limitedWriter{ctx, l.limits, w})
}

type limitedWriter struct {
	ctx    context.Context
	limits *rate.Limits
	w      io.Writer
}

func (l *limitedWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		may, err := l.limits.Receive(l.ctx, true, int64(len(p)))
		if err != nil {
			return written, err
		}
		n, err := l.w.Write(p[:may])
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}
