package pull_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/proto"
)

const (
	benchBlob  = 64 << 20
	benchLease = 2 << 20 // bytes
	inFlight   = 2       // leases
)

// BenchmarkPull brings a blob of 64 MiB from a peer over loopback, by leases of
// 2 MiB, two at a time, into the cache: all that a daemon does for it but the
// scheduler's part. Beside it, in the same run and in turn, its floor: the same
// requests with nothing but net/http, a BLAKE3 and a SHA-256 of all bytes, and
// their write. It reports ours over the floor, by the medians, in time until the
// blob is whole (x-floor) and in CPU of both ends (cpu-x-floor).
func BenchmarkPull(b *testing.B) {
	for _, insecure := range []bool{true, false} {
		b.Run(map[bool]string{true: "none", false: "tls"}[insecure], func(b *testing.B) { benchmarkPull(b, insecure) })
	}
}

func benchmarkPull(b *testing.B, insecure bool) {
	content, blob := pulltest.Content(1, benchBlob)
	giver, taker := newHost(b, insecure), newHost(b, insecure)
	store := taker.cache
	members := []proto.Member{{ID: giver.ID(), Addr: giver.Addr()}, {ID: taker.ID(), Addr: taker.Addr()}}
	giver.SetMembers(members)
	taker.SetMembers(members)
	file := fill(b, giver, blob, content)
	puller := pull.New(pull.Config{
		Cache:  store,
		Origin: func(proto.Origin) pull.Source { panic("nobody asks the origin") },
		Peer:   func(id, addr string) pull.Source { return taker.Source(id, addr) },
		Join: func(proto.Digest, func() *proto.Join) pull.Swarm {
			return newLeases(blob, sums(blob, content), giver.ID(), giver.Addr())
		},
	})
	background(b, puller.Run)
	floor := bareHTTP(b, file, !insecure)

	ours := func() { bring(b, puller, store, blob) }
	theirs := func() { bringBare(b, blob, floor) }
	measure(b, ours)
	measure(b, theirs)
	var us, them []cost
	b.SetBytes(blob.Size)
	b.ReportAllocs()
	for b.Loop() {
		us = append(us, measure(b, ours))
		b.StopTimer()
		if err := store.Delete(blob.Digest); err != nil {
			b.Fatal(err)
		}
		them = append(them, measure(b, theirs))
		b.StartTimer()
	}
	wall, cpu := func(c cost) time.Duration { return c.wall }, func(c cost) time.Duration { return c.cpu }
	b.ReportMetric(median(us, wall)/median(them, wall), "x-floor")
	b.ReportMetric(median(us, cpu)/median(them, cpu), "cpu-x-floor")
	perGiB := float64(1<<30) / float64(blob.Size)
	b.ReportMetric(median(us, cpu)*perGiB, "cpu-s/GiB")
	b.ReportMetric(median(them, cpu)*perGiB, "floor-cpu-s/GiB")
}

// A host is a peer with its cache.
type host struct {
	*peer.Host
	cache *cache.Cache
}

// newHost starts a host.
func newHost(b *testing.B, insecure bool) *host {
	b.Helper()
	c, err := cache.Open(b.TempDir(), cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	h, err := peer.New(peer.Config{Listen: "127.0.0.1:0", Dir: b.TempDir(), Insecure: insecure, Cache: c})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = h.Close() })
	background(b, h.Run)
	return &host{h, c}
}

