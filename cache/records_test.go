package cache

import (
	"reflect"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

func TestTagsListsAndParts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := proto.DigestOf([]byte("a manifest"))
	now := time.Unix(1_700_000_000, 0).UTC()
	tag := Tag{Blob: proto.Blob{Digest: d, Size: 10}, MediaType: "m", Seen: now, Since: now}
	list := List{Blob: tag.Blob, ContentType: "application/json", Header: map[string][]string{"Link": {"<x>"}}, Seen: now}
	parts := []proto.Digest{proto.DigestOf([]byte("a")), proto.DigestOf([]byte("b"))}
	for _, err := range []error{
		c.Index().SetTag("docker.io", "library/a", "1", tag),
		c.Index().SetTag("docker.io", "library/a", "2", tag),
		c.Index().SetTag("docker.io", "library/ab", "1", tag),
		c.Index().SetTag("ghcr.io", "library/a", "1", tag),
		c.Index().ForgetTag("docker.io", "library/a", "2"),
		c.Index().SetList("docker.io", "library/a", "tags/list?n=3", list),
		c.Index().SetParts(d, parts),
		c.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if c, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x := c.Index()
	if got, ok, err := x.Tag("docker.io", "library/a", "1"); !ok || err != nil || got != tag {
		t.Errorf("tag is %+v, %v, %v", got, ok, err)
	}
	if got, ok, err := x.Tag("docker.io", "library/a", "2"); ok || err != nil {
		t.Errorf("forgotten tag is %+v, %v", got, err)
	}
	want := map[TagName]Tag{{"docker.io", "library/a", "1"}: tag}
	if got, err := x.Tags("docker.io", "library/a"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("tags of one repository are %v, %v", got, err)
	}
	if got, err := x.Tags("", ""); err != nil || len(got) != 3 {
		t.Errorf("all tags are %v, %v", got, err)
	}
	if got, ok, err := x.List("docker.io", "library/a", "tags/list?n=3"); !ok || err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("list is %+v, %v, %v", got, ok, err)
	}
	if _, ok, err := x.List("docker.io", "library/a", "tags/list"); ok || err != nil {
		t.Errorf("another list is there: %v", err)
	}
	if got, err := x.Parts(d); err != nil || !reflect.DeepEqual(got, parts) {
		t.Errorf("parts are %v, %v", got, err)
	}
	if got, err := x.Parts(parts[0]); err != nil || got != nil {
		t.Errorf("parts of a layer are %v, %v", got, err)
	}
	if err := x.SetTag("docker.io", "library/a\x00b", "1", tag); err == nil {
		t.Error("a name with a zero byte was taken")
	}
}
