package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// contentDir is the name that containerd gives its content store, below its
// root: its plugin's type and id.
const contentDir = "io.containerd.content.v1.content"

// A contentStore is a content store of somebody else that is adopted: containerd's,
// or any OCI image layout. It is only read. Its files are named
// blobs/<alg>/<hex>, appear whole (containerd renames them into place) and go
// at any time.
type contentStore struct {
	dir string // immutable

	// Cache.mu protects the fields below.
	files map[proto.Digest]int64  // what is listed, and its size in bytes
	wrong map[proto.Digest]fileID // files that were found wrong: not listed while they are what they were
}

// A fileID tells whether a file is still the one that was looked at.
type fileID struct {
	size, mtime int64
	inode       uint64
}

func idOf(info os.FileInfo) fileID {
	id := fileID{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.inode = st.Ino
	}
	return id
}

// algorithms are the directories of a content store that are looked at.
var algorithms = [...]string{"sha256", "sha512"}

func (s *contentStore) blobs() string { return filepath.Join(s.dir, "blobs") }

func (s *contentStore) path(d proto.Digest) string {
	return filepath.Join(s.blobs(), d.Algorithm(), d.Hex())
}

// openStores checks that dirs are content stores. own is the cache's directory.
func openStores(dirs []string, own string) ([]*contentStore, error) {
	var stores []*contentStore
	seen := map[string]bool{}
	for _, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("cache.adopt: %s: %w", dir, err)
		}
		if seen[abs] {
			continue
		}
		seen[abs] = true
		if err := checkStore(abs, own); err != nil {
			return nil, fmt.Errorf("cache.adopt: %s %w", abs, err)
		}
		stores = append(stores, &contentStore{dir: abs, files: map[proto.Digest]int64{}, wrong: map[proto.Digest]fileID{}})
	}
	return stores, nil
}

const adoptHint = "set it to the content store of a containerd on this node, such as /var/lib/containerd/" + contentDir + ", or take it out of the list"

// checkStore reports whether dir is a content store that can be read; its error
// continues a sentence about dir.
func checkStore(dir, own string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("is not there: %s", adoptHint)
	case err != nil:
		return unreadable(err)
	case !info.IsDir():
		return fmt.Errorf("is not a directory: %s", adoptHint)
	}
	if mine, err := os.Stat(own); err == nil && os.SameFile(info, mine) {
		return fmt.Errorf("is shoal's own data directory: %s", adoptHint)
	}
	_, err = os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if errors.Is(err, fs.ErrNotExist) {
		return checkEmptyStore(dir)
	}
	if err != nil {
		return unreadable(err)
	}
	return nil
}

// checkEmptyStore accepts a content store that has no blob yet, as on a new
// machine: containerd makes blobs/sha256 with the first one, and up to version
// 2.3 the directory ingest when it starts.
func checkEmptyStore(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return unreadable(err)
	}
	if len(entries) == 0 && filepath.Base(dir) == contentDir {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() == "ingest" {
			return nil
		}
	}
	hint := adoptHint
	if below := filepath.Join(dir, contentDir); isDir(below) {
		hint = "did you mean " + below + "?"
	}
	return fmt.Errorf("is not a content store, it has no directory blobs/sha256: %s", hint)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func unreadable(err error) error {
	return fmt.Errorf("cannot be read: %w: run shoal as a user that may read it (containerd's is root's), or take it out of the list", err)
}

// adopt takes up what the adopted stores have, for Open.
func (c *Cache) adopt() {
	for _, s := range c.stores {
		listed, err := s.list()
		if err != nil {
			c.log.Warn("adopted content store cannot be listed", "path", s.dir, "error", err)
		}
		c.mu.Lock()
		for d, id := range listed {
			c.own(s, d, id.size)
		}
		c.mu.Unlock()
	}
}

// list returns the blobs that s has. Directories that are not there have none;
// with any other error the list is not complete.
func (s *contentStore) list() (map[proto.Digest]fileID, error) {
	all := map[proto.Digest]fileID{}
	var errs []error
	for _, alg := range algorithms {
		entries, err := os.ReadDir(filepath.Join(s.blobs(), alg))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			d, err := proto.ParseDigest(alg + ":" + e.Name())
			if err != nil {
				continue
			}
			if info, err := e.Info(); err == nil && adoptable(info) {
				all[d] = idOf(info)
			}
		}
	}
	return all, errors.Join(errs...)
}

