package peer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// BenchmarkTransfer brings a blob of 64 MiB from one node to another over
// loopback, two leases of 2 MiB at a time, takes each chunk's BLAKE3 sum and
// writes it to a file. Beside it, in the same run and in turn, its floor: the
// same requests, sums and writes with nothing but net/http. It reports ours
// over the floor, in time (x-floor) and in CPU of both ends (cpu-x-floor), by
// the medians, so that what else the machine did for a moment does not count.
func BenchmarkTransfer(b *testing.B) {
	for _, name := range []string{"none", "tls"} {
		b.Run(name, func(b *testing.B) {
			server, asker := newNode(b, securities[name]...).run(b), newNode(b, securities[name]...).run(b)
			fleet(server, asker)
			content, blob := pulltest.Content(1, 64<<20)
			held := server.put(b, blob, content)
			file, err := held.File()
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			src := asker.Source(server.ID(), server.Addr())
			ours := func(r proto.Run, w io.Writer) error { return src.Fetch(b.Context(), r, w) }
			floor := bareHTTP(b, file.Name(), name == "tls")

			one := func(fetch func(proto.Run, io.Writer) error) (c cost) {
				c.measure(b, blob, fetch)
				return c
			}
			one(ours) // warm up
			one(floor)
			var us, them []cost
			b.SetBytes(blob.Size)
			b.ReportAllocs()
			for b.Loop() {
				untimed := func() {
					b.StopTimer()
					them = append(them, one(floor))
					b.StartTimer()
				}
				second := len(us)%2 == 1 // what runs first can differ
				if second {
					untimed()
				}
				us = append(us, one(ours))
				if !second {
					untimed()
				}
			}
			wall, cpu := func(c cost) time.Duration { return c.wall }, func(c cost) time.Duration { return c.cpu }
			b.ReportMetric(median(us, wall)/median(them, wall), "x-floor")
			b.ReportMetric(median(us, cpu)/median(them, cpu), "cpu-x-floor")
			perGiB := float64(1<<30) / float64(blob.Size)
			b.ReportMetric(median(us, cpu)*perGiB, "cpu-s/GiB")
			b.ReportMetric(median(them, cpu)*perGiB, "floor-cpu-s/GiB")
		})
	}
}

// cost adds up what transfers take.
type cost struct{ wall, cpu time.Duration }

func (c *cost) measure(b *testing.B, blob proto.Blob, fetch func(proto.Run, io.Writer) error) {
	start, cpu := time.Now(), cpuTime(b)
	transferAll(b, blob, fetch)
	c.wall += time.Since(start)
	c.cpu += cpuTime(b) - cpu
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

func cpuTime(b *testing.B) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// transferAll fetches blob in leases, two at a time.
func transferAll(b *testing.B, blob proto.Blob, fetch func(proto.Run, io.Writer) error) {
	out, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	lease := int(2 << 20 / blob.ChunkSize())
	runs := make(chan proto.Run)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			s := &sink{out: out, buf: make([]byte, 0, blob.ChunkSize())}
			for r := range runs {
				s.off = r.Offset()
				if err := fetch(r, s); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := 0; i < blob.Chunks(); i += lease {
		runs <- proto.Run{Blob: blob, First: i, Count: min(lease, blob.Chunks()-i)}
	}
	close(runs)
	workers.Wait()
}

// A sink takes chunks as a pull does: sum, then write. The blob's size is a
// multiple of its chunks'.
type sink struct {
	out *os.File
	buf []byte
	off int64
	sum [32]byte
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
		if _, err := s.out.WriteAt(s.buf, s.off); err != nil {
			return 0, err
		}
		s.off += int64(len(s.buf))
		s.buf = s.buf[:0]
	}
	return n, nil
}

// bareHTTP serves the file with net/http alone, and returns what asks it.
func bareHTTP(b *testing.B, path string, secure bool) func(proto.Run, io.Writer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	scheme, client := "http", &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true}}
	if secure {
		scheme = "https"
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{selfSigned(b)}, NextProtos: []string{"http/1.1"}})
		client.Transport.(*http.Transport).TLSClientConfig = insecureTLS()
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, f)
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(ln)
	}()
	b.Cleanup(func() {
		client.CloseIdleConnections()
		_ = srv.Close()
		<-ended
	})
	target := fmt.Sprintf("%s://%s/", scheme, ln.Addr())
	return func(r proto.Run, w io.Writer) error {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, target, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset(), r.Offset()+r.Size()-1))
		resp, err := client.Do(req)
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

func selfSigned(b *testing.B) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// BenchmarkSmall fetches a blob of 1 KiB, over a connection that is there: the
// latency and the allocations that a request costs.
func BenchmarkSmall(b *testing.B) {
	for _, name := range []string{"none", "tls"} {
		b.Run(name, func(b *testing.B) {
			server, asker := newNode(b, securities[name]...).run(b), newNode(b, securities[name]...).run(b)
			fleet(server, asker)
			content, blob := pulltest.Content(1, 1<<10)
			server.put(b, blob, content)
			src := asker.Source(server.ID(), server.Addr())
			var got bytes.Buffer
			b.ReportAllocs()
			for b.Loop() {
				got.Reset()
				if err := src.Fetch(b.Context(), blob.Run(), &got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConnect is a new connection to a peer, with both proofs of
// identity: what session resumption could save a part of.
func BenchmarkConnect(b *testing.B) {
	server, asker := newNode(b).run(b), newNode(b).run(b)
	fleet(server, asker)
	key := net.JoinHostPort(poolKey(server.ID(), server.Addr()), "443")
	for b.Loop() {
		c, err := asker.dialTLS(b.Context(), "tcp", key)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}
