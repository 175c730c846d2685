package process

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
)

// Bounds of what is kept of a program's output.
const (
	tailLines = 20      // what a person wants to see of a program that died
	headLines = 1000    // where Line looks: programs say early that they are up
	maxLine   = 8 << 10 // bytes
)

// output takes what a program prints and cuts it into lines.
type output struct {
	log io.Writer // nil: nowhere

	// mu protects the fields below.
	mu      sync.Mutex
	rest    []byte   // of a line whose end has not come
	head    []string // the first lines
	last    []string // the last lines
	ended   bool
	changed chan struct{} // closed and replaced when a line comes or none will
}

func newOutput(log io.Writer) *output { return &output{log: log, changed: make(chan struct{})} }

// Write is for exec.Cmd, which calls it from one goroutine.
func (o *output) Write(p []byte) (int, error) {
	if o.log != nil {
		_, _ = o.log.Write(p) // the program must not feel a broken log
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	for {
		line, rest, ok := bytes.Cut(p, []byte("\n"))
		o.rest = append(o.rest, line[:min(len(line), maxLine-len(o.rest))]...)
		if !ok {
			return n, nil
		}
		o.add()
		p = rest
	}
}

// add ends the line that was being read. o.mu is held.
func (o *output) add() {
	line := string(bytes.TrimRight(o.rest, "\r"))
	o.rest = o.rest[:0]
	if len(o.head) < headLines {
		o.head = append(o.head, line)
	}
	o.last = append(o.last, line)
	if len(o.last) > tailLines {
		o.last = slices.Delete(o.last, 0, 1)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// end says that nothing more comes.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.rest) > 0 {
		o.add()
	}
	o.ended = true
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *output) tail() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.last)
}

// find waits for a line that match accepts. io.EOF: none will come.
func (o *output) find(ctx context.Context, match func(string) bool) (string, error) {
	for next := 0; ; {
		o.mu.Lock()
		lines, ended, changed := o.head[next:], o.ended, o.changed
		o.mu.Unlock()
		for _, l := range lines {
			if match(l) {
				return l, nil
			}
		}
		next += len(lines)
		if ended {
			return "", io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
