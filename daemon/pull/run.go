package pull

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

const (
	// maxOrigins bounds the origins that a pull remembers: repositories that
	// share the blob and were asked for while it was on its way.
	maxOrigins = 4
	// originFailures is how many fetches from the origin may fail in a row
	// before the pull does. Each has retries of its own behind it.
	originFailures = 3
	// soloExtra is how many more requests than soloFetches may be under way if
	// each begins at a chunk that a reader waits for: one that jumps ahead does
	// not queue behind the blob's other parts.
	soloExtra = 2
	// firstChunks bounds the first request of a pull for a reader that begins
	// inside the blob: a Range may want no more than that.
	firstChunks = 2
	// joinDelay is how long a pull for a reader waits for the reader to say
	// what it wants to read first.
	joinDelay = 20 * time.Millisecond
)

var (
	errAbandoned = errors.New("nobody wants it any more")
	errStalled   = errors.New("the source was too slow for its lease")
	errWrong     = errors.New("the content was wrong")
)

// pull is the bringing of one blob.
type pull struct {
	// immutable
	puller  *Puller
	blob    *cache.Blob
	b       proto.Blob
	seed    bool
	started time.Time
	enter   func()        // joins the swarm, once; it does not block
	wanted  chan struct{} // 1-buffered: do not wait for a reader
	left    chan struct{} // 1-buffered: the last reader may have gone
	results chan result

	fromOrigin, fromPeers atomic.Int64

	interest // protected by puller.mu

	// mu protects the fields below. Nothing is called while it is held.
	mu      sync.Mutex
	origins []proto.Origin
	flights map[*flight]bool
	swarm   Swarm // nil: on our own

	// The rest belongs to the goroutine of run.
	ctx       context.Context
	over      bool  // nothing is launched any more
	scheduled bool  // a scheduler has us
	solo      bool  // fetching from the origin on our own
	wrong     bool  // the whole was wrong once
	failures  int   // of the origin, in a row
	refused   error // the origin's last word, if it failed
	awaited   int   // the chunk last reported as awaited
}

// flight is a fetch that is under way.
type flight struct {
	// immutable
	lease  uint64 // 0: without one
	run    proto.Run
	source string // peer ID, "" for the origin
	origin bool
	ctx    context.Context
	cancel context.CancelCauseFunc
}

type result struct {
	flight *flight
	err    error
}

func newPull(p *Puller, blob *cache.Blob, o proto.Origin, seed bool) *pull {
	r := &pull{
		puller:  p,
		blob:    blob,
		b:       blob.Blob(),
		seed:    seed,
		started: time.Now(),
		wanted:  make(chan struct{}, 1),
		left:    make(chan struct{}, 1),
		results: make(chan result),
		origins: []proto.Origin{o},
		flights: make(map[*flight]bool),
		awaited: -1,
	}
	r.enter = sync.OnceFunc(func() {
		if join := p.cfg.Join; join != nil {
			// The session may call state before Join returns.
			r.setSwarm(join(r.b.Digest, r.state))
		}
	})
	return r
}

// hurry makes the pull start without waiting for a reader. It has joined its
// swarm when hurry returns, so that pulls which are started one after the other
// join one after the other. It is called with puller.mu held, before the puller
// ends: a pull that is over by then cannot join any more.
func (r *pull) hurry() {
	r.enter()
	r.want()
}

// want makes the pull start without waiting for a reader.
func (r *pull) want() {
	select {
	case r.wanted <- struct{}{}:
	default:
	}
}

func (r *pull) addOrigin(o proto.Origin) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.origins, o) && len(r.origins) < maxOrigins {
		r.origins = append(r.origins, o)
	}
}

func (r *pull) originList() []proto.Origin {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.origins)
}

func (r *pull) status() Status {
	have := r.blob.Have()
	size := int64(have.Count()) * r.b.ChunkSize()
	if n := r.b.Chunks(); n > 0 && have.Has(n-1) {
		size += r.b.Chunk(n-1).Size - r.b.ChunkSize()
	}
	return Status{
		Blob: r.b, Origin: r.originList()[0], Seed: r.seed, Have: size,
		FromOrigin: r.fromOrigin.Load(), FromPeers: r.fromPeers.Load(), Started: r.started,
	}
}

// state is what a scheduler is told when the pull joins.
func (r *pull) state() *proto.Join {
	j := &proto.Join{Blob: r.b, Have: r.blob.Have(), Await: r.blob.Awaited().Next(0), Seed: r.seed}
	r.mu.Lock()
	defer r.mu.Unlock()
	j.Origin = r.origins[0]
	j.Flight = proto.NewSet(r.b.Chunks())
	for f := range r.flights {
		for c := f.run.First; c < f.run.First+f.run.Count; c++ {
			if !j.Have.Has(c) {
				j.Flight.Add(c)
			}
		}
	}
	return j
}

