package rate

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // zones with daylight saving time, wherever this runs
)

const mbit Rate = 1e6 / 8

// plan is a Plan of 100, 200 and 300 Mbit/s with the windows of lines.
func plan(t testing.TB, lines ...string) Plan {
	t.Helper()
	p := Plan{Rates: Rates{Upload: 100 * mbit, Download: 200 * mbit, Origin: 300 * mbit}}
	for _, line := range lines {
		w, err := ParseWindow(line)
		if err != nil {
			t.Fatal(err)
		}
		p.Windows = append(p.Windows, w)
	}
	return p
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func at(t testing.TB, loc *time.Location, text string) time.Time {
	t.Helper()
	tm, err := time.ParseInLocation("Mon 2006-01-02 15:04:05", text, loc)
	if err != nil {
		t.Fatal(err)
	}
	if got := tm.Format("Mon"); got != text[:3] {
		t.Fatalf("%s is a %s", text, got)
	}
	return tm
}

func TestParseWindow(t *testing.T) {
	t.Parallel()
	const h, m = time.Hour, time.Minute
	for _, tt := range []struct {
		line string
		want Window
	}{
		{"08:00-19:00 20mbit", Window{EveryDay, 8 * h, 19 * h, All, 20 * mbit}},
		{"  8:05-19:30   20 mbit ", Window{EveryDay, 8*h + 5*m, 19*h + 30*m, All, 20 * mbit}},
		{"22:00-06:00 unlimited", Window{EveryDay, 22 * h, 6 * h, All, Unlimited}},
		{"00:00-24:00 1gbit", Window{EveryDay, 0, 24 * h, All, 1000 * mbit}},
		{"08:00-19:00 upload 20mbit", Window{EveryDay, 8 * h, 19 * h, Upload, 20 * mbit}},
		{"08:00-19:00 Download 20mbit", Window{EveryDay, 8 * h, 19 * h, Download, 20 * mbit}},
		{"08:00-19:00 origin 25MB/s", Window{EveryDay, 8 * h, 19 * h, Origin, 25e6}},
		{"08:00-19:00 all 20mbit", Window{EveryDay, 8 * h, 19 * h, All, 20 * mbit}},
		{"Mon-Fri 08:00-19:00 20mbit", Window{0b0111110, 8 * h, 19 * h, All, 20 * mbit}},
		{"sat 08:00-19:00 20mbit", Window{0b1000000, 8 * h, 19 * h, All, 20 * mbit}},
		{"Fri-Mon 08:00-19:00 origin 20mbit", Window{0b1100011, 8 * h, 19 * h, Origin, 20 * mbit}},
		{"Mon-Sun 08:00-19:00 20mbit", Window{EveryDay, 8 * h, 19 * h, All, 20 * mbit}},
	} {
		if got, err := ParseWindow(tt.line); err != nil || got != tt.want {
			t.Errorf("ParseWindow(%q) = %+v, %v, want %+v", tt.line, got, err, tt.want)
		}
	}
	for _, tt := range []struct{ line, says string }{
		{"", "needs a time of the day and a rate; write it as"},
		{"20mbit", "is not a weekday"},
		{"08:00-19:00", "needs a time of the day and a rate; write it as"},
		{"08:00-19:00 upload", "needs a rate; write it as"},
		{"08:00-19:00 uplaod 20mbit", `"uplaod" is not a kind: it is one of upload`},
		{"08:00-19:00 20", "not a rate: write a number with kbit"},
		{"08:00-19:00 fast", "not a rate: write a number with kbit"},
		{"08:00 20mbit", "is not a time of the day such as"},
		{"08:00-25:00 20mbit", "is not a time of the day such as"},
		{"08:00-24:01 20mbit", "is not a time of the day such as"},
		{"24:00-08:00 20mbit", "is not a time of the day such as"},
		{"08:60-19:00 20mbit", "is not a time of the day such as"},
		{"8:0-19:00 20mbit", "is not a time of the day such as"},
		{"08:00- 19:00 20mbit", "is not a time of the day such as"},
		{"-8:00-19:00 20mbit", "is not a time of the day such as"},
		{"08:00-08:00 20mbit", "write 00:00-24:00 for the whole day"},
		{"Monday 08:00-19:00 20mbit", "is not a weekday or a range of them (Sat, Mon-Fri)"},
		{"Mon- 08:00-19:00 20mbit", "is not a weekday"},
		{"Mon,Tue 08:00-19:00 20mbit", "is not a weekday"},
	} {
		got, err := ParseWindow(tt.line)
		if err == nil || got != (Window{}) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("ParseWindow(%q) = %+v, %v, want an error that says %q", tt.line, got, err, tt.says)
		}
	}
}

