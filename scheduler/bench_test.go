package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// BenchmarkGrants measures what a grant costs in the middle of a rollout: a
// report comes in, the book is brought up to date, the next lease goes out.
// All transfers take the same time, so leases end in the order of granting.
func BenchmarkGrants(b *testing.B) {
	for _, nodes := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("%d nodes", nodes), func(b *testing.B) {
			b.ReportAllocs()
			grants := 0
			for b.Loop() {
				b.StopTimer()
				now := epoch
				blob := proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 3 << 30}
				book := NewBook(Tuning{}, 1, now.Add(-time.Minute))
				all := append(ids("n", nodes), "seed")
				for _, id := range all {
					roles := proto.RoleDaemon
					if id == "seed" {
						roles = proto.RoleScheduler
					}
					book.Connect(now, proto.Member{ID: id, Roles: roles})
					book.Handle(now, id, &proto.Join{Blob: blob, Origin: proto.Origin{Upstream: "o"}, Await: -1})
				}
				queue := book.Letters()
				b.StartTimer()
				// From the start on, when everybody is hungry and few have anything,
				// which is the dearest part.
				for limit := grants + 40*nodes; len(queue) > 0 && grants < limit; queue = queue[1:] {
					l, ok := queue[0].Message.(*proto.Lease)
					if !ok {
						continue
					}
					grants++
					now = now.Add(time.Microsecond)
					for c := l.First; c < l.First+l.Count; c++ {
						book.Handle(now, queue[0].To, &proto.Done{
							Digest: l.Digest, Lease: l.ID, Index: c, Sum: proto.Sum{1}, Took: time.Second,
						})
					}
					queue = append(queue, book.Letters()...)
				}
			}
			b.ReportMetric(float64(grants)/b.Elapsed().Seconds(), "grants/s")
		})
	}
}
