package sim

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/proto"
	"github.com/shoal-project/shoal/scheduler"
)

// epoch is the start in virtual time.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// sim is one simulation. It is a loop over what happens next.
type sim struct {
	o        Options
	now      time.Duration // since epoch
	net      network
	origin   proto.Origin
	layers   []*layer
	byDigest map[proto.Digest]*layer
	hosts    []*host // the nodes, then the scheduler process, then the origin
	registry *host   // the origin
	seed     *host   // the scheduler process, or nil
	servers  []*server
	zoneUp   []*link // nil without limits between zones
	zoneDown []*link

	near, far     queue[order]    // from the servers
	starts, fresh queue[starting] // with a connection, and without one
	growths       queue[growing]
	connected     int64    // connections so far, if their windows count
	arrivals      []*host  // those to come, in order
	faults        []fault  // those to come, in order
	done          []string // faults that were carried out
	spare         []*flow
	made          int64 // flows

	waiting    int // nodes that have not got everything
	moved      int64
	fromOrigin int64
	bound      float64       // in seconds
	deciding   time.Duration // real time that the books took
	memory     memory
	scratch    struct {
		await proto.Await
		done  proto.Done
	}
}

// Run simulates a rollout. It returns early, with ctx's error, when ctx ends.
func Run(ctx context.Context, o Options) (*report.Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := newSim(o.filled())
	// The books' time is taken by the clock, since that costs least, and then
	// scaled by the share of the clock's time in which this thread had a
	// processor.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, used := time.Now(), threadTime()
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	if used := threadTime() - used; used > 0 {
		share := used.Seconds() / max(time.Since(began).Seconds(), 1e-9)
		s.deciding = time.Duration(float64(s.deciding) * min(share, 1))
	}
	return s.result(), nil
}

func newSim(o Options) *sim {
	s := &sim{
		o: o, origin: proto.Origin{Upstream: "bench", Repository: "bench/image"},
		byDigest: make(map[proto.Digest]*layer), waiting: o.Nodes,
	}
	for i, b := range o.image() {
		l := &layer{index: i, blob: b, chunks: b.Chunks()}
		s.layers = append(s.layers, l)
		s.byDigest[b.Digest] = l
	}
	arrivals := o.arrivals()
	for i := range o.Nodes {
		rate, slow := o.NodeRate, i >= o.Nodes-o.SlowNodes
		if slow {
			rate = o.SlowRate
		}
		h := s.newHost("node-"+strconv.Itoa(i+1), i%max(o.Zones, 1), rate, proto.RoleDaemon)
		h.slow, h.arrives = slow, arrivals[i]
		h.report.Slow, h.report.Arrived = slow, arrivals[i].Seconds()
	}
	s.arrivals = slices.Clone(s.hosts)
	if o.Kill > 0 {
		s.faults = append(s.faults, fault{o.Kill, s.kill})
	}
	if o.Mode == report.ModeShoal {
		s.seed = s.newHost("scheduler", 0, o.SeedRate, proto.RoleScheduler)
		s.seed.seed = true
	}
	s.registry = s.newHost("origin", 0, o.OriginRate, 0)
	if o.CrossZoneRate > 0 {
		for range o.Zones {
			up, down := &link{}, &link{}
			up.set(o.CrossZoneRate * o.Goodput)
			down.set(o.CrossZoneRate * o.Goodput)
			s.zoneUp, s.zoneDown = append(s.zoneUp, up), append(s.zoneDown, down)
		}
	}
	points := 64.0
	if o.Nodes > 512 {
		points = 16
	}
	bare := s.bare()
	bare.SetBounds()
	s.bound = bare.Bound
	for i := range bare.Nodes {
		s.hosts[i].grain = time.Duration(bare.Nodes[i].Bound / points * 1e9)
	}
	s.memory.start(s)
	for _, l := range s.layers {
		l.server = s.serverOf(l)
	}
	return s
}

func (s *sim) newHost(name string, zone int, rate float64, role proto.Role) *host {
	h := &host{
		index: len(s.hosts), zone: zone,
		member:  proto.Member{ID: name, Name: name, Zone: s.o.zoneName(zone), Roles: role, Addr: name + ":7051"},
		parts:   make([]part, len(s.layers)),
		missing: len(s.layers),
	}
	h.up.set(rate * s.o.Goodput)
	h.down.set(rate * s.o.Goodput)
	h.report = report.Node{Name: name, Zone: h.member.Zone, Layers: make([]float64, len(s.layers))}
	for i, l := range s.layers {
		h.parts[i].have = proto.NewSet(l.chunks)
	}
	s.hosts = append(s.hosts, h)
	return h
}

// host returns the host of a member. IDs are numbers in disguise, since a map
// of thousands of names is slow to ask for millions of times.
func (s *sim) host(id string) *host {
	if digits, ok := strings.CutPrefix(id, "node-"); ok {
		i, _ := strconv.Atoi(digits)
		return s.hosts[i-1]
	}
	return s.seed
}

// members returns who is alive.
func (s *sim) members() []proto.Member {
	var out []proto.Member
	for _, h := range s.hosts {
		if h != s.registry && !h.dead {
			out = append(out, h.member)
		}
	}
	return out
}

