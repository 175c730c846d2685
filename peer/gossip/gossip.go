package gossip

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

// ErrSecret says that every join address answered and refused our secret.
var ErrSecret = errors.New("the fleet has another cluster secret than this node: " +
	"compare the contents of gossip.secretFile here and on the other nodes")

// Config says how a process gossips.
type Config struct {
	// Listen is the host:port for TCP and UDP, such as ":7052"; port 0 takes
	// a free one.
	Listen string
	// Advertise is the host, an IP address or a name, by which the others
	// reach this node. If it is empty, it is the address of Listen, or
	// 127.0.0.1 if that is every address of the machine.
	Advertise string
	// Join are the host:port of members to start with. A name stands for all
	// of its addresses. This node's own may be among them.
	Join []string
	// Secrets are the cluster secrets that are valid now. The first is used to
	// send, all are accepted; SetSecrets changes them. There may be none only if
	// Listen is a loopback address; then nothing is encrypted.
	Secrets [][]byte
	// Self is what the others are told of this node. Its ID must be that of the
	// key that Sign signs with.
	Self proto.Member
	// Sign signs with this node's identity key: peer.Host's Sign. It is needed.
	Sign func([]byte) ([]byte, error)
	// Allowed reports whether a peer ID may be a member at all; nil lets in
	// whoever knows the secret. It is called often and must not block; after its
	// answers have changed, Recheck is due.
	Allowed func(id string) bool
	// Note gets the notes that others Tell, one at a time, each mostly once but
	// maybe again, not in order. It may block for a while; notes that come
	// meanwhile can be lost. Nil: notes are passed on only.
	Note func(note []byte)
	// State and Merge are what full exchanges carry beside the members: State
	// returns this node's, at most 4 MiB, and Merge gets another's. Merge may
	// get an old one. They are called by several goroutines and should not take
	// long. Nil: nothing.
	State func() []byte
	Merge func(state []byte)
	// Log gets what happens; nil is nowhere.
	Log *slog.Logger
}

// Gossip is this process's part in the fleet's gossip.
type Gossip struct {
	self      proto.Member
	sign      func([]byte) ([]byte, error)
	allowed   func(id string) bool
	note      func([]byte)
	state     func() []byte
	merge     func([]byte)
	join      []hostPort
	listen    netip.Addr
	advertise netip.Addr
	addr      string
	log       *slog.Logger
	lines     *logWriter
	transport *netTransport
	config    *memberlist.Config
	watch     chan []proto.Member
	changed   chan struct{} // 1-buffered: the view has changed
	lonely    chan struct{} // 1-buffered: the last other member has gone
	disputed  atomic.Bool   // somebody says that our identity is elsewhere
	failing   atomic.Int64  // when a probe of another was last not answered in time, in Unix nanoseconds
	heal      time.Duration // healEvery
	outdone   chan struct{} // 1-buffered: the epoch has changed
	notes     memberlist.TransmitLimitedQueue
	taken     chan []byte // notes of others, not handed over yet
	exchanges atomic.Uint64

	leaving  sync.Mutex // held while leaving
	rotating sync.Mutex // held while the secrets change

	mu sync.Mutex
	// mu protects the fields below.
	running   bool
	list      *memberlist.Memberlist // nil before Run and after Leave
	others    map[string]proto.Member
	at        map[string]netip.AddrPort // where the others gossip
	conflicts map[string]string         // ID → address that was reported last
	epoch     uint64                    // of this member
	meta      []byte                    // of this member, signed
	records   map[string]record         // of the others, those that have gone lately too
	seen      map[[sha256.Size]byte]bool
	seenRing  [][sha256.Size]byte // what is in seen, seenNext being the oldest once it is full
	seenNext  int

	complained time.Time // when somebody who is kept out was last logged
}

type hostPort struct {
	host string
	port uint16
}

