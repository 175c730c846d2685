package runtimes

import (
	"fmt"
	"strings"
)

// around is how many lines are shown before and after what differs.
const around = 3

// Diff returns what a plan changes, for a person and for patch(1).
func (p *Plan) Diff() string {
	var b strings.Builder
	for _, c := range p.Changes {
		from, to := "a"+c.Path, "b"+c.Path
		if c.Before == nil {
			from = "/dev/null"
		}
		if c.After == nil {
			to = "/dev/null"
		}
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", from, to)
		hunk(&b, lines(c.Before), lines(c.After))
	}
	return b.String()
}

func lines(s []byte) []string {
	var out []string
	for l := range strings.Lines(string(s)) {
		out = append(out, l)
	}
	return out
}

// hunk writes all that differs as one piece: edits here are close together.
func hunk(b *strings.Builder, old, now []string) {
	same := 0
	for same < len(old) && same < len(now) && old[same] == now[same] {
		same++
	}
	tail := 0
	for tail < len(old)-same && tail < len(now)-same && old[len(old)-1-tail] == now[len(now)-1-tail] {
		tail++
	}
	first, after := max(0, same-around), min(tail, around)
	oldEnd, nowEnd := len(old)-tail, len(now)-tail
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span(first, oldEnd+after), span(first, nowEnd+after))
	put := func(sign string, ls []string) {
		for _, l := range ls {
			b.WriteString(sign + l)
			if !strings.HasSuffix(l, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
	}
	put(" ", old[first:same])
	put("-", old[same:oldEnd])
	put("+", now[same:nowEnd])
	put(" ", old[oldEnd:oldEnd+after])
}

// span writes a range of lines as unified diffs do: from 1, an empty one by the
// line before it.
func span(from, to int) string {
	if from == to {
		return fmt.Sprintf("%d,0", from)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}
