package jobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

const (
	// maxImages and maxPlatforms bound what one Spec can ask for.
	maxImages    = 1000
	maxPlatforms = 50
	// maxParts bounds the images of a job times its nodes: the coordinator knows
	// how far each of them is, in some 200 bytes.
	maxParts = 100_000
	// maxWaiting bounds the jobs that have not ended. Each is a file.
	maxWaiting = 200
	// pace is how often a Watch yields at most, and how often a job that runs is
	// written down: what a crash forgets is asked of the nodes again. A job so
	// large that this takes long is told and written less often, in a share of
	// the time at most.
	pace  = 250 * time.Millisecond
	share = 10
)

var errStopped = errors.New("the daemon is shutting down")

// Config is what Jobs need. Dir, Gate, Puller, Origin, Cache, Self and Members
// must be set.
type Config struct {
	// Dir is where the jobs are kept, a file each. It is made at need, and is
	// for one Jobs at a time.
	Dir    string
	Gate   *policy.Gate
	Puller *pull.Puller
	Origin *origin.Client
	Cache  *cache.Cache
	// SetTag is told what a tag names: when the origin has said so for a job,
	// and when all of such an image is here. Nil: nobody is.
	SetTag func(upstream, repository, tag string, d origin.Descriptor) error
	// Default is the registry of images that name none. Empty: docker.io.
	Default string
	// Rules say what Notify starts.
	Rules []Rule
	// Self is this node, Members those of the fleet that are alive now, in any
	// order.
	Self    proto.Member
	Members func() []proto.Member
	// Open opens a stream to a member, whose Serve gets the other end.
	Open func(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error)
	// AtOnce is how many jobs of this node run at once; the others wait.
	// Default 4.
	AtOnce int
	// Patience is how long a node that has failed or left may take to come back
	// before its part of a job counts as failed. Default 30 s: the restart of a
	// daemon.
	Patience time.Duration
	// Silence is how long a node may say nothing. Default 30 s; it says
	// something every 5 s.
	Silence time.Duration
	// Sample is how often a node looks how far its blobs are. Default 500 ms.
	Sample time.Duration
	Log    *slog.Logger // default: none
}

// Jobs are the jobs that this node was asked for, and what it does for those of
// others.
type Jobs struct {
	// immutable
	cfg   Config
	log   *slog.Logger
	store *store
	ctx   context.Context // ends when Run ends
	stop  context.CancelCauseFunc
	wg    sync.WaitGroup // jobs that run

	// mu protects the fields below, and the job of each entry.
	mu      sync.Mutex
	entries map[string]*entry
	queue   []*entry // that wait for their turn, in order
	running int
	serving int           // orders of other nodes
	started bool          // Run runs
	closed  bool          // Run ends
	news    chan struct{} // closed when the members have changed
}

// An entry is a job with what belongs to it here.
type entry struct {
	// The fields below are protected by Jobs.mu.
	job       Job  // its slices are written in place: see clone
	filed     bool // it has ended, and its Nodes are in its file only
	refs      []origin.Ref
	cancel    context.CancelFunc // nil: it does not run
	cancelled bool
	changed   chan struct{} // closed at the next change

	writing sync.Mutex // held while the file is written, protects the fields below
	written time.Time
	cost    time.Duration // of writing it
}

