package jobs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/shoal-project/shoal/proto"
)

const (
	// maxServing is how many orders of others a node does at once.
	maxServing = 16
	// maxOrder and maxReport bound in bytes what one side reads of the other.
	maxOrder  = 4 << 20
	maxReport = 64 << 10
	// orderWithin is how long an order may take to come after its stream.
	orderWithin = 30 * time.Second
	// openWithin bounds opening a stream to a node.
	openWithin = 15 * time.Second
	// sample is how often a node looks how far the blobs that are on their way
	// are, and alive how often it says something though nothing has changed.
	sample = 500 * time.Millisecond
	alive  = 5 * time.Second
	// silence is how long a node that was asked may say nothing.
	silence = 6 * alive
)

// maxError bounds an error's text in bytes, so that a report stays short.
const maxError = 4 << 10

// errRefused is wrapped by a node's word that it will not do an order.
var errRefused = errors.New("the node refuses")

// A report is a line of what a node answers to an order. A line that says
// nothing says that the node is alive.
type report struct {
	// Index is the image of the order that Image is about.
	Index int            `json:"index,omitempty"`
	Image *ImageProgress `json:"image,omitempty"`
	// Refused is why the node does not do the order: the last line then.
	Refused string `json:"refused,omitempty"`
	// End is set in the last line of an order that was done.
	End bool `json:"end,omitempty"`
}

// do does w and emits each image's progress as it changes, the final one as
// well. An error of emit ends it, and so do ctx and the end of this daemon,
// which leave images without an end.
func (j *Jobs) do(ctx context.Context, w *work, emit func(report) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { defer close(done); w.run(ctx) })
	defer running.Wait()
	defer cancel()

	ticker := time.NewTicker(j.cfg.Sample)
	defer ticker.Stop()
	said := make([]ImageProgress, len(w.images))
	last := time.Now()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-w.kick:
		case <-ticker.C:
		}
		have := j.arriving()
		news := false
		for i, t := range w.images {
			p := t.progress(have)
			p.Error = shorten(p.Error)
			if p == said[i] {
				continue
			}
			said[i], news = p, true
			if err := emit(report{Index: i, Image: &p}); err != nil {
				return err
			}
		}
		if !news && time.Since(last) < alive {
			continue
		}
		last = time.Now()
		if !news {
			if err := emit(report{}); err != nil {
				return err
			}
		}
	}
	if w.cut.Load() {
		return errStopped
	}
	return ctx.Err()
}

// arriving returns how much is here of the blobs that are on their way.
func (j *Jobs) arriving() func(proto.Digest) int64 {
	have := map[proto.Digest]int64{}
	for _, p := range j.cfg.Puller.Pulls() {
		have[p.Blob.Digest] = p.Have
	}
	return func(d proto.Digest) int64 { return have[d] }
}

func shorten(s string) string {
	if len(s) > maxError {
		s = s[:maxError] + "…"
	}
	return s
}

// Serve does what another node asks for on s, and tells it how far it is. It
// returns when that is done, when the other end closes s, which cancels it, or
// when ctx or Run ends. It closes s.
func (j *Jobs) Serve(ctx context.Context, from string, s io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(j.ctx, func() { cancel(errStopped) })()
	var listening sync.WaitGroup
	defer listening.Wait()
	defer s.Close() // what was written is delivered all the same
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()

	lines := json.NewEncoder(s)
	late := time.AfterFunc(orderWithin, func() { cancel(errors.New("no order came")) })
	var o order
	in := json.NewDecoder(io.LimitReader(s, maxOrder))
	err := in.Decode(&o)
	if !late.Stop() || err != nil {
		return fmt.Errorf("order of %s: %w", from, errors.Join(err, context.Cause(ctx)))
	}
	w, err := j.newWork(o)
	if err == nil && !j.enter() {
		err = fmt.Errorf("it does %d jobs of others already", maxServing)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("order of %s refused: %w", from, err), lines.Encode(report{Refused: shorten(err.Error())}))
	}
	defer j.leave()
	listening.Go(func() {
		_, err := io.Copy(io.Discard, s) // ends when the other end closes, or we do
		cancel(fmt.Errorf("%s has ended the order: %w", from, errors.Join(err, io.EOF)))
	})
	j.log.Info("bringing images for a job", "job", o.Job, "peer", from, "images", len(o.Images))
	err = j.do(ctx, w, func(r report) error { return lines.Encode(r) })
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("job %.100q of %s: %w", o.Job, from, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("job %.100q of %s: %w", o.Job, from, err)
	}
	return lines.Encode(report{End: true})
}

// enter counts one more order that is done for another node.
func (j *Jobs) enter() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.serving >= maxServing {
		return false
	}
	j.serving++
	return true
}

func (j *Jobs) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.serving--
}

// ask has a member do an order, and passes on what it says. It returns nil when
// the member has done all it could; what failed is in the reports.
func (j *Jobs) ask(ctx context.Context, m proto.Member, o order, heard func(report)) error {
	if m.ID == j.cfg.Self.ID {
		w, err := j.newWork(o)
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return j.do(ctx, w, func(r report) error { heard(r); return nil })
	}
	open, done := context.WithTimeout(ctx, openWithin)
	defer done()
	s, err := j.cfg.Open(open, m)
	if err != nil {
		return err
	}
	defer s.Close() // ends the order there, if it has not ended
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	quiet := time.AfterFunc(j.cfg.Silence, func() {
		cancel(fmt.Errorf("it said nothing for %v", j.cfg.Silence))
	})
	defer quiet.Stop()
	if err := json.NewEncoder(s).Encode(o); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	lines := bufio.NewScanner(s)
	lines.Buffer(nil, maxReport)
	for lines.Scan() {
		quiet.Reset(j.cfg.Silence)
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("%w: what it says cannot be read: %w", errRefused, err)
		}
		switch {
		case r.Refused != "":
			return fmt.Errorf("%w: %s", errRefused, r.Refused)
		case r.End:
			return nil
		}
		heard(r)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.Join(errCut, lines.Err())
}

// errCut says that the other end stopped in the middle.
var errCut = errors.New("it stopped telling: it ended, or cannot be reached any more")
