package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

// metaVersion is the first byte of a member's metadata. Another one has fields
// that this code does not know where to find. Version 1 was not signed.
const metaVersion = 2

// maxText bounds each text in the metadata, in bytes: its length is one byte.
const maxText = 255

// metaFixed is how many bytes of the metadata are not of texts: version, epoch,
// roles, three lengths and the signature.
const metaFixed = 1 + 8 + 1 + 3 + signatureSize

// A card is what a member says of itself.
type card struct {
	member proto.Member
	// epoch says when the member's process started, in milliseconds since 1970:
	// of two cards of one identity the one with the higher epoch is the newer.
	epoch uint64
}

// encode packs what the gossip carries of c beside the ID, which is the node's
// name there: a version, the epoch, the roles, and name, zone and address, each
// with its length before it. The signature follows.
func (c card) encode() ([]byte, error) {
	b := binary.BigEndian.AppendUint64([]byte{metaVersion}, c.epoch)
	b = append(b, byte(c.member.Roles))
	m := c.member
	texts := 0
	for _, f := range []struct{ what, text string }{{"name", m.Name}, {"zone", m.Zone}, {"address", m.Addr}} {
		if err := checkText(f.text); err != nil {
			return nil, fmt.Errorf("the member's %s: %w", f.what, err)
		}
		b = append(b, byte(len(f.text)))
		b = append(b, f.text...)
		texts += len(f.text)
	}
	if most := memberlist.MetaMaxSize - metaFixed; texts > most {
		return nil, fmt.Errorf("the member's name, zone and address take %d bytes in all, %d at most", texts, most)
	}
	return b, nil
}

// seal returns c as metadata, signed for a member that gossips at the address
// at.
func (c card) seal(at netip.AddrPort, sign func([]byte) ([]byte, error)) ([]byte, error) {
	b, err := c.encode()
	if err != nil {
		return nil, err
	}
	return appendSignature(b, sign, cardLabel, []byte(c.member.ID), []byte(at.String()), b)
}

// verifyMeta checks that the metadata was signed by the owner of the ID, for
// the address at which the member is said to gossip.
func verifyMeta(id string, at netip.AddrPort, b []byte) error {
	said, signature, err := cutSignature(b)
	if err != nil {
		return err
	}
	return verify(id, signature, cardLabel, []byte(id), []byte(at.String()), said)
}

// addrOf returns the address at which a node is said to gossip.
func addrOf(n *memberlist.Node) (netip.AddrPort, error) {
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%v is no IP address", net.IP(n.Addr))
	}
	return netip.AddrPortFrom(ip.Unmap(), n.Port), nil
}

// parseMeta reads what seal wrote, without a look at the signature. Bytes
// between the known fields and the signature are ignored, so that a later
// version can add some.
func parseMeta(id string, b []byte) (card, error) {
	if id == "" {
		return card{}, errors.New("no ID")
	}
	if err := checkText(id); err != nil {
		return card{}, fmt.Errorf("ID: %w", err)
	}
	if len(b) > 0 && b[0] != metaVersion {
		return card{}, fmt.Errorf("metadata has version %d, this is version %d", b[0], metaVersion)
	}
	b, _, err := cutSignature(b)
	if err != nil || len(b) < 10 {
		return card{}, errors.New("metadata is cut short")
	}
	c := card{member: proto.Member{ID: id, Roles: proto.Role(b[9])}, epoch: binary.BigEndian.Uint64(b[1:9])}
	b = b[10:]
	m := &c.member
	for _, field := range []*string{&m.Name, &m.Zone, &m.Addr} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return card{}, errors.New("metadata is cut short")
		}
		n := 1 + int(b[0])
		*field = string(b[1:n])
		if err := checkText(*field); err != nil {
			return card{}, err
		}
		b = b[n:]
	}
	if m.Addr == "" {
		return card{}, errors.New("metadata has no address")
	}
	return c, nil
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
