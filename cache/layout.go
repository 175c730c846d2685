package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/shoal-project/shoal/proto"
)

// Modes of what the cache makes. Layers can be private, so nobody but the
// daemon's own user reads them here.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Suffixes of the files beside a blob's bytes.
const (
	sumsSuffix  = ".sums"
	stateSuffix = ".state"
)

// A layout is the directory of a cache; its methods say where things are:
//
//	lock                            held while a daemon runs
//	ballast                         what the index needs to be closed on a full disk
//	pins.json                       what was pinned by request
//	index/                          badger
//	blobs/<alg>/<2 hex>/<hex>       a whole blob
//	blobs/<alg>/<2 hex>/<hex>.sums  the sums of its chunks, if it has several
//	partial/<alg>/<hex>             a blob that is still arriving
//	partial/<alg>/<hex>.state       which of its chunks are in, and their sums
//	adopted/<alg>/<hex>             that an adopted blob was found right, and its sums
//	quarantine/<time>-<hex>         what was a whole blob and is damaged
//
// A path is built from a parsed Digest and nothing else.
type layout string

func (l layout) lock() string     { return filepath.Join(string(l), "lock") }
func (l layout) ballast() string  { return filepath.Join(string(l), "ballast") }
func (l layout) pins() string     { return filepath.Join(string(l), "pins.json") }
func (l layout) index() string    { return filepath.Join(string(l), "index") }
func (l layout) blobs() string    { return filepath.Join(string(l), "blobs") }
func (l layout) partials() string { return filepath.Join(string(l), "partial") }

func (l layout) verdicts() string { return filepath.Join(string(l), "adopted") }
func (l layout) quarantine() string {
	return filepath.Join(string(l), "quarantine")
}

func (l layout) blob(d proto.Digest) string {
	return filepath.Join(l.blobs(), d.Algorithm(), d.Hex()[:2], d.Hex())
}

func (l layout) sums(d proto.Digest) string { return l.blob(d) + sumsSuffix }

func (l layout) partial(d proto.Digest) string {
	return filepath.Join(l.partials(), d.Algorithm(), d.Hex())
}

func (l layout) verdict(d proto.Digest) string {
	return filepath.Join(l.verdicts(), d.Algorithm(), d.Hex())
}

func (l layout) state(d proto.Digest) string { return l.partial(d) + stateSuffix }

// make creates the directories that are always there.
func (l layout) make() error {
	for _, dir := range []string{string(l), l.index(), l.blobs(), l.partials()} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return l.unusable(err)
		}
	}
	return nil
}

