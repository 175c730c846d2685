package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// watch runs Watch until the test ends.
func watch(t *testing.T, c *Cache) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What containerd commits and deletes meanwhile comes and goes, while readers
// go on with the file that they have.
func TestWatch(t *testing.T) {
	t.Parallel()
	cd := newContainerd(t) // with nothing in it, as on a new machine
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
	watch(t, c)
	one, data1 := content(1, 2*chunk)
	two, data2 := content(2, 300)
	for range 2 {
		cd.commit(t, one, data1)
		next(t, l.whole, one)
		b := get(t, c, one)
		wantServedFrom(t, b, cd.path(one), data1)
		r := b.NewReader(t.Context())
		t.Cleanup(func() { r.Close() })

		cd.commit(t, two, data2)
		next(t, l.whole, two)
		if len(c.Blobs()) != 2 {
			t.Errorf("blobs are %v", c.Blobs())
		}
		cd.delete(t, one)
		next(t, l.evicted, one.Digest)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data1) {
			t.Errorf("an open reader fails when its blob vanishes: %v", err)
		}
		if _, ok := c.Known(one.Digest); ok {
			t.Error("a blob that vanished is known")
		}
		if _, ok := c.Whole(one.Digest); ok {
			t.Error("a blob that vanished is whole")
		}
		cd.delete(t, two)
		next(t, l.evicted, two.Digest)
	}
	if got := c.Blobs(); len(got) > 0 {
		t.Errorf("blobs are %v", got)
	}
	if n := testutil.ToFloat64(c.metrics.care.adoptedBytes); n != 0 {
		t.Errorf("%v adopted bytes are counted", n)
	}
}

// The cache's own copy comes first, and while either copy is left the blob has
// not gone.
func TestAdoptBesideOwn(t *testing.T) {
	t.Parallel()
	dir, cd := t.TempDir(), newContainerd(t)
	c, l := openWith(t, dir, Options{Adopt: []string{cd.dir}})
	watch(t, c)
	blob, data := content(1, 2*chunk)
	store(t, c, blob, data)
	next(t, l.whole, blob)
	mark, markData := content(2, 10)

	cd.commit(t, blob, data)
	cd.commit(t, mark, markData)
	next(t, l.whole, mark) // and nothing before it
	if len(c.Blobs()) != 2 {
		t.Errorf("blobs are %v", c.Blobs())
	}
	b, ok := c.Known(blob.Digest)
	if !ok {
		t.Fatal("blob is not known")
	}
	wantServedFrom(t, b, c.layout.blob(blob.Digest), data)
	b.Release()
	if err := c.Delete(blob.Digest); err != nil {
		t.Fatal(err)
	}
	nothing(t, l.evicted)
	b = get(t, c, blob)
	wantServedFrom(t, b, cd.path(blob), data)
	cd.delete(t, blob)
	next(t, l.evicted, blob.Digest)
	nothing(t, l.whole)
}

// A file that took the place of another one before Watch began is not taken for
// it, though it is as long.
func TestWatchFindsReplaced(t *testing.T) {
	t.Parallel()
	cd := newContainerd(t)
	blob, data := content(1, 2*chunk)
	cd.commit(t, blob, data)
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
	wantServedFrom(t, get(t, c, blob), cd.path(blob), data)
	wrong := bytes.Clone(data)
	wrong[7]++
	aside := filepath.Join(t.TempDir(), "aside")
	if err := errors.Join(os.WriteFile(aside, wrong, 0o444), os.Rename(aside, cd.path(blob))); err != nil {
		t.Fatal(err)
	}
	watch(t, c)
	next(t, l.evicted, blob.Digest)
	next(t, l.whole, blob)
	if _, ok := c.Known(blob.Digest); ok {
		t.Error("wrong bytes are known")
	}
}

// A wrong file that is replaced by the right one is adopted, and one that is
// written to while it is watched is checked again.
func TestAdoptMended(t *testing.T) {
	t.Parallel()
	cd := newContainerd(t)
	blob, data := content(1, 2*chunk)
	cd.commit(t, blob, data)
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
	watch(t, c)
	wantServedFrom(t, get(t, c, blob), cd.path(blob), data)

	wrong := bytes.Clone(data)
	wrong[7]++
	aside := filepath.Join(t.TempDir(), "aside")
	if err := os.WriteFile(aside, wrong, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, cd.path(blob)); err != nil {
		t.Fatal(err)
	}
	next(t, l.evicted, blob.Digest) // another file, so the old one has gone
	next(t, l.whole, blob)
	if _, ok := c.Known(blob.Digest); ok {
		t.Error("wrong bytes are known")
	}
	next(t, l.evicted, blob.Digest)

	cd.delete(t, blob)
	cd.commit(t, blob, data)
	next(t, l.whole, blob)
	wantServedFrom(t, get(t, c, blob), cd.path(blob), data)
}

// When the kernel has lost events the stores are listed anew, and where it
// cannot watch they are listed now and then.
func TestWatchBlind(t *testing.T) {
	t.Parallel()
	one, data1 := content(1, 400)
	two, data2 := content(2, 500)
	for _, how := range []string{"overflow", "no watch"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cd := newContainerd(t)
			cd.commit(t, one, data1)
			c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
			w := newWatcher(c)
			w.close()
			lost := make(chan error)
			w.notify, w.events, w.errors = nil, nil, lost
			w.after = time.Hour
			if how == "no watch" {
				w.after = time.Millisecond
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { w.run(ctx) })
			defer wg.Wait()
			defer cancel()
			if how == "overflow" {
				lost <- fsnotify.ErrEventOverflow // the first list is over
			}
			cd.delete(t, one)
			cd.commit(t, two, data2)
			if how == "overflow" {
				lost <- fsnotify.ErrEventOverflow
			}
			next(t, l.evicted, one.Digest)
			next(t, l.whole, two)
		})
	}
}

// A store that is removed has no blobs, and comes back with what it has then.
func TestWatchStoreRemoved(t *testing.T) {
	t.Parallel()
	cd := newContainerd(t)
	blob, data := content(1, 400)
	cd.commit(t, blob, data)
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{cd.dir}})
	w := newWatcher(c)
	defer w.close()
	w.after = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := os.RemoveAll(cd.dir); err != nil {
		t.Fatal(err)
	}
	next(t, l.evicted, blob.Digest)
	again, err := local.NewStore(cd.dir)
	if err != nil {
		t.Fatal(err)
	}
	cd.store = again
	cd.commit(t, blob, data)
	next(t, l.whole, blob)
	wantServedFrom(t, get(t, c, blob), cd.path(blob), data)
}

// Two stores can have the same blob, and it goes with the last one.
func TestAdoptTwo(t *testing.T) {
	t.Parallel()
	one, two := newContainerd(t), newContainerd(t)
	blob, data := content(1, 2*chunk)
	one.commit(t, blob, data)
	two.commit(t, blob, data)
	c, l := openWith(t, t.TempDir(), Options{Adopt: []string{one.dir, two.dir}})
	watch(t, c)
	if got := c.Blobs(); len(got) != 1 {
		t.Errorf("blobs are %v", got)
	}
	wantServedFrom(t, get(t, c, blob), one.path(blob), data)
	one.delete(t, blob)
	mark, markData := content(2, 20)
	one.commit(t, mark, markData)
	next(t, l.whole, mark)
	wantServedFrom(t, get(t, c, blob), two.path(blob), data)
	nothing(t, l.evicted)
	two.delete(t, blob)
	next(t, l.evicted, blob.Digest)
}
