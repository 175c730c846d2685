package sim

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/proto"
)

// A layer is a blob of the image and who schedules it.
type layer struct {
	index  int
	blob   proto.Blob
	chunks int
	server *server
}

// A host is a node, the scheduler process (as a seed), or the origin.
type host struct {
	index    int
	member   proto.Member
	zone     int
	up, down link
	slow     bool
	seed     bool
	dead     bool
	arrives  time.Duration
	parts    []part // of each layer
	flows    []*flow
	missing  int      // layers that are not whole
	next     int      // the first layer that its client has not asked for
	met      []uint64 // the hosts that it has had connections to, a bit each
	// connections are those to each source, if their windows count.
	connections map[*host][]*connection
	report      report.Node
	// bytes are what its client has, heard is when it got the last of them, and
	// noted when that was put into the report, which is done when grain has
	// gone by.
	bytes               int64
	heard, noted, grain time.Duration
}

// A part is what a host has of a layer.
type part struct {
	have   proto.Set
	count  int
	joined bool
	whole  bool
	// read is the chunk that the client waits for, if it is reading.
	reading bool
	read    int
}

// A transfer is a lease that a host carries out.
type transfer struct {
	src, dst    *host
	layer       *layer
	lease       uint64
	first, last int
	chunk       int           // that is on its way
	size        float64       // of it
	since       time.Duration // when it began
	within      time.Duration
	early       time.Duration // before its end the scheduler is told
	tail        float64       // bytes of the last chunk that come after that
	extended    bool
	started     bool // is on the wire
	over        bool // ended before it started
	connection  *connection
}

// concurrentLayers is how many layers a client reads at a time, as containerd
// does.
const concurrentLayers = 3

// arrive lets a node's client ask for the image. Its daemon starts all layers
// when it serves the manifest.
func (s *sim) arrive(h *host) {
	h.heard, h.noted = s.now, s.now
	for range concurrentLayers {
		s.readNext(h)
	}
	for _, l := range s.layers {
		s.join(h, l, false)
	}
}

// readNext lets h's client ask for its next layer.
func (s *sim) readNext(h *host) {
	if h.next == len(h.parts) {
		return
	}
	l := s.layers[h.next]
	h.next++
	p := &h.parts[l.index]
	p.reading = true
	s.advance(h, l)
	if p.joined && p.reading {
		s.say(h, l, word{kind: sayAwait, chunk: p.read})
	}
}

// join enters h into the swarm of a layer.
func (s *sim) join(h *host, l *layer, seed bool) {
	p := &h.parts[l.index]
	if p.whole {
		s.say(h, l, word{kind: sayHold})
		return
	}
	p.joined = true
	j := &proto.Join{Blob: l.blob, Origin: s.origin, Have: p.have.Clone(), Await: -1, Seed: seed}
	if p.reading {
		j.Await = p.read
	}
	for _, f := range h.flows {
		if f.layer == l {
			for c := f.chunk; c <= f.last; c++ {
				j.Flight.Add(c)
			}
		}
	}
	s.say(h, l, word{kind: sayJoin, join: j})
}

// advance lets the client of h read on in a layer as far as it can.
func (s *sim) advance(h *host, l *layer) {
	p := &h.parts[l.index]
	if !p.reading {
		return
	}
	from := p.read
	for p.read < l.chunks && p.have.Has(p.read) {
		p.read++
	}
	if p.read == from {
		return
	}
	h.report.Silence = max(h.report.Silence, (s.now - h.heard).Seconds())
	h.heard = s.now
	h.bytes += min(int64(p.read)*l.blob.ChunkSize(), l.blob.Size) - int64(from)*l.blob.ChunkSize()
	if s.now-h.noted >= h.grain {
		h.noted = s.now
		h.report.Progress = append(h.report.Progress, report.Point{At: s.now.Seconds(), Bytes: h.bytes})
	}
	if p.read < l.chunks {
		s.say(h, l, word{kind: sayAwait, chunk: p.read})
		return
	}
	p.reading = false
	h.report.Layers[l.index] = s.now.Seconds()
	s.readNext(h)
}

// launch begins what a lease says: the request is on its way for a round trip,
// and for two more if a connection has to be made.
func (s *sim) launch(h *host, l *layer, m *proto.Lease) {
	src := s.registry
	if !m.FromOrigin() {
		src = s.host(m.Source)
	}
	f := s.newFlow()
	f.transfer = transfer{
		src: src, dst: h, layer: l, lease: m.ID, first: m.First, last: m.First + m.Count - 1,
		chunk: m.First, since: s.now, within: m.Within, early: m.Early,
	}
	f.deadline = never
	if !m.FromOrigin() && m.Within > 0 {
		f.deadline = s.now + m.Within
	}
	h.flows = append(h.flows, f)
	switch {
	case s.o.RTT == 0 || src == h:
		s.begin(f)
	case s.dial(f):
		s.fresh.put(starting{s.now + 3*s.o.RTT, f})
	default:
		s.starts.put(starting{s.now + s.o.RTT, f})
	}
}

// dial gives f a connection and reports whether that has to be made first.
func (s *sim) dial(f *flow) bool {
	if s.o.SlowStart {
		return s.connect(f)
	}
	return s.meet(f.dst, f.src)
}

// meet notes that h has a connection to src and reports whether that is new.
func (s *sim) meet(h, src *host) bool {
	if h.met == nil {
		h.met = make([]uint64, (len(s.hosts)+64)/64)
	}
	bit := uint64(1) << (src.index & 63)
	met := h.met[src.index>>6]&bit != 0
	h.met[src.index>>6] |= bit
	return !met
}

