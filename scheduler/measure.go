package scheduler

import (
	"slices"
	"time"
)

// What is believed of the links, from how long chunks took. Nobody configures
// it, and it changes with the network.

const (
	// weightOfNew is how much a new measurement counts against the old ones.
	weightOfNew = 0.3
	// measurable is the size of the smallest chunk of which the time says
	// something about a link: that of a manifest is all round trips.
	measurable = 128 << 10
	// slowRatio is how many times less than what is typical makes a node slow.
	slowRatio = 4
	// fullShare is how much of what a link carries makes it full. What three leases
	// get of one is uneven, and what is typical is above the mean: leases count from
	// the grant, before their bytes move. A source with a tenth of the others' rate
	// that serves one of three leases gives three tenths of what its taker can have.
	fullShare = 0.45
	// enoughOfOne is how many measurements of a node say whether it is slow. Of
	// three connections that share a link one may get a tenth for a while.
	enoughOfOne = 3
	// spare is how much more than what is typical of so many slots a source has
	// to give before it gets another one, so that noise gives it none.
	spare = 1.15
)

// measure takes the time of a chunk into account, once all of its lease are
// there: those of a run often come in one piece, the last ones in no time.
func (b *Book) measure(now time.Time, l *lease, size int64, took time.Duration) {
	if l.bytes == 0 {
		l.firstTook, l.firstBytes = took, size
	}
	l.took += took
	l.bytes += size
	if l.left > 1 {
		return
	}
	size, took = l.bytes, l.took
	if size < measurable {
		return
	}
	rate := float64(size) / max(took.Seconds(), 1e-6)
	if l.origin {
		averageRate(&l.part.swarm.originRate, rate)
		waited(l)
		return
	}
	src, n := l.source, l.part.node
	src.strikes, src.stalls = 0, 0
	// The others had their share of either link.
	elapsed := now.Sub(l.granted).Seconds()
	given, taken := rate*src.up.shared(now, l.up, elapsed), rate*n.down.shared(now, l.down, elapsed)
	b.typical = b.rates.add(given)
	begins := took.Seconds() < coldShare*b.reach(src, n, float64(int64(l.count)*l.part.swarm.blob.ChunkSize()))
	sourceFull, takerFull := b.full(&src.gave, given), b.full(&n.took, taken)
	if !sourceFull && !takerFull && b.tooSlow(given) {
		given, taken = b.attribute(src, n, given, taken)
	}
	if taken > 0 {
		learn(&n.takes, &n.took, taken, sourceFull && !takerFull || begins)
		b.judge(now, n)
	}
	if given > 0 {
		learn(&src.rate, &src.gave, given, takerFull && !sourceFull || begins)
		b.judge(now, src)
		b.fitSlots(src)
	}
}

// waited takes into account how long the origin took to answer: what the first chunk
// of a lease took longer than the others of it. Often it is a redirect, and the first
// bytes of a connection come slowly.
func waited(l *lease) {
	if rest := l.bytes - l.firstBytes; rest > 0 {
		each := (l.took - l.firstTook).Seconds() / float64(rest)
		// 0 is unknown.
		average(&l.part.swarm.originWait, max(l.firstTook.Seconds()-each*float64(l.firstBytes), 1e-6))
	}
}

// attribute returns what of given and taken tells something of src and of n, 0 for
// what does not, if neither link was full and the chunk took long. It is the fault
// of the one that is not known to be faster with others; if nothing is known of
// either, nothing is learned.
func (b *Book) attribute(src, n *node, given, taken float64) (ofSource, ofTaker float64) {
	fastSource, fastTaker := src.gave.n > 0 && !b.tooSlow(src.gave.median), n.took.n > 0 && !b.tooSlow(n.takes)
	switch {
	case fastSource && !fastTaker:
		return 0, taken
	case fastTaker && !fastSource:
		return given, n.takes
	case !fastSource && !fastTaker && (src.gave.n == 0 || n.took.n == 0):
		return 0, 0
	}
	return given, taken
}

// learn takes a measurement of one way of a link into account. If it is the least
// that the link carries, since the other end's was full or the connection began anew,
// it counts if it is more than what is known. A source that serves one node, which
// has two more leases elsewhere, sends a third of what it could, and three of those
// made it slow.
func learn(average *float64, last *few, rate float64, least bool) {
	if !least || rate > *average {
		averageRate(average, rate)
	}
	if !least || last.n > 0 && rate > last.median {
		last.add(rate)
	}
}

// full reports whether a link that seems to carry rate was full, by what is known
// of it and by what is typical.
func (b *Book) full(known *few, rate float64) bool {
	return b.typical > 0 && rate >= fullShare*max(known.median, b.typical)
}

