package cache

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// A request is one blob that is asked for, by its number in the trace.
type request struct {
	at   time.Time
	blob int
}

// A trace is what the cache of a branch office sees: pulls of images, each a
// request for every blob of it.
type trace struct {
	sizes    []int64
	requests []request
}

// newTrace makes three weeks of pulls. Popularity of applications is Zipf's; each
// stands on a base that many share, and has a release now and then, which moves
// the demand to layers that are new, with a rollout of many pulls at once. Once
// a week a scanner pulls all releases of the last month, and some images that
// nobody else ever asks for, each once.
func newTrace(seed uint64) *trace {
	const days, apps, pullsPerDay = 21, 60, 100
	rnd := rand.New(rand.NewPCG(seed, 1))
	t := &trace{}
	blob := func(mean float64, spread float64) int {
		t.sizes = append(t.sizes, int64(mean*math.Exp(spread*rnd.NormFloat64())))
		return len(t.sizes) - 1
	}
	const mb = 1 << 20
	image := func(below []int) []int {
		return append([]int{blob(2<<10, 0.5), blob(6<<10, 0.7)}, below...)
	}
	var bases [][]int
	for range 20 {
		bases = append(bases, []int{blob(40*mb, 0.6), blob(60*mb, 1), blob(5*mb, 1)})
	}
	zipf := func(n int, s float64) int { return int(rand.NewZipf(rnd, s, 2, uint64(n-1)).Uint64()) }
	type app struct {
		base, needs []int
		every       time.Duration // between releases
		next        time.Time
		releases    [][]int
		since       []time.Time
	}
	start := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	all := make([]*app, apps)
	for i := range all {
		a := &app{base: bases[zipf(len(bases), 1.3)], needs: []int{blob(50*mb, 1.2), blob(10*mb, 1)}}
		a.every = time.Duration(math.Exp(1+rnd.NormFloat64()) * 48 * float64(time.Hour))
		a.next = start.Add(-time.Duration(rnd.Float64() * float64(a.every)))
		all[i] = a
	}
	pull := func(at time.Time, blobs []int) {
		for k, b := range blobs {
			t.requests = append(t.requests, request{at.Add(time.Duration(k) * time.Second), b})
		}
	}
	release := func(a *app, now time.Time) {
		if rnd.IntN(6) == 0 {
			a.needs = []int{blob(50*mb, 1.2), blob(10*mb, 1)}
		}
		a.releases = append(a.releases, image(slices.Concat(a.base, a.needs, []int{blob(20*mb, 1.2)})))
		a.since = append(a.since, now)
	}
	for _, a := range all {
		release(a, start)
		a.next = a.next.Add(a.every)
	}
	for day := range days {
		midnight := start.AddDate(0, 0, day)
		for range pullsPerDay {
			at := midnight.Add(time.Duration((8 + 3*rnd.NormFloat64() + 5) * float64(time.Hour)))
			a := all[zipf(apps, 1.2)]
			k := len(a.releases) - 1
			if k > 0 && rnd.IntN(10) == 0 {
				k-- // a rollback, or a node that is behind
			}
			pull(at, a.releases[k])
		}
		for i, a := range all {
			if a.next.After(midnight.AddDate(0, 0, 1)) {
				continue
			}
			at := midnight.Add(time.Duration((8 + 9*rnd.Float64()) * float64(time.Hour)))
			release(a, at)
			a.next = at.Add(time.Duration((0.5 + rnd.Float64()) * float64(a.every)))
			for n := range 1 + 30/(1+i) { // nodes take it in turn, some minutes in all
				pull(at.Add(time.Duration(n)*20*time.Second), a.releases[len(a.releases)-1])
			}
		}
		if day%7 == 6 {
			at := midnight.Add(26 * time.Hour)
			for _, a := range all {
				for k, since := range a.since {
					if midnight.Sub(since) < 30*24*time.Hour {
						pull(at, a.releases[k])
						at = at.Add(20 * time.Second)
					}
				}
			}
			for range 80 {
				pull(at, image([]int{blob(40*mb, 0.6), blob(60*mb, 1), blob(20*mb, 1.2)}))
				at = at.Add(20 * time.Second)
			}
		}
	}
	slices.SortStableFunc(t.requests, func(a, b request) int { return a.at.Compare(b.at) })
	return t
}

func (t *trace) bytes() (n int64) {
	for _, s := range t.sizes {
		n += s
	}
	return n
}

// A score is how much of what was asked for was here.
type score struct{ requests, bytes float64 }

func (s score) String() string {
	return fmt.Sprintf("%.1f %% of requests, %.1f %% of bytes", 100*s.requests, 100*s.bytes)
}

// A tally counts towards a score.
type tally struct{ n, hits, bytes, hitBytes int64 }

func (t *tally) count(size int64, hit bool) {
	t.n++
	t.bytes += size
	if hit {
		t.hits++
		t.hitBytes += size
	}
}

func (t *tally) score() score {
	return score{float64(t.hits) / float64(t.n), float64(t.hitBytes) / float64(t.bytes)}
}

// A policy ranks blobs: what it says the least of goes first.
type policy struct {
	again func(u use, now time.Time) use
	worth func(u use, size int64, now time.Time) float64
}

// lru goes by the last use alone, lfu by how often a blob was used since it came.
var lru = policy{
	again: func(_ use, now time.Time) use { return use{last: now, count: 1} },
	worth: func(u use, _ int64, now time.Time) float64 { return -now.Sub(u.last).Seconds() },
}