// hold takes the lock of the directory, which letGo or the end of the process
// lets go of. A flock and not a file's existence, so that a
// daemon that was killed leaves nothing to clean up.
func (l layout) hold() (*os.File, error) {
	f, err := os.OpenFile(l.lock(), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return nil, l.unusable(err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("data directory %s: %w: stop that one, or give this one a data directory of its own", l, ErrLocked)
	}
	return nil, l.unusable(fmt.Errorf("lock: %w", err))
}

// letGo lets go of the lock that hold took. To close the file is not enough: a
// process that is being started has its descriptors until it runs its program.
func letGo(lock *os.File) error {
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return lock.Close()
}

func (l layout) unusable(err error) error {
	return fmt.Errorf("data directory %s cannot be used: %w: make it a directory that user %d may write to, or set another one as data", l, err, os.Getuid())
}

// A volume is the file system that a cache is on.
type volume struct {
	dir  string   // of the cache
	file *os.File // any that is on it and open
}

// stat returns how many bytes are left for the daemon, and how many there are.
func (v volume) stat() (free, total int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(v.file.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", v.dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}

// blocksOf returns how much of the disk a file takes, in bytes: one with holes
// takes less than its size.
func blocksOf(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// room fails if n more bytes would leave less than reserve free. The error
// wraps ENOSPC.
func (v volume) room(n, reserve int64) error {
	free, _, err := v.stat()
	if err != nil {
		return err
	}
	if free-n < reserve {
		return fmt.Errorf("the file system of %s has %d bytes left, of which shoal leaves %d alone: free some space, or set another directory as data: %w",
			v.dir, free, reserve, syscall.ENOSPC)
	}
	return nil
}

// ballastSize is what the two memory tables of the index take on the disk.
const ballastSize = 4 << 20

// loadBallast puts the ballast on board: space that is let go of when the index is
// closed on a full disk. See reserveIndex for why it must not run out of it.
func (l layout) loadBallast() error {
	if info, err := os.Stat(l.ballast()); err == nil && info.Size() == ballastSize {
		return nil
	}
	f, err := os.OpenFile(l.ballast(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	// Zeros would take no space where the file system compresses.
	_, err = io.CopyN(f, rand.Reader, ballastSize)
	return errors.Join(err, f.Close())
}

// found is what a walk of the directory came upon.
type found struct {
	whole   map[proto.Digest]struct{}
	partial map[proto.Digest]struct{}
}

// scan lists the blobs that are here by the names of their files and removes
// what a crash left behind: a partial file without its state, a state without
// its file, sums without their blob. It opens no file and asks for no file's
// size, so that a cache of many blobs opens at once.
func (l layout) scan(log *slog.Logger) (found, error) {
	f := found{whole: map[proto.Digest]struct{}{}, partial: map[proto.Digest]struct{}{}}
	algorithms, err := subdirs(l.blobs())
	if err != nil {
		return f, l.unusable(err)
	}
	for _, alg := range algorithms {
		shards, err := subdirs(filepath.Join(l.blobs(), alg))
		if err != nil {
			return f, l.unusable(err)
		}
		for _, shard := range shards {
			if err := pairs(filepath.Join(l.blobs(), alg, shard), alg, sumsSuffix, f.whole, wholeNeed, log); err != nil {
				return f, l.unusable(err)
			}
		}
	}
	algorithms, err = subdirs(l.partials())
	if err != nil {
		return f, l.unusable(err)
	}
	for _, alg := range algorithms {
		if err := pairs(filepath.Join(l.partials(), alg), alg, stateSuffix, f.partial, partialNeed, log); err != nil {
			return f, l.unusable(err)
		}
	}
	return f, nil
}

// wholeNeed: a whole blob is one with or without sums; sums alone are nothing.
func wholeNeed(data, _ bool) bool { return data }

// partialNeed: without its state nobody knows which chunks of a file are in.
func partialNeed(data, side bool) bool { return data && side }

// pairs reads a directory of files named by digests of algorithm alg, each with or
// without a second one that has suffix, and puts the digests for which need
// holds into into. It removes the files of the others. Names that the cache
// does not give are somebody else's: they are left alone.
func pairs(dir, alg, suffix string, into map[proto.Digest]struct{}, need func(data, side bool) bool, log *slog.Logger) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type pair struct{ data, side bool }
	seen := make(map[proto.Digest]pair, len(entries))
	for _, e := range entries {
		enc, isSide := strings.CutSuffix(e.Name(), suffix)
		d, err := proto.ParseDigest(alg + ":" + enc)
		if err != nil || e.IsDir() {
			log.Warn("file in the cache is not one of its own", "path", filepath.Join(dir, e.Name()))
			continue
		}
		p := seen[d]
		p.data, p.side = p.data || !isSide, p.side || isSide
		seen[d] = p
	}
	for d, p := range seen {
		if need(p.data, p.side) {
			into[d] = struct{}{}
			continue
		}
		path := filepath.Join(dir, d.Hex())
		log.Info("file of an earlier crash removed", "path", path)
		if err := remove(path, path+suffix); err != nil {
			return err
		}
	}
	return nil
}

func subdirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// remove removes files; one that is not there is no error.
func remove(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
