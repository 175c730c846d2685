package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// tellEvery is how often a meter writes a line where it can't draw.
const tellEvery = 5 * time.Second

// A meter shows how far things are, in bytes: a bar each on a terminal, a line
// now and then for all together elsewhere. Its methods may be called by several
// goroutines at once.
type meter struct {
	// immutable
	w    io.Writer
	bars *mpb.Progress // nil: lines

	mu    sync.Mutex // protects the fields below
	rows  map[string]*row
	told  time.Time // when the last line was written
	ended bool
}

type row struct {
	bar         *mpb.Bar // nil: lines
	done, total int64
}

func newMeter(f *os.File) *meter {
	m := &meter{w: f, rows: make(map[string]*row), told: time.Now()}
	if cwriter.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		m.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(80), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return m
}

// show says how far one thing is.
func (m *meter) show(name string, done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	r := m.rows[name]
	if r == nil {
		r = &row{bar: m.newBar(name)}
		m.rows[name] = r
	}
	r.done, r.total = done, total
	if r.bar != nil {
		r.bar.SetTotal(total, false)
		r.bar.SetCurrent(done)
		return
	}
	if time.Since(m.told) < tellEvery {
		return
	}
	m.told = time.Now()
	done, total = 0, 0
	for _, r := range m.rows {
		done, total = done+r.done, total+r.total
	}
	fmt.Fprintf(m.w, "shoal: %3.0f %%, %s of %s\n", 100*float64(done)/float64(max(total, 1)), size(done), size(total))
}

func (m *meter) newBar(name string) *mpb.Bar {
	if m.bars == nil {
		return nil
	}
	return m.bars.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(decor.Name(name+" ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			return fmt.Sprintf(" %s of %s", size(s.Current), size(s.Total))
		})))
}

// say writes a line that stays.
func (m *meter) say(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.w
	if m.bars != nil && !m.ended {
		w = m.bars
	}
	fmt.Fprintf(w, "shoal: "+format+"\n", args...)
}

// close leaves what has been shown as it is. It may be called more than once.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended || m.bars == nil {
		m.ended = true
		return
	}
	m.ended = true
	for _, r := range m.rows {
		if r.total > 0 && r.done == r.total {
			r.bar.SetTotal(r.total, true)
		} else {
			r.bar.Abort(false)
		}
	}
	m.bars.Wait()
}
