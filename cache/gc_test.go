package cache

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/shoal-project/shoal/proto"
)

// GC does what a dry run of it says, and no more.
func TestGC(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{Quota: Bytes(20 * chunk), Low: .5})
	stale, data := content(1, 3*chunk)
	b, err := c.Blob(stale)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0, 2)
	b.Release()
	k.after(8 * 24 * time.Hour)
	old := hourly(t, c, k, 7)
	fresh, data := content(2, 3*chunk)
	b, err = c.Blob(fresh)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, data, 0, 1)
	b.Release()
	if err := c.Pin(old[0].Digest.String()); err != nil {
		t.Fatal(err)
	}

	dry, err := c.GC(t.Context(), GCOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if here := wholes(c, old...); len(here) != 7 || len(c.partial) != 2 {
		t.Errorf("a dry run left %v", here)
	}
	wet, err := c.GC(t.Context(), GCOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if here := wholes(c, old...); !slices.Equal(here, []int{0, 4, 5, 6}) {
		t.Errorf("%v are here", here)
	}
	audit(t, c)
	var why []string
	for _, g := range wet.Blobs {
		why = append(why, g.Why)
	}
	if !slices.Equal(why, []string{"stale", "space", "space", "space"}) || wet.Blobs[0].Digest != stale.Digest || !wet.Blobs[0].Partial ||
		wet.Before != 18*chunk || wet.Freed != 8*chunk || wet.Target != 10*chunk || wet.Short != 0 {
		t.Errorf("report is %+v", wet)
	}
	dry.DryRun, dry.Took, wet.Took = false, 0, 0
	if !reflect.DeepEqual(dry, wet) {
		t.Errorf("a dry run says\n%+v, the real one\n%+v", dry, wet)
	}
	if text, err := json.Marshal(wet); err != nil || !strings.Contains(string(text), `"freed":2097152`) || !strings.Contains(string(text), `"why":"stale"`) {
		t.Errorf("%s, %v", text, err)
	}
	for _, b := range c.Blobs() {
		c.Touch(b.Digest)
	}
	c.space.low = .1
	short, err := c.GC(t.Context(), GCOptions{})
	if err != nil || len(short.Blobs) != 0 || short.Short != 8*chunk {
		t.Errorf("GC of what was just asked for: %+v, %v", short, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k.after(time.Hour)
	if r, err := c.GC(ctx, GCOptions{}); !errors.Is(err, context.Canceled) || len(r.Blobs) != 0 {
		t.Errorf("GC that was told to stop: %+v, %v", r, err)
	}
}

// Records of blobs that are not here go when they are old, others stay.
func TestGCRecords(t *testing.T) {
	t.Parallel()
	c, k := openSpace(t, t.TempDir(), Options{})
	k.after(time.Since(epoch))
	here := hourly(t, c, k, 1)[0]
	gone, _ := content(1, 5)
	x := c.Index()
	for _, b := range []proto.Blob{here, gone} {
		if err := errors.Join(
			x.SetLinks("u", "r", map[proto.Digest]Link{b.Digest: {Size: b.Size}}),
			x.SetParts(b.Digest, []proto.Digest{here.Digest}),
			x.SetTag("u", "r", b.Digest.Hex(), Tag{Blob: b}),
			x.SetList("u", "r", b.Digest.Hex(), List{Blob: b}),
		); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		for _, prefix := range []string{linkKey, partsKey, tagKey, listKey} {
			err := x.read(func(txn *badger.Txn) error {
				it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
				defer it.Close()
				for it.Rewind(); it.Valid(); it.Next() {
					n++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	for _, tt := range []struct {
		after time.Duration
		dry   bool
		old   int
		left  int
	}{
		{0, false, 0, 8},
		{oldAfter - 8*24*time.Hour, false, 0, 8},
		{15 * 24 * time.Hour, true, 4, 8},
		{0, false, 4, 4},
		{0, false, 0, 4},
	} {
		k.after(tt.after)
		r, err := c.GC(t.Context(), GCOptions{DryRun: tt.dry})
		if err != nil || r.Records != tt.old || count() != tt.left {
			t.Errorf("after %v: %d records, %d are left, %v; want %d and %d", tt.after, r.Records, count(), err, tt.old, tt.left)
		}
	}
	if _, ok, err := x.Link("u", "r", here.Digest); !ok || err != nil {
		t.Errorf("link of what is here: %v, %v", ok, err)
	}
}