// begin puts a transfer on the wire, or drops it if it has ended by now.
func (s *sim) begin(f *flow) {
	if f.over {
		s.free(f)
		return
	}
	if f.src.dead {
		s.stop(f, proto.CauseBroken)
		s.free(f)
		return
	}
	f.started = true
	f.hop(&f.src.up)
	if f.src.zone != f.dst.zone && s.zoneUp != nil {
		f.hop(s.zoneUp[f.src.zone])
		f.hop(s.zoneDown[f.dst.zone])
	}
	f.hop(&f.dst.down)
	f.size = float64(f.layer.blob.Chunk(f.chunk).Size)
	f.left = f.size
	s.open(f)
	s.net.add(f)
	s.expectGrowth(f)
	s.split(f)
}

// split divides the last chunk of a lease at the point where the scheduler is
// to be told that the lease is near its end, by the rate that it has now.
func (s *sim) split(f *flow) {
	if f.chunk != f.last || f.early <= 0 {
		return
	}
	f.tail = min(f.size/2, f.early.Seconds()*f.rate)
	f.left -= f.tail
	s.net.schedule(f)
}

// due deals with a flow whose time has come: the chunk is in, or its lease is
// late.
func (s *sim) due(f *flow) {
	left := f.left - f.rate*(s.now-f.as).Seconds()
	// A nanosecond's worth is what rounding can leave.
	if left > f.rate*2e-9 && s.now >= f.deadline {
		s.late(f, left)
		return
	}
	h, l, c := f.dst, f.layer, f.chunk
	if f.tail > 0 {
		f.left, f.tail, f.as = f.tail, 0, s.now
		s.net.schedule(f)
		s.say(h, l, word{kind: sayNear, lease: f.lease})
		return
	}
	size := int64(f.size)
	s.count(f, size)
	p := &h.parts[l.index]
	whole := false
	if p.have.Has(c) {
		h.report.Bytes.Duplicate += size
	} else {
		p.have.Add(c)
		p.count++
		s.moved += size
		whole = p.count == l.chunks
	}
	lease, took := f.lease, s.now-f.since
	if f.chunk == f.last {
		s.net.remove(f)
		h.flows = remove(h.flows, f)
		s.free(f)
	} else {
		f.chunk++
		f.since = s.now
		f.size = float64(l.blob.Chunk(f.chunk).Size)
		f.left, f.as = f.size, s.now
		s.net.schedule(f)
		s.split(f)
	}
	s.say(h, l, word{kind: sayDone, lease: lease, chunk: c, took: took})
	if whole {
		s.whole(h, l)
	}
	s.advance(h, l)
}

// count adds bytes that came in to the figures of both ends.
func (s *sim) count(f *flow, size int64) {
	b := &f.dst.report.Bytes
	switch {
	case f.src == s.registry:
		b.Origin += size
		s.fromOrigin += size
	case f.src.seed:
		b.Seed += size
	case f.src.zone == f.dst.zone:
		b.Zone += size
	default:
		b.Far += size
	}
}

// whole deals with a layer that has all its chunks. What else of it is on its
// way is not waited for.
func (s *sim) whole(h *host, l *layer) {
	p := &h.parts[l.index]
	p.whole, p.joined = true, false
	for _, f := range slices.Clone(h.flows) {
		if f.layer == l {
			s.drop(f)
		}
	}
	s.say(h, l, word{kind: sayHold})
	if h.missing--; h.missing == 0 {
		h.report.Done = s.now.Seconds()
		if !h.seed {
			s.waiting--
		}
	}
}

// late deals with a lease that is over its deadline: if half of it is here it
// gets the same time once more.
func (s *sim) late(f *flow, left float64) {
	run := proto.Run{Blob: f.layer.blob, First: f.first, Count: f.last - f.first + 1}
	done := proto.Run{Blob: f.layer.blob, First: f.first, Count: f.chunk - f.first}
	received := f.size - left - f.tail
	if done.Count > 0 {
		received += float64(done.Size())
	}
	if 2*received >= float64(run.Size()) && !f.extended {
		f.extended = true
		f.left, f.as = left, s.now
		f.deadline = s.now + f.within
		s.net.schedule(f)
		return
	}
	s.stop(f, proto.CauseStalled)
}

// revoke ends a lease that the scheduler has taken back.
func (s *sim) revoke(h *host, id uint64) {
	i := slices.IndexFunc(h.flows, func(f *flow) bool { return f.lease == id })
	if i < 0 {
		return
	}
	s.stop(h.flows[i], proto.CauseStalled)
}

// stop ends a transfer and reports why.
func (s *sim) stop(f *flow, cause proto.Cause) {
	s.say(f.dst, f.layer, word{kind: sayFail, lease: f.lease, cause: cause})
	s.drop(f)
}

// drop ends a transfer without a word. A piece of a chunk that is here was for
// nothing.
func (s *sim) drop(f *flow) {
	f.dst.flows = remove(f.dst.flows, f)
	if !f.started {
		f.over = true // its start is in a queue
		return
	}
	piece := int64(f.size - f.tail - max(f.left-f.rate*(s.now-f.as).Seconds(), 0))
	s.count(f, piece)
	f.dst.report.Bytes.Duplicate += piece
	s.net.remove(f)
	s.free(f)
}

// remove returns list without x.
func remove(list []*flow, x *flow) []*flow {
	i := slices.Index(list, x)
	list[i] = list[len(list)-1]
	list[len(list)-1] = nil
	return list[:len(list)-1]
}