// serverOf returns who schedules l now. A server knows all hosts from the
// first.
func (s *sim) serverOf(l *layer) *server {
	members := s.members()
	m, _ := scheduler.Owner(l.blob.Digest, scheduler.Candidates(members), nil)
	at := s.host(m.ID)
	for _, v := range s.servers {
		if v.host == at {
			return v
		}
	}
	// Everybody has been up for a minute when the rollout begins.
	v := &server{host: at, book: scheduler.NewBook(s.o.Tuning, s.o.Seed+uint64(len(s.servers))<<32, epoch.Add(-time.Minute)), tick: never}
	s.servers = append(s.servers, v)
	for _, m := range members {
		s.decide(v, func(now time.Time) { v.book.Connect(now, m) })
	}
	return v
}

func (s *sim) newFlow() *flow {
	if n := len(s.spare); n > 0 {
		f := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return f
	}
	s.made++
	return &flow{heap: -1}
}

// free takes a flow back that nothing points to any more.
func (s *sim) free(f *flow) {
	s.disconnect(f)
	*f = flow{heap: -1}
	s.spare = append(s.spare, f)
}

// run goes from event to event until all nodes have everything, or nothing
// more happens.
func (s *sim) run(ctx context.Context) error {
	limit := s.limit()
	for events := 0; s.waiting > 0; events++ {
		if events&0x3fff == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if s.o.Progress != nil {
				s.o.Progress(Progress{Elapsed: s.now, Bytes: s.moved, Total: s.o.Size * int64(s.o.Nodes), Done: s.o.Nodes - s.waiting})
			}
		}
		if !s.step() || s.now > limit {
			return nil
		}
		s.memory.look(s)
	}
	return nil
}

// limit returns when a simulation is given up that does not come to its end.
func (s *sim) limit() time.Duration {
	last := s.hosts[s.o.Nodes-1].arrives
	return last + time.Duration(min((1000*s.bound+3600)*1e9, float64(never/2)))
}

// The kinds of what can come next.
const (
	nothing = iota
	decision
	orderNear
	orderFar
	transferStarts
	transferStartsFresh
	windowGrows
	flowIsDue
	nodeArrives
	faultHappens
)

// An event is what comes next.
type event struct {
	at   time.Duration
	kind int
	// Of a decision: whose, and the queue of its message, nil for an alarm.
	server *server
	queue  *queue[word]
}

// next returns what comes next. Of several things at one time it is the first
// in this order.
func (s *sim) next() event {
	e := event{at: never}
	sooner := func(at time.Duration, kind int) {
		if at < e.at {
			e.at, e.kind = at, kind
		}
	}
	for _, v := range s.servers {
		if at, q := v.due(); !v.dead && at < e.at {
			e = event{at, decision, v, q}
		}
	}
	if o := s.near.first(); o != nil {
		sooner(o.at, orderNear)
	}
	if o := s.far.first(); o != nil {
		sooner(o.at, orderFar)
	}
	if t := s.starts.first(); t != nil {
		sooner(t.at, transferStarts)
	}
	if t := s.fresh.first(); t != nil {
		sooner(t.at, transferStartsFresh)
	}
	if g := s.growths.first(); g != nil {
		sooner(g.at, windowGrows)
	}
	if f, at := s.net.next(); f != nil {
		sooner(at, flowIsDue)
	}
	if len(s.arrivals) > 0 {
		sooner(s.arrivals[0].arrives, nodeArrives)
	}
	if len(s.faults) > 0 {
		sooner(s.faults[0].at, faultHappens)
	}
	return e
}

// step does what comes next. It returns false if nothing does.
func (s *sim) step() bool {
	e := s.next()
	if e.kind == nothing {
		return false
	}
	s.now = max(s.now, e.at)
	s.net.now = s.now
	switch e.kind {
	case decision:
		s.act(e.server, e.queue)
	case orderNear:
		s.obey(s.near.take())
	case orderFar:
		s.obey(s.far.take())
	case transferStarts:
		s.begin(s.starts.take().flow)
	case transferStartsFresh:
		s.begin(s.fresh.take().flow)
	case windowGrows:
		s.grow(s.growths.take())
	case flowIsDue:
		f, _ := s.net.next()
		s.due(f)
	case nodeArrives:
		h := s.arrivals[0]
		s.arrivals = s.arrivals[1:]
		s.arrive(h)
	case faultHappens:
		f := s.faults[0]
		s.faults = s.faults[1:]
		f.do()
	}
	return true
}

// bare returns the result without what the nodes have done.
func (s *sim) bare() *report.Result {
	r := &report.Result{Kind: "simulate", Command: s.o.Command, Params: s.o.params(), ImageBytes: s.o.Size}
	for _, h := range s.hosts[:s.o.Nodes] {
		r.Nodes = append(r.Nodes, h.report)
	}
	return r
}

func (s *sim) result() *report.Result {
	for _, h := range s.hosts[:s.o.Nodes] {
		if h.missing > 0 {
			h.report.Error = s.why(h)
		}
	}
	r := s.bare()
	r.OriginBytes = s.fromOrigin
	r.SetBounds()
	if s.seed != nil {
		seed := s.seed.report
		seed.Layers = nil
		r.Scheduler = &seed
	}
	r.Faults = s.done
	for _, v := range s.servers {
		c := v.book.Counts()
		r.Grants += int64(c.PeerLeases + c.OriginLeases)
	}
	r.GrantSeconds = s.deciding.Seconds()
	r.SchedulerMemory = s.memory.most
	return r
}

// why says what a node lacks.
func (s *sim) why(h *host) string {
	have, all := 0, 0
	for i, l := range s.layers {
		have += h.parts[i].count
		all += l.chunks
	}
	return fmt.Sprintf("it has %d of %d chunks, and nothing more is to come by %s", have, all, s.now.Round(time.Millisecond))
}
