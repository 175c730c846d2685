package sim

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/proto"
)

// bench returns a simulation in which nothing happens but what a test does.
func bench(t *testing.T, o Options) *sim {
	t.Helper()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	s := newSim(o.filled())
	s.arrivals = nil
	for _, l := range s.layers {
		l.server = &server{tick: never} // that is told, and decides nothing
	}
	return s
}

// pass lets virtual time pass until a time, for flows.
func pass(s *sim, until time.Duration) {
	for {
		f, at := s.net.next()
		if f == nil || at > until {
			break
		}
		s.now, s.net.now = at, at
		s.due(f)
	}
	s.now, s.net.now = until, until
}

// heard returns the kinds of what a layer's server has been told.
func heard(l *layer) []uint8 {
	var kinds []uint8
	for l.server.near.n > 0 {
		kinds = append(kinds, l.server.near.take().kind)
	}
	return kinds
}

func count(kinds []uint8, kind uint8) int {
	n := 0
	for _, k := range kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// TestClientReadsInOrder: a client reads three layers at a time, in the order
// of the manifest, and awaits the first chunk of each that it lacks; its daemon
// joins all at once.
func TestClientReadsInOrder(t *testing.T) {
	t.Parallel()
	s := bench(t, with(even(1, 5<<20, 100*mbit), func(o *Options) { o.Layers = 5 }))
	h := s.hosts[0]
	s.arrive(h)
	reading := func() []int {
		var out []int
		for i := range h.parts {
			if h.parts[i].reading {
				out = append(out, i)
			}
		}
		return out
	}
	if got := reading(); len(got) != 3 || got[2] != 2 {
		t.Errorf("it reads layers %v", got)
	}
	for i, l := range s.layers {
		w := l.server.near.take()
		if await := w.join.Await; w.kind != sayJoin || (await == 0) != (i < 3) {
			t.Errorf("layer %d: joined with await %d", i, await)
		}
	}
	// The chunks of the second layer arrive, the last first.
	l := s.layers[1]
	for c := l.chunks - 1; c >= 0; c-- {
		s.launch(h, l, &proto.Lease{ID: uint64(c), Digest: l.blob.Digest, First: c, Count: 1})
		pass(s, s.now+time.Second)
		if c > 0 && h.bytes != 0 {
			t.Errorf("the client has %d bytes without the first chunk", h.bytes)
		}
	}
	if h.bytes != l.blob.Size || h.report.Layers[1] == 0 {
		t.Errorf("the client has %d bytes of %d, complete at %v", h.bytes, l.blob.Size, h.report.Layers[1])
	}
	if got := reading(); len(got) != 3 || got[1] != 2 || got[2] != 3 {
		t.Errorf("after the second it reads layers %v", got)
	}
	if k := heard(s.layers[3]); len(k) != 1 || k[0] != sayAwait {
		t.Errorf("of the fourth layer it said %v", k)
	}
	if k := heard(l); count(k, sayDone) != l.chunks || count(k, sayHold) != 1 || count(k, sayAwait) != 0 {
		t.Errorf("of the second layer it said %v", k)
	}
}

// TestDuplicates: a chunk that comes twice is counted as such, and what is on
// its way when the layer is whole is cut off, the piece that came included.
func TestDuplicates(t *testing.T) {
	t.Parallel()
	s := bench(t, with(even(4, proto.MinChunk*2, 100*mbit), func(o *Options) { o.Mode = report.ModeNoScheduler }))
	h, l := s.hosts[0], s.layers[0]
	for i := 1; i < 4; i++ {
		s.hosts[i].parts[0].have = proto.FullSet(2)
	}
	s.arrive(h)
	lease := func(id uint64, first int, source string) {
		s.launch(h, l, &proto.Lease{ID: id, Digest: l.blob.Digest, First: first, Count: 1, Source: source})
	}
	lease(1, 0, "node-2")
	pass(s, s.now+time.Millisecond)
	lease(2, 0, "node-3") // a millisecond behind
	pass(s, s.now+time.Second)
	if b := h.report.Bytes; b.Zone != 2*proto.MinChunk || b.Duplicate != proto.MinChunk {
		t.Errorf("a chunk that came twice: %+v", b)
	}
	heard(l)
	lease(3, 1, "node-2")
	pass(s, s.now+10*time.Millisecond)
	lease(4, 1, "node-3")
	pass(s, s.now+time.Second)
	b := h.report.Bytes
	if piece := b.Duplicate - proto.MinChunk; piece <= 0 || piece >= proto.MinChunk || b.Zone != 3*proto.MinChunk+piece {
		t.Errorf("with a piece that was cut off: %+v", b)
	}
	if len(h.flows) != 0 || len(s.net.heap) != 0 {
		t.Errorf("%d transfers go on after the whole", len(h.flows))
	}
	if k := heard(l); count(k, sayFail) != 0 || count(k, sayHold) != 1 {
		t.Errorf("it said %v", k)
	}
}

// TestLateLease: a lease that is over its time is given back, unless half of it
// is here: then it gets the same time once more.
func TestLateLease(t *testing.T) {
	t.Parallel()
	chunk := proto.MinChunk / (100 * mbit) // seconds that one takes
	for _, tt := range []struct {
		chunks int
		within float64 // of one chunk's time
		failed bool
		after  float64
	}{
		{1, 1.5, false, 1},
		{1, 0.4, true, 0.4},
		{1, 0.6, false, 1},  // 0.6 of it is here
		{4, 1.9, true, 1.9}, // not half of four
		{4, 2.1, false, 4},
		{4, 1.99999, true, 1.99999},
		{5, 2.51, false, 5},
		{64, 32.5, false, 64},
		{64, 31.5, true, 31.5},
	} {
		s := bench(t, with(even(2, 64*proto.MinChunk, 100*mbit), func(o *Options) { o.Mode = report.ModeNoScheduler }))
		h, l := s.hosts[0], s.layers[0]
		s.hosts[1].parts[0].have = proto.FullSet(64)
		s.arrive(h)
		heard(l)
		seconds := func(chunks float64) time.Duration { return time.Duration(chunks * chunk * 1e9) }
		s.launch(h, l, &proto.Lease{ID: 1, Digest: l.blob.Digest, Count: tt.chunks, Source: "node-2", Within: seconds(tt.within)})
		pass(s, seconds(tt.after)-time.Microsecond)
		if len(h.flows) != 1 {
			t.Errorf("%+v: over too early", tt)
			continue
		}
		pass(s, s.now+10*time.Microsecond)
		k := heard(l)
		if len(h.flows) != 0 || (count(k, sayFail) == 1) != tt.failed || !tt.failed && count(k, sayDone) != tt.chunks {
			t.Errorf("%+v: %d transfers, said %v", tt, len(h.flows), k)
		}
	}
}

// TestRevoke: a lease that was taken back ends, also before its first byte.
func TestRevoke(t *testing.T) {
	t.Parallel()
	s := bench(t, with(even(2, 64*proto.MinChunk, 100*mbit), func(o *Options) { o.Mode, o.RTT = report.ModeNoScheduler, time.Millisecond }))
	h, l := s.hosts[0], s.layers[0]
	l.server.host = h
	s.hosts[1].parts[0].have = proto.FullSet(64)
	s.arrive(h)
	heard(l)
	for _, begun := range []bool{false, true} {
		s.launch(h, l, &proto.Lease{ID: 7, Digest: l.blob.Digest, Count: 64, Source: "node-2"})
		q := &s.fresh
		if q.n == 0 {
			q = &s.starts
		}
		if begun {
			s.begin(q.take().flow)
			pass(s, s.now+time.Millisecond)
		}
		s.revoke(h, 8) // another
		s.revoke(h, 7)
		if !begun {
			s.begin(q.take().flow)
		}
		if k := heard(l); len(h.flows) != 0 || len(s.net.heap) != 0 || count(k, sayFail) != 1 {
			t.Errorf("begun %t: %d transfers, said %v", begun, len(h.flows), k)
		}
	}
	if b := h.report.Bytes; b.Zone != b.Duplicate || b.Zone < int64(100*mbit)/1000-1 {
		t.Errorf("counted %+v", b)
	}
}
