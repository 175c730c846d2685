package cache

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// What the worth of a blob goes by. TestPolicy is where they come from.
const (
	// halfLife is the time in which a use loses half of its weight. A blob that
	// was used twice as often may be unused for that much longer.
	halfLife = 48 * time.Hour
	// fetchFloor is how many bytes a link brings while one request is answered,
	// 50 ms at 20 MB/s: the least that fetching a blob again costs, however
	// small it is.
	fetchFloor = 1 << 20
	// sameUse is the time in which uses count as one. A client that asks for
	// ranges in parallel, or a peer that takes a blob in twenty runs, wants the
	// blob once.
	sameUse = time.Minute
)

// A use is what is remembered of how a blob is used.
type use struct {
	last  time.Time
	count float64 // of uses, each halved once for each halfLife before last
}

// again returns u after one more use at now.
func (u use) again(now time.Time) use {
	since := max(now.Sub(u.last), 0)
	if u.count > 0 && now.Unix()/int64(sameUse/time.Second) == u.last.Unix()/int64(sameUse/time.Second) {
		return use{last: now, count: u.count}
	}
	return use{last: now, count: 1 + u.count*math.Exp2(-since.Hours()/halfLife.Hours())}
}

// worth says how much is lost with a blob of size bytes: it grows with the log
// of the uses that are to be expected for each byte of it. Only the order means
// anything, and that does not change while time goes by.
func (u use) worth(size int64, now time.Time) float64 {
	cost := 1 + float64(fetchFloor)/float64(max(size, 1))
	return math.Log2(max(u.count, minCount)*cost) - max(now.Sub(u.last), 0).Hours()/halfLife.Hours()
}

// minCount is the count of a blob of which no use is known.
const minCount = 1.0 / 16

// A candidate is a blob that might go.
type candidate struct {
	digest  proto.Digest
	size    int64 // in bytes, on the disk
	use     use
	partial bool
	held    bool // referenced or being worked on
	pinned  bool
}

// mayGo reports whether the blob may be evicted: nobody has it open, nobody
// asked for it within keep, and it is not pinned. A use in the future, of a
// clock that was wrong, protects it for keep and no longer.
func (c *candidate) mayGo(now time.Time, keep time.Duration) bool {
	age := now.Sub(c.use.last)
	return !c.held && !c.pinned && (age >= keep || age <= -keep)
}

// choose returns what has to go so that need bytes become free, least worth
// first, and whether that is enough. worth is use.worth but in a comparison.
func choose(all []candidate, need int64, now time.Time, keep time.Duration, worth func(use, int64, time.Time) float64) (victims []candidate, enough bool) {
	if need <= 0 {
		return nil, true
	}
	type ranked struct {
		at    int
		worth float64
	}
	var order []ranked
	for i := range all {
		if c := &all[i]; c.size > 0 && c.mayGo(now, keep) {
			order = append(order, ranked{i, worth(c.use, c.size, now)})
		}
	}
	slices.SortFunc(order, func(a, b ranked) int { return cmp.Compare(a.worth, b.worth) })
	for _, r := range order {
		victims = append(victims, all[r.at])
		if need -= all[r.at].size; need <= 0 {
			return victims, true
		}
	}
	return victims, false
}
