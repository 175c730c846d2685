package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/shoal-project/shoal/proto"
)

// Keys of the records below, as blobKey and linkKey.
const (
	tagKey   = "t\x00"
	listKey  = "r\x00"
	partsKey = "c\x00"
)

// A Tag is what a tag named when the origin was last asked.
type Tag struct {
	Blob      proto.Blob // the manifest
	MediaType string
	// Seen is when the origin said so. Since is when it first named this
	// digest: the same as Seen for one that has just moved.
	Seen, Since time.Time
	// Gone is when the origin last said that it no longer has the tag; zero if
	// it has. The record stays, so that a pin still reaches what it named.
	Gone time.Time
}

// A List is an origin's answer for a list of tags or referrers. Its text is a
// blob of the cache, which may have been evicted.
type List struct {
	Blob        proto.Blob
	ContentType string
	// Header are the others of its headers that clients go by, such as Link.
	Header map[string][]string
	Seen   time.Time // when the origin said so
}

// SetTag remembers what a tag of a repository names.
func (x *Index) SetTag(upstream, repository, tag string, t Tag) error {
	return x.setRecord("set tag", tagKey, t, upstream, repository, tag)
}

// Tag returns what is remembered of a tag; ok is false if nothing is.
func (x *Index) Tag(upstream, repository, tag string) (t Tag, ok bool, err error) {
	ok, err = x.record("read tag", tagKey, &t, upstream, repository, tag)
	return t, ok, err
}

// ForgetTag forgets a tag, if it was remembered.
func (x *Index) ForgetTag(upstream, repository, tag string) error {
	return x.forgetRecord("forget tag", tagKey, upstream, repository, tag)
}

// A TagName is where a Tag is.
type TagName struct{ Upstream, Repository, Tag string }

// String returns the reference as a person would write it.
func (n TagName) String() string { return n.Upstream + "/" + n.Repository + ":" + n.Tag }

// Tags returns the tags that are remembered: of one repository, or of all if
// upstream is "". Records that cannot be read are left out.
func (x *Index) Tags(upstream, repository string) (map[TagName]Tag, error) {
	prefix := tagKey
	if upstream != "" {
		key, err := recordKey(tagKey, []string{upstream, repository, ""})
		if err != nil {
			return nil, fmt.Errorf("index: read tags: %w", err)
		}
		prefix = string(key)
	}
	all := map[TagName]Tag{}
	err := x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix), PrefetchValues: true, PrefetchSize: 100})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			names := strings.Split(strings.TrimPrefix(string(it.Item().Key()), tagKey), "\x00")
			var t Tag
			err := it.Item().Value(func(v []byte) error { return json.Unmarshal(v, &t) })
			if err == nil && len(names) == 3 {
				all[TagName{names[0], names[1], names[2]}] = t
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index: read tags: %w", err)
	}
	return all, nil
}

// SetList remembers a list of a repository. path is what follows the
// repository in its URL, with the query: "tags/list?n=100".
func (x *Index) SetList(upstream, repository, path string, l List) error {
	return x.setRecord("set list", listKey, l, upstream, repository, path)
}

// List returns a list that is remembered; ok is false if none is.
func (x *Index) List(upstream, repository, path string) (l List, ok bool, err error) {
	ok, err = x.record("read list", listKey, &l, upstream, repository, path)
	return l, ok, err
}

// SetParts remembers which digests a manifest names: its config and layers, or
// the manifests of an index. It is how pins reach from an image to its blobs.
func (x *Index) SetParts(manifest proto.Digest, parts []proto.Digest) error {
	return x.setRecord("set parts", partsKey, parts, manifest.String())
}

// Parts returns what SetParts was told, or nil.
func (x *Index) Parts(manifest proto.Digest) (parts []proto.Digest, err error) {
	_, err = x.record("read parts", partsKey, &parts, manifest.String())
	return parts, err
}

// PartOf returns the manifests that a repository of an upstream is linked to and
// whose parts d is one of, as far as SetLinks and SetParts were told of both. It
// looks at all links of the repository, some 100,000 a second.
func (x *Index) PartOf(upstream, repository string, d proto.Digest) ([]proto.Digest, error) {
	key, err := linkKeyOf(upstream, repository, d)
	if err != nil {
		return nil, err
	}
	prefix := bytes.TrimSuffix(key, []byte(d.String()))
	var found []proto.Digest
	err = x.read(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			name := string(it.Item().Key()[len(prefix):])
			is, err := hasPart(txn, name, d)
			if err != nil {
				return err
			}
			manifest, err := proto.ParseDigest(name)
			if is && err == nil {
				found = append(found, manifest)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index: read what has %s as a part: %w", d, err)
	}
	return found, nil
}

// hasPart reports whether d is one of the parts of the manifest of that name. A
// record that cannot be read has none.
func hasPart(txn *badger.Txn, manifest string, d proto.Digest) (is bool, err error) {
	item, err := txn.Get([]byte(partsKey + manifest))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = item.Value(func(data []byte) error {
		if !bytes.Contains(data, []byte(d.String())) {
			return nil // most are not: no need to parse them
		}
		var parts []proto.Digest
		is = json.Unmarshal(data, &parts) == nil && slices.Contains(parts, d)
		return nil
	})
	return is, err
}

// recordKey refuses names with a zero byte, as linkKeyOf does.
func recordKey(prefix string, names []string) ([]byte, error) {
	key := strings.Join(names, "\x00")
	if strings.Count(key, "\x00") != len(names)-1 {
		return nil, fmt.Errorf("no record can be of %q", names)
	}
	return []byte(prefix + key), nil
}

func (x *Index) setRecord(what, prefix string, v any, names ...string) error {
	defer x.changes.Add(1)
	return x.write(what, func(wb *badger.WriteBatch) error {
		key, err := recordKey(prefix, names)
		if err != nil {
			return err
		}
		data, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return wb.SetEntry(badger.NewEntry(key, data).WithMeta(week(time.Now())))
	})
}

func (x *Index) record(what, prefix string, v any, names ...string) (bool, error) {
	key, err := recordKey(prefix, names)
	if err == nil {
		err = x.read(func(txn *badger.Txn) error {
			item, err := txn.Get(key)
			if err != nil {
				return err
			}
			return item.Value(func(data []byte) error { return json.Unmarshal(data, v) })
		})
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return false, nil
	}
	return false, fmt.Errorf("index: %s: %w", what, err)
}

func (x *Index) forgetRecord(what, prefix string, names ...string) error {
	defer x.changes.Add(1)
	return x.write(what, func(wb *badger.WriteBatch) error {
		key, err := recordKey(prefix, names)
		if err != nil {
			return err
		}
		return wb.Delete(key)
	})
}
