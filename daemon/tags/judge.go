package tags

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
)

// ever is a bound that bounds nothing.
const ever = time.Duration(math.MaxInt64)

// knowledge is all that this node knows of a tag.
type knowledge struct {
	tag   cache.Tag
	known bool // the tag is set
	// failure and at are those of a memo.
	failure error
	at      time.Time
}

// terms say for how long knowledge is good, as Config has them.
type terms struct {
	ttl, revalidate, notFound time.Duration
	immutable                 bool
}

// A verdict says what to do about a tag that is asked for.
type verdict int

const (
	unknown verdict = iota // ask the origin
	fresh                  // give what is known
	aging                  // give what is known, and ask the origin behind it
	absent                 // refuse: there is no such tag
)

// judge decides on what is known.
func judge(k knowledge, t terms, now time.Time) verdict {
	if k.failure != nil {
		if errors.Is(k.failure, origin.ErrNotFound) && within(k.at, t.notFound, now) {
			return absent
		}
		return unknown
	}
	switch {
	case !k.known || !k.tag.Gone.IsZero():
		return unknown
	case t.immutable || within(k.tag.Seen, t.ttl, now):
		return fresh
	case t.ttl > 0 && within(k.tag.Seen, t.ttl+max(t.revalidate, 0), now):
		return aging
	}
	return unknown
}

// within reports whether less than d has gone by since at. A time to come, which
// a clock that was wrong leaves behind, is in no span.
func within(at time.Time, d time.Duration, now time.Time) bool {
	passed := now.Sub(at)
	return passed >= 0 && passed < d
}

// servable reports whether what is known may be given when the origin does not
// answer.
func (k knowledge) servable(now time.Time, bound time.Duration) bool {
	return k.known && k.tag.Gone.IsZero() && now.Sub(k.tag.Seen) <= bound
}

// answer is what is known, as an Answer.
func (k knowledge) answer(now time.Time) Answer {
	return Answer{
		Descriptor: origin.Descriptor{Blob: k.tag.Blob, MediaType: k.tag.MediaType},
		Age:        max(now.Sub(k.tag.Seen), 0),
	}
}

// refusal is the error of a tag that is known to be absent.
func (k knowledge) refusal(now time.Time) error {
	return fmt.Errorf("%w (asked %s ago)", k.failure, age(k.at, now))
}

// age is how long ago a time was, for a person.
func age(t, now time.Time) time.Duration {
	return max(now.Sub(t), 0).Round(time.Second)
}