// New opens the ports. The gossip begins with Run. A Gossip that is never run
// must be closed.
func New(cfg Config) (*Gossip, error) {
	g := &Gossip{
		self: cfg.Self, log: cfg.Log, heal: healEvery,
		watch:     make(chan []proto.Member, 1),
		changed:   make(chan struct{}, 1),
		lonely:    make(chan struct{}, 1),
		others:    make(map[string]proto.Member),
		at:        make(map[string]netip.AddrPort),
		conflicts: make(map[string]string),
		sign:      cfg.Sign, allowed: cfg.Allowed, note: cfg.Note, state: cfg.State, merge: cfg.Merge,
		outdone: make(chan struct{}, 1),
		taken:   make(chan []byte, maxNotes),
		epoch:   uint64(time.Now().UnixMilli()),
		records: make(map[string]record),
		seen:    make(map[[sha256.Size]byte]bool),
	}
	g.notes.RetransmitMult = retransmitMult
	g.notes.NumNodes = g.count
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.lines = &logWriter{log: g.log}
	err := g.checkSelf()
	if err != nil {
		return nil, err
	}
	if g.join, err = parseJoin(cfg.Join); err != nil {
		return nil, err
	}
	bind, err := net.ResolveTCPAddr("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip.listen: %w", err)
	}
	if bind.IP == nil {
		bind.IP = net.IPv6unspecified // every address, of both kinds
	}
	g.listen = bind.AddrPort().Addr().Unmap()
	keys, err := deriveKeys(cfg.Secrets, cfg.Listen, g.listen)
	if err != nil {
		return nil, err
	}
	ring, err := newKeyring(keys)
	if err != nil {
		return nil, err
	}
	if g.advertise, err = g.advertised(cfg.Advertise); err != nil {
		return nil, err
	}
	logger := log.New(g.lines, "", 0)
	if g.transport, err = listen(bind, door{id: g.self.ID, sign: g.sign, allows: g.allows}, g.log, logger); err != nil {
		return nil, err
	}
	g.addr = net.JoinHostPort(g.advertise.String(), strconv.Itoa(g.transport.port))
	if err := g.sealCard(); err != nil {
		return nil, errors.Join(err, g.transport.Shutdown())
	}
	g.configure(ring, logger)
	g.watch <- g.Members()
	return g, nil
}

// checkSelf checks that what the others are to be told of this member can be
// told and proven.
func (g *Gossip) checkSelf() error {
	if g.sign == nil {
		return errors.New("gossip: nothing to sign with")
	}
	meta, err := card{member: g.self}.seal(netip.AddrPort{}, g.sign)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	if _, err = parseMeta(g.self.ID, meta); err == nil {
		err = verifyMeta(g.self.ID, netip.AddrPort{}, meta)
	}
	if err != nil {
		return fmt.Errorf("gossip: this member: %w", err)
	}
	return nil
}

// configure fills in memberlist's configuration.
func (g *Gossip) configure(ring *memberlist.Keyring, logger *log.Logger) {
	c := tuned(g.listen.IsLoopback())
	c.Name = g.self.ID // so that two nodes of one name do not fight
	c.Transport = g.transport
	c.BindPort = g.transport.port
	c.AdvertiseAddr = g.advertise.String()
	c.AdvertisePort = g.transport.port
	c.Keyring = ring
	c.Logger = logger
	c.DisableTcpPingsForNode = func(string) bool { // asked when a probe was not answered in time
		g.failing.Store(time.Now().UnixNano())
		return false
	}
	c.Delegate = delegate{g}
	c.Events = events{g}
	c.Conflict = events{g}
	c.Merge = events{g}
	c.Alive = events{g}
	g.config = c
}

func parseJoin(join []string) ([]hostPort, error) {
	var out []hostPort
	for _, j := range join {
		host, portText, err := net.SplitHostPort(j)
		port, perr := strconv.ParseUint(portText, 10, 16)
		if err != nil || perr != nil || port == 0 || host == "" {
			return nil, fmt.Errorf("gossip.join: %q is not host:port, such as 10.0.0.2:7052", j)
		}
		out = append(out, hostPort{host, uint16(port)})
	}
	return out, nil
}

