package netns

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes of linux/netfilter/nfnetlink_queue.h.
const (
	typePacket  = unix.NFNL_SUBSYS_QUEUE << 8
	typeConfig  = typePacket | 2
	typeVerdict = typePacket | 3 // of all packets up to one

	cfgCommand, cfgParams, cfgLength, cfgMask, cfgFlags = 1, 2, 3, 4, 5

	commandBind = 1
	copyMeta    = 1 // what a packet is, not what is in it
	flagGSO     = 1 << 2
	attrPacket  = 1
	attrVerdict = 2
	accept      = 1

	// readBuffer has room for the messages about packets that come while this
	// process does not run.
	readBuffer = 4 << 20
	// sizeOfMessage is more than one about a packet has.
	sizeOfMessage = 4 << 10
)

// A queue is what comes in over a host's link: the kernel keeps each packet and
// tells us of it, until we let it go on.
type queue struct {
	fd  int // a netlink socket in the host's namespace
	buf []byte
}

// openQueue makes the queue of a namespace.
func openQueue(ns *namespace) (*queue, error) {
	q := &queue{fd: -1, buf: make([]byte, sizeOfMessage)}
	err := ns.do(func() (err error) {
		if err := queueInput(); err != nil {
			return err
		}
		q.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		return err
	})
	if err == nil {
		err = q.bind()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("queue packets: %w", err), q.close())
	}
	return q, nil
}

// close drops what is in the queue, and all that comes.
func (q *queue) close() error {
	if q.fd < 0 {
		return nil
	}
	return unix.Close(q.fd)
}

// queueInput sends what comes in over the link to queue 0 of the calling
// thread's namespace. A kernel may have the expression of nftables for that, or
// the target of iptables, or both.
func queueInput() error {
	err := queueBy(&expr.Queue{Num: 0, Total: 1})
	if err == nil {
		return nil
	}
	info := make(xt.Unknown, 8) // struct xt_NFQ_info: a 16-bit number, aligned
	if err2 := queueBy(&expr.Target{Name: "NFQUEUE", Info: &info}); err2 != nil {
		return fmt.Errorf("nftables queue: %w; iptables NFQUEUE: %w", err, err2)
	}
	return nil
}

// queueBy adds a rule that ends with e.
func queueBy(e expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "delay"})
	chain := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, nic)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		e,
	}})
	return c.Flush()
}

// bind asks the kernel for the packets: each as large as it is, and only the
// news of it.
func (q *queue) bind() error {
	if err := unix.Bind(q.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// A lost message must not be an error of the next read: only that packet
	// is lost, as on any network.
	if err := unix.SetsockoptInt(q.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer); err != nil {
		return err
	}
	params := append(binary.BigEndian.AppendUint32(nil, 0), copyMeta)
	return errors.Join(
		q.configure(netlink.Attribute{Type: cfgCommand, Data: []byte{commandBind, 0, 0, unix.AF_INET}}),
		q.configure(
			netlink.Attribute{Type: cfgParams, Data: params},
			netlink.Attribute{Type: cfgLength, Data: binary.BigEndian.AppendUint32(nil, mostHeld)},
			netlink.Attribute{Type: cfgFlags, Data: binary.BigEndian.AppendUint32(nil, flagGSO)},
			netlink.Attribute{Type: cfgMask, Data: binary.BigEndian.AppendUint32(nil, flagGSO)},
		),
	)
}

// configure sends a message about the queue, and reads what becomes of it. The
// kernel has answered when it returns from the one, and there are no packets
// yet.
func (q *queue) configure(attrs ...netlink.Attribute) error {
	if err := q.send(typeConfig, netlink.Request|netlink.Acknowledge, attrs...); err != nil {
		return err
	}
	m, err := q.receive()
	if err != nil {
		return err
	}
	return answer(m)
}

// answer returns what the kernel says about a message.
func answer(m netlink.Message) error {
	if m.Header.Type != netlink.Error || len(m.Data) < 4 {
		return fmt.Errorf("the kernel answers with a message of type %d and %d bytes", m.Header.Type, len(m.Data))
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// send sends a message about the queue.
func (q *queue) send(t netlink.HeaderType, flags netlink.HeaderFlags, attrs ...netlink.Attribute) error {
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	// struct nfgenmsg: family, version, number of the queue.
	m := netlink.Message{
		Header: netlink.Header{Type: t, Flags: flags, Length: uint32(unix.NLMSG_HDRLEN + 4 + len(b))},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, b...),
	}
	if b, err = m.MarshalBinary(); err != nil {
		return err
	}
	return unix.Sendto(q.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive returns the next message. unix.EAGAIN: there is none.
func (q *queue) receive() (m netlink.Message, err error) {
	n, err := unix.Read(q.fd, q.buf)
	if err != nil {
		return m, err
	}
	return m, m.UnmarshalBinary(q.buf[:n])
}

// next returns the number that the kernel gave the next packet. unix.EAGAIN:
// there is none.
func (q *queue) next() (uint32, error) {
	for {
		m, err := q.receive()
		if err != nil {
			return 0, err
		}
		if m.Header.Type != netlink.Error {
			return packetID(m)
		}
		// Packets that were to go on may be gone, because their link is.
		if err := answer(m); err != nil && !errors.Is(err, unix.ENOENT) {
			return 0, err
		}
	}
}

// packetID reads the number from the message about a packet.
func packetID(m netlink.Message) (uint32, error) {
	const header = 4 // struct nfgenmsg
	if m.Header.Type != typePacket || len(m.Data) < header {
		return 0, fmt.Errorf("the kernel sends a message of type %d and %d bytes", m.Header.Type, len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return 0, err
	}
	for ad.Next() {
		if b := ad.Bytes(); ad.Type() == attrPacket && len(b) >= 4 {
			return binary.BigEndian.Uint32(b), nil
		}
	}
	return 0, errors.Join(errors.New("the kernel sends a packet without a number"), ad.Err())
}

// release lets all packets up to one go on.
func (q *queue) release(id uint32) error {
	verdict := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, accept), id)
	return q.send(typeVerdict, netlink.Request, netlink.Attribute{Type: attrVerdict, Data: verdict})
}
