package pull_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// Whatever the limit grants, all bytes arrive, each was granted once, and the
// limit is told where they come from.
func TestLimit(t *testing.T) {
	content, blob := pulltest.Content(11, 9*proto.MinChunk+321)
	var granted [2]atomic.Int64
	limit := func(_ context.Context, origin bool, want int64) (int64, error) {
		if want < 1 || want > 1<<20 {
			t.Errorf("asked for %d bytes", want)
		}
		n := min(want, 1+rand.Int64N(400_000))
		if origin {
			granted[1].Add(n)
		} else {
			granted[0].Add(n)
		}
		return n, nil
	}
	b := &bed{
		origin: &memory{content: content},
		peers:  map[string]pull.Source{"near": &memory{content: content}},
		swarm:  newSwarm(),
		limit:  limit,
	}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(1, proto.Lease{First: 0, Count: 4})
	b.swarm.lease(2, proto.Lease{First: 4, Count: 6, Source: "near", Sums: sums(blob, content)[4:]})
	if got, err := b.read(t, blob); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if got, want := granted[1].Load(), int64(4*proto.MinChunk); got != want {
		t.Errorf("%d bytes were granted to the origin, want %d", got, want)
	}
	if got, want := granted[0].Load(), blob.Size-4*proto.MinChunk; got != want {
		t.Errorf("%d bytes were granted to peers, want %d", got, want)
	}
}

// A fetch that waits for the limit ends with its lease.
func TestRevokeEndsAWaitForTheLimit(t *testing.T) {
	content, blob := pulltest.Content(12, 3*proto.MinChunk)
	waiting := make(chan struct{})
	b := &bed{
		peers: map[string]pull.Source{"near": &memory{content: content}},
		swarm: newSwarm(),
		limit: func(ctx context.Context, _ bool, _ int64) (int64, error) {
			close(waiting)
			<-ctx.Done()
			return 0, ctx.Err()
		},
	}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(9, proto.Lease{First: 0, Count: 3, Source: "near", Sums: sums(blob, content)})
	receive(t, waiting)
	b.swarm.events <- &proto.Revoke{Lease: 9}
	if f := next[*proto.Fail](t, b.swarm); f.Lease != 9 || f.Cause != proto.CauseStalled {
		t.Errorf("a revoked lease was reported as %+v", f)
	}
}
