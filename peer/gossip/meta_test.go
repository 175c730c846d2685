package gossip

import (
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

func TestMetaRoundTrip(t *testing.T) {
	for _, m := range []proto.Member{
		{ID: "12D3KooW", Addr: "10.0.0.7:7051"},
		{ID: "12D3KooW", Name: "node-1", Zone: "eu/berlin/r12", Roles: proto.RoleScheduler, Addr: "[2001:db8::1]:7051"},
		{ID: "x", Name: "Knoten zwölf", Zone: strings.Repeat("z", 230), Roles: 255, Addr: strings.Repeat("a", 255)},
	} {
		b, err := encodeMeta(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseMeta(m.ID, append(b, "a later version's field"...))
		if err != nil || got != m {
			t.Errorf("%v came back as %v, %v", m, got, err)
		}
	}
}

func TestParseMetaErrors(t *testing.T) {
	good, err := encodeMeta(self("a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, id, meta, want string }{
		{"empty", "a", "", "cut short"},
		{"version", "a", "\x02" + string(good[1:]), "version 2"},
		{"short", "a", string(good[:len(good)-1]), "cut short"},
		{"no fields", "a", "\x01\x01", "cut short"},
		{"no address", "a", "\x01\x01\x00\x00\x00", "no address"},
		{"control character", "a", "\x01\x01\x01\x1b\x00\x01a", "can't be shown"},
		{"not UTF-8", "a", "\x01\x01\x01\xff\x00\x01a", "not UTF-8"},
		{"no ID", "", string(good), "no ID"},
		{"ID", "a\n", string(good), "can't be shown"},
	} {
		if m, err := parseMeta(tc.id, []byte(tc.meta)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v, want %q", tc.name, m, err, tc.want)
		}
	}
}

func FuzzParseMeta(f *testing.F) {
	good, err := encodeMeta(self("a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a", good)
	f.Add("a", good[:7])
	f.Add("12D3KooW", []byte{metaVersion, 0, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, id string, meta []byte) {
		if len(meta) > memberlist.MetaMaxSize {
			return
		}
		m, err := parseMeta(id, meta)
		if err != nil {
			return
		}
		b, err := encodeMeta(m)
		if err != nil {
			t.Fatalf("%+v was read and can't be written: %v", m, err)
		}
		if again, err := parseMeta(id, b); err != nil || again != m {
			t.Fatalf("%+v came back as %+v, %v", m, again, err)
		}
	})
}
