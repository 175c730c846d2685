package pull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// ErrClosed is wrapped by what Open and Start return once the Puller ends.
var ErrClosed = errors.New("the daemon is shutting down")

// Swarm is a pull's word with the scheduler of its blob. It is implemented by
// scheduler.Session.
type Swarm interface {
	// Events delivers *proto.Lease and *proto.Revoke, and *proto.Welcome and
	// *proto.Bye when a scheduler has been found and lost. It starts without.
	Events() <-chan proto.Message
	// Report takes *proto.Done, *proto.Fail and *proto.Await. It does not block.
	Report(m proto.Message)
	// Close leaves the swarm, telling whether the blob is whole here.
	Close(b proto.Blob, whole bool)
}

// Config configures a Puller.
type Config struct {
	Cache *cache.Cache
	// Origin returns the source for a blob's origin.
	Origin func(proto.Origin) Source
	// Peer returns the source for the member with an ID at a host:port.
	Peer func(id, addr string) Source
	// Class says how the member with an ID is to this node: any Class but
	// ClassOrigin. Default: ClassFar for all.
	Class func(id string) Class
	// Join enters a pull into its swarm. state tells what is here and on its
	// way; it may be called at any time. Without Join every pull goes straight
	// to the origin. Join must not block nor call the Puller.
	Join func(d proto.Digest, state func() *proto.Join) Swarm
	// Limit waits until some of the next want bytes of a transfer may come in,
	// from the origin or from a peer, and returns how many, at least 1. It
	// fails when ctx ends. Without it there is no limit.
	Limit func(ctx context.Context, origin bool, want int64) (int64, error)
	// Cause says what kind of failure a Source's error is. Default:
	// CauseBroken for all.
	Cause func(error) proto.Cause
	// Patience is how long a pull waits for a scheduler before it goes to the
	// origin alone. Default 5 s: with the owner dead and the next ones as well,
	// the takeover still takes less; and when a whole fleet is too busy to
	// answer in time, the origin is the last thing that should be asked by
	// everybody at once.
	Patience time.Duration
	// Help is how long a pull waits for somebody who has the blob after the
	// origin has refused it. Default 1 s: a lease on a member that has it comes
	// within milliseconds.
	Help time.Duration
	// Abandon gives a pull up, keeping its chunks, once nobody wants the blob
	// any more: it was neither started nor seeded, and the contexts of all
	// readers have ended. Default: every pull goes on to its end.
	Abandon  bool
	Log      *slog.Logger          // default: none
	Registry prometheus.Registerer // default: none
}

// Puller brings blobs here.
type Puller struct {
	// immutable
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	ctx     context.Context // ends when Run ends
	cancel  context.CancelFunc
	buffers buffers

	// mu protects the fields below. A pull ends and fails its readers under it,
	// so that a reader belongs either to a pull that is running or to a new one.
	mu     sync.Mutex
	pulls  map[proto.Digest]*pull
	ended  ended
	closed bool
	wg     sync.WaitGroup
}