func adoptable(info os.FileInfo) bool {
	return info.Mode().IsRegular() && info.Size() <= proto.MaxBlob
}

// own lists d among what s has. The caller holds c.mu.
func (c *Cache) own(s *contentStore, d proto.Digest, size int64) {
	delete(s.wrong, d)
	s.files[d] = size
	c.metrics.care.adoptedBlobs.Inc()
	c.metrics.care.adoptedBytes.Add(float64(size))
}

// disown takes d from what s has. The caller holds c.mu.
func (c *Cache) disown(s *contentStore, d proto.Digest) {
	size, ok := s.files[d]
	if !ok {
		return
	}
	delete(s.files, d)
	c.metrics.care.adoptedBlobs.Dec()
	c.metrics.care.adoptedBytes.Sub(float64(size))
}

// adopted returns the store that has d, and how long it is there. The caller
// holds c.mu.
func (c *Cache) adopted(d proto.Digest) (s *contentStore, size int64, ok bool) {
	for _, s := range c.stores {
		if size, ok := s.files[d]; ok {
			return s, size, true
		}
	}
	return nil, 0, false
}

// appendAdopted appends the adopted blobs that have no copy of the cache's own.
// The caller holds c.mu.
func (c *Cache) appendAdopted(all []proto.Blob) []proto.Blob {
	for _, s := range c.stores {
		for d, size := range s.files {
			_, whole := c.whole[d]
			if first, _, _ := c.adopted(d); !whole && first == s {
				all = append(all, proto.Blob{Digest: d, Size: size})
			}
		}
	}
	return all
}

// gone tells who wants to know that d has gone, unless it is still here: in an
// adopted store, or come again. The caller does not hold c.mu.
func (c *Cache) gone(d proto.Digest) {
	if _, still := c.Whole(d); !still && c.onEvict != nil {
		c.onEvict(d)
	}
}

// loadAdopted makes the Blob of d from an adopted store, or returns nil if none
// has it. It runs alone on d's files. A file that turns out wrong, or cannot be
// read, is not adopted any more. What is here of the blob as a partial one is
// of no use then.
func (c *Cache) loadAdopted(d proto.Digest, size int64, partial bool) (*Blob, error) {
	for {
		c.mu.Lock()
		s, known, ok := c.adopted(d)
		c.mu.Unlock()
		if !ok {
			return nil, nil
		}
		b, err := c.openAdopted(s, proto.Blob{Digest: d, Size: known})
		switch {
		case err == nil && size != anySize && size != known:
			b.shut()
			return nil, sizeError(d, known, size)
		case err == nil && partial:
			if err := c.discard(c.layout.partial(d), c.layout.state(d)); err != nil {
				c.log.Warn("partial blob is left behind", "digest", d.String(), "error", err)
			}
			return b, nil
		case err == nil:
			return b, nil
		case !spoilt(err):
			return nil, err
		}
		c.reject(s, d, foundOpen, err)
	}
}

// openAdopted opens blob in s, and reads and checks all of it unless that was
// done before.
func (c *Cache) openAdopted(s *contentStore, blob proto.Blob) (*Blob, error) {
	path := s.path(blob.Digest)
	data, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open adopted blob %s: %w", blob.Digest, err)
	}
	b := newBlob(c, blob)
	b.path, b.adopted = path, true
	b.fill.data = data
	if b.fill.sums, err = c.vouch(blob, path, data); err != nil {
		data.Close()
		return nil, fmt.Errorf("open adopted blob %s: %w", blob.Digest, err)
	}
	b.allIn(b.fill)
	return b, nil
}

