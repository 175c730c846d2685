package gossip

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

var somewhere = netip.MustParseAddrPort("10.0.0.7:7052")

func sealed(t testing.TB, name string, c card) []byte {
	t.Helper()
	b, err := c.seal(somewhere, signerOf(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMetaRoundTrip(t *testing.T) {
	for _, m := range []proto.Member{
		{ID: idOf("a"), Addr: "10.0.0.7:7051"},
		{ID: idOf("a"), Name: "node-1", Zone: "eu/berlin/r12", Roles: proto.RoleScheduler, Addr: "[2001:db8::1]:7051"},
		{ID: idOf("a"), Name: "Knoten zwölf", Zone: strings.Repeat("z", 160), Roles: 255, Addr: strings.Repeat("a", 255)},
	} {
		c := card{member: m, epoch: 1763754000123}
		b := sealed(t, "a", c)
		if len(b) > memberlist.MetaMaxSize {
			t.Errorf("%d bytes", len(b))
		}
		got, err := parseMeta(m.ID, b)
		if err != nil || got != c {
			t.Errorf("%v came back as %v, %v", c, got, err)
		}
		if err := verifyMeta(m.ID, somewhere, b); err != nil {
			t.Error(err)
		}
		// A later version has more fields before the signature.
		fields, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		fields = append(fields, "a later version's field"...)
		later, err := appendSignature(fields, signerOf("a"), cardLabel, []byte(m.ID), []byte(somewhere.String()), fields)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseMeta(m.ID, later); err != nil || got != c || verifyMeta(m.ID, somewhere, later) != nil {
			t.Errorf("with more fields, %v came back as %v, %v", c, got, err)
		}
	}
}

// What a member says of itself is worth nothing for another ID, for another
// address of its gossip, or with a bit changed.
func TestMetaIsBound(t *testing.T) {
	c := card{member: self("a"), epoch: 5}
	b := sealed(t, "a", c)
	for name, err := range map[string]error{
		"of another ID":     verifyMeta(idOf("b"), somewhere, b),
		"elsewhere":         verifyMeta(idOf("a"), netip.MustParseAddrPort("10.0.0.8:7052"), b),
		"at another port":   verifyMeta(idOf("a"), netip.MustParseAddrPort("10.0.0.7:7053"), b),
		"by another key":    verifyMeta(idOf("a"), somewhere, sealed(t, "b", c)),
		"of no key":         verifyMeta("a", somewhere, b),
		"without signature": verifyMeta(idOf("a"), somewhere, b[:20]),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for i := range b {
		bent := bytes.Clone(b)
		bent[i] ^= 1
		if verifyMeta(idOf("a"), somewhere, bent) == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
}

func TestParseMetaErrors(t *testing.T) {
	good := string(sealed(t, "a", card{member: self("a")}))
	head, signature := "\x02\x00\x00\x00\x00\x00\x00\x00\x07", strings.Repeat("s", signatureSize)
	for _, tc := range []struct{ name, id, meta, want string }{
		{"empty", "a", "", "cut short"},
		{"version 1", "a", "\x01" + good[1:], "version 1, this is version 2"},
		{"version 3", "a", "\x03" + good[1:], "version 3"},
		{"no fields", "a", head + "\x01" + signature, "cut short"},
		{"no roles", "a", head + signature, "cut short"},
		{"no signature", "a", head + "\x01\x00\x00\x01a", "cut short"},
		{"no address", "a", head + "\x01\x00\x00\x00" + signature, "no address"},
		{"control character", "a", head + "\x01\x01\x1b\x00\x01a" + signature, "can't be shown"},
		{"not UTF-8", "a", head + "\x01\x01\xff\x00\x01a" + signature, "not UTF-8"},
		{"no ID", "", good, "no ID"},
		{"ID", "a\n", good, "can't be shown"},
	} {
		if c, err := parseMeta(tc.id, []byte(tc.meta)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v, want %q", tc.name, c, err, tc.want)
		}
	}
}

func FuzzParseMeta(f *testing.F) {
	good := sealed(f, "a", card{member: self("a"), epoch: 1763754000123})
	f.Add(idOf("a"), good)
	f.Add(idOf("a"), good[:80])
	f.Add(idOf("b"), append([]byte{metaVersion, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x'}, make([]byte, signatureSize)...))
	f.Fuzz(func(t *testing.T, id string, meta []byte) {
		if len(meta) > memberlist.MetaMaxSize {
			return
		}
		err := verifyMeta(id, somewhere, meta)
		if err == nil && (id != idOf("a") || !bytes.Equal(meta, good)) {
			t.Fatal("a forged card was accepted")
		}
		c, err := parseMeta(id, meta)
		if err != nil {
			return
		}
		b, err := c.encode()
		if err != nil {
			t.Fatalf("%+v was read and can't be written: %v", c, err)
		}
		if again, err := parseMeta(id, append(b, make([]byte, signatureSize)...)); err != nil || again != c {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func FuzzParseLetter(f *testing.F) {
	g := &Gossip{self: self("a"), sign: signerOf("a")}
	const content = "recall sha256:…"
	good, err := g.writeLetter(noteLabel, []byte(content))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:70])
	f.Add(append(bytes.Repeat([]byte{255}, 9), make([]byte, signatureSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLetter(noteLabel, b)
		// Not compared with good: each process of a fuzzing run has its own, of
		// its own time.
		if err == nil && (l.id != g.self.ID || string(l.content) != content) {
			t.Fatalf("a forged letter of %q was accepted", l.id)
		}
		if len(l.content) > len(b) {
			t.Fatalf("%d bytes hold %d", len(b), len(l.content))
		}
	})
}
