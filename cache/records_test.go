package cache

import (
	"errors"
	"reflect"
	"slices"
	"strings"
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

// PartOf finds the manifests of a repository that name a digest, and none that
// only another repository is linked to.
func TestPartOf(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir()).Index()
	digest := func(s string) proto.Digest { return proto.DigestOf([]byte(s)) }
	m1, m2, m3, a, b := digest("m1"), digest("m2"), digest("m3"), digest("a"), digest("b")
	for _, err := range []error{
		x.SetParts(m1, []proto.Digest{a, b}),
		x.SetParts(m2, []proto.Digest{a}),
		x.SetParts(m3, []proto.Digest{a}),
		x.SetLinks("u", "r", map[proto.Digest]Link{m1: {Size: 1}, m2: {Size: 1}, a: {Size: 1}}),
		x.SetLinks("u", "r2", map[proto.Digest]Link{m3: {Size: 1}}),
		x.SetLinks("u2", "r", map[proto.Digest]Link{m3: {Size: 1}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	both := []proto.Digest{m1, m2}
	slices.SortFunc(both, func(d, e proto.Digest) int { return strings.Compare(d.String(), e.String()) })
	for _, test := range []struct {
		upstream, repository string
		d                    proto.Digest
		want                 []proto.Digest
	}{
		{"u", "r", a, both},
		{"u", "r", b, []proto.Digest{m1}},
		{"u", "r2", a, []proto.Digest{m3}},
		{"u", "r2", b, nil},
		{"u", "r", m1, nil},
		{"u", "", a, nil},
		{"", "", a, nil},
	} {
		if got, err := x.PartOf(test.upstream, test.repository, test.d); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("part of %s/%s: %v, %v, want %v", test.upstream, test.repository, got, err, test.want)
		}
	}
	if _, err := x.PartOf("u\x00r", "", a); err == nil {
		t.Error("a name with a zero byte was taken")
	}
}

// Links goes through all of them, and stops when it is told.
func TestAllLinks(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir()).Index()
	a, b := proto.DigestOf([]byte("a")), proto.DigestOf([]byte("b"))
	for _, repository := range []string{"r", "s"} {
		if err := x.SetLinks("u", repository, map[proto.Digest]Link{a: {Size: 7, MediaType: "m"}, b: {Size: 8}}); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]int{}
	err := x.Links(func(l Linked, d proto.Digest) error {
		if d == a && l.Link != (Link{Size: 7, MediaType: "m"}) {
			t.Errorf("%+v", l)
		}
		got[l.Upstream+"/"+l.Repository]++
		return nil
	})
	if err != nil || got["u/r"] != 2 || got["u/s"] != 2 {
		t.Errorf("%v, %v", got, err)
	}
	n, stop := 0, errors.New("stop")
	if err := x.Links(func(Linked, proto.Digest) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("%d links, %v", n, err)
	}
}
