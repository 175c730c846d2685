package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/shoal-project/shoal/proto"
)

// relistAfter is how often an adopted store is listed while it cannot be
// watched: it is not there, or the kernel has no watch left for it.
const relistAfter = time.Minute

// settleAfter is for how long after a directory came or went the stores are
// listed once more. One that goes and comes again at once can lose its new watch
// to the end of the old one, which fsnotify hears of later.
const settleAfter = time.Second

// Watch follows what containerd does in the adopted content stores, until ctx
// ends or the cache is closed. New blobs are announced by Options.Whole and
// gone ones by Options.Evicted, except those of which the cache has a copy of
// its own. What happened between Open and Watch is found as well. Without adopted
// stores it only waits.
func (c *Cache) Watch(ctx context.Context) error {
	w := newWatcher(c)
	defer w.close()
	w.run(ctx)
	return nil
}

func (w *watcher) run(ctx context.Context) {
	w.follow()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.c.closing:
			return
		case ev := <-w.events:
			w.noticed(ev)
		case err := <-w.errors:
			// Events were lost (fsnotify.ErrEventOverflow) or could not be read.
			w.c.log.Info("adopted content stores are listed again", "error", err)
			w.follow()
		case <-w.again:
			w.follow()
		}
	}
}

// A watcher is the state of one Watch.
type watcher struct {
	c      *Cache
	notify *fsnotify.Watcher // nil if the kernel has none
	events <-chan fsnotify.Event
	errors <-chan error
	again  <-chan time.Time // when to list what cannot be watched; nil if all is watched
	after  time.Duration    // relistAfter
	blind  bool             // that was said
}

func newWatcher(c *Cache) *watcher {
	w := &watcher{c: c, after: relistAfter}
	if len(c.stores) == 0 {
		return w
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.sayBlind(err)
		return w
	}
	w.notify, w.events, w.errors = notify, notify.Events, notify.Errors
	return w
}

func (w *watcher) close() {
	if w.notify == nil {
		return
	}
	if err := w.notify.Close(); err != nil {
		w.c.log.Info("watch of adopted content stores", "error", err)
	}
}

func (w *watcher) sayBlind(err error) {
	if !w.blind {
		w.blind = true
		w.c.log.Warn("adopted content stores cannot be watched and are listed each minute instead: if the kernel has run out of watches, raise fs.inotify.max_user_instances and fs.inotify.max_user_watches", "error", err)
	}
}

// follow watches all stores and lists them after that, so that nothing is
// missed between the two. What is found twice is found once.
func (w *watcher) follow() {
	w.again = nil
	for _, s := range w.c.stores {
		watched := w.watch(s)
		listed := w.c.relist(s)
		if !watched || !listed {
			w.again = time.After(w.after)
		}
	}
}

// watch watches the directories of s in which something can appear that
// matters, and reports whether that is all of them.
func (w *watcher) watch(s *contentStore) bool {
	if w.notify == nil {
		return false
	}
	dirs := []string{s.dir, s.blobs()}
	for _, alg := range algorithms {
		dirs = append(dirs, filepath.Join(s.blobs(), alg))
	}
	for i, dir := range dirs {
		err := w.notify.Add(dir)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist) && i > 0: // its parent is watched
		case errors.Is(err, fs.ErrNotExist):
			return false
		default:
			w.sayBlind(err)
			return false
		}
	}
	w.blind = false
	return true
}

// noticed acts on one event: of a blob, or of a directory of a store.
func (w *watcher) noticed(ev fsnotify.Event) {
	for _, s := range w.c.stores {
		name, ok := strings.CutPrefix(ev.Name, s.blobs()+string(filepath.Separator))
		if !ok {
			continue
		}
		alg, enc, isFile := strings.Cut(name, string(filepath.Separator))
		if !isFile {
			break
		}
		d, err := proto.ParseDigest(alg + ":" + enc)
		switch {
		case err != nil: // nobody's blob
		case ev.Op != fsnotify.Chmod: // which is all that links and permissions cause
			w.c.look(s, d, ev.Has(fsnotify.Write))
		}
		return
	}
	if ev.Op != fsnotify.Chmod { // a directory came or went
		w.follow()
		w.again = time.After(settleAfter)
	}
}

// look brings d up to what s has of it now. A file that was written to, which
// containerd never does, counts as another one: it is checked again when it is
// next opened.
func (c *Cache) look(s *contentStore, d proto.Digest, written bool) {
	info, err := os.Lstat(s.path(d))
	if err != nil || !adoptable(info) {
		c.unadopt(s, d)
		return
	}
	c.mu.Lock()
	size, listed := s.files[d]
	b := c.open[d]
	c.mu.Unlock()
	replaced := b != nil && b.adoptedPath() == s.path(d) && !b.isFile(info)
	if listed && (written || replaced || size != info.Size()) {
		c.unadopt(s, d)
	}
	c.welcome(s, d, idOf(info))
}

// isFile reports whether the bytes of b are in the file that info is of.
func (b *Blob) isFile(info os.FileInfo) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine, err := b.fill.data.Stat()
	return err == nil && os.SameFile(mine, info)
}

// welcome lists d among what s has, and announces it if it was not here.
func (c *Cache) welcome(s *contentStore, d proto.Digest, id fileID) {
	c.mu.Lock()
	wrong, bad := s.wrong[d]
	_, listed := s.files[d]
	if c.closed || listed || bad && wrong == id {
		c.mu.Unlock()
		return
	}
	_, whole := c.whole[d]
	_, _, elsewhere := c.adopted(d)
	c.own(s, d, id.size)
	c.mu.Unlock()
	if !whole && !elsewhere && c.onWhole != nil {
		c.onWhole(proto.Blob{Digest: d, Size: id.size})
	}
}

// unadopt takes d from what s has, once nobody is at work on d.
func (c *Cache) unadopt(s *contentStore, d proto.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle(d) != nil {
		return
	}
	delete(s.wrong, d)
	if _, listed := s.files[d]; !listed {
		return
	}
	b := c.dropAdopted(s, d)
	c.alone(d, func() { c.letAdoptedGo(b, d, nil) })
}

// relist brings the cache up to what s has, and reports whether s could be
// listed. If it could not, what was there before stays: each blob shows for
// itself when it is opened.
func (c *Cache) relist(s *contentStore) bool {
	listed, err := s.list()
	if err != nil {
		c.log.Warn("adopted content store cannot be listed", "path", s.dir, "error", err)
		return false
	}
	var gone, open []proto.Digest
	c.mu.Lock()
	for d, size := range s.files {
		if id, ok := listed[d]; !ok || id.size != size {
			gone = append(gone, d)
		} else if c.open[d] != nil {
			open = append(open, d)
		}
	}
	for d := range s.wrong {
		if _, ok := listed[d]; !ok {
			delete(s.wrong, d)
		}
	}
	c.mu.Unlock()
	for _, d := range gone {
		c.unadopt(s, d)
	}
	for _, d := range open {
		c.look(s, d, false) // it may be of another file by now
	}
	for d, id := range listed {
		c.welcome(s, d, id)
	}
	return true
}
