package pull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// badger's library starts these once per process and never ends them.
		goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// memory is a Source of content in memory that can be told to misbehave.
type memory struct {
	content []byte
	fetches atomic.Int64
	bytes   atomic.Int64
	// spoil, if set, may change what is written from an offset on, or fail.
	spoil func(off int64, p []byte) ([]byte, error)
	gate  chan struct{} // if set, Fetch waits until it is closed
}

var errAbsent = errors.New("absent")

func (m *memory) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	m.fetches.Add(1)
	if m.gate != nil {
		select {
		case <-m.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Blob.Digest != proto.DigestOf(m.content) {
		return errAbsent
	}
	const piece = 100_000 // not a divisor of any chunk
	for off, end := r.Offset(), r.Offset()+r.Size(); off < end; {
		p := bytes.Clone(m.content[off:min(off+piece, end)])
		n := int64(len(p))
		if m.spoil != nil {
			var err error
			if p, err = m.spoil(off, p); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m.bytes.Add(n) // before readers can have the last of them
		if _, err := w.Write(p); err != nil {
			m.bytes.Add(-n)
			return err
		}
		off += n
	}
	return nil
}

func TestMemorySource(t *testing.T) {
	pulltest.Suite(t, func(t *testing.T, _ proto.Blob, content []byte) pull.Source {
		return &memory{content: content}
	})
}

// swarm is a scheduler's session in the hands of a test.
type swarm struct {
	events  chan proto.Message
	reports chan proto.Message
	closed  chan bool // whether whole
	// reported, if set, is called with each report, joined with each join.
	reported func(m proto.Message)
	joined   func(*proto.Join)
}

func newSwarm() *swarm {
	return &swarm{events: make(chan proto.Message, 100), reports: make(chan proto.Message, 1000), closed: make(chan bool, 100)}
}

func (s *swarm) Events() <-chan proto.Message   { return s.events }
func (s *swarm) Close(_ proto.Blob, whole bool) { s.closed <- whole }

func (s *swarm) Report(m proto.Message) {
	if s.reported != nil {
		s.reported(m)
	}
	s.reports <- m
}

func (s *swarm) lease(id uint64, l proto.Lease) { l.ID = id; s.events <- &l }

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-t.Context().Done():
		t.Fatal("test is over")
		panic("unreachable")
	}
}

type bed struct {
	cache  *cache.Cache
	puller *pull.Puller
	origin pull.Source
	peers  map[string]pull.Source
	// classes of the peers; nobody is a registry that is not in it.
	classes map[string]pull.Class
	swarm   *swarm // nil: no scheduler
	limit   func(ctx context.Context, origin bool, want int64) (int64, error)
	abandon bool
	options cache.Options
}

func (b *bed) start(t *testing.T) {
	t.Helper()
	var err error
	if b.cache, err = cache.Open(t.TempDir(), b.options); err != nil {
		t.Fatal(err)
	}
	cfg := pull.Config{
		Cache:    b.cache,
		Origin:   func(proto.Origin) pull.Source { return b.origin },
		Peer:     func(id, _ string) pull.Source { return b.peers[id] },
		Class:    func(id string) pull.Class { return b.classes[id] },
		Limit:    b.limit,
		Abandon:  b.abandon,
		Patience: 100 * time.Millisecond,
		Help:     100 * time.Millisecond,
		Cause: func(err error) proto.Cause {
			if errors.Is(err, errAbsent) {
				return proto.CauseAbsent
			}
			return proto.CauseBroken
		},
	}
	if b.swarm != nil {
		cfg.Join = func(_ proto.Digest, state func() *proto.Join) pull.Swarm {
			j := state()
			b.swarm.reports <- j
			if b.swarm.joined != nil {
				b.swarm.joined(j)
			}
			return b.swarm
		}
	}
	b.puller = pull.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.puller.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.cache.Close(); err != nil {
			t.Error(err)
		}
	})
}

var where = proto.Origin{Upstream: "docker.io", Repository: "library/alpine"}

