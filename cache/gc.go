package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/shoal-project/shoal/proto"
)

const (
	// staleAfter is how long a partial blob stays that nobody asks for: over a
	// week-end without a link, and a rollout that is tried again after it.
	staleAfter = 7 * 24 * time.Hour
	// oldAfter is how long the index keeps what it knows of a blob that is not
	// here. A repository that has it could still be asked for it, and peers may
	// have it, so it is some time.
	oldAfter = 8 * 7 * 24 * time.Hour
)

// GCOptions say what GC does.
type GCOptions struct {
	DryRun bool `json:"dryRun"` // only report what would go
}

// A GCReport says what GC did, or would do. Sizes are in bytes.
type GCReport struct {
	DryRun  bool          `json:"dryRun"`
	Before  int64         `json:"before"`  // what blobs counted
	Freed   int64         `json:"freed"`   // of it
	Target  int64         `json:"target"`  // the low watermark
	Short   int64         `json:"short"`   // how much over the low watermark it stays: pinned, in use or asked for just now
	Blobs   []GCBlob      `json:"blobs"`   // in the order in which they go
	Records int           `json:"records"` // of the index, on blobs that went long ago
	Took    time.Duration `json:"took"`    // in nanoseconds
}

// A GCBlob is one that went, or would go.
type GCBlob struct {
	Digest  proto.Digest `json:"digest"`
	Size    int64        `json:"size"`
	Partial bool         `json:"partial"`
	Last    time.Time    `json:"last"` // when it was last asked for
	Uses    float64      `json:"uses"` // each counted half for every two days before Last
	Why     string       `json:"why"`  // "space" or "stale"
}

// GC brings the cache down to its low watermark, and clears away what is of no
// use to anybody: partial blobs that nobody asked for in a week, and records of
// the index on blobs that are not here. If ctx ends it stops early, and the
// report has what it did until then.
func (c *Cache) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	began := c.space.now()
	r := GCReport{DryRun: o.DryRun, Blobs: []GCBlob{}}
	err := c.collect(ctx, &r)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		r.Records, err = c.index.clearOld(began, o.DryRun, c.keepsRecords)
	}
	r.Took = c.space.now().Sub(began)
	if err != nil {
		return r, fmt.Errorf("collect garbage: %w", err)
	}
	if !o.DryRun {
		c.tidy()
	}
	c.log.Info("garbage is collected", "dryRun", o.DryRun, "blobs", len(r.Blobs), "bytes", r.Freed, "records", r.Records)
	return r, nil
}

// collect does to blobs what GC does.
func (c *Cache) collect(ctx context.Context, r *GCReport) error {
	pinned, _, err := c.pinned()
	if err != nil {
		return err
	}
	l, err := c.limits()
	if err != nil {
		return err
	}
	now := c.space.now()
	c.mu.Lock()
	all := c.candidates(pinned)
	r.Before = c.space.used
	r.Target = int64(c.space.low * float64(l.capacity(c.space.used-c.promised())))
	c.mu.Unlock()

	var rest []candidate
	for _, v := range all {
		if !v.partial || !v.mayGo(now, max(staleAfter, c.space.keep)) {
			rest = append(rest, v)
		} else if ctx.Err() == nil && (r.DryRun || c.remove(v, forAge)) {
			r.add(v, forAge)
		}
	}
	need := func() int64 { return r.Before - r.Freed - r.Target }
	if r.DryRun {
		victims, _ := choose(rest, need(), now, c.space.keep, use.worth)
		for _, v := range victims {
			r.add(v, forSpace)
		}
	} else if err := c.collectSpace(ctx, r); err != nil {
		return err
	}
	r.Short = max(need(), 0)
	return nil
}

func (c *Cache) collectSpace(ctx context.Context, r *GCReport) error {
	gone, err := c.evict(func(l limits, used, promised int64) int64 {
		if ctx.Err() != nil {
			return 0
		}
		r.Target = int64(c.space.low * float64(l.capacity(used-promised)))
		return used - r.Target
	}, false)
	for _, v := range gone {
		r.add(v, forSpace)
	}
	return err
}

func (r *GCReport) add(v candidate, why string) {
	r.Freed += v.size
	r.Blobs = append(r.Blobs, GCBlob{
		Digest: v.digest, Size: v.size, Partial: v.partial, Why: why,
		Last: v.use.last, Uses: math.Round(100*v.use.count) / 100,
	})
}

// keepsRecords reports whether records on d stay, however old they are.
func (c *Cache) keepsRecords(d proto.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, adopted := c.adopted(d)
	return adopted || c.here(d) || c.open[d] != nil
}

// week is what a record is stamped with: the week in which it was written, of
// 256, so that its age is known for five years. Records without a stamp count
// as of some time or other; they are learned again.
func week(t time.Time) byte { return byte(t.Unix() / int64(7*24*time.Hour/time.Second)) }

// clearOld removes links, parts, tags, lists and verdicts that were written long before
// now and are of blobs for which keep does not hold, and returns how many these
// are. If dry is set it removes none.
func (x *Index) clearOld(now time.Time, dry bool, keep func(proto.Digest) bool) (int, error) {
	old, err := x.old(now, keep)
	if err != nil || dry || len(old) == 0 {
		return len(old), err
	}
	return len(old), x.write("clear old records", func(wb *badger.WriteBatch) error {
		for _, key := range old {
			if err := wb.Delete(key); err != nil {
				return err
			}
		}
		return nil
	})
}

func (x *Index) old(now time.Time, keep func(proto.Digest) bool) (old [][]byte, err error) {
	for _, prefix := range []string{linkKey, partsKey, tagKey, listKey, verdictKey} {
		err := x.read(func(txn *badger.Txn) error {
			it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
			defer it.Close()
			for it.Rewind(); it.Valid(); it.Next() {
				item := it.Item()
				if age := week(now) - item.UserMeta(); int64(age) < int64(oldAfter/(7*24*time.Hour)) {
					continue
				}
				d, err := digestOf(prefix, item)
				if err != nil {
					return err
				}
				if !keep(d) {
					old = append(old, item.KeyCopy(nil))
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("index: read old records: %w", err)
		}
	}
	return old, nil
}

// digestOf returns which blob a record is of; the zero Digest if it cannot be
// read.
func digestOf(prefix string, item *badger.Item) (d proto.Digest, err error) {
	if prefix == linkKey || prefix == partsKey || prefix == verdictKey {
		key := string(item.Key())
		d, _ = proto.ParseDigest(key[strings.LastIndexByte(key, 0)+1:])
		return d, nil
	}
	err = item.Value(func(v []byte) error {
		if prefix == tagKey {
			var t Tag
			_ = json.Unmarshal(v, &t)
			d = t.Blob.Digest
			return nil
		}
		var l List
		_ = json.Unmarshal(v, &l)
		d = l.Blob.Digest
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		err = nil
	}
	return d, err
}