// report tells the scheduler, if there is one.
func (r *pull) report(m proto.Message) {
	if s := r.currentSwarm(); s != nil {
		s.Report(m)
	}
}

func (r *pull) currentSwarm() Swarm {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.swarm
}

// setSwarm exchanges the swarm and returns the old one.
func (r *pull) setSwarm(s Swarm) Swarm {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.swarm
	r.swarm = s
	return old
}

// run brings the blob here, or fails its readers.
func (r *pull) run() {
	ctx, cancel := context.WithCancel(r.puller.ctx)
	r.ctx = ctx
	err := r.bring()
	cancel()
	r.over = true
	for len(r.inFlight()) > 0 {
		if ferr := r.finish(<-r.results); err == nil {
			err = ferr
		}
	}
	whole := r.blob.Whole()
	if s := r.setSwarm(nil); s != nil {
		s.Close(r.b, whole)
	}
	outcome, log := "whole", r.puller.log.With("digest", r.b.Digest, "origin", r.originList()[0].String())
	switch {
	case whole:
		err = nil
		log.Debug("blob is whole", "size", r.b.Size, "took", time.Since(r.started),
			"from_origin", r.fromOrigin.Load(), "from_peers", r.fromPeers.Load())
	case r.puller.ctx.Err() != nil:
		outcome = "stopped"
		err = fmt.Errorf("pulling %s: %w", r.b.Digest, ErrClosed)
	case r.givenUp():
		outcome = "abandoned"
		err = errAbandoned
		log.Debug("pull given up: nobody wants the blob any more", "size", r.b.Size)
	default:
		outcome = "failed"
		log.Warn("pull failed", "error", err)
	}
	r.puller.metrics.results.WithLabelValues(outcome).Inc()
	r.puller.end(r, err)
}

// bring reacts to events until the blob is whole, which returns nil, or there
// is no way to go on.
func (r *pull) bring() error {
	if !r.waitForReader() {
		return r.ctx.Err()
	}
	r.enter()
	r.await() // a pull that was hurried joined before its reader came
	if r.currentSwarm() == nil {
		r.goSolo()
	}
	idle := time.NewTimer(r.puller.cfg.Patience)
	defer idle.Stop()
	armed := true
	for {
		fired, err := r.step(idle.C)
		if err != nil || r.blob.Whole() {
			return err
		}
		switch patient := r.patient(); {
		case patient:
			idle.Stop()
			armed = false
		case !armed || fired:
			idle.Reset(r.patience())
			armed = true
		}
	}
}

// patience is how long the pull waits with nothing on its way.
func (r *pull) patience() time.Duration {
	if r.refused != nil {
		return r.puller.cfg.Help
	}
	return r.puller.cfg.Patience
}

// patient reports whether the pull is as it should be and has no use for a
// timer: something is on its way, or a scheduler will say what to do.
func (r *pull) patient() bool {
	return len(r.inFlight()) > 0 || r.scheduled && r.refused == nil
}

// waitForReader waits until a reader waits for a chunk or the pull was started
// without one, for joinDelay at most.
func (r *pull) waitForReader() bool {
	t := time.NewTimer(joinDelay)
	defer t.Stop()
	select {
	case <-r.ctx.Done():
		return false
	case <-r.wanted:
	case <-r.blob.AwaitChanged():
	case <-t.C:
	}
	return true
}

// step waits for one event and reacts to it. It reports whether the event was
// the idle timer, and returns an error if the pull cannot go on.
func (r *pull) step(idle <-chan time.Time) (fired bool, err error) {
	var events <-chan proto.Message
	if s := r.currentSwarm(); s != nil {
		events = s.Events()
	}
	select {
	case <-r.ctx.Done():
		return false, r.ctx.Err()
	case <-r.blob.Done():
	case m := <-events:
		r.event(m)
	case <-r.blob.AwaitChanged():
		r.await()
		if r.solo {
			r.goSolo()
		}
	case <-r.left:
		if r.puller.abandon(r) {
			return false, errAbandoned
		}
	case res := <-r.results:
		return false, r.finish(res)
	case <-idle:
		if r.refused != nil {
			return true, r.refused
		}
		if !r.scheduled {
			r.goSolo()
		}
		return true, nil
	}
	return false, nil
}

