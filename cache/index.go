package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/shoal-project/shoal/proto"
)

// A Link is what a repository said of a digest: how long the content is, in
// bytes, and of what media type (image-spec, descriptor.md).
type Link struct {
	Size      int64
	MediaType string
}

// An Index remembers, across restarts, what is known of digests beside their
// bytes: which repositories are linked to them, and the size and age of the
// blobs here. Writes are not synced: a power loss can take back the latest of
// them. What is lost is learned again, from the origin or from the files.
//
// An Index is the cache's: it is closed with it, and its methods return
// ErrClosed from then on. They may be called from several goroutines.
type Index struct {
	// immutable
	dir    string
	volume volume
	db     *badger.DB

	changes atomic.Uint64 // of tags and of parts of manifests, which pins go by

	// open is held for reading while badger works, so that close does not
	// unmap what is being read. It protects closed.
	open   sync.RWMutex
	closed bool
}

// Keys are a letter that says of what the record is, and the names that it is
// of, with a zero byte before each.
const (
	blobKey = "b\x00"
	linkKey = "l\x00"
)

// reserveIndex is how much of the file system stays free of the index, in
// bytes. Badger writes through memory maps of files with holes, so on a full
// disk the kernel would kill the daemon with SIGBUS. It is more than all of
// the index's memory tables, logs and one compaction take.
const reserveIndex = 16 << 20

// openIndex opens the index and returns what it has of blobs. An index that is
// damaged is replaced by an empty one: the files say which blobs there are, and
// the links are learned again.
func openIndex(dir string, v volume, log *slog.Logger) (*Index, map[proto.Digest]stay, error) {
	if err := v.room(0, reserveIndex); err != nil {
		return nil, nil, err
	}
	x, stays, err := tryIndex(dir, v, log)
	if err == nil {
		return x, stays, nil
	}
	// If an empty one cannot be opened either, then not the index is at fault
	// but the machine, and it stays.
	aside := dir + ".damaged"
	if err := errors.Join(os.RemoveAll(aside), os.Rename(dir, aside)); err != nil {
		return nil, nil, fmt.Errorf("put damaged index %s aside: %w", dir, err)
	}
	x, stays, again := tryIndex(dir, v, log)
	if again != nil {
		back := errors.Join(os.RemoveAll(dir), os.Rename(aside, dir))
		return nil, nil, errors.Join(fmt.Errorf("open index %s: %w", dir, err), back)
	}
	log.Warn("index was damaged and is built again from the files", "path", dir, "error", err)
	if err := os.RemoveAll(aside); err != nil {
		log.Warn("damaged index is left behind", "path", aside, "error", err)
	}
	return x, stays, nil
}

func tryIndex(dir string, v volume, log *slog.Logger) (x *Index, stays map[proto.Digest]stay, err error) {
	// Some damage makes badger panic instead of returning an error.
	defer func() {
		if p := recover(); p != nil {
			x, stays, err = nil, nil, fmt.Errorf("badger: %v", p)
		}
	}()
	o := badgerOptions(dir, log)
	if err := checkTables(o); err != nil {
		return nil, nil, err
	}
	db, err := badger.Open(o)
	if err != nil {
		return nil, nil, err
	}
	x = &Index{dir: dir, volume: v, db: db}
	if stays, err = x.blobs(); err != nil {
		return nil, nil, errors.Join(err, x.close())
	}
	return x, stays, nil
}