func (b *bed) read(t *testing.T, blob proto.Blob) ([]byte, error) {
	t.Helper()
	r, err := b.puller.Open(t.Context(), blob, where)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func sums(b proto.Blob, content []byte) []proto.Sum {
	out := make([]proto.Sum, b.Chunks())
	for i := range out {
		c := b.Chunk(i)
		out[i] = blake3.Sum256(content[c.Offset : c.Offset+c.Size])
	}
	return out
}

// TestConcurrentOpensJoin: however many ask for one blob, there is one pull.
func TestConcurrentOpensJoin(t *testing.T) {
	content, blob := pulltest.Content(1, 20*proto.MinChunk+7)
	src := &memory{content: content, gate: make(chan struct{})}
	b := &bed{origin: src}
	b.start(t)
	var wg, opened sync.WaitGroup
	opened.Add(50)
	for range 50 {
		wg.Go(func() {
			r, err := b.puller.Open(t.Context(), blob, where)
			opened.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
	opened.Wait()
	close(src.gate)
	wg.Wait()
	if got := src.bytes.Load(); got != blob.Size {
		t.Errorf("the origin sent %d bytes for a blob of %d", got, blob.Size)
	}
	if d := b.puller.Bytes().Duplicate; d != 0 {
		t.Errorf("%d bytes came in twice", d)
	}
}

func TestReaderGoesAndPullGoesOn(t *testing.T) {
	content, blob := pulltest.Content(2, 8*proto.MinChunk)
	src := &memory{content: content, gate: make(chan struct{})}
	b := &bed{origin: src}
	b.start(t)
	r, err := b.puller.Open(t.Context(), blob, where)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cb, err := b.cache.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Release()
	close(src.gate)
	receive(t, cb.Done())
}

func TestOriginErrorReachesReaders(t *testing.T) {
	_, blob := pulltest.Content(3, 8*proto.MinChunk)
	b := &bed{origin: &memory{content: []byte("other")}}
	b.start(t)
	if _, err := b.read(t, blob); !errors.Is(err, errAbsent) {
		t.Errorf("reading what the origin has not got: %v, want its error", err)
	}
	if n := len(b.puller.Pulls()); n != 0 {
		t.Errorf("%d pulls are left", n)
	}
}

// TestFailedPullIsRetriedByTheNextReader: a failure is of those who waited.
func TestFailedPullIsRetriedByTheNextReader(t *testing.T) {
	content, blob := pulltest.Content(4, 8*proto.MinChunk)
	var broken atomic.Bool
	broken.Store(true)
	b := &bed{origin: &memory{content: content, spoil: func(_ int64, p []byte) ([]byte, error) {
		if broken.Load() {
			return nil, errors.New("no route")
		}
		return p, nil
	}}}
	b.start(t)
	if _, err := b.read(t, blob); err == nil {
		t.Fatal("read from a broken origin")
	}
	broken.Store(false)
	if got, err := b.read(t, blob); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after it was mended: %d bytes, %v", len(got), err)
	}
}

func TestWrongBytesFromOrigin(t *testing.T) {
	content, blob := pulltest.Content(5, 4*proto.MinChunk)
	always, once := -1, 1
	for _, times := range []int{always, once} {
		t.Run(fmt.Sprint(times), func(t *testing.T) {
			var mu sync.Mutex
			left := times
			b := &bed{origin: &memory{content: content, spoil: func(off int64, p []byte) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				if off == 0 && left != 0 {
					left--
					p[0] ^= 1
				}
				return p, nil
			}}}
			b.start(t)
			got, err := b.read(t, blob)
			if err == nil {
				t.Errorf("read %d bytes of which the first had been wrong, and no error", len(got))
			}
			if len(got) == len(content) {
				t.Error("a reader got a complete wrong blob")
			}
			if times == once { // the pull has mended itself
				if got, err := b.read(t, blob); err != nil || !bytes.Equal(got, content) {
					t.Errorf("second read: %d bytes, %v", len(got), err)
				}
			} else if _, whole := b.cache.Whole(blob.Digest); whole {
				t.Error("the wrong content was kept")
			}
		})
	}
}

func TestLeases(t *testing.T) {
	content, blob := pulltest.Content(6, 5*proto.MinChunk+9)
	all := sums(blob, content)
	b := &bed{
		origin:  &memory{content: content},
		peers:   map[string]pull.Source{"good": &memory{content: content}, "empty": &memory{content: []byte("x")}},
		classes: map[string]pull.Class{"good": pull.ClassZone, "bad": pull.ClassFar, "empty": pull.ClassSeed},
		swarm:   newSwarm(),
	}
	bad := &memory{content: content, spoil: func(_ int64, p []byte) ([]byte, error) { p[0] ^= 1; return p, nil }}
	b.peers["bad"] = bad
	b.start(t)
	type read struct {
		got []byte
		err error
	}
	over := make(chan read, 1)
	go func() {
		got, err := b.read(t, blob)
		over <- read{got, err}
	}()
	join := next[*proto.Join](t, b.swarm)
	if join.Blob != blob || join.Origin != where || join.Await != 0 || join.Have.Count() != 0 {
		t.Errorf("joined with %+v", join)
	}
	b.swarm.events <- &proto.Welcome{}

	b.swarm.lease(1, proto.Lease{First: 0, Count: 2})
	for i := range 2 {
		if d := next[*proto.Done](t, b.swarm); d.Lease != 1 || d.Index != i || d.Sum != all[i] {
			t.Errorf("reported %+v, want chunk %d of lease 1 with its sum", d, i)
		}
	}
	for source, cause := range map[string]proto.Cause{"bad": proto.CauseCorrupt, "empty": proto.CauseAbsent} {
		b.swarm.lease(2, proto.Lease{First: 2, Count: 2, Source: source, Sums: all[2:4]})
		if f := next[*proto.Fail](t, b.swarm); f.Lease != 2 || f.Cause != cause {
			t.Errorf("%s: reported %+v, want cause %d", source, f, cause)
		}
	}
	b.swarm.lease(3, proto.Lease{First: 2, Count: 4, Source: "good", Sums: all[2:6]})
	r := receive(t, over)
	if r.err != nil || !bytes.Equal(r.got, content) {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
	if !receive(t, b.swarm.closed) {
		t.Error("left the swarm as if the blob were not whole")
	}
	// The chunk that the bad peer sent counts as well: it came in.
	if got, want := b.puller.Bytes(), (pull.Bytes{Origin: 2 * proto.MinChunk, Far: proto.MinChunk, Zone: 3*proto.MinChunk + 9}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// TestDuplicate: every chunk that comes in twice is counted as such, also when
// both come at the same moment; and so is the piece of one whose rest does not
// come.
func TestDuplicate(t *testing.T) {
	const copies, shared = 8, 16
	content, blob := pulltest.Content(13, (shared+1)*proto.MinChunk)
	all := sums(blob, content)
	b := &bed{
		origin: &memory{content: content, spoil: func(off int64, p []byte) ([]byte, error) {
			if off > shared*proto.MinChunk { // after one piece of the last chunk
				return nil, errors.New("cut")
			}
			return p, nil
		}},
		peers:   make(map[string]pull.Source),
		classes: make(map[string]pull.Class),
		swarm:   newSwarm(),
	}
	gate := make(chan struct{})
	for i := range copies {
		id := fmt.Sprint(i)
		b.peers[id] = &memory{content: content, gate: gate}
		b.classes[id] = pull.ClassSeed
	}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	for i := range copies {
		b.swarm.lease(uint64(i+1), proto.Lease{First: 0, Count: shared, Source: fmt.Sprint(i), Sums: all[:shared]})
	}
	close(gate)
	for range copies * shared {
		next[*proto.Done](t, b.swarm)
	}
	b.swarm.lease(100, proto.Lease{First: shared, Count: 1})
	next[*proto.Fail](t, b.swarm)
	b.swarm.lease(101, proto.Lease{First: shared, Count: 1, Source: "0", Sums: all[shared:]})
	if !receive(t, b.swarm.closed) {
		t.Error("left the swarm as if the blob were not whole")
	}
	want := pull.Bytes{
		Origin: 100_000, Seed: (copies*shared + 1) * proto.MinChunk,
		Duplicate: 100_000 + (copies-1)*shared*proto.MinChunk,
	}
	if got := b.puller.Bytes(); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// TestDoneBeforeWhole: the last chunk is reported when it is in and not when the
// blob is on the disk, which takes the scheduler's slots and others' time.
func TestDoneBeforeWhole(t *testing.T) {
	for _, size := range []int{1000, 3 * proto.MinChunk} {
		content, blob := pulltest.Content(14, size)
		b := &bed{origin: &memory{content: content}, swarm: newSwarm()}
		last := blob.Chunks() - 1
		b.swarm.reported = func(m proto.Message) {
			if d, ok := m.(*proto.Done); ok && d.Index == last {
				cb, ok := b.cache.Known(blob.Digest)
				if !ok {
					t.Error("reported a chunk of which nothing is here")
					return
				}
				defer cb.Release()
				if !cb.Has(last) || cb.Whole() {
					t.Errorf("%d bytes: at the report the chunk is in: %t, the blob is whole: %t", size, cb.Has(last), cb.Whole())
				}
			}
		}
		b.start(t)
		if err := b.puller.Start(blob, where); err != nil {
			t.Fatal(err)
		}
		next[*proto.Join](t, b.swarm)
		b.swarm.events <- &proto.Welcome{}
		b.swarm.lease(1, proto.Lease{First: 0, Count: blob.Chunks()})
		if !receive(t, b.swarm.closed) {
			t.Error("left the swarm as if the blob were not whole")
		}
	}
}

// next returns the next report of a type, passing over others.
func next[T proto.Message](t *testing.T, s *swarm) T {
	t.Helper()
	for {
		if m, ok := receive(t, s.reports).(T); ok {
			return m
		}
	}
}

func TestPeerWithoutSumsIsNotBelieved(t *testing.T) {
	content, blob := pulltest.Content(7, 3*proto.MinChunk)
	b := &bed{peers: map[string]pull.Source{"p": &memory{content: content}}, swarm: newSwarm()}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(1, proto.Lease{First: 0, Count: 3, Source: "p"})
	if f := next[*proto.Fail](t, b.swarm); f.Cause != proto.CauseCorrupt {
		t.Errorf("chunks that nothing checks were taken from a peer: %+v", f)
	}
}

func TestRevokeEndsAFetch(t *testing.T) {
	content, blob := pulltest.Content(8, 3*proto.MinChunk)
	b := &bed{
		peers: map[string]pull.Source{"stuck": &memory{content: content, gate: make(chan struct{})}},
		swarm: newSwarm(),
	}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(9, proto.Lease{First: 0, Count: 3, Source: "stuck", Sums: sums(blob, content)})
	b.swarm.events <- &proto.Revoke{Lease: 9}
	if f := next[*proto.Fail](t, b.swarm); f.Lease != 9 || f.Cause != proto.CauseStalled {
		t.Errorf("a revoked lease was reported as %+v", f)
	}
}

func TestLeaseHasADeadline(t *testing.T) {
	content, blob := pulltest.Content(9, 3*proto.MinChunk)
	b := &bed{
		peers: map[string]pull.Source{"stuck": &memory{content: content, gate: make(chan struct{})}},
		swarm: newSwarm(),
	}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(9, proto.Lease{First: 0, Count: 3, Source: "stuck", Within: 1e6, Sums: sums(blob, content)})
	if f := next[*proto.Fail](t, b.swarm); f.Cause != proto.CauseStalled {
		t.Errorf("a lease that nobody served was reported as %+v", f)
	}
}

// TestAloneWithoutAScheduler: with no scheduler to be had, the pull goes to the
// origin by itself; when one comes in the middle it is told what is here.
func TestAloneWithoutAScheduler(t *testing.T) {
	content, blob := pulltest.Content(10, 6*proto.MinChunk)
	b := &bed{origin: &memory{content: content}, swarm: newSwarm()}
	b.start(t)
	if got, err := b.read(t, blob); err != nil || !bytes.Equal(got, content) {
		t.Errorf("without a scheduler: %d bytes, %v", len(got), err)
	}
}

// TestErrorAfterTheLastByte: a lease of which every chunk is in has not failed,
// whatever its source says then, such as that the lease has just run out.
func TestErrorAfterTheLastByte(t *testing.T) {
	content, blob := pulltest.Content(15, 4*proto.MinChunk)
	late := &late{memory{content: content}}
	b := &bed{origin: late, peers: map[string]pull.Source{"late": late}, swarm: newSwarm()}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(1, proto.Lease{First: 0, Count: 2})
	b.swarm.lease(2, proto.Lease{First: 2, Count: 1, Source: "late", Sums: sums(blob, content)[2:3]})
	for done := 0; done < 3; {
		switch m := receive(t, b.swarm.reports).(type) {
		case *proto.Done:
			done++
		case *proto.Fail:
			t.Fatalf("lease %d has failed", m.Lease)
		}
	}
	b.swarm.lease(3, proto.Lease{First: 3, Count: 1})
	receive(t, b.swarm.closed)
	for len(b.swarm.reports) > 0 {
		if f, ok := (<-b.swarm.reports).(*proto.Fail); ok {
			t.Errorf("lease %d has failed", f.Lease)
		}
	}
}

// TestNear: the scheduler hears that a lease is about to end before it does,
// once, if what is left will be here within the time that it asked for; and not
// before half of it is here.
func TestNear(t *testing.T) {
	content, blob := pulltest.Content(16, 4*proto.MinChunk)
	at := func(share float64) int64 { return int64(share * proto.MinChunk) }
	slow := &pieces{content: content, ends: []int64{1, at(0.4), at(0.9), at(1)}, gate: make(chan struct{}), wrote: make(chan struct{})}
	b := &bed{peers: map[string]pull.Source{"slow": slow}, swarm: newSwarm()}
	b.start(t)
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	next[*proto.Join](t, b.swarm)
	b.swarm.events <- &proto.Welcome{}
	b.swarm.lease(1, proto.Lease{First: 0, Count: 1, Source: "slow", Early: time.Hour, Sums: sums(blob, content)[:1]})
	for range 2 {
		slow.piece()
	}
	if len(b.swarm.reports) != 0 {
		t.Errorf("%T after less than half", <-b.swarm.reports)
	}
	slow.piece()
	if m, ok := receive(t, b.swarm.reports).(*proto.Near); !ok || m.Lease != 1 || m.Digest != blob.Digest {
		t.Errorf("%+v after nine tenths, want Near of lease 1", m)
	}
	slow.piece()
	if m, ok := receive(t, b.swarm.reports).(*proto.Done); !ok || m.Lease != 1 {
		t.Errorf("%+v after Near, want Done of lease 1", m)
	}
}

// pieces is a Source that writes one piece, up to the next of ends, at each call
// of piece.
type pieces struct {
	content     []byte
	ends        []int64
	gate, wrote chan struct{}
}

// piece returns when a piece has been written.
func (p *pieces) piece() {
	p.gate <- struct{}{}
	<-p.wrote
}

func (p *pieces) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	from := int64(0)
	for _, end := range p.ends {
		select {
		case <-p.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := w.Write(p.content[r.Offset()+from : r.Offset()+end]); err != nil {
			return err
		}
		from = end
		p.wrote <- struct{}{}
	}
	return nil
}

// late is a Source that fails after the last byte.
type late struct{ memory }

func (l *late) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	return errors.Join(l.memory.Fetch(ctx, r, w), errors.New("too late"))
}

// TestJoinsInOrder: pulls join in the order in which they were started, also
// one that a reader had opened before and that was waiting for it to read.
func TestJoinsInOrder(t *testing.T) {
	b := &bed{origin: &memory{gate: make(chan struct{})}, swarm: newSwarm()}
	b.start(t)
	var want []proto.Digest
	for i := range 30 {
		_, blob := pulltest.Content(uint64(100+i), 1000)
		if i%3 == 1 {
			r, err := b.puller.Open(t.Context(), blob, where)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
		}
		if err := b.puller.Start(blob, where); err != nil {
			t.Fatal(err)
		}
		want = append(want, blob.Digest)
		if got := len(b.swarm.reports); got != len(want) {
			t.Fatalf("%d pulls were started and %d have joined", len(want), got)
		}
	}
	for i, d := range want {
		if got := next[*proto.Join](t, b.swarm).Blob.Digest; got != d {
			t.Errorf("%s joined as number %d, want %s", got, i, d)
		}
	}
}

// TestReaderRightAfterStart: a reader that comes when a pull has joined without
// one, and before it does anything else, is told to the scheduler.
func TestReaderRightAfterStart(t *testing.T) {
	content, blob := pulltest.Content(9, 4*proto.MinChunk)
	for range 20 { // what the pull notices first is random
		s := newSwarm()
		b := &bed{origin: &memory{content: content}, swarm: s}
		var reading sync.WaitGroup
		s.joined = func(*proto.Join) {
			here, err := b.cache.Blob(blob)
			if err != nil {
				t.Error(err)
				return
			}
			r := here.NewReader(t.Context())
			reading.Go(func() {
				defer here.Release()
				defer r.Close()
				_, _ = r.Read(make([]byte, 1)) // the pull's end fails it
			})
			for here.Awaited().Next(0) < 0 {
				runtime.Gosched()
			}
		}
		t.Run("", func(t *testing.T) {
			b.start(t)
			if err := b.puller.Start(blob, where); err != nil {
				t.Fatal(err)
			}
			s.lease(1, proto.Lease{Digest: blob.Digest, First: 3, Count: 1})
			told := false
			for over := false; !over; {
				switch m := receive(t, s.reports).(type) {
				case *proto.Join:
					if m.Await != -1 {
						t.Fatalf("it joined with a reader at chunk %d", m.Await)
					}
				case *proto.Await:
					told = told || m.Index == 0
				case *proto.Done:
					over = true
				}
			}
			if !told {
				t.Error("another chunk is in, and the scheduler was not told of the reader that waits for chunk 0")
			}
		})
		reading.Wait()
	}
}

func TestCloseKeepsWhatIsThere(t *testing.T) {
	content, blob := pulltest.Content(11, 6*proto.MinChunk)
	dir := t.TempDir()
	reached := make(chan struct{})
	once := sync.OnceFunc(func() { close(reached) })
	c, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	src := &memory{content: content, spoil: func(off int64, p []byte) ([]byte, error) {
		if off > 3*proto.MinChunk {
			once()
			return nil, errors.New("cut")
		}
		return p, nil
	}}
	p := pull.New(pull.Config{Cache: c, Origin: func(proto.Origin) pull.Source { return src }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if err := p.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	receive(t, reached)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := p.Start(blob, where); !errors.Is(err, pull.ErrClosed) {
		t.Errorf("Start after the end: %v, want ErrClosed", err)
	}
	cb, err := c.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	if n := cb.Have().Count(); n != 3 {
		t.Errorf("%d chunks were kept, want the 3 that had come", n)
	}
	cb.Release()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeletedAndAskedForAgain: a blob that is deleted as soon as it is whole,
// while its pull is still tidying up, can be pulled again.
func TestDeletedAndAskedForAgain(t *testing.T) {
	content, blob := pulltest.Content(12, 4*proto.MinChunk)
	b := &bed{origin: &memory{content: content}}
	b.start(t)
	for range 5 {
		if got, err := b.read(t, blob); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		if err := b.cache.Delete(blob.Digest); err != nil {
			t.Fatal(err)
		}
	}
}