// New reads the jobs that are kept. Those that have not ended go on when Run
// runs.
func New(cfg Config) (*Jobs, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Default == "" {
		cfg.Default = dockerHub
	}
	defaults := []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Patience, 30 * time.Second}, {&cfg.Silence, silence}, {&cfg.Sample, sample}}
	for _, d := range defaults {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if cfg.AtOnce == 0 {
		cfg.AtOnce = 4
	}
	for i, r := range cfg.Rules {
		if err := r.Validate(); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	s, err := openStore(cfg.Dir, cfg.Log)
	if err != nil {
		return nil, err
	}
	j := &Jobs{cfg: cfg, log: cfg.Log, store: s, entries: map[string]*entry{}, news: make(chan struct{})}
	j.ctx, j.stop = context.WithCancelCause(context.Background())
	kept, err := s.load()
	if err != nil {
		return nil, err
	}
	for _, job := range kept {
		j.restore(job)
	}
	j.prune()
	return j, nil
}

// restore takes on a job of before a restart.
func (j *Jobs) restore(job Job) {
	e := &entry{job: job, changed: make(chan struct{})}
	switch {
	case job.State.Ended():
		e.job.Nodes, e.filed = []NodeState{}, true
	default:
		var err error
		if e.refs, err = job.Spec.refs(j.cfg.Default); err != nil {
			j.log.Warn("job cannot go on", "job", job.ID, "error", err)
			return
		}
		if !job.consistent() {
			e.job.Nodes = []NodeState{} // asked anew
		}
		e.job.State = Waiting
		j.queue = append(j.queue, e)
	}
	j.entries[job.ID] = e
}

// Start starts a job and returns it as it is kept: from then on a restart does
// not end it. A job of the same Spec that still waits is returned instead of a
// new one. The error wraps ErrInvalid or ErrBusy, or is the disk's.
func (j *Jobs) Start(_ context.Context, s Spec) (Job, error) {
	if err := s.Validate(j.cfg.Default); err != nil {
		return Job{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	// Checked now for the asker's sake; it is what is there when the job begins
	// that counts.
	if _, err := j.nodes(s, len(s.Images)); err != nil {
		return Job{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	refs, err := s.refs(j.cfg.Default)
	if err != nil {
		return Job{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.Images, s.Platforms = slices.Clone(s.Images), slices.Clone(s.Platforms)
	e := &entry{refs: refs, changed: make(chan struct{}), job: Job{
		ID: newID(), Spec: s, State: Waiting, Created: time.Now().UTC(), Images: []ImageState{}, Nodes: []NodeState{},
	}}
	for _, image := range s.Images {
		e.job.Images = append(e.job.Images, ImageState{Image: image, State: Waiting})
	}
	if err := j.keepNow(e); err != nil {
		return Job{}, err
	}
	job, err := j.enqueue(e)
	if job.ID != e.job.ID {
		j.store.remove(e.job.ID)
		return job, err
	}
	j.log.Info("job", "job", job.ID, "images", len(s.Images), "nodes", s.Nodes)
	j.dispatch()
	return job, nil
}

// enqueue puts e at the end of the queue and returns its job, or that of the
// same Spec which is there.
func (j *Jobs) enqueue(e *entry) (Job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return Job{}, errStopped
	}
	for _, q := range j.queue {
		if reflect.DeepEqual(q.job.Spec, e.job.Spec) && len(q.job.Nodes) == 0 {
			return q.job.clone(), nil
		}
	}
	if len(j.queue)+j.running >= maxWaiting {
		return Job{}, fmt.Errorf("%w: %d have not ended; wait, or cancel some", ErrBusy, maxWaiting)
	}
	j.entries[e.job.ID] = e
	j.queue = append(j.queue, e)
	return e.job.clone(), nil
}

func newID() string {
	var random [3]byte
	rand.Read(random[:]) // never fails
	return time.Now().UTC().Format("20060102-150405-") + hex.EncodeToString(random[:])
}

// Notify starts the jobs that the rules say for events, and returns them.
func (j *Jobs) Notify(ctx context.Context, events []Event) ([]Job, error) {
	started := []Job{}
	for _, s := range Match(j.cfg.Rules, events) {
		job, err := j.Start(ctx, s)
		if err != nil {
			return started, err
		}
		started = append(started, job)
	}
	return started, nil
}

// Get returns a job as it is now.
func (j *Jobs) Get(id string) (Job, bool) {
	job, _, ok := j.look(id)
	return job, ok
}

// List returns the jobs, the newest first: those that have not ended, and the
// last hundred that have, those without their Nodes.
func (j *Jobs) List() []Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]Job, 0, len(j.entries))
	for _, e := range j.entries {
		all = append(all, e.job.clone())
	}
	slices.SortFunc(all, newestFirst)
	return all
}

func newestFirst(a, b Job) int {
	if c := b.Created.Compare(a.Created); c != 0 {
		return c
	}
	return -1 * slices.Compare([]byte(a.ID), []byte(b.ID))
}

// Watch yields a job as it is, and then as it has changed, a few times a second
// at most, until it has ended, ctx or Run ends. The last one of a job that has
// ended shows that. It yields nothing of a job that is not here.
func (j *Jobs) Watch(ctx context.Context, id string) iter.Seq[Job] {
	return func(yield func(Job) bool) {
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			<-timer.C
			began := time.Now()
			job, changed, ok := j.look(id)
			if !ok || !yield(job) || job.State.Ended() {
				return
			}
			took := time.Since(began)
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-j.ctx.Done():
				return
			}
			timer.Reset(max(pace, share*took))
		}
	}
}

// look returns a job and what is closed when it changes.
func (j *Jobs) look(id string) (job Job, changed <-chan struct{}, ok bool) {
	j.mu.Lock()
	e := j.entries[id]
	if e == nil {
		j.mu.Unlock()
		return Job{}, nil, false
	}
	job, changed = e.job.clone(), e.changed
	filed := e.filed
	j.mu.Unlock()
	if filed {
		full, err := j.store.read(id)
		if err != nil {
			j.log.Warn("job cannot be read", "job", id, "error", err)
			return job, changed, true
		}
		job = full
	}
	return job, changed, true
}

// clone returns a copy that nobody writes to.
func (job Job) clone() Job {
	job.Images = slices.Clone(job.Images)
	job.Nodes = slices.Clone(job.Nodes) // their images are replaced, not written to
	return job
}

// Cancel ends a job that has not ended. What its nodes have stays there. The
// error wraps ErrNotFound or ErrEnded. It does not wait.
func (j *Jobs) Cancel(id string) error {
	j.mu.Lock()
	e := j.entries[id]
	switch {
	case e == nil:
		j.mu.Unlock()
		return fmt.Errorf("%s: %w", id, ErrNotFound)
	case e.job.State.Ended():
		j.mu.Unlock()
		return fmt.Errorf("%s: %w: %s", id, ErrEnded, e.job.State)
	}
	e.cancelled = true
	waits := e.cancel == nil
	if waits {
		j.queue = slices.DeleteFunc(j.queue, func(q *entry) bool { return q == e })
	} else {
		e.cancel()
	}
	j.mu.Unlock()
	if waits {
		j.finish(e)
	}
	return nil
}

// MembersChanged says that Members has another answer: nodes that are missing
// are looked for at once.
func (j *Jobs) MembersChanged() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.news)
	j.news = make(chan struct{})
}

// Run does the jobs, those of before a restart first, until ctx ends. Then it
// stops them where they are, waits for that, and returns nil: the next Run goes
// on with them.
func (j *Jobs) Run(ctx context.Context) error {
	j.mu.Lock()
	j.started = true
	j.mu.Unlock()
	j.dispatch()
	<-ctx.Done()
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.stop(errStopped)
	j.wg.Wait()
	return nil
}

// dispatch begins the jobs whose turn it is.
func (j *Jobs) dispatch() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.started && !j.closed && j.running < j.cfg.AtOnce && len(j.queue) > 0 {
		e := j.queue[0]
		j.queue = j.queue[1:]
		j.running++
		var ctx context.Context
		ctx, e.cancel = context.WithCancel(j.ctx)
		e.job.State = Running
		e.tell()
		j.wg.Go(func() {
			defer e.cancel()
			j.coordinate(ctx, e)
			j.mu.Lock()
			j.running--
			j.mu.Unlock()
			j.dispatch()
		})
	}
}

// tell wakes those who watch e. Jobs.mu is held.
func (e *entry) tell() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// update changes a job.
func (j *Jobs) update(e *entry, change func(*Job)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&e.job)
	e.tell()
}
