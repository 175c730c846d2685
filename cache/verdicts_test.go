package cache

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

func TestVerdicts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, other := proto.DigestOf([]byte("a")), proto.DigestOf([]byte("b"))
	v := Verdict{At: time.Unix(1_700_000_000, 0).UTC(), Until: time.Unix(1_800_000_000, 0).UTC()}
	changes := c.Index().changes.Load()
	if err := c.Index().SetVerdict("signed/x", d, v); err != nil {
		t.Fatal(err)
	}
	if c.Index().changes.Load() != changes {
		t.Error("a verdict counts as a change that pins go by")
	}
	if err := c.Index().SetVerdict("a\x00b", d, v); err == nil {
		t.Error("a check with a zero byte was taken")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x := c.Index()
	if got, ok, err := x.Verdict("signed/x", d); !ok || err != nil || got != v {
		t.Errorf("verdict after a restart is %+v, %v, %v", got, ok, err)
	}
	for _, try := range []struct {
		check string
		d     proto.Digest
	}{{"signed/x", other}, {"signed/y", d}, {"signed", d}} {
		if _, ok, err := x.Verdict(try.check, try.d); ok || err != nil {
			t.Errorf("%s of %s: %v, %v", try.check, try.d, ok, err)
		}
	}
	// It goes with other old records of what is not here.
	keep := func(proto.Digest) bool { return false }
	if n, err := x.clearOld(time.Now(), false, keep); n != 0 || err != nil {
		t.Errorf("%d new records went, %v", n, err)
	}
	late := time.Now().Add(2 * oldAfter)
	if n, err := x.clearOld(late, false, func(got proto.Digest) bool { return got == d }); n != 0 || err != nil {
		t.Errorf("%d records of a blob that is here went, %v", n, err)
	}
	if n, err := x.clearOld(late, false, keep); n != 1 || err != nil {
		t.Errorf("%d old records went, %v", n, err)
	}
}
