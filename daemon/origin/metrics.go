package origin

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Kinds of requests, as metrics name them.
const (
	kindManifest = "manifest"
	kindBlob     = "blob"
	kindToken    = "token"
	kindOther    = "other"
)

// metrics are by upstream. All that "*" stands for are one; its gauges are
// those of the registry that answered last.
type metrics struct {
	requests  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	throttled *prometheus.CounterVec
	limit     *prometheus.GaugeVec
	remaining *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_requests_total",
			Help: "HTTP requests sent to upstream registries, their token servers and object storage, by status code, or \"error\" if there was no answer.",
		}, []string{"upstream", "kind", "code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_bytes_total",
			Help: "Bytes of manifests, blobs and lists received from upstream registries.",
		}, []string{"upstream"}),
		throttled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_throttled_total",
			Help: "Answers with which upstream registries asked to be left alone: 429, or an error with Retry-After.",
		}, []string{"upstream"}),
		limit: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shoal_origin_ratelimit_limit",
			Help: "Requests that the upstream registry allows in its window, as its last RateLimit-Limit header said.",
		}, []string{"upstream"}),
		remaining: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shoal_origin_ratelimit_remaining",
			Help: "Requests that are left of what the upstream registry allows, as its last RateLimit-Remaining header said.",
		}, []string{"upstream"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.bytes, m.throttled, m.limit, m.remaining} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the origin's metrics: %w", err)
		}
	}
	return m, nil
}

// answered counts a request that got the given status, or none (0).
func (m *metrics) answered(upstream, kind string, status int) {
	code := "error"
	if status != 0 {
		code = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(upstream, kind, code).Inc()
}

// rateLimit takes in the headers that say what is allowed and left.
func (m *metrics) rateLimit(upstream string, h http.Header) {
	if n, ok := parseRateLimit(h.Get("RateLimit-Limit")); ok {
		m.limit.WithLabelValues(upstream).Set(float64(n))
	}
	if n, ok := parseRateLimit(h.Get("RateLimit-Remaining")); ok {
		m.remaining.WithLabelValues(upstream).Set(float64(n))
	}
}

// A backoffCollector says how long upstreams are still left alone. It is
// computed when it is asked for, so that it counts down by itself.
type backoffCollector struct {
	client *Client
	desc   *prometheus.Desc
}

func (c *Client) registerBackoff(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	b := &backoffCollector{c, prometheus.NewDesc("shoal_origin_backoff_seconds",
		"For how long the upstream registry is still left alone because it asked for that; 0: it is asked.",
		[]string{"upstream"}, nil)}
	if err := r.Register(b); err != nil {
		return fmt.Errorf("register the origin's metrics: %w", err)
	}
	return nil
}

func (b *backoffCollector) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

func (b *backoffCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for label, left := range b.client.resting(now) {
		ch <- prometheus.MustNewConstMetric(b.desc, prometheus.GaugeValue, left.Seconds(), label)
	}
}

// resting returns by label how long upstreams are still left alone: until the
// first of their URLs may be asked. Of those under "*" it is the longest.
func (c *Client) resting(now time.Time) map[string]time.Duration {
	all := make(map[string]time.Duration)
	for _, up := range c.named {
		all[up.label] = up.resting(now)
	}
	if c.other != nil {
		all["*"] = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, up := range c.others {
		all[up.label] = max(all[up.label], up.resting(now))
	}
	return all
}

// resting returns how long all of up's URLs are still left alone.
func (up *upstream) resting(now time.Time) time.Duration {
	shortest := maxRest
	for _, e := range up.endpoints {
		shortest = min(shortest, max(0, up.rests.until(e, now).Sub(now)))
	}
	return shortest
}