var lfu = policy{
	again: func(u use, now time.Time) use {
		if u.count > 0 && now.Unix()/60 == u.last.Unix()/60 {
			return use{now, u.count}
		}
		return use{now, u.count + 1}
	},
	worth: func(u use, _ int64, _ time.Time) float64 { return u.count },
}

// ours is what the cache does.
var ours = policy{again: use.again, worth: use.worth}

// replay gives the trace to a cache of capacity bytes that goes by p, and
// otherwise does as the real one: from the high watermark down to the low one,
// and nothing that was asked for within ten minutes.
func (t *trace) replay(capacity int64, p policy) score {
	uses, here := make([]use, len(t.sizes)), make([]bool, len(t.sizes))
	digests := make([]proto.Digest, len(t.sizes))
	numbers := map[proto.Digest]int{}
	for b := range digests {
		digests[b] = proto.DigestOf(fmt.Append(nil, b))
		numbers[digests[b]] = b
	}
	number := func(c candidate) int { return numbers[c.digest] }
	var used int64
	var total tally
	for _, r := range t.requests {
		size := t.sizes[r.blob]
		total.count(size, here[r.blob])
		if !here[r.blob] {
			here[r.blob] = true
			used += size
		}
		uses[r.blob] = p.again(uses[r.blob], r.at)
		if used <= int64(defaultHigh*float64(capacity)) {
			continue
		}
		all := make([]candidate, 0, len(here))
		for b, ok := range here {
			if ok {
				all = append(all, candidate{digest: digests[b], size: t.sizes[b], use: uses[b]})
			}
		}
		victims, _ := choose(all, used-int64(defaultLow*float64(capacity)), r.at, defaultKeep, p.worth)
		for _, v := range victims {
			here[number(v)] = false
			uses[number(v)] = use{}
			used -= v.size
		}
	}
	return total.score()
}

// belady gives the trace to a cache that knows the future, and drops what is
// next asked for last, the newcomer included (Belady's MIN). With sizes that
// differ it is not the optimum, but nothing that can be built comes near it.
func (t *trace) belady(capacity int64) score {
	next := make([]int, len(t.requests))
	seen := map[int]int{}
	for i := len(t.requests) - 1; i >= 0; i-- {
		b := t.requests[i].blob
		next[i] = math.MaxInt
		if n, ok := seen[b]; ok {
			next[i] = n
		}
		seen[b] = i
	}
	var used int64
	var total tally
	h := &farthest{}
	here := map[int]int{} // when it is next asked for
	for i, r := range t.requests {
		size := t.sizes[r.blob]
		_, hit := here[r.blob]
		total.count(size, hit)
		if !hit {
			used += size
		}
		here[r.blob] = next[i]
		heap.Push(h, [2]int{next[i], r.blob})
		for used > capacity {
			top := heap.Pop(h).([2]int)
			if n, ok := here[top[1]]; ok && n == top[0] {
				delete(here, top[1])
				used -= t.sizes[top[1]]
			}
		}
	}
	return total.score()
}

type farthest [][2]int

func (h farthest) Len() int           { return len(h) }
func (h farthest) Less(i, j int) bool { return h[i][0] > h[j][0] }
func (h farthest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *farthest) Push(x any)        { *h = append(*h, x.([2]int)) }
func (h *farthest) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// How evict chooses is argued here: on a trace with what caches of images see,
// it keeps more than LRU, which a scanner empties once a week, and than LFU,
// which holds on to releases whose time has gone; in bytes, and by far in
// requests, since small blobs, without which no pull begins, cost next to
// nothing to keep. Belady's optimum, which knows the future, is the bound.
//
// On longer traces (60 days, 18,000 blobs; a cache of 5 % of all) it was, in
// per cent of requests and of bytes: LRU 76.9 and 84.8, LFU 76.7 and 84.7, ours
// 87.6 and 86.5, Belady 84.4 and 91.0. The half-life hardly matters between one
// day and four: 86.7, 86.5 and 86.2 % of bytes. To remember uses of blobs that
// have gone gained nothing where a cache held more than 5 % of all.
func TestPolicy(t *testing.T) {
	t.Parallel()
	tr := newTrace(1)
	for _, share := range []float64{.05, .12} {
		capacity := int64(share * float64(tr.bytes()))
		us, best := tr.replay(capacity, ours), tr.belady(capacity)
		for name, p := range map[string]policy{"LRU": lru, "LFU": lfu} {
			them := tr.replay(capacity, p)
			t.Logf("%d blobs, %d GiB, a cache of %.0f %%: %s %v; ours %v; Belady %v", len(tr.sizes), tr.bytes()>>30, 100*share, name, them, us, best)
			if us.requests < them.requests+.05 {
				t.Errorf("%s: %v; ours: %v: not 5 %% more requests", name, them, us)
			}
			if us.bytes < them.bytes {
				t.Errorf("%s: %v; ours: %v: fewer bytes", name, them, us)
			}
		}
		if least := tr.replay(capacity, lru).bytes; us.bytes < least+(best.bytes-least)/10 {
			t.Errorf("%.1f %% of bytes is less than a tenth of the way from LRU's %.1f to Belady's %.1f", 100*us.bytes, 100*least, 100*best.bytes)
		}
	}
}