func TestPlanAt(t *testing.T) {
	t.Parallel()
	base := Rates{100 * mbit, 200 * mbit, 300 * mbit}
	all := func(r Rate) Rates { return Rates{r, r, r} }
	for _, tt := range []struct {
		name  string
		lines []string
		at    string // 2026-11-23 is a Monday
		want  Rates
	}{
		{"no windows", nil, "Mon 2026-11-23 12:00:00", base},
		{"before", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 07:59:59", base},
		{"at the start", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 08:00:00", all(20 * mbit)},
		{"last second", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 18:59:59", all(20 * mbit)},
		{"at the end", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 19:00:00", base},
		{"above the base", []string{"08:00-19:00 1gbit"}, "Mon 2026-11-23 12:00:00", all(1000 * mbit)},
		{"unlimited", []string{"08:00-19:00 unlimited"}, "Mon 2026-11-23 12:00:00", all(Unlimited)},
		{"one kind", []string{"08:00-19:00 upload 20mbit"}, "Mon 2026-11-23 12:00:00", Rates{20 * mbit, 200 * mbit, 300 * mbit}},
		{"two kinds", []string{"08:00-19:00 download 20mbit", "08:00-19:00 origin 10mbit"}, "Mon 2026-11-23 12:00:00",
			Rates{100 * mbit, 20 * mbit, 10 * mbit}},

		{"overlap, lower first", []string{"08:00-19:00 20mbit", "12:00-13:00 50mbit"}, "Mon 2026-11-23 12:30:00", all(20 * mbit)},
		{"overlap, lower last", []string{"12:00-13:00 50mbit", "08:00-19:00 20mbit"}, "Mon 2026-11-23 12:30:00", all(20 * mbit)},
		{"overlap with unlimited", []string{"08:00-19:00 unlimited", "12:00-13:00 50mbit"}, "Mon 2026-11-23 12:30:00", all(50 * mbit)},
		{"overlap with unlimited, last", []string{"12:00-13:00 50mbit", "08:00-19:00 unlimited"}, "Mon 2026-11-23 12:30:00", all(50 * mbit)},
		{"overlap of all and one", []string{"08:00-19:00 20mbit", "08:00-19:00 upload 5mbit", "08:00-19:00 origin 50mbit"},
			"Mon 2026-11-23 12:30:00", Rates{5 * mbit, 20 * mbit, 20 * mbit}},

		{"midnight, evening", []string{"22:00-06:00 20mbit"}, "Mon 2026-11-23 23:59:59", all(20 * mbit)},
		{"midnight", []string{"22:00-06:00 20mbit"}, "Tue 2026-11-24 00:00:00", all(20 * mbit)},
		{"midnight, morning", []string{"22:00-06:00 20mbit"}, "Tue 2026-11-24 05:59:59", all(20 * mbit)},
		{"midnight, over", []string{"22:00-06:00 20mbit"}, "Tue 2026-11-24 06:00:00", base},
		{"until midnight", []string{"22:00-24:00 20mbit"}, "Tue 2026-11-24 00:00:00", base},
		{"until 00:00", []string{"22:00-00:00 20mbit"}, "Mon 2026-11-23 23:59:59", all(20 * mbit)},
		{"until 00:00, over", []string{"22:00-00:00 20mbit"}, "Tue 2026-11-24 00:00:00", base},
		{"all day", []string{"00:00-24:00 20mbit"}, "Mon 2026-11-23 23:59:59", all(20 * mbit)},

		{"weekday", []string{"Mon-Fri 08:00-19:00 20mbit"}, "Fri 2026-11-27 12:00:00", all(20 * mbit)},
		{"weekend", []string{"Mon-Fri 08:00-19:00 20mbit"}, "Sat 2026-11-28 12:00:00", base},
		{"night begun on its day", []string{"Fri 22:00-06:00 20mbit"}, "Sat 2026-11-28 05:00:00", all(20 * mbit)},
		{"night begun the day before", []string{"Fri 22:00-06:00 20mbit"}, "Fri 2026-11-27 05:00:00", base},
		{"night over the week's end", []string{"Sat 22:00-06:00 20mbit"}, "Sun 2026-11-29 05:00:00", all(20 * mbit)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := plan(t, tt.lines...)
			when := at(t, time.UTC, tt.at)
			if got := p.At(when); got != tt.want {
				t.Errorf("At = %v, want %v", got, tt.want)
			}
			// The same wall clock elsewhere is the same.
			if got := p.At(at(t, zone(t, "Asia/Kolkata"), tt.at)); got != tt.want {
				t.Errorf("in Kolkata: At = %v, want %v", got, tt.want)
			}
		})
	}
}

// In Berlin the clock jumps from 02:00 to 03:00 on 2026-03-29, and from 03:00
// back to 02:00 on 2026-10-25, both Sundays.
func TestPlanNext(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		lines      []string
		from, next string // in UTC; next "" is never
	}{
		{"no windows", nil, "Mon 2026-11-23 12:00:00", ""},
		{"nothing changes", []string{"00:00-24:00 20mbit"}, "Mon 2026-11-23 12:00:00", ""},
		{"as the base", []string{"08:00-19:00 upload 100mbit"}, "Mon 2026-11-23 12:00:00", ""},
		{"start", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 06:59:59", "Mon 2026-11-23 07:00:00"},
		{"end, from the start on", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 07:00:00", "Mon 2026-11-23 18:00:00"},
		{"tomorrow", []string{"08:00-19:00 20mbit"}, "Mon 2026-11-23 18:00:00", "Tue 2026-11-24 07:00:00"},
		{"next week", []string{"Mon 08:00-19:00 20mbit"}, "Mon 2026-11-23 18:00:00", "Mon 2026-11-30 07:00:00"},
		{"borders without a change", []string{"08:00-19:00 20mbit", "10:00-11:00 50mbit"}, "Mon 2026-11-23 07:00:00", "Mon 2026-11-23 18:00:00"},
		{"one to the next", []string{"08:00-12:00 20mbit", "12:00-19:00 20mbit"}, "Mon 2026-11-23 07:00:00", "Mon 2026-11-23 18:00:00"},
		{"over midnight", []string{"22:00-06:00 20mbit"}, "Mon 2026-11-23 21:00:00", "Tue 2026-11-24 05:00:00"},

		{"spring, skipped start", []string{"02:30-05:00 20mbit"}, "Sat 2026-03-28 23:00:00", "Sun 2026-03-29 01:00:00"}, // 03:00
		{"spring, end", []string{"02:30-05:00 20mbit"}, "Sun 2026-03-29 01:00:00", "Sun 2026-03-29 03:00:00"},
		{"spring, skipped end", []string{"01:00-02:30 20mbit"}, "Sun 2026-03-29 00:00:00", "Sun 2026-03-29 01:00:00"},
		{"spring, skipped as a whole", []string{"02:15-02:45 20mbit"}, "Sat 2026-03-28 12:00:00", "Mon 2026-03-30 00:15:00"},
		{"spring, skipped for a week", []string{"Sun 02:15-02:45 20mbit"}, "Sun 2026-03-22 12:00:00", "Sun 2026-04-05 00:15:00"},
		{"spring, the day after", []string{"08:00-19:00 20mbit"}, "Sat 2026-03-28 18:00:00", "Sun 2026-03-29 06:00:00"},
		{"autumn, first of two", []string{"02:15-02:45 20mbit"}, "Sat 2026-10-24 22:00:00", "Sun 2026-10-25 00:15:00"},
		{"autumn, first ends", []string{"02:15-02:45 20mbit"}, "Sun 2026-10-25 00:15:00", "Sun 2026-10-25 00:45:00"},
		{"autumn, second of two", []string{"02:15-02:45 20mbit"}, "Sun 2026-10-25 00:45:00", "Sun 2026-10-25 01:15:00"},
		{"autumn, closed by the jump", []string{"02:45-05:00 20mbit"}, "Sun 2026-10-25 00:45:00", "Sun 2026-10-25 01:00:00"},
		{"autumn, an hour more", []string{"22:00-06:00 20mbit"}, "Sat 2026-10-24 20:00:00", "Sun 2026-10-25 05:00:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := plan(t, tt.lines...)
			got := p.Next(at(t, time.UTC, tt.from).In(zone(t, "Europe/Berlin")))
			var want time.Time
			if tt.next != "" {
				want = at(t, time.UTC, tt.next)
			}
			if !got.Equal(want) {
				t.Errorf("Next = %s, want %s", got.UTC(), want)
			}
		})
	}
}

// Next is what one finds who looks at every minute. The zones jump by an hour,
// by half an hour (Lord Howe), by a day (Apia, 2011) and never.
func TestPlanNextMinuteByMinute(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	days := []string{"", "", "Sun ", "Mon-Fri ", "Sat-Sun "}
	clocks := []string{"00:00", "01:30", "02:00", "02:15", "02:30", "03:00", "08:00", "22:10", "24:00"}
	rates := []string{"20mbit", "upload 100mbit", "origin unlimited", "upload 5mbit"}
	for _, start := range []time.Time{
		at(t, zone(t, "Europe/Berlin"), "Fri 2026-03-27 12:00:00"),
		at(t, zone(t, "Europe/Berlin"), "Fri 2026-10-23 12:00:00"),
		at(t, zone(t, "Australia/Lord_Howe"), "Fri 2026-04-03 12:00:00"),
		at(t, zone(t, "Australia/Lord_Howe"), "Fri 2026-10-02 12:00:00"),
		at(t, zone(t, "Pacific/Apia"), "Wed 2011-12-28 12:00:00"),
		at(t, time.UTC, "Fri 2026-11-20 12:00:00"),
	} {
		for range 20 {
			var lines []string
			for range 1 + rng.IntN(3) {
				from, to := clocks[rng.IntN(len(clocks)-1)], clocks[rng.IntN(len(clocks))]
				if from != to {
					lines = append(lines, days[rng.IntN(len(days))]+from+"-"+to+" "+rates[rng.IntN(len(rates))])
				}
			}
			p := plan(t, lines...)
			last := p.At(start)
			next := p.Next(start)
			for tm := start; tm.Before(start.Add(5 * 24 * time.Hour)); tm = tm.Add(time.Minute) {
				if now := p.At(tm); now != last {
					if !tm.Equal(next) {
						t.Fatalf("%q: changes at %s, Next said %s", lines, tm, next)
					}
					last, next = now, p.Next(tm)
				}
			}
		}
	}
}

func FuzzParseWindow(f *testing.F) {
	for _, line := range []string{"08:00-19:00 20mbit", "Fri-Mon 22:00-06:00 upload 1GiB/s", "Sun 00:00-24:00 unlimited", "8:0-9", "mon 08:00-08:01 origin"} {
		f.Add(line, int64(1774738800))
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, line string, unix int64) {
		w, err := ParseWindow(line)
		if err != nil {
			if w != (Window{}) {
				t.Fatalf("%q: %v and %+v", line, err, w)
			}
			return
		}
		if w.Days == 0 || w.Days > EveryDay || w.Start < 0 || w.Start >= day || w.End < 0 || w.End > day || w.Start == w.End || w.Kind > Origin {
			t.Fatalf("%q: %+v", line, w)
		}
		p := Plan{Rates: Rates{1, 2, 3}, Windows: []Window{w}}
		now := time.Unix(unix%(1<<32), 0).In(berlin)
		next := p.Next(now)
		switch {
		case next.IsZero():
		case !next.After(now):
			t.Fatalf("%q: the next change after %s is %s", line, now, next)
		case p.At(next) == p.At(now) || p.At(next.Add(-1)) != p.At(now):
			t.Fatalf("%q: no change at %s", line, next)
		}
	})
}