// advertised returns the address that others are told.
func (g *Gossip) advertised(host string) (netip.Addr, error) {
	if host == "" {
		if !g.listen.IsUnspecified() {
			return g.listen, nil
		}
		g.log.Warn("no address to advertise is given: only members on this machine can reach this node", "advertise", "127.0.0.1")
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := lookup(ctx, host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("advertise: %w", err)
	}
	return ips[0], nil
}

// Addr returns the host:port by which others reach this member's gossip.
func (g *Gossip) Addr() string { return g.addr }

// Members returns the live members, this one included, in the order of their
// IDs. The caller may keep the slice.
func (g *Gossip) Members() []proto.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	ms := make([]proto.Member, 0, len(g.others)+1)
	ms = append(ms, g.self)
	for _, m := range g.others {
		if g.allows(m.ID) {
			ms = append(ms, m)
		}
	}
	slices.SortFunc(ms, func(a, b proto.Member) int { return cmp.Compare(a.ID, b.ID) })
	return ms
}

// Watch returns the channel of the views that Members has given since, the
// first one included. It holds the latest view only, so a slow receiver misses
// those between and is never in the way. It is for one receiver and is never
// closed.
func (g *Gossip) Watch() <-chan []proto.Member { return g.watch }

// Recheck looks at the members again after what Allowed answers has changed.
// Those that are not allowed any more are out of the view at once, and get no
// connection; memberlist has no way to drop one that is alive, so that packets
// go on to reach it until it is gone or the secret has changed. One that has come
// to be allowed is in the view when the gossip next tells of it, in seconds.
func (g *Gossip) Recheck() { notify(g.changed) }

// count returns how many members there are, this one included.
func (g *Gossip) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.others) + 1
}

// company reports whether there are other members.
func (g *Gossip) company() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.others) > 0
}

// Run gossips until ctx ends, then tells the others, closes everything and
// returns nil, within about two seconds. When no join address can be reached
// it keeps trying, and this node works alone meanwhile. It returns ErrSecret,
// wrapped, if the first join is refused everywhere. A Gossip runs once.
func (g *Gossip) Run(ctx context.Context) error {
	g.mu.Lock()
	usable := !g.running
	g.running = true
	g.mu.Unlock()
	if !usable {
		return errors.New("gossip: it runs once")
	}
	list, err := memberlist.Create(g.config)
	if err != nil {
		return errors.Join(fmt.Errorf("gossip: %w", err), g.transport.Shutdown())
	}
	close(g.transport.ready)
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()

	publishing, cancel := context.WithCancel(context.Background())
	var publisher sync.WaitGroup
	publisher.Go(func() { g.publish(publishing) })
	publisher.Go(func() { g.takeNotes(publishing) })
	publisher.Go(func() { g.keepNewest(publishing, list) })
	err = g.keepJoined(ctx, list)
	leaving, done := context.WithTimeout(context.Background(), leaveWithin)
	defer done()
	if lerr := g.Leave(leaving); lerr != nil {
		g.log.Warn("left without telling everybody", "error", lerr)
	}
	g.lines.quiet.Store(true)
	err = errors.Join(err, list.Shutdown())
	cancel()
	publisher.Wait()
	if g.company() {
		g.awaitProbe(list)
	}
	return err
}

// awaitProbe waits until a probe that memberlist has under way has ended, for
// which memberlist does not wait itself: it is answered before probeTimeout, or
// fails, which it says at that time, and ends after the probe interval.
func (g *Gossip) awaitProbe(list *memberlist.Memberlist) {
	timer := time.NewTimer(g.config.ProbeTimeout)
	defer timer.Stop()
	<-timer.C
	failing := time.Unix(0, g.failing.Load())
	scaled := g.config.ProbeInterval * time.Duration(1+list.GetHealthScore())
	timer.Reset(time.Until(failing.Add(scaled)))
	<-timer.C
}