// New returns a Puller. It works at once; Run ends it.
func New(cfg Config) *Puller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Cause == nil {
		cfg.Cause = func(error) proto.Cause { return proto.CauseBroken }
	}
	if cfg.Class == nil {
		cfg.Class = func(string) Class { return ClassFar }
	}
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Second
	}
	if cfg.Help == 0 {
		cfg.Help = time.Second
	}
	p := &Puller{cfg: cfg, log: cfg.Log, metrics: newMetrics(cfg.Registry), pulls: make(map[proto.Digest]*pull)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Run blocks until ctx ends. Then no pull starts any more, those that run are
// given up, keeping what they have, and waited for. It returns nil.
func (p *Puller) Run(ctx context.Context) error {
	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	return nil
}

// Open returns a reader of the blob at once, joining the pull of it or starting
// one from o if it is not whole here. The reader waits for each chunk as it
// comes to it; the caller closes it. ctx ends the reader's waits, not the pull,
// which goes on without the reader. With Config.Abandon the reader wants the
// blob until ctx ends, so that ctx should end with it.
func (p *Puller) Open(ctx context.Context, b proto.Blob, o proto.Origin) (*cache.Reader, error) {
	cb, err := p.cfg.Cache.Blob(b)
	if err != nil {
		return nil, err
	}
	defer cb.Release()
	p.mu.Lock()
	defer p.mu.Unlock()
	run, err := p.start(cb, o, false, false)
	if err != nil {
		return nil, err
	}
	if run != nil {
		p.count(ctx, run)
	}
	return cb.NewReader(ctx), nil
}

// Start starts the pull of a blob that nobody reads yet, unless it is whole
// here or on its way. The pull has joined its swarm when Start returns: the
// schedulers hear of blobs in the order in which they were started.
func (p *Puller) Start(b proto.Blob, o proto.Origin) error { return p.begin(b, o, false) }

// Seed is Start for a blob that is brought here for others.
func (p *Puller) Seed(b proto.Blob, o proto.Origin) error { return p.begin(b, o, true) }

func (p *Puller) begin(b proto.Blob, o proto.Origin, seed bool) error {
	cb, err := p.cfg.Cache.Blob(b)
	if err != nil {
		return err
	}
	defer cb.Release()
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.start(cb, o, true, seed)
	return err
}

// start starts the pull of cb or adds an origin to the one that runs, and
// returns it: nil if the blob is whole. p.mu is held.
func (p *Puller) start(cb *cache.Blob, o proto.Origin, eager, seed bool) (*pull, error) {
	if cb.Whole() {
		return nil, nil
	}
	b := cb.Blob()
	// A blob that was deleted as soon as it was whole is another cache.Blob now,
	// and the run of the one before, if it is not over yet, does nothing for it.
	run := p.pulls[b.Digest]
	switch {
	case run != nil && run.blob == cb && !run.given:
		run.addOrigin(o)
		if eager && !p.closed {
			run.kept = true
			run.hurry()
		}
		return run, nil
	case p.closed:
		return nil, fmt.Errorf("pulling %s: %w", b.Digest, ErrClosed)
	case run != nil && run.blob == cb: // given up, and not over yet
		return run.follow(cb, o, eager, seed)
	}
	own, err := p.cfg.Cache.Blob(b)
	if err != nil {
		return nil, err
	}
	run = newPull(p, own, o, seed)
	if eager {
		run.kept = true
		run.hurry()
	}
	p.launch(run)
	return run, nil
}

// launch lets a pull run. p.mu is held.
func (p *Puller) launch(run *pull) {
	p.pulls[run.b.Digest] = run
	p.metrics.running.Inc()
	p.wg.Go(run.run)
}

// end takes a pull that is over out of the list and, with an error, fails its
// readers. One that was given up has none; who came since has its successor.
func (p *Puller) end(run *pull, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pulls[run.b.Digest] == run {
		delete(p.pulls, run.b.Digest)
	}
	p.metrics.running.Dec()
	p.ended.add(run)
	next := run.next
	switch {
	case next != nil && !p.closed && !run.blob.Whole():
		p.launch(next)
	case next != nil:
		next.blob.Release()
		if err != nil {
			err = fmt.Errorf("pulling %s: %w", run.b.Digest, ErrClosed)
		}
		fallthrough
	default:
		if err != nil {
			run.blob.Fail(err)
		}
	}
	run.blob.Release()
}

// Status is the state of one pull.
type Status struct {
	Blob       proto.Blob
	Origin     proto.Origin
	Seed       bool
	Have       int64 // bytes that are here
	FromOrigin int64 // bytes that came in from the origin
	FromPeers  int64 // bytes that came in from peers
	Started    time.Time
}

// Pulls returns the pulls that run, the oldest first.
func (p *Puller) Pulls() []Status {
	p.mu.Lock()
	runs := make([]*pull, 0, len(p.pulls))
	for _, run := range p.pulls {
		runs = append(runs, run)
	}
	p.mu.Unlock()
	out := make([]Status, len(runs))
	for i, run := range runs {
		out[i] = run.status()
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Started.Compare(b.Started) })
	return out
}

// Bytes are totals since the start of what came in, wrong and double bytes
// included, by the Class of the source.
type Bytes struct {
	Origin, Seed, Zone, Far int64
	// Duplicate are those of all these that were for nothing: of chunks that
	// were here already, and of pieces of chunks whose rest did not come.
	Duplicate int64
}

// Peers is what came in from members, of whatever Class.
func (b Bytes) Peers() int64 { return b.Seed + b.Zone + b.Far }

// Bytes returns what all pulls have brought so far.
func (p *Puller) Bytes() Bytes { return p.metrics.bytes() }
