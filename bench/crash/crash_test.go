package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

const (
	// nodes are killed independently, each with a directory of its own.
	nodes = 4
	// firstStarts of each node's kills come in the first start of its directory.
	firstStarts = 3
	// clients ask a daemon at a time.
	clients = 3
	// starting bounds when a kill in a start comes, which takes some 50 ms.
	starting = 80 * time.Millisecond
	// working is how many bytes clients may get before a kill while they pull,
	// and pause how long it may come after that: not each moment is one at which
	// a client gets something. Bytes, so that as much happens between two kills on
	// a machine that is busy.
	working = 16 * mib
	pause   = 50 * time.Millisecond
	// stuck is for how long a daemon may not give as much.
	stuck = 60 * time.Second
)

// TestKilled kills daemons 200 times (-short: 24), each at a random moment, and
// checks what is served after each restart and what is on the disk in the end.
func TestKilled(t *testing.T) {
	kills := setting(t, "CRASH_KILLS", 200)
	if testing.Short() {
		kills = setting(t, "CRASH_KILLS", 24)
	}
	seed := setting(t, "CRASH_SEED", rand.Uint64())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the seed of this run: CRASH_SEED=%d", seed)
		}
	})
	o := startOrigin(t)
	victims := make([]*victim, nodes)
	t.Run("nodes", func(t *testing.T) {
		for i := range victims {
			t.Run(fmt.Sprintf("node-%d", i), func(t *testing.T) {
				t.Parallel()
				v := &victim{node: newNode(t, o, fmt.Sprintf("node-%d", i)), origin: o, rnd: rand.New(rand.NewPCG(seed, uint64(i)))}
				victims[i] = v
				v.suffer(t, int(kills)/nodes)
			})
		}
	})
	if t.Failed() {
		return
	}
	var cuts, partial, evicted int
	for _, v := range victims {
		cuts, partial, evicted = cuts+int(v.counts.cuts.Load()), partial+v.partial, evicted+v.evicted
	}
	if kills >= 100 && (cuts == 0 || partial == 0 || evicted == 0) {
		t.Error("the daemons were killed where nothing happened, so this shows nothing")
	}
}

// A victim is a node that is killed.
type victim struct {
	*node
	origin *origin
	rnd    *rand.Rand
	counts counts

	whole            map[proto.Digest]bool // at the start before
	pinned           bool                  // at the start before: the pinned image had been pulled
	evicted, partial int                   // seen at all starts together
}

// suffer kills the node's daemon so many times, and checks what is left.
func (v *victim) suffer(t *testing.T, kills int) {
	for i := range kills {
		if i < firstStarts || v.rnd.IntN(6) == 0 {
			if err := v.killStarting(t.Context(), v.moment(starting)); err != nil {
				t.Fatalf("kill %d, in a start: %v", i, err)
			}
			continue
		}
		if err := v.live(t); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
	}
	v.recover(t)
	t.Logf("%d kills: %d pulls, %d bodies right, %d requests cut, %d collections, %d scrubs, %d blobs gone, %d found in part",
		kills, v.counts.pulls.Load(), v.counts.bodies.Load(), v.counts.cuts.Load(), v.counts.collections.Load(), v.counts.scrubs.Load(), v.evicted, v.partial)
}

// moment returns a random time up to limit.
func (v *victim) moment(limit time.Duration) time.Duration {
	return time.Duration(v.rnd.Int64N(int64(limit)))
}

// live starts the daemon, reads back what it has, has clients pull, and kills it
// at some moment of that. The error is the first thing that was wrong.
func (v *victim) live(t *testing.T) error {
	v.look(t)
	l, err := v.start(t.Context())
	if err != nil {
		return err
	}
	if v.rnd.IntN(4) == 0 {
		l.left.Store(1 + v.rnd.Int64N(quota)) // while it is read back
	}
	wrong := make(chan struct{})
	var stalled error
	var wg sync.WaitGroup
	after := v.moment(pause)
	wg.Go(func() {
		defer l.kill()
		select {
		case <-l.doomed:
		case <-wrong:
			return
		case <-time.After(stuck):
			stalled = fmt.Errorf("clients did not get %d bytes within %s", working, stuck)
		}
		select {
		case <-time.After(after):
		case <-wrong:
		}
	})
	if err = v.use(t.Context(), l); err != nil {
		close(wrong)
	}
	wg.Wait()
	if err = errors.Join(err, stalled); err != nil {
		return fmt.Errorf("%w\nthe daemon's last lines:\n%s", err, l.Tail())
	}
	return nil
}

// look notes what the directory has before a start.
func (v *victim) look(t *testing.T) {
	found, partial := v.node.whole(t)
	v.partial += partial
	now := make(map[proto.Digest]bool, len(found))
	for _, d := range found {
		if _, pushed := v.origin.blobs[d]; !pushed {
			t.Errorf("a blob that was never pushed: %s", d)
		}
		now[d] = true
	}
	for d := range v.whole {
		if now[d] {
			continue
		}
		v.evicted++
		if v.pinned && v.isPinned(d) {
			t.Errorf("%s belongs to the pinned image, was whole, and is gone", d)
		}
	}
	v.whole, v.pinned = now, v.counts.pinned.Load() > 0
}

func (v *victim) isPinned(d proto.Digest) bool {
	img := v.origin.images[pinned]
	return d == img.Manifest.Digest || slices.ContainsFunc(img.Blobs(), func(b proto.Blob) bool { return b.Digest == d })
}

// use reads back all that the daemon had when it started, then has clients ask
// until it is killed.
func (v *victim) use(ctx context.Context, l *life) error {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	c := v.client(l, transport)
	for d := range v.whole {
		if l.killed() {
			return nil
		}
		if err := c.read(ctx, d); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
	}
	l.left.Store(1 + v.rnd.Int64N(working))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, clients)
	var wg sync.WaitGroup
	for range clients {
		c := v.client(l, transport)
		wg.Go(func() {
			err := c.run(ctx)
			if err != nil {
				cancel()
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *victim) client(l *life, transport *http.Transport) *client {
	return &client{
		life: l, origin: v.origin, http: &http.Client{Transport: transport}, counts: &v.counts,
		rnd: rand.New(rand.NewPCG(v.rnd.Uint64(), 0)),
	}
}

// recover starts the daemon a last time, pulls everything, scrubs, stops it,
// and checks what it leaves.
func (v *victim) recover(t *testing.T) {
	v.look(t)
	l, err := v.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Kill()
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	c := v.client(l, transport)
	for d := range v.whole {
		if err := c.read(t.Context(), d); err != nil {
			t.Errorf("read back: %v", err)
		}
	}
	for _, img := range v.origin.images {
		if err := c.pull(t.Context(), img); err != nil {
			t.Error(err)
		}
	}
	report, err := admin.NewClient(l.Admin).Scrub(t.Context())
	if err != nil || len(report.Damaged) > 0 {
		t.Errorf("the last scrub: %+v, %v", report, err)
	}
	if err := l.Stop(grace); err != nil {
		t.Error(err)
	}
	if bytes := v.checkFiles(t, v.origin); bytes > quota+quota/10 {
		t.Errorf("%d bytes are there, and the quota is %d", bytes, quota)
	}
	if t.Failed() {
		t.Logf("the daemon's last lines:\n%s", l.Tail())
	}
}
