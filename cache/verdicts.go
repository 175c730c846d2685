package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/shoal-project/shoal/proto"
)

// verdictKey is that of verdicts, as blobKey and linkKey. The digest stands
// last, where digestOf looks for it.
const verdictKey = "v\x00"

// A Verdict is what a check of a manifest came to that need not be made again,
// such as that a signature of it is valid. Which check it was is in its name.
type Verdict struct {
	// At is when that was, or of when what was checked is; the check says which.
	At time.Time
	// Until is when it ends; zero: never.
	Until time.Time
}

// SetVerdict remembers what a check of d came to. The name of the check must
// change with everything that its outcome depends on, and have no zero byte.
func (x *Index) SetVerdict(check string, d proto.Digest, v Verdict) error {
	// Unlike the records that pins go by, it is not a change of what is needed.
	return x.write("set verdict", func(wb *badger.WriteBatch) error {
		key, err := recordKey(verdictKey, []string{check, d.String()})
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

// Verdict returns what a check of d came to, whether that is over or not; ok is
// false if nothing is remembered. A record that cannot be read is none: the
// check can be made again.
func (x *Index) Verdict(check string, d proto.Digest) (v Verdict, ok bool, err error) {
	ok, err = x.record("read verdict", verdictKey, &v, check, d.String())
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return Verdict{}, false, nil
	}
	if err != nil {
		return Verdict{}, false, fmt.Errorf("check %q: %w", check, err)
	}
	return v, ok, nil
}
