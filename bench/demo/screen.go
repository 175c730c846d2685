package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// indent is before all that is not a sentence.
const indent = "  "

// barWidth is the width of a line with a bar, in columns, where there is room.
const barWidth = 76

// A screen is where the demo tells a person what happens.
type screen struct {
	w        io.Writer
	terminal bool // bars can move
	width    int  // of the bars
}

func newScreen(f *os.File) *screen {
	s := &screen{w: f, terminal: cwriter.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb", width: barWidth}
	if w, _, err := cwriter.GetSize(int(f.Fd())); err == nil && w > 0 {
		s.width = min(s.width, w-4) // mpb takes a little more than it is told
	}
	return s
}

func (s *screen) say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

// table prints rows in columns, the first one to the left and the others to the
// right.
func (s *screen) table(rows ...[]string) {
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, r := range rows {
		line := fmt.Sprintf("%s%-*s", indent, widths[0], r[0])
		for i, cell := range r[1:] {
			line += fmt.Sprintf("   %*s", widths[i+1], cell)
		}
		s.say("%s", line)
	}
}

// bars are the progress of pulls that go on together.
type bars struct {
	screen   *screen
	total    int64
	start    time.Time
	progress *mpb.Progress // nil: lines
	mu       sync.Mutex    // of lines
}

// bars returns an empty group of bars for total bytes each.
func (s *screen) bars(ctx context.Context, total int64) *bars {
	b := &bars{screen: s, total: total, start: time.Now()}
	if s.terminal {
		b.progress = mpb.NewWithContext(ctx, mpb.WithOutput(s.w), mpb.WithWidth(s.width), mpb.WithRefreshRate(80*time.Millisecond))
	}
	return b
}

// wait waits until all bars have been drawn for the last time.
func (b *bars) wait() {
	if b.progress != nil {
		b.progress.Wait()
	}
}

// A bar is the progress of one of them.
type bar struct {
	bars *bars
	name string
	mpb  *mpb.Bar // nil: lines

	mu   sync.Mutex // protects the fields below
	have int64
	next int // quarter of the whole whose line comes next
}

// add adds a bar, or what stands for it where there is no terminal.
func (b *bars) add(name string) *bar {
	one := &bar{bars: b, name: name, next: 1}
	if b.progress != nil {
		one.mpb = b.progress.New(b.total, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.PrependDecorators(decor.Name(indent+name+" ", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(
				decor.Any(func(s decor.Statistics) string { return fmt.Sprintf(" %11s", bytes(s.Current)) }),
				decor.Any(b.elapsed()),
			))
	}
	return one
}

// elapsed returns a decorator that says how long the pull has taken, or took.
func (b *bars) elapsed() decor.DecorFunc {
	var at time.Duration
	return func(s decor.Statistics) string {
		if !s.Completed && !s.Aborted || at == 0 {
			at = time.Since(b.start)
		}
		return fmt.Sprintf(" %6s", seconds(at))
	}
}

// Add notes that n more bytes came.
func (b *bar) Add(n int) {
	if b.mpb != nil {
		b.mpb.IncrBy(n)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.have += int64(n)
	for b.next <= 4 && b.have >= b.bars.total*int64(b.next)/4 {
		b.bars.line(b.name, b.next*25)
		b.next++
	}
}

func (b *bars) line(name string, percent int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.screen.say("%s%-9s %3d %%  %7s", indent, name, percent, seconds(time.Since(b.start)))
}

// done ends a bar, wherever it is.
func (b *bar) done(ok bool) {
	switch {
	case b.mpb == nil:
	case ok:
		b.mpb.SetTotal(-1, true)
	default:
		b.mpb.Abort(false)
	}
}

func bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