// checkTables reads all tables of the index before badger does, which would
// panic over one that is damaged in a goroutine of its own, where nobody can
// recover, or pass over the table, and then links that were forgotten come
// back.
func checkTables(o badger.Options) error {
	entries, err := os.ReadDir(o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".sst" {
			continue
		}
		path := filepath.Join(o.Dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		t, err := table.OpenInMemoryTable(data, 0, &table.Options{
			TableSize: uint64(o.BaseTableSize),
			BlockSize: o.BlockSize,
			ChkMode:   o.ChecksumVerificationMode,
		})
		if err == nil {
			err = t.VerifyChecksum()
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", path, err)
		}
	}
	return nil
}

// badgerOptions makes badger small; its defaults allow for 300 MB and more. The
// index has some hundred bytes per blob and is read once per request.
func badgerOptions(dir string, log *slog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithSyncWrites(false).
		WithBypassLockGuard(true). // the cache has the directory's lock
		WithMemTableSize(1 << 20). // an arena of it is allocated at once, for each of:
		WithNumMemtables(2).
		WithValueLogFileSize(1 << 20). // mapped twice as large; nothing is ever in it, see:
		WithValueThreshold(64 << 10).
		WithBaseTableSize(1 << 20).
		WithBaseLevelSize(4 << 20).
		WithCompression(options.None). // and so without a block cache: tables are mapped, the page cache is enough
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumCompactors(2). // the least that badger takes
		WithNumGoroutines(1).
		WithMetricsEnabled(false).
		WithDetectConflicts(false). // nothing here reads and then writes
		WithChecksumVerificationMode(options.OnTableAndBlockRead)
}

func (x *Index) close() error {
	x.open.Lock()
	defer x.open.Unlock()
	x.closed = true
	// Badger tries for ever to write to a directory that is no more.
	if _, err := os.Stat(filepath.Join(x.dir, badger.ManifestFilename)); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	if err := x.db.Close(); err != nil {
		return fmt.Errorf("close index %s: %w", x.dir, err)
	}
	return nil
}

// SetLinks remembers what a repository of an upstream said of digests. What it
// said of the same ones before is replaced; its other links stay.
func (x *Index) SetLinks(upstream, repository string, links map[proto.Digest]Link) error {
	return x.write("set links", func(wb *badger.WriteBatch) error {
		for d, link := range links {
			key, err := linkKeyOf(upstream, repository, d)
			if err != nil {
				return err
			}
			if err := wb.SetEntry(badger.NewEntry(key, encodeLink(link)).WithMeta(week(time.Now()))); err != nil {
				return err
			}
		}
		return nil
	})
}

// Link returns what a repository of an upstream said of d; ok is false if it
// is not remembered to have said anything.
func (x *Index) Link(upstream, repository string, d proto.Digest) (link Link, ok bool, err error) {
	key, err := linkKeyOf(upstream, repository, d)
	if err != nil {
		return Link{}, false, err
	}
	err = x.read(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error {
			link, err = decodeLink(v)
			return err
		})
	})
	switch {
	case err == nil:
		return link, true, nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return Link{}, false, nil
	}
	return Link{}, false, fmt.Errorf("index: read link: %w", err)
}

// ForgetLink forgets what a repository of an upstream said of d, if anything.
func (x *Index) ForgetLink(upstream, repository string, d proto.Digest) error {
	key, err := linkKeyOf(upstream, repository, d)
	if err != nil {
		return err
	}
	return x.write("forget link", func(wb *badger.WriteBatch) error { return wb.Delete(key) })
}

// A Linked is a repository that has a digest, and what it said of it.
type Linked struct {
	Upstream, Repository string
	Link
}

// LinkedFrom returns the repositories that are linked to d, in the order of
// their names. It looks at all links, some 100,000 a second: it is for who has
// lost a blob and has to find out where it came from.
func (x *Index) LinkedFrom(d proto.Digest) ([]Linked, error) {
	suffix := []byte("\x00" + d.String())
	var all []Linked
	err := x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(linkKey)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			names, ok := bytes.CutSuffix(it.Item().Key()[len(linkKey):], suffix)
			if !ok {
				continue
			}
			l := Linked{}
			l.Upstream, l.Repository, _ = strings.Cut(string(names), "\x00")
			err := it.Item().Value(func(v []byte) (err error) {
				l.Link, err = decodeLink(v)
				return err
			})
			if err != nil {
				return err
			}
			all = append(all, l)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index: read links of %s: %w", d, err)
	}
	return all, nil
}

// Links calls f with each link that is remembered, in the order of the names of
// its upstream, its repository and its digest, until f returns an error, which
// it returns. f must not write to the index. Some 100,000 are read a second.
func (x *Index) Links(f func(l Linked, d proto.Digest) error) error {
	err := x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(linkKey), PrefetchValues: true, PrefetchSize: 100})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			names := strings.Split(string(it.Item().Key()[len(linkKey):]), "\x00")
			if len(names) != 3 {
				continue
			}
			d, err := proto.ParseDigest(names[2])
			if err != nil {
				continue
			}
			l := Linked{Upstream: names[0], Repository: names[1]}
			if err := it.Item().Value(func(v []byte) (err error) {
				l.Link, err = decodeLink(v)
				return err
			}); err != nil {
				return err
			}
			if err := f(l, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index: read links: %w", err)
	}
	return nil
}

// A stay is what the index has of a blob here.
type stay struct {
	size  int64
	added time.Time
}