// background runs until the end of the benchmark.
func background(b *testing.B, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// fill puts a blob into a host's cache and returns its file.
func fill(b *testing.B, h *host, blob proto.Blob, content []byte) string {
	b.Helper()
	cb, err := h.cache.Blob(blob)
	if err != nil {
		b.Fatal(err)
	}
	defer cb.Release()
	for i := range blob.Chunks() {
		c := blob.Chunk(i)
		if err := cb.Put(i, content[c.Offset:c.Offset+c.Size]); err != nil {
			b.Fatal(err)
		}
	}
	f, err := cb.File()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	return f.Name()
}

// leases is a scheduler for one pull from one source.
type leases struct {
	// immutable
	blob       proto.Blob
	sums       []proto.Sum
	from, addr string
	events     chan proto.Message

	mu   sync.Mutex // protects the field below
	next int        // chunk
}

func newLeases(blob proto.Blob, sums []proto.Sum, from, addr string) *leases {
	l := &leases{blob: blob, sums: sums, from: from, addr: addr, events: make(chan proto.Message, blob.Chunks()+1)}
	l.events <- &proto.Welcome{}
	for range inFlight {
		l.grant()
	}
	return l
}

func (l *leases) grant() {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(int(benchLease/l.blob.ChunkSize()), l.blob.Chunks()-l.next)
	if n <= 0 {
		return
	}
	l.events <- &proto.Lease{
		ID: uint64(l.next + n), Digest: l.blob.Digest, First: l.next, Count: n,
		Source: l.from, Addr: l.addr, Sums: l.sums[l.next : l.next+n],
	}
	l.next += n
}

func (l *leases) Events() <-chan proto.Message { return l.events }
func (l *leases) Close(proto.Blob, bool)       {}

// Report grants the next lease when one is done; its ID is its end.
func (l *leases) Report(m proto.Message) {
	if d, ok := m.(*proto.Done); ok && d.Lease == uint64(d.Index+1) {
		l.grant()
	}
}

// bring pulls blob and returns when it is whole.
func bring(b *testing.B, p *pull.Puller, store *cache.Cache, blob proto.Blob) {
	cb, err := store.Blob(blob)
	if err != nil {
		b.Fatal(err)
	}
	defer cb.Release()
	if err := p.Start(blob, where); err != nil {
		b.Fatal(err)
	}
	<-cb.Done()
}

// bareHTTP serves a file with net/http alone and returns what asks for a run.
func bareHTTP(b *testing.B, path string, secure bool) func(proto.Run, io.Writer) error {
	serve := httptest.NewServer
	if secure {
		serve = httptest.NewTLSServer
	}
	srv := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, f)
	}))
	b.Cleanup(srv.Close)
	return func(r proto.Run, w io.Writer) error {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, srv.URL, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset(), r.Offset()+r.Size()-1))
		resp, err := srv.Client().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if n, err := io.Copy(w, resp.Body); err != nil || n != r.Size() {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
		return nil
	}
}

// bringBare fetches, sums and writes a blob with a bare client.
func bringBare(b *testing.B, blob proto.Blob, fetch func(proto.Run, io.Writer) error) {
	out, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	count := int(benchLease / blob.ChunkSize())
	runs := make(chan proto.Run)
	var workers sync.WaitGroup
	for range inFlight {
		workers.Go(func() {
			s := &sink{out: out, buf: make([]byte, 0, blob.ChunkSize()), hash: sha256.New()}
			for r := range runs {
				s.off = r.Offset()
				if err := fetch(r, s); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := 0; i < blob.Chunks(); i += count {
		runs <- proto.Run{Blob: blob, First: i, Count: min(count, blob.Chunks()-i)}
	}
	close(runs)
	workers.Wait()
}

// A sink does to chunks what has to be done: both sums, and the write. The
// blob's size is a multiple of its chunks'.
type sink struct {
	out  *os.File
	buf  []byte
	off  int64
	sum  [32]byte
	hash hash.Hash // of half of the blob; there are two sinks
}

func (s *sink) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), cap(s.buf)-len(s.buf))
		s.buf = append(s.buf, p[:k]...)
		p = p[k:]
		if len(s.buf) < cap(s.buf) {
			break
		}
		s.sum = blake3.Sum256(s.buf)
		s.hash.Write(s.buf)
		if _, err := s.out.WriteAt(s.buf, s.off); err != nil {
			return 0, err
		}
		s.off += int64(len(s.buf))
		s.buf = s.buf[:0]
	}
	return n, nil
}

// cost is what one transfer took.
type cost struct{ wall, cpu time.Duration }

func measure(b *testing.B, transfer func()) (c cost) {
	start, cpu := time.Now(), cpuTime(b)
	transfer()
	return cost{time.Since(start), cpuTime(b) - cpu}
}

func cpuTime(b *testing.B) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// median returns the middle of what costs have of one kind, in seconds.
func median(costs []cost, kind func(cost) time.Duration) float64 {
	var ds []time.Duration
	for _, c := range costs {
		ds = append(ds, kind(c))
	}
	slices.Sort(ds)
	return ((ds[(len(ds)-1)/2] + ds[len(ds)/2]) / 2).Seconds()
}
