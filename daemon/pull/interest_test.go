package pull_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

// slow is a Source that says which runs it is asked for, and sends nothing
// before go is closed.
type slow struct {
	memory
	runs  chan proto.Run
	asked atomic.Int64 // chunks of all runs
	ended chan error   // of Fetches whose context has ended
	open  chan struct{}
}

func newSlow(content []byte) *slow {
	return &slow{memory: memory{content: content}, runs: make(chan proto.Run, 100), ended: make(chan error, 100), open: make(chan struct{})}
}

func (s *slow) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	s.asked.Add(int64(r.Count))
	s.runs <- r
	select {
	case <-s.open:
		return s.memory.Fetch(ctx, r, w)
	case <-ctx.Done():
		s.ended <- ctx.Err()
		return ctx.Err()
	}
}

// read reads all of what r has, and checks it.
func readAll(t *testing.T, r *cache.Reader, content []byte) {
	t.Helper()
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// TestWantedChunksFirst: a reader that begins in the middle of a cold blob gets
// its first chunk after two at most were asked for; all the rest comes later.
func TestWantedChunksFirst(t *testing.T) {
	content, blob := pulltest.Content(21, 40*proto.MinChunk)
	src := newSlow(content)
	b := &bed{origin: src}
	b.start(t)
	r, err := b.puller.Open(t.Context(), blob, where)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const at = 25*proto.MinChunk + 7
	if _, err := r.Seek(at, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	first := make(chan []byte)
	go func() {
		p := make([]byte, 10)
		_, _ = io.ReadFull(r, p)
		first <- p
	}()
	if run := receive(t, src.runs); run.First != 25 || run.Count > 2 {
		t.Errorf("the first request is for chunks %d+%d, want 25 and one more at most", run.First, run.Count)
	}
	time.Sleep(50 * time.Millisecond) // for a pull that asks for more than it should
	if n := src.asked.Load(); n > 2 {
		t.Errorf("%d chunks were asked for before the first came", n)
	}
	close(src.open)
	if got := receive(t, first); !bytes.Equal(got, content[at:at+10]) {
		t.Errorf("read %q", got)
	}
	readAll(t, r, content[at+10:])
	b.whole(t, blob)
}

func (b *bed) whole(t *testing.T, blob proto.Blob) {
	t.Helper()
	cb, err := b.cache.Blob(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Release()
	receive(t, cb.Done())
}

func TestAbandon(t *testing.T) {
	content, blob := pulltest.Content(22, 20*proto.MinChunk)
	for _, test := range []struct {
		name    string
		abandon bool
		stay    func(p *pull.Puller) error // what else is wanted
		gone    bool                       // the pull ends with its reader
	}{
		{"the last reader goes", true, nil, true},
		{"another reader stays", true, func(p *pull.Puller) error {
			r, err := p.Open(context.Background(), blob, where)
			if err == nil {
				defer r.Close() // not its context, which counts
			}
			return err
		}, false},
		{"it was started", true, func(p *pull.Puller) error { return p.Start(blob, where) }, false},
		{"it was seeded", true, func(p *pull.Puller) error { return p.Seed(blob, where) }, false},
		{"by default", false, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := newSlow(content)
			b := &bed{origin: src, abandon: test.abandon}
			b.start(t)
			ctx, leave := context.WithCancel(t.Context())
			r, err := b.puller.Open(ctx, blob, where)
			if err != nil {
				t.Fatal(err)
			}
			if test.stay != nil {
				if err := test.stay(b.puller); err != nil {
					t.Fatal(err)
				}
			}
			receive(t, src.runs)
			leave()
			r.Close()
			if test.gone {
				receive(t, src.ended)
			}
			close(src.open)
			if !test.gone {
				b.whole(t, blob)
				return
			}
			for len(b.puller.Pulls()) > 0 { // it waits for its fetches only
				time.Sleep(time.Millisecond)
			}
			if _, ok := b.cache.Whole(blob.Digest); ok {
				t.Error("the pull has gone on")
			}
			// Who comes next brings it.
			if r, err = b.puller.Open(t.Context(), blob, where); err != nil {
				t.Fatal(err)
			}
			readAll(t, r, content)
		})
	}
}

// TestAbandonedAndWantedAgain: who comes while a pull is being given up has all
// of the blob, from the pull after it.
func TestAbandonedAndWantedAgain(t *testing.T) {
	content, blob := pulltest.Content(25, 20*proto.MinChunk)
	ending, end := make(chan struct{}), make(chan struct{})
	var fetches atomic.Int64
	b := &bed{abandon: true, origin: sourceFunc(func(ctx context.Context, r proto.Run, w io.Writer) error {
		if fetches.Add(1) > 1 {
			return (&memory{content: content}).Fetch(ctx, r, w)
		}
		<-ctx.Done()
		close(ending)
		<-end
		return ctx.Err()
	})}
	b.start(t)
	ctx, leave := context.WithCancel(t.Context())
	r, err := b.puller.Open(ctx, blob, where)
	if err != nil {
		t.Fatal(err)
	}
	reading := make(chan error, 1)
	go func() { // so that the pull begins, with one fetch
		_, err := r.Read(make([]byte, 1))
		reading <- err
	}()
	for fetches.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := receive(t, reading); !errors.Is(err, context.Canceled) {
		t.Errorf("the reader that left: %v", err)
	}
	r.Close()
	receive(t, ending)
	next, err := b.puller.Open(t.Context(), blob, where)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.puller.Start(blob, where); err != nil {
		t.Fatal(err)
	}
	close(end)
	readAll(t, next, content)
	b.whole(t, blob)
}

// TestNoRoom: a pull whose chunks find no room ends with that, and is not the
// source's failure.
func TestNoRoom(t *testing.T) {
	content, blob := pulltest.Content(24, 3*proto.MinChunk)
	src := &memory{content: content}
	b := &bed{origin: src, options: cache.Options{Quota: cache.Bytes(10)}}
	b.start(t)
	_, err := b.read(t, blob)
	if !errors.Is(err, cache.ErrFull) || !errors.Is(err, pull.ErrStore) {
		t.Errorf("reading what there is no room for: %v", err)
	}
	if n := src.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1: another would find no room either", n)
	}
}

func TestSourceOf(t *testing.T) {
	content, blob := pulltest.Content(23, 3*proto.MinChunk)
	b := &bed{origin: &memory{content: content}}
	b.start(t)
	if got := b.puller.SourceOf(blob.Digest); got != "" {
		t.Errorf("of a blob that nobody has asked for: %q", got)
	}
	if _, err := b.read(t, blob); err != nil {
		t.Fatal(err)
	}
	if got := b.puller.SourceOf(blob.Digest); got != "origin" {
		t.Errorf("SourceOf = %q, want origin", got)
	}
}

type sourceFunc func(ctx context.Context, r proto.Run, w io.Writer) error

func (f sourceFunc) Fetch(ctx context.Context, r proto.Run, w io.Writer) error { return f(ctx, r, w) }
