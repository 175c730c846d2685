package rate

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rates are the limits of a node at one moment.
type Rates struct {
	Upload   Rate // to peers
	Download Rate // from peers and origins together
	Origin   Rate // from origins
}

// A Plan is the limits of a node at any time: Rates, and in their place those of
// the windows that are open. Plans are immutable.
type Plan struct {
	Rates
	Windows []Window
}

// A Window is a span of the day or week, by the clock on the wall, in which
// another rate holds. It is open from Start on until End, and begins on Days;
// one whose End is not after its Start ends on the next day.
type Window struct {
	Days       Days
	Start, End time.Duration // since midnight, in whole minutes; less than a day, End at most a day
	Kind       Kind
	Rate       Rate
}

// Days is a set of weekdays: bit d is that of time.Weekday d.
type Days uint8

// EveryDay is all weekdays.
const EveryDay Days = 1<<7 - 1

// A Kind is what a limit is for.
type Kind uint8

// The kinds of limits. All is for a Window of all three.
const (
	All Kind = iota
	Upload
	Download
	Origin
)

// kinds are the names of the kinds, as metrics and windows have them.
var kinds = [...]string{All: "all", Upload: "upload", Download: "download", Origin: "origin"}

// String returns the kind's name.
func (k Kind) String() string { return kinds[k] }

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// windowForm is what ParseWindow takes, as its errors say it.
const windowForm = `write it as "08:00-19:00 20mbit", with weekdays as in "Mon-Fri 08:00-19:00 20mbit", for one kind alone as in "08:00-19:00 upload 20mbit"`

var weekdays = [...]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseWindow reads a line of a schedule: weekdays (all if there are none), the
// time of the day, the kind (all if there is none) and the rate. Case does not
// count in words. Its errors say what is accepted; those about the rate wrap
// ErrSyntax.
func ParseWindow(line string) (Window, error) {
	w, err := parseWindow(strings.Fields(line))
	if err != nil {
		return Window{}, fmt.Errorf("%.60q: %w", line, err)
	}
	return w, nil
}

func parseWindow(words []string) (w Window, err error) {
	w.Days = EveryDay
	if len(words) > 0 && !strings.Contains(words[0], ":") {
		if w.Days, err = parseDays(words[0]); err != nil {
			return w, err
		}
		words = words[1:]
	}
	if len(words) < 2 {
		return w, errors.New("needs a time of the day and a rate; " + windowForm)
	}
	if w.Start, w.End, err = parseSpan(words[0]); err != nil {
		return w, err
	}
	words = words[1:]
	for k, name := range kinds {
		if strings.EqualFold(words[0], name) {
			w.Kind, words = Kind(k), words[1:]
			break
		}
	}
	if len(words) == 0 {
		return w, errors.New("needs a rate; " + windowForm)
	}
	if first := words[0][0]; len(words) > 1 && (first < '0' || first > '9') {
		return w, fmt.Errorf("%.20q is not a kind: it is one of upload, download and origin, and all three if it is left out", words[0])
	}
	w.Rate, err = Parse(strings.Join(words, " "))
	return w, err
}

// parseDays reads "Sat" or "Mon-Fri"; "Fri-Mon" goes over Sunday.
func parseDays(text string) (Days, error) {
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	first, ok1 := weekday(from)
	last, ok2 := weekday(to)
	if !ok1 || !ok2 {
		return 0, fmt.Errorf("%.20q is not a weekday or a range of them (Sat, Mon-Fri); %s", text, windowForm)
	}
	var days Days
	for d := first; ; d = (d + 1) % 7 {
		days |= 1 << d
		if d == last {
			return days, nil
		}
	}
}

func weekday(name string) (int, bool) {
	for d, n := range weekdays {
		if strings.EqualFold(n, name) {
			return d, true
		}
	}
	return 0, false
}

