package peer

import (
	"context"
	"io"
	"testing"

	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
)

// BenchmarkUploadLimit is BenchmarkTransfer from a node with an upload limit,
// beside the same transfer from one without, in the same run and in turn. It
// reports the CPU of both ends over that without a limit (cpu-x-unlimited). The
// limit is one that is never reached (1 Tbit/s), and one that all wait for
// (1 Gbit/s); the quantum is what the package has, and 64 KiB.
func BenchmarkUploadLimit(b *testing.B) {
	for _, name := range []string{"none", "tls"} {
		for _, limit := range []string{"1tbit", "1gbit"} {
			for _, q := range []struct {
				name string
				size int64
			}{{"1MiB", rate.Quantum}, {"64KiB", 64 << 10}} {
				b.Run(name+"/"+limit+"/"+q.name, func(b *testing.B) { benchmarkUploadLimit(b, securities[name], limit, q.size) })
			}
		}
	}
}

func benchmarkUploadLimit(b *testing.B, security []func(*Config), limit string, quantum int64) {
	r, err := rate.Parse(limit)
	if err != nil {
		b.Fatal(err)
	}
	limiter := rate.New(r)
	upload := func(c *Config) {
		c.Upload = func(ctx context.Context, want int64) (int64, error) { return limiter.Wait(ctx, min(want, quantum)) }
	}
	content, blob := pulltest.Content(1, 64<<20)
	asker := newNode(b, security...).run(b)
	from := func(n *node) func(proto.Run, io.Writer) error {
		n.run(b)
		fleet(n, asker)
		n.put(b, blob, content)
		src := asker.Source(n.ID(), n.Addr())
		return func(r proto.Run, w io.Writer) error { return src.Fetch(b.Context(), r, w) }
	}
	limited := from(newNode(b, append([]func(*Config){upload}, security...)...))
	free := from(newNode(b, security...))

	var us, them cost
	us.measure(b, blob, limited) // warm up
	them.measure(b, blob, free)
	us, them = cost{}, cost{}
	b.SetBytes(blob.Size)
	for b.Loop() {
		us.measure(b, blob, limited)
		b.StopTimer()
		them.measure(b, blob, free)
		b.StartTimer()
	}
	b.ReportMetric(float64(us.cpu)/float64(them.cpu), "cpu-x-unlimited")
	b.ReportMetric(us.cpu.Seconds()/float64(b.N)*float64(1<<30)/float64(blob.Size), "cpu-s/GiB")
}
