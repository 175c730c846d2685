package gossip

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

// metaVersion is the first byte of a member's metadata. Another one has fields
// that this code does not know where to find.
const metaVersion = 1

// maxText bounds each text in the metadata, in bytes: its length is one byte.
const maxText = 255

// encodeMeta packs what the gossip carries of m beside its ID, which is the
// node's name there: a version, the roles, and name, zone and address, each
// with its length before it.
func encodeMeta(m proto.Member) ([]byte, error) {
	b := []byte{metaVersion, byte(m.Roles)}
	for _, f := range []struct{ what, text string }{{"name", m.Name}, {"zone", m.Zone}, {"address", m.Addr}} {
		if err := checkText(f.text); err != nil {
			return nil, fmt.Errorf("the member's %s: %w", f.what, err)
		}
		b = append(b, byte(len(f.text)))
		b = append(b, f.text...)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("the member's name, zone and address take %d bytes in all, %d at most",
			len(b)-5, memberlist.MetaMaxSize-5)
	}
	return b, nil
}

// parseMeta reads what encodeMeta wrote. Bytes after the known fields are
// ignored, so that a later version can add some.
func parseMeta(id string, b []byte) (proto.Member, error) {
	if id == "" {
		return proto.Member{}, errors.New("no ID")
	}
	if err := checkText(id); err != nil {
		return proto.Member{}, fmt.Errorf("ID: %w", err)
	}
	if len(b) < 2 {
		return proto.Member{}, fmt.Errorf("metadata of %d bytes is cut short", len(b))
	}
	if b[0] != metaVersion {
		return proto.Member{}, fmt.Errorf("metadata has version %d, this is version %d", b[0], metaVersion)
	}
	m := proto.Member{ID: id, Roles: proto.Role(b[1])}
	b = b[2:]
	for _, field := range []*string{&m.Name, &m.Zone, &m.Addr} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return proto.Member{}, errors.New("metadata is cut short")
		}
		n := 1 + int(b[0])
		*field = string(b[1:n])
		if err := checkText(*field); err != nil {
			return proto.Member{}, err
		}
		b = b[n:]
	}
	if m.Addr == "" {
		return proto.Member{}, errors.New("metadata has no address")
	}
	return m, nil
}

// checkText admits what can be shown in a log or on a terminal as it is.
func checkText(s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%.20q… has %d bytes, %d at most", s, len(s), maxText)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%q is not UTF-8", s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%q has a character that can't be shown", s)
		}
	}
	return nil
}