// parseSpan reads "08:00-19:00".
func parseSpan(text string) (start, end time.Duration, err error) {
	from, to, _ := strings.Cut(text, "-")
	start, ok1 := parseClock(from)
	end, ok2 := parseClock(to)
	switch {
	case !ok1 || !ok2 || start == day:
		return 0, 0, fmt.Errorf("%.20q is not a time of the day such as 08:00-19:00 or 22:00-06:00, between 00:00 and 24:00; %s", text, windowForm)
	case start == end:
		return 0, 0, fmt.Errorf("%s begins and ends at the same time; write 00:00-24:00 for the whole day", text)
	}
	return start, end, nil
}

// parseClock reads "08:00", up to "24:00".
func parseClock(text string) (time.Duration, bool) {
	h, m, ok := strings.Cut(text, ":")
	if !ok || len(h) < 1 || len(h) > 2 || len(m) != 2 {
		return 0, false
	}
	hours, err1 := strconv.ParseUint(h, 10, 8)
	minutes, err2 := strconv.ParseUint(m, 10, 8)
	d := time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute
	return d, err1 == nil && err2 == nil && minutes < 60 && d <= day
}

// At returns the limits at t, by the wall clock of t's location: base, or of
// the windows that are open the lowest for each kind.
func (p Plan) At(t time.Time) Rates {
	r, wall := p.Rates, sinceSunday(t)
	var ruled [len(kinds)]bool // a window is open for this kind
	for _, w := range p.Windows {
		if !w.open(wall) {
			continue
		}
		for k, at := range []*Rate{Upload: &r.Upload, Download: &r.Download, Origin: &r.Origin} {
			if k == int(All) || w.Kind != All && w.Kind != Kind(k) {
				continue
			}
			if !ruled[k] || lower(w.Rate, *at) {
				*at = w.Rate
			}
			ruled[k] = true
		}
	}
	return r
}

// lower reports whether a limits more than b does.
func lower(a, b Rate) bool { return a != Unlimited && (b == Unlimited || a < b) }

// Next returns the next time after t at which At changes, or the zero Time if
// it never does.
//
// Between two changes of the location's offset to UTC the wall clock runs like
// any other. So Next goes from border to border of the windows there, and from
// one change of the offset to the next, at which the clock jumps.
func (p Plan) Next(t time.Time) time.Time {
	now := p.At(t)
	// A week has every border in it, and a second one those that a jump of the
	// clock has skipped in the first.
	for limit := t.Add(2*week + day); len(p.Windows) > 0 && t.Before(limit); {
		next := t.Add(p.untilBorder(sinceSunday(t)))
		if _, jump := t.ZoneBounds(); !jump.IsZero() && jump.Before(next) {
			next = jump
		}
		if t = next; p.At(t) != now {
			return t
		}
	}
	return time.Time{}
}

// sinceSunday returns where in its week the wall clock is at t.
func sinceSunday(t time.Time) time.Duration {
	h, m, s := t.Clock()
	return time.Duration(t.Weekday())*day + time.Duration(h)*time.Hour + time.Duration(m)*time.Minute +
		time.Duration(s)*time.Second + time.Duration(t.Nanosecond())
}

// open reports whether the window is open at a time of the week.
func (w Window) open(wall time.Duration) bool {
	today, clock := wall/day, wall%day
	if w.Start < w.End {
		return w.on(today) && w.Start <= clock && clock < w.End
	}
	return w.on(today) && w.Start <= clock || w.on((today+6)%7) && clock < w.End
}

func (w Window) on(weekday time.Duration) bool { return w.Days>>weekday&1 != 0 }

// untilBorder returns the time from a time of the day to the next at which some
// window may open or close.
func (p Plan) untilBorder(wall time.Duration) time.Duration {
	clock, soonest := wall%day, day
	for _, w := range p.Windows {
		for _, border := range []time.Duration{w.Start, w.End} {
			if d := (border - clock + day) % day; d > 0 {
				soonest = min(soonest, d)
			}
		}
	}
	return soonest
}