// publish puts the latest view into the watch channel after each change.
func (g *Gossip) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
		}
		view := g.Members()
		select {
		case <-g.watch:
		default:
		}
		g.watch <- view
	}
}

// Leave tells the others that this member leaves: they drop it at once. It
// waits until some have been told, as long as ctx's deadline allows. The
// gossip goes on until Run's context ends. Run calls it too.
func (g *Gossip) Leave(ctx context.Context) error {
	g.leaving.Lock()
	defer g.leaving.Unlock()
	g.mu.Lock()
	list := g.list
	g.list = nil
	g.mu.Unlock()
	if list == nil {
		return nil
	}
	timeout := leaveWithin
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(deadline)), time.Millisecond)
	}
	if err := list.Leave(timeout); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	return nil
}

// Close releases the ports of a Gossip that is never run. One that runs ends
// when its context does.
func (g *Gossip) Close() error {
	g.mu.Lock()
	running := g.running
	g.running = true
	g.mu.Unlock()
	if running {
		return nil
	}
	return g.transport.Shutdown()
}

// A delegate tells memberlist what to tell the others of this member. Its other
// methods are in note.go.
type delegate struct{ g *Gossip }

func (d delegate) NodeMeta(int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	return d.g.meta
}

// events takes what memberlist hears. memberlist calls it with its own lock
// held, so nothing here may wait or call back. Who is let in is in admit.go.
type events struct{ g *Gossip }

func (e events) NotifyJoin(n *memberlist.Node)   { e.g.heard(n) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.g.heard(n) }

func (e events) NotifyLeave(n *memberlist.Node) {
	e.g.set(n.Name, nil)
	e.g.log.Debug("a member has gone", "peer", n.Name)
}

// NotifyConflict hears that one identity is at two addresses: a member that
// has come back elsewhere before its death was noticed, or a copied identity.
func (e events) NotifyConflict(known, other *memberlist.Node) {
	g := e.g
	at := other.Address()
	g.mu.Lock()
	again := g.conflicts[known.Name] == at
	g.conflicts[known.Name] = at
	g.mu.Unlock()
	if !again {
		g.log.Warn("one identity is at two addresses: if this does not pass in seconds, a data directory was copied; "+
			"delete identity.key in one of them", "peer", known.Name, "address", known.Address(), "other", at)
	}
}

// heard takes in what a member says of itself, which NotifyAlive has judged.
func (g *Gossip) heard(n *memberlist.Node) {
	if n.Name == g.self.ID {
		return
	}
	c, err := parseMeta(n.Name, n.Meta)
	at, aerr := addrOf(n)
	if err = errors.Join(err, aerr); err != nil {
		g.log.Warn("a member is left out: what it says of itself can't be read", "peer", n.Name, "address", n.Address(), "error", err)
		g.set(n.Name, nil)
		return
	}
	m := c.member
	g.set(n.Name, &m)
	// Noted here, while memberlist holds its lock: it changes its Nodes later.
	g.mu.Lock()
	g.at[n.Name] = at
	g.remember(n.Name, at, n.Meta, c.epoch)
	g.mu.Unlock()
	g.log.Debug("a member is there", "peer", m.ID, "name", m.Name, "zone", m.Zone, "address", m.Addr)
}

// set puts a member into the view, or takes it out if m is nil.
func (g *Gossip) set(id string, m *proto.Member) {
	g.mu.Lock()
	_, was := g.others[id]
	if m == nil {
		delete(g.others, id)
		delete(g.at, id)
		g.forget(id)
	} else {
		g.others[id] = *m
		delete(g.conflicts, id)
	}
	alone := was && len(g.others) == 0
	g.mu.Unlock()
	if was || m != nil {
		notify(g.changed)
	}
	if alone {
		notify(g.lonely)
	}
}

// notify leaves a note in a 1-buffered channel.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
