package mirror

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-project/shoal/proto"
)

// Sources: how a request was answered, as the metrics and the log call it. The
// first four are where content comes from.
const (
	sourceHit      = "hit"      // it was whole here, or no content was asked for and it is
	sourcePeer     = "peer"     // it was still arriving, most of it from other nodes
	sourceOrigin   = "origin"   // it was still arriving, most of it from the registry
	sourceThrough  = "through"  // this node had no room for it and passed it on
	sourceStale    = "stale"    // of what was remembered, as the registry did not answer
	sourceNegative = "negative" // it is not there
	sourceDenied   = "denied"   // a rule or the registry refuses it
	sourceError    = "error"    // it failed
	sourceGone     = "gone"     // the client went away before there was an answer
	sourceOwn      = "own"      // the proxy's client was left to itself with the registry
	sourceNone     = "none"     // nothing is behind the request: a ping, or one that makes no sense
)

// otherUpstream stands for all upstreams that are not configured by name, since
// clients could make up any number of them.
const otherUpstream = "other"

type metrics struct {
	requests  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	firstByte *prometheus.HistogramVec
	pulls     *prometheus.HistogramVec
	disk      atomic.Int64
}

// DiskBytes returns how many bytes of blobs that were whole when they were
// asked for have been sent since the start.
func (h *Handler) DiskBytes() int64 { return h.metrics.disk.Load() }

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_requests_total",
			Help: "Requests of container runtimes, by upstream, what was asked for, and where the answer came from (hit, peer, origin, through: without room to keep it; stale) or why there was none (negative, denied, error, gone: the client; own: passed on unread by the proxy, with the client's own credentials; none: nothing to answer with).",
		}, []string{"upstream", "kind", "source"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_bytes_total",
			Help: "Bytes of content sent to container runtimes, by upstream and where they came from: hit (whole on disk), peer and origin (still arriving, most of it from there), through (from the origin, without room to keep it).",
		}, []string{"upstream", "source"}),
		firstByte: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "shoal_first_byte_seconds",
			Help: "Time from the request for content to the first byte of it that was sent.",
			// From a blob on disk, 1 ms, to the last that a client may wait
			// for, 33 s.
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"kind", "source"}),
		pulls: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "shoal_pull_seconds",
			Help: "Time from the request for all of a blob to the last byte of it that was sent.",
			// From a config on disk, 2 ms, to 10 GB over a thin link, 2.3 h.
			Buckets: prometheus.ExponentialBuckets(0.002, 4, 12),
		}, []string{"source"}),
	}
}

// upstreamLabel returns the upstream as the metrics call it.
func (h *Handler) upstreamLabel(name string) string {
	if name = strings.ToLower(name); slices.Contains(h.upstreams, name) {
		return name
	}
	return otherUpstream
}

// contentSource says where the content of a visit comes from, as far as it is
// known by now. It is "" while there is none.
func (h *Handler) contentSource(w *response, v *visit) string {
	switch {
	case w.held.Load() != nil:
		return sourceThrough
	case v.arriving.IsZero():
		return v.source
	case h.sourceOf(v.arriving) == sourcePeer:
		return sourcePeer
	}
	return sourceOrigin
}

// outcome says what became of a visit, for the metric of requests.
func outcome(v *visit, content string, status int, err error, gone bool) string {
	switch {
	case gone && (v.cut || status < http.StatusBadRequest):
		return content // runtimes abandon ranges on purpose
	case gone && status >= http.StatusInternalServerError:
		return sourceGone
	case v.cut:
		return sourceError
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		return sourceDenied
	case status >= http.StatusInternalServerError:
		return sourceError
	case errors.As(err, new(*failure)) || content == "" && err == nil:
		return sourceNone
	case status == http.StatusNotFound:
		return sourceNegative
	case v.stale:
		return sourceStale
	}
	return content
}

// count counts a visit that is over. content is how many bytes of content were
// sent. It returns what became of the visit.
func (h *Handler) count(gone bool, w *response, v *visit, content int64, err error) string {
	from := h.contentSource(w, v)
	result := outcome(v, from, w.status, err, gone)
	if result == "" {
		result = sourceNone
	}
	upstream := h.upstreamLabel(v.ref.Upstream)
	h.metrics.requests.WithLabelValues(upstream, string(v.kind), result).Inc()
	if from == "" || content == 0 {
		return result
	}
	h.metrics.bytes.WithLabelValues(upstream, from).Add(float64(content))
	if from == sourceHit {
		h.metrics.disk.Add(content)
	}
	if v.kind == kindBlob && w.status == http.StatusOK && !v.cut {
		h.metrics.pulls.WithLabelValues(from).Observe(time.Since(v.start).Seconds())
	}
	return result
}

// observeFirst observes the first byte of a visit's content.
func (h *Handler) observeFirst(w *response, v *visit) {
	h.metrics.firstByte.WithLabelValues(string(v.kind), h.contentSource(w, v)).Observe(time.Since(v.start).Seconds())
}

// described says where the content would come from that a HEAD is about.
func (h *Handler) described(d proto.Digest) string {
	if _, ok := h.cache.Whole(d); ok {
		return sourceHit
	}
	return sourceOrigin
}
