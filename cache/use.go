package cache

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/shoal-project/shoal/proto"
)

// A Use says what the cache takes and may take. Sizes are in bytes.
type Use struct {
	Bytes       int64 `json:"bytes"`    // on the disk, of whole and partial blobs of its own
	Promised    int64 `json:"promised"` // what those that are arriving will take beside
	Blobs       int   `json:"blobs"`    // whole ones of its own
	Partials    int   `json:"partials"`
	Quota       int64 `json:"quota"`   // 0: none
	Reserve     int64 `json:"reserve"` // what of the file system is left alone
	Free        int64 `json:"free"`    // what the file system has left, the reserve included
	Pinned      int   `json:"pinned"`  // blobs
	PinnedBytes int64 `json:"pinnedBytes"`
	Adopted     int   `json:"adopted"` // blobs of other content stores, which count for nothing above
}

// Use returns what the cache takes now.
func (c *Cache) Use() Use {
	l, err := c.limits()
	if err != nil {
		c.log.Warn("free space is not known", "error", err)
	}
	pinned, _, err := c.pinned()
	if err != nil {
		c.log.Debug("pins are not known", "error", err)
	}
	u := Use{Reserve: l.reserve, Free: l.free}
	if l.quota != math.MaxInt64 {
		u.Quota = l.quota
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	u.Promised = c.promised()
	u.Bytes = c.space.used - u.Promised
	u.Blobs, u.Partials = len(c.whole), len(c.partial)
	for d := range c.open {
		if _, arriving := c.space.arriving[d]; arriving {
			u.Partials++
		}
	}
	u.Adopted = len(c.appendAdopted(nil))
	u.Pinned, u.PinnedBytes = c.sizeOf(pinned)
	return u
}

// sizeOf returns how many of ds are here, and how many bytes they count. The
// caller holds c.mu.
func (c *Cache) sizeOf(ds map[proto.Digest]struct{}) (blobs int, bytes int64) {
	for d := range ds {
		size, whole := c.whole[d]
		if counts, arriving := c.space.arriving[d]; whole || arriving {
			blobs++
			bytes += size + counts
		}
	}
	return blobs, bytes
}

// Touch says that somebody asked for the blob with digest d now, which keeps it
// from being evicted for a while. Blob, NewReader and Wait do the same. Of a
// blob that is not here it does nothing.
func (c *Cache) Touch(d proto.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touch(d)
}

// touch is Touch where the caller holds c.mu.
func (c *Cache) touch(d proto.Digest) {
	if c.open[d] == nil && !c.here(d) {
		return
	}
	c.space.uses[d] = c.space.uses[d].again(c.space.now())
	c.space.dirty[d] = struct{}{}
}

// here reports whether the cache has a copy of its own of d, whole or partial
// and not open. The caller holds c.mu.
func (c *Cache) here(d proto.Digest) bool {
	_, whole := c.whole[d]
	_, partial := c.partial[d]
	return whole || partial
}

// recount makes the sums of what is here, once the cache has been opened, and
// gives to blobs of which no use is known one use at the time they were added.
func (c *Cache) recount(stays map[proto.Digest]stay) {
	known, err := c.index.uses()
	if err != nil {
		c.log.Warn("use of blobs is not known", "error", err)
	}
	now := c.space.now()
	know := func(d proto.Digest, added time.Time) {
		u, ok := known[d]
		if !ok {
			u = use{last: added, count: 1}
		}
		if u.last.After(now) { // the clock was wrong, then or now
			u.last = now
		}
		c.space.uses[d] = u
		delete(known, d)
	}
	for d, size := range c.whole {
		c.space.used += size
		know(d, stays[d].added)
	}
	for d := range c.partial {
		size, changed := onDisk(c.layout.partial(d))
		c.count(d, size)
		know(d, changed)
	}
	if err := c.index.forgetUses(known); err != nil {
		c.log.Debug("index has uses of blobs that are gone", "error", err)
	}
}

// onDisk returns what a file with holes takes on the disk, in bytes and 1 at
// the least, and when it was written to.
func onDisk(path string) (size int64, changed time.Time) {
	info, err := os.Stat(path)
	if err != nil {
		return 1, time.Time{}
	}
	return max(blocksOf(info), 1), info.ModTime()
}

// flushUses writes to the index which blobs were used since it last did.
func (c *Cache) flushUses() error {
	c.mu.Lock()
	uses := make(map[proto.Digest]use, len(c.space.dirty))
	for d := range c.space.dirty {
		if c.here(d) || c.open[d] != nil {
			uses[d] = c.space.uses[d]
		}
	}
	clear(c.space.dirty)
	for d := range c.space.uses {
		if c.open[d] == nil && !c.here(d) {
			delete(c.space.uses, d)
		}
	}
	c.mu.Unlock()
	err := c.index.setUses(uses)
	if err != nil {
		c.mu.Lock()
		for d := range uses {
			c.space.dirty[d] = struct{}{}
		}
		c.mu.Unlock()
	}
	return err
}

// useKey begins the keys of uses, as blobKey those of blobs.
const useKey = "u\x00"

func (x *Index) setUses(uses map[proto.Digest]use) error {
	if len(uses) == 0 {
		return nil
	}
	return x.write("set uses", func(wb *badger.WriteBatch) error {
		for d, u := range uses {
			v := binary.AppendVarint(nil, u.last.UnixNano())
			v = binary.BigEndian.AppendUint64(v, math.Float64bits(u.count))
			if err := wb.Set([]byte(useKey+d.String()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (x *Index) forgetUses(uses map[proto.Digest]use) error {
	if len(uses) == 0 {
		return nil
	}
	return x.write("forget uses", func(wb *badger.WriteBatch) error {
		for d := range uses {
			if err := wb.Delete([]byte(useKey + d.String())); err != nil {
				return err
			}
		}
		return nil
	})
}

// uses returns the records of the uses of all blobs. One that cannot be read is
// left out: it makes a blob go sooner or later, no more.
func (x *Index) uses() (map[proto.Digest]use, error) {
	all := map[proto.Digest]use{}
	err := x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(useKey), PrefetchValues: true, PrefetchSize: 100})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			d, err := proto.ParseDigest(strings.TrimPrefix(string(item.Key()), useKey))
			if err != nil {
				continue
			}
			err = item.Value(func(v []byte) error {
				if u, ok := decodeUse(v); ok {
					all[d] = u
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index: read uses: %w", err)
	}
	return all, nil
}

func decodeUse(v []byte) (use, bool) {
	last, n := binary.Varint(v)
	if n <= 0 || len(v)-n != 8 {
		return use{}, false
	}
	count := math.Float64frombits(binary.BigEndian.Uint64(v[n:]))
	if !(count >= 0 && count < 1e9) { // NaN is not
		return use{}, false
	}
	return use{last: time.Unix(0, last), count: count}, true
}