// vouch returns the sums of an adopted blob's chunks if its file is right, as
// was found before and noted, or is found now.
func (c *Cache) vouch(blob proto.Blob, path string, data *os.File) ([]proto.Sum, error) {
	info, err := data.Stat()
	if err != nil {
		return nil, err
	}
	if err := sized(info, blob.Size); err != nil {
		return nil, err
	}
	at := stamp(path, info)
	if raw, err := readSide(c.layout.verdict(blob.Digest)); err == nil && blob.Chunks() > 1 {
		if sums, err := parseVerdict(raw, at, blob.Size); err == nil {
			return sums, nil
		}
	}
	sums, err := c.verify(blob, data, nil)
	if err != nil || blob.Chunks() <= 1 {
		return sums, err // little is read again each time
	}
	verdict := c.layout.verdict(blob.Digest)
	err = os.MkdirAll(filepath.Dir(verdict), dirMode)
	if err == nil {
		err = c.volume.room(int64(len(sums)*sumSize), reserveBlobs)
	}
	if err == nil {
		err = os.WriteFile(verdict, encodeVerdict(at, blob.Size, sums), fileMode)
	}
	if err != nil {
		c.log.Info("adopted blob will be read again when it is next opened", "digest", blob.Digest.String(), "error", err)
	}
	return sums, nil
}

// sized reports whether a file is one of size bytes.
func sized(info os.FileInfo, size int64) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: it is not a file but %s", errDamaged, info.Mode().Type())
	case info.Size() != size:
		return fmt.Errorf("%w: %d bytes instead of %d", errDamaged, info.Size(), size)
	}
	return nil
}

// A verdict is the stamp of the file of an adopted blob that was found right,
// and after it what the sums file of a blob has.

// stamp sums up which file it is, and that it is as it was.
func stamp(path string, info os.FileInfo) proto.Sum {
	id := idOf(info)
	return blake3.Sum256(fmt.Appendf(nil, "%s\x00%d %d %d", path, id.size, id.mtime, id.inode))
}

func encodeVerdict(at proto.Sum, size int64, sums []proto.Sum) []byte {
	return append(at[:], encodeSums(size, sums)...)
}

func parseVerdict(data []byte, at proto.Sum, size int64) ([]proto.Sum, error) {
	if len(data) < sumSize || proto.Sum(data[:sumSize]) != at {
		return nil, errors.New("verdict: it is of another file")
	}
	return parseSums(data[sumSize:], size)
}

// reject stops adopting d from s, because of err. The file stays where it is:
// it is not the cache's. It runs alone on d's files.
func (c *Cache) reject(s *contentStore, d proto.Digest, found string, err error) {
	vanished := errors.Is(err, fs.ErrNotExist)
	if !vanished {
		c.log.Warn("adopted blob is wrong and ignored from now on", "digest", d.String(), "path", s.path(d), "error", err)
		c.metrics.care.damaged.WithLabelValues(found).Inc()
	}
	info, statErr := os.Lstat(s.path(d))
	c.mu.Lock()
	if statErr == nil && !vanished {
		s.wrong[d] = idOf(info)
	}
	b := c.dropAdopted(s, d)
	c.mu.Unlock()
	c.letAdoptedGo(b, d, err)
}

// dropAdopted takes d from what s has, and from the table if it is open from
// there. The caller holds c.mu, and d's files alone.
func (c *Cache) dropAdopted(s *contentStore, d proto.Digest) *Blob {
	c.disown(s, d)
	b := c.open[d]
	if b == nil || !strings.HasPrefix(b.adoptedPath(), s.dir+string(filepath.Separator)) {
		return nil
	}
	delete(c.open, d)
	return b
}

// letAdoptedGo does what is left after dropAdopted. Who has b open goes on with
// the file that it has, unless err says that this is wrong.
func (c *Cache) letAdoptedGo(b *Blob, d proto.Digest, err error) {
	switch {
	case b != nil && err != nil && !errors.Is(err, fs.ErrNotExist):
		b.spoil(err)
	case b != nil:
		b.detach()
	}
	if err := remove(c.layout.verdict(d)); err != nil {
		c.log.Info("note on an adopted blob is left behind", "digest", d.String(), "error", err)
	}
	c.gone(d)
}

// adoptedPath returns where b's bytes are if that is in an adopted store, or "".
func (b *Blob) adoptedPath() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.adopted {
		return ""
	}
	return b.path
}