// judge says whether n is slow, either way: a link that carries little one way
// rarely carries much the other, and what arrives late is passed on late. It goes
// by medians: two chunks of a slow source make a fast node's average slow, and
// then it was served last.
func (b *Book) judge(now time.Time, n *node) {
	slow := n.gave.n >= enoughOfOne && b.tooSlow(n.gave.median) || n.took.n >= enoughOfOne && b.tooSlow(n.took.median)
	if slow == n.slow {
		return
	}
	b.setSlow(n, slow)
	if slow {
		b.alarm(now.Add(b.tuning.SlowFor), alarmSlow).node = n
	}
}

// tooSlow reports whether a rate is far under the typical one.
func (b *Book) tooSlow(rate float64) bool { return rate < b.typical/slowRatio }

// A line is one way of a node's link, and tells among how many leases it was
// shared while one of them ran. How many there are at its start and at its end
// does not say that: they come and go, and those that are near their end count in
// neither out nor used, but still take their share. With three slots a source that
// served four or five at the end of a lease was taken for one that served one, so
// for one far slower than the others, and then gave and took nearly nothing for
// SlowFor.
type line struct {
	leases int
	// alone is how many seconds with the line for itself one lease would have had
	// as much of it as it had up to since, if it had always been there.
	alone float64
	since time.Time
}

// count brings leases in, or takes them out, and returns what alone is now.
func (l *line) count(now time.Time, leases int) float64 {
	l.alone, l.since = l.at(now), now
	l.leases += leases
	return l.alone
}

// at returns what alone is now.
func (l *line) at(now time.Time) float64 {
	if l.leases == 0 {
		return l.alone
	}
	return l.alone + now.Sub(l.since).Seconds()/float64(l.leases)
}

// shared returns among how many leases l was shared, on average, in the seconds
// up to now at whose beginning alone was as given.
func (l *line) shared(now time.Time, alone, seconds float64) float64 {
	if alone = l.at(now) - alone; alone <= 0 {
		return float64(max(l.leases, 1))
	}
	return seconds / alone
}

// average moves a running average of times.
func average(v *float64, sample float64) {
	if *v == 0 {
		*v = sample
		return
	}
	*v += weightOfNew * (sample - *v)
}

// averageRate moves a running average of rates: that of the time per byte, so
// that a chunk which was in some buffer already, and came at once, counts for
// next to nothing.
func averageRate(v *float64, sample float64) {
	if *v == 0 {
		*v = sample
		return
	}
	*v = 1 / ((1-weightOfNew) / *v + weightOfNew/sample)
}

// few holds the last measurements of one node.
type few struct {
	last   [5]float64
	n      int     // measurements so far
	median float64 // of the last; the greater one of two, and 0 while there are none
}

func (f *few) add(v float64) {
	f.last[f.n%len(f.last)] = v
	f.n++
	order := f.last
	have := order[:min(f.n, len(order))]
	slices.Sort(have)
	f.median = have[len(have)/2]
}

// recent holds the last rates that were measured, of whatever source, and their
// median: what is typical. It is a median of many because the first chunks of a
// rollout are often out of some buffer, at hundreds of times the link's rate;
// a running average that begins with one of those takes everybody for slow.
type recent struct {
	last   [64]float64
	n      int // measurements so far
	order  [64]float64
	median float64
}

// enoughRates is how many measurements say what is typical.
const enoughRates = 8

// add takes a rate into account and returns the median, which is looked for
// each time while there are few and then now and then; 0 while there are not
// enough.
func (r *recent) add(rate float64) float64 {
	r.last[r.n%len(r.last)] = rate
	r.n++
	if r.n >= enoughRates && (r.n <= len(r.last) || r.n%8 == 0) {
		have := r.order[:min(r.n, len(r.last))]
		copy(have, r.last[:])
		slices.Sort(have)
		r.median = have[len(have)/2]
	}
	return r.median
}

// fitSlots gives a source that was found to give more than what is typical more
// slots, one at a time, and takes them back. A source of which the receivers
// could take more is one whose uploads are faster than others': where all links
// are alike, and the receivers' are full, more slots would only make each chunk
// arrive later.
func (b *Book) fitSlots(n *node) {
	t := b.tuning
	least := t.Slots + n.moreGiven
	perSlot := b.typical / float64(least)
	switch slots := n.slots; {
	case slots < least:
		n.slots = least
	case n.used >= slots && slots < t.MaxSlots && n.rate > spare*perSlot*float64(slots+1):
		n.slots++
	case slots > least && n.used <= slots && n.rate < perSlot*float64(slots):
		n.slots--
	default:
		return
	}
	b.updateBusy(n)
	b.offers(n)
}
