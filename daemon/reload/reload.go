package reload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long a change may take to be complete.
	settle = 200 * time.Millisecond
	// maxFile bounds in bytes what is compared of a file.
	maxFile = 4 << 20
	// maxLinks is how many links are followed, as the kernel does.
	maxLinks = 40
)

// Watch calls changed when one of files has other content, is there again or
// has gone, until ctx ends. It blocks and returns nil then; any other return is
// an error, and nothing is watched. Each file is named by its path; its folder
// must exist, the file need not.
//
// changed is also called once at the start, when the watch is in place, so that
// nothing is missed that happened after the caller has read the files. It is
// never called twice at once. It reads the files itself, and keeps what it has
// if they are no good. A nil log is silent.
func Watch(ctx context.Context, log *slog.Logger, changed func(), files ...string) (err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w; are fs.inotify.max_user_instances used up?", err)
	}
	defer func() { err = errors.Join(err, notify.Close()) }()
	w := &watch{notify: notify, files: files}
	if err := w.follow(); err != nil {
		return err
	}
	w.was = w.prints()
	changed()
	var timer <-chan time.Time // until what has begun to change is complete
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-notify.Events:
			if !ok {
				return errors.New("watch files: the kernel stopped telling")
			}
			if timer == nil {
				timer = time.After(settle)
			}
		case err := <-notify.Errors:
			log.Warn("watch of files missed something, looking at them", "error", err)
			if timer == nil {
				timer = time.After(settle)
			}
		case <-timer:
			timer = nil
			if err := w.follow(); err != nil {
				log.Warn("file is not watched any more", "error", err)
			}
			if now := w.prints(); !slices.Equal(now, w.was) {
				w.was = now
				changed()
			}
		}
	}
}

type watch struct {
	notify *fsnotify.Watcher
	files  []string
	was    [][sha256.Size]byte
}

// follow watches all folders that the files are found by now. It returns the
// first error of a file's own folder.
func (w *watch) follow() (first error) {
	for _, file := range w.files {
		for i, dir := range folders(file) {
			if err := w.notify.Add(dir); err != nil && i == 0 && first == nil {
				first = fmt.Errorf("watch %s: %w", file, err)
			}
		}
	}
	return first
}

// folders returns the folder of a file and those of what it links to.
func folders(file string) []string {
	var all []string
	for range maxLinks {
		dir := filepath.Dir(file)
		all = append(all, dir)
		to, err := os.Readlink(file)
		if err != nil {
			break // no link, or not there
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(dir, to)
		}
		file = to
	}
	return all
}

// prints returns what the files have. Of one that can't be read it is zero.
func (w *watch) prints() [][sha256.Size]byte {
	all := make([][sha256.Size]byte, len(w.files))
	for i, name := range w.files {
		all[i] = fingerprint(name)
	}
	return all
}

func fingerprint(name string) (sum [sha256.Size]byte) {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return sum
	}
	f, err := os.Open(name)
	if err != nil {
		return sum
	}
	defer f.Close() // nothing was written
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxFile)); err != nil {
		return sum
	}
	return [sha256.Size]byte(h.Sum(nil))
}