func (r *pull) event(m proto.Message) {
	switch m := m.(type) {
	case *proto.Welcome:
		r.scheduled, r.solo = true, false
	case *proto.Bye:
		r.scheduled = false
	case *proto.Lease:
		run := proto.Run{Blob: r.b, First: m.First, Count: m.Count}
		if err := run.Validate(); err != nil {
			r.puller.log.Warn("lease makes no sense", "digest", r.b.Digest, "error", err)
			r.report(&proto.Fail{Digest: r.b.Digest, Lease: m.ID, Cause: proto.CauseDropped})
			return
		}
		r.blob.Expect(m.First, m.Sums)
		r.launch(run, m)
	case *proto.Revoke:
		for _, f := range r.inFlight() {
			if f.lease == m.Lease {
				f.cancel(errStalled)
			}
		}
	}
}

// await tells the scheduler which chunk a reader waits for.
func (r *pull) await() {
	c := r.blob.Awaited().Next(0)
	if c < 0 || c == r.awaited {
		return
	}
	r.awaited = c
	r.report(&proto.Await{Digest: r.b.Digest, Index: c})
}

// goSolo fetches from the origin without a scheduler.
func (r *pull) goSolo() {
	r.solo = !r.over
	for r.solo {
		j := r.state()
		taken := j.Have
		for c := j.Flight.Next(0); c >= 0; c = j.Flight.Next(c + 1) {
			taken.Add(c)
		}
		awaited := r.blob.Awaited()
		run, ok := pick(r.b, taken, awaited)
		if !ok {
			return
		}
		count := admit(run, awaited, len(r.inFlight()), r.fromOrigin.Load()+r.fromPeers.Load() == 0)
		if count == 0 {
			return
		}
		run.Count = count
		r.launch(run, &proto.Lease{Digest: r.b.Digest, First: run.First, Count: run.Count})
	}
}

func (r *pull) inFlight() []*flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*flight, 0, len(r.flights))
	for f := range r.flights {
		out = append(out, f)
	}
	return out
}

// launch starts the fetch of a run. Its result comes by r.results.
func (r *pull) launch(run proto.Run, l *proto.Lease) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	f := &flight{lease: l.ID, run: run, source: l.Source, origin: l.FromOrigin(), ctx: ctx, cancel: cancel}
	r.mu.Lock()
	r.flights[f] = true
	r.mu.Unlock()
	go func() { // run receives every result
		r.results <- result{f, r.fetch(ctx, f, l)}
		cancel(nil)
	}()
}

// finish takes note of a fetch that is over. It returns an error if the pull
// cannot go on.
func (r *pull) finish(res result) error {
	f, err := res.flight, res.err
	r.mu.Lock()
	delete(r.flights, f)
	r.mu.Unlock()
	var disk *storeError
	switch {
	case err == nil && f.origin:
		r.failures, r.refused = 0, nil
	case err == nil || r.ctx.Err() != nil:
	case errors.Is(err, cache.ErrDigest):
		return r.startOver(err)
	case errors.As(err, &disk):
		return err // not the source's fault, and no other source would help
	case context.Cause(f.ctx) == errWrong:
	default:
		if err := r.failed(f, err); err != nil {
			return err
		}
	}
	if r.solo {
		r.goSolo()
	}
	return nil
}

// failed takes note of a source's failure.
func (r *pull) failed(f *flight, err error) error {
	cause := r.puller.cfg.Cause(err)
	switch {
	case errors.Is(err, cache.ErrCorrupt):
		cause = proto.CauseCorrupt
	case errors.Is(err, errStalled):
		cause = proto.CauseStalled
	}
	r.puller.log.Debug("fetch failed", "digest", r.b.Digest, "first", f.run.First, "count", f.run.Count,
		"source", f.source, "error", err)
	if f.origin {
		r.failures++
		if r.failures >= originFailures {
			cause = proto.CauseDenied // it has had its chances
		}
		if cause == proto.CauseDenied || cause == proto.CauseAbsent {
			r.refused = err
		}
	}
	if f.lease != 0 {
		r.report(&proto.Fail{Digest: r.b.Digest, Lease: f.lease, Cause: cause})
	}
	if r.solo {
		return r.refused // there is nobody else
	}
	return nil
}

// startOver fetches everything from the origin after the whole was wrong.
func (r *pull) startOver(err error) error {
	if r.wrong {
		return fmt.Errorf("the origin sends other content than its digest says: %w", err)
	}
	r.wrong = true
	r.puller.log.Warn("content does not match its digest, fetching all of it from the origin", "digest", r.b.Digest)
	for _, f := range r.inFlight() {
		f.cancel(errWrong)
	}
	if s := r.setSwarm(nil); s != nil {
		s.Close(r.b, false)
	}
	r.scheduled = false
	r.goSolo()
	return nil
}