func (x *Index) setBlob(d proto.Digest, s stay) error {
	return x.setBlobs(map[proto.Digest]stay{d: s})
}

func (x *Index) setBlobs(stays map[proto.Digest]stay) error {
	return x.write("add blobs", func(wb *badger.WriteBatch) error {
		for d, s := range stays {
			v := binary.AppendUvarint(nil, uint64(s.size))
			v = binary.AppendVarint(v, s.added.Unix())
			if err := wb.Set([]byte(blobKey+d.String()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (x *Index) forgetBlobs(ds ...proto.Digest) error {
	return x.write("forget blobs", func(wb *badger.WriteBatch) error {
		for _, d := range ds {
			if err := errors.Join(wb.Delete([]byte(blobKey+d.String())), wb.Delete([]byte(useKey+d.String()))); err != nil {
				return err
			}
		}
		return nil
	})
}

// blobs returns the records of all blobs.
func (x *Index) blobs() (map[proto.Digest]stay, error) {
	all := map[proto.Digest]stay{}
	err := x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(blobKey), PrefetchValues: true, PrefetchSize: 100})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			d, err := proto.ParseDigest(strings.TrimPrefix(string(item.Key()), blobKey))
			if err != nil {
				return err
			}
			err = item.Value(func(v []byte) error {
				s, err := decodeStay(v)
				all[d] = s
				return err
			})
			if err != nil {
				return fmt.Errorf("record of %s: %w", d, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index: read blobs: %w", err)
	}
	return all, nil
}

func (x *Index) read(f func(*badger.Txn) error) error {
	x.open.RLock()
	defer x.open.RUnlock()
	if x.closed {
		return ErrClosed
	}
	return x.db.View(f)
}

// write makes the writes of one batch, which is not atomic if it is large.
func (x *Index) write(what string, f func(*badger.WriteBatch) error) error {
	x.open.RLock()
	defer x.open.RUnlock()
	if x.closed {
		return fmt.Errorf("index: %s: %w", what, ErrClosed)
	}
	if err := x.volume.room(0, reserveIndex); err != nil {
		return fmt.Errorf("index: %s: %w", what, err)
	}
	wb := x.db.NewWriteBatch()
	defer wb.Cancel()
	if err := f(wb); err != nil {
		return fmt.Errorf("index: %s: %w", what, err)
	}
	if err := wb.Flush(); err != nil {
		return fmt.Errorf("index: %s: %w", what, err)
	}
	return nil
}

// linkKeyOf refuses names with a zero byte: two different pairs of names could
// make the same key, and a link is part of a permission.
func linkKeyOf(upstream, repository string, d proto.Digest) ([]byte, error) {
	if strings.ContainsRune(upstream, 0) || strings.ContainsRune(repository, 0) || d.IsZero() {
		return nil, fmt.Errorf("index: no link can be of upstream %q, repository %q, digest %q", upstream, repository, d)
	}
	return []byte(linkKey + upstream + "\x00" + repository + "\x00" + d.String()), nil
}

func encodeLink(l Link) []byte {
	return append(binary.AppendUvarint(nil, uint64(l.Size)), l.MediaType...)
}

var errRecord = errors.New("record cannot be read")

func decodeLink(v []byte) (Link, error) {
	size, n := binary.Uvarint(v)
	if n <= 0 {
		return Link{}, errRecord
	}
	return Link{Size: int64(size), MediaType: string(v[n:])}, nil
}

func decodeStay(v []byte) (stay, error) {
	size, n := binary.Uvarint(v)
	if n <= 0 || size > proto.MaxBlob {
		return stay{}, errRecord
	}
	added, m := binary.Varint(v[n:])
	if m <= 0 {
		return stay{}, errRecord
	}
	return stay{size: int64(size), added: time.Unix(added, 0)}, nil
}

// badgerLog passes on what badger has to say, one level lower: its notices of
// every table that it writes are nobody's business.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.say(l.log.Warn, f, a) }
func (l badgerLog) Warningf(f string, a ...any) { l.say(l.log.Info, f, a) }
func (l badgerLog) Infof(f string, a ...any)    { l.say(l.log.Debug, f, a) }
func (l badgerLog) Debugf(string, ...any)       {}

func (l badgerLog) say(at func(string, ...any), f string, a []any) {
	at("badger: " + strings.TrimSpace(fmt.Sprintf(f, a...)))
}
