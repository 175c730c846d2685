package mirror

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Where the bytes of a response come from, as metrics and logs name it.
const (
	fromDisk = "disk" // the blob was whole when it was asked for
	fromPull = "pull" // it was still arriving
)

type metrics struct {
	requests  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	firstByte prometheus.Histogram
	disk      atomic.Int64
}

// DiskBytes returns how many bytes of blobs that were whole when they were
// asked for have been sent since the start.
func (h *Handler) DiskBytes() int64 { return h.metrics.disk.Load() }

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_requests_total",
			Help: "Requests of container runtimes, by what was asked for and the status of the answer.",
		}, []string{"kind", "code"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_bytes_total",
			Help: "Bytes of manifests and blobs sent to container runtimes: of blobs that were whole on disk when asked for, and of blobs still being pulled.",
		}, []string{"from"}),
		firstByte: f.NewHistogram(prometheus.HistogramOpts{
			Name: "shoal_mirror_first_byte_seconds",
			Help: "Time from the request for a manifest or blob to the first byte of it that was sent.",
			// From a blob on disk, 1 ms, to the last that a client may wait
			// for, 33 s.
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
	}
}
