package gossip

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/shoal-project/shoal/proto"
)

// only lets the members in that the tests call by these names.
func only(names ...string) func(string) bool {
	return func(id string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return idOf(name) == id })
	}
}

// nodeOf is what memberlist would say of m.
func nodeOf(t *testing.T, m *member) *memberlist.Node {
	t.Helper()
	at := m.transport.port
	return &memberlist.Node{Name: m.self.ID, Addr: m.advertise.AsSlice(), Port: uint16(at), Meta: m.meta}
}

// Somebody with the right secret, whose identity is not on the list, hears
// nothing of the fleet and is heard by nobody.
func TestNotOnTheList(t *testing.T) {
	t.Parallel()
	listed := only("a", "b")
	told := make(chan string, 10)
	a := newMember(t, "a", Config{Allowed: listed, Note: func(b []byte) { told <- string(b) },
		State: func() []byte { return []byte("the state of the fleet") }, Merge: func(b []byte) { told <- string(b) }}).run(t)
	b := newMember(t, "b", Config{Allowed: listed, Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b")
	b.awaitIDs(t, "a", "b")
	x := newMember(t, "x", Config{Join: []string{a.Addr(), b.Addr()}, State: func() []byte { return []byte("of x") },
		Merge: func(b []byte) { t.Errorf("the stranger was told %q", b) }}).run(t)
	x.log.await(t, "working alone", 1)
	x.log.await(t, "may not let this node's peer ID in", 1)
	a.log.await(t, errNotListed.Error(), 1)
	if !sameIDs(x.Members(), []string{"x"}) || strings.Contains(x.log.String(), "a member is there") {
		t.Errorf("the stranger sees %v", x.Members())
	}
	for _, m := range []*member{a, b} {
		if !sameIDs(m.Members(), []string{"a", "b"}) {
			t.Errorf("%v are seen", m.Members())
		}
	}
	select {
	case s := <-told:
		t.Errorf("the stranger could tell %q", s)
	default:
	}
}

// A member that has no list brings somebody in who is not on the others': they
// do not see him, whatever it passes on of him.
func TestNotOnOurList(t *testing.T) {
	t.Parallel()
	noted := make(chan string, 10)
	a := newMember(t, "a", Config{Allowed: only("a", "c"), Note: func(b []byte) { noted <- string(b) }}).run(t)
	passed := make(chan string, 10)
	c := newMember(t, "c", Config{Join: []string{a.Addr()}, Note: func(b []byte) { passed <- string(b) }}).run(t)
	x := newMember(t, "x", Config{Join: []string{c.Addr()}}).run(t)
	c.awaitIDs(t, "a", "c", "x")
	a.awaitIDs(t, "a", "c")
	x.Tell([]byte("by a stranger"))
	if s := <-passed; s != "by a stranger" {
		t.Errorf("c heard %q", s)
	}
	c.Tell([]byte("by a member"))
	a.log.await(t, errNotListed.Error(), 1)
	if s := <-noted; s != "by a member" {
		t.Errorf("heard %q", s)
	}
	if !sameIDs(a.Members(), []string{"a", "c"}) {
		t.Errorf("a sees %v", a.Members())
	}
}

// When the list changes, those who are not on it any more are out of the view.
func TestRecheck(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	listed := only("a", "b", "c")
	a := newMember(t, "a", Config{Allowed: func(id string) bool {
		mu.Lock()
		defer mu.Unlock()
		return listed(id)
	}}).run(t)
	newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	newMember(t, "c", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b", "c")
	mu.Lock()
	listed = only("a", "b")
	mu.Unlock()
	a.Recheck()
	a.awaitIDs(t, "a", "b")
}

func TestNotifyAlive(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{Allowed: only("a", "b")})
	b, x := newMember(t, "b", Config{}), newMember(t, "x", Config{})
	for _, m := range []*member{a, b, x} {
		defer m.Close()
	}
	now := b.epoch
	at := func(epoch uint64) *memberlist.Node {
		b.epoch = epoch
		if err := b.sealCard(); err != nil {
			t.Fatal(err)
		}
		return nodeOf(t, b)
	}
	change := func(n *memberlist.Node, f func(*memberlist.Node)) *memberlist.Node { f(n); return n }
	events{a.Gossip}.NotifyJoin(at(now))
	for _, tc := range []struct {
		name string
		node *memberlist.Node
		want string
	}{
		{"again", at(now), ""},
		{"of a later life", at(now + 1), ""},
		{"of an earlier life", at(now - 1), "earlier life"},
		{"at another port", change(at(now), func(n *memberlist.Node) { n.Port++ }), "not signed"},
		{"at another address", change(at(now), func(n *memberlist.Node) { n.Addr = net.IPv4(10, 0, 0, 1) }), "not signed"},
		{"at no address", change(at(now), func(n *memberlist.Node) { n.Addr = nil }), "no IP address"},
		{"with another's word", change(at(now), func(n *memberlist.Node) { n.Meta = x.meta }), "not signed"},
		{"not listed", nodeOf(t, x), errNotListed.Error()},
		{"without a word", change(at(now), func(n *memberlist.Node) { n.Meta = nil }), "cut short"},
		{"ourselves", nodeOf(t, a), ""},
		{"ourselves elsewhere", change(nodeOf(t, a), func(n *memberlist.Node) { n.Port++ }), "not signed"},
	} {
		err := events{a.Gossip}.NotifyAlive(tc.node)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// Also after it has gone.
	events{a.Gossip}.NotifyLeave(at(now))
	if err := (events{a.Gossip}).NotifyAlive(at(now - 1)); !errors.Is(err, errStale) {
		t.Errorf("gone, and of an earlier life: %v", err)
	}
}

// A member that says another one is at its own address is not believed.
func TestLieAboutAnotherAddress(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{})
	defer b.Close()
	liar := newMember(t, "x", Config{})
	liar.join = []hostPort{a.hostPort()}
	liar.config.Name, liar.config.Alive, liar.meta = b.self.ID, nil, b.meta
	liar.run(t)
	a.log.await(t, errUnsigned.Error(), 1)
	newMember(t, "c", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "c")
}

// recorded is a transport that keeps what it sends in packets.
type recorded struct {
	*netTransport
	mu      sync.Mutex
	packets [][]byte
}

func (r *recorded) WriteTo(b []byte, addr string) (time.Time, error) {
	return r.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (r *recorded) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	r.mu.Lock()
	r.packets = append(r.packets, bytes.Clone(b))
	r.mu.Unlock()
	return r.netTransport.WriteToAddress(b, a)
}

// Somebody without the secret has recorded packets of a member's earlier life,
// and sends them to one that does not remember it.
func TestReplay(t *testing.T) {
	t.Parallel()
	addr := newAddr(t)
	old := newMember(t, "b", Config{Listen: addr, Self: proto.Member{ID: idOf("b"), Name: "earlier-life", Addr: "127.0.0.1:1"}})
	tape := &recorded{netTransport: old.transport}
	old.config.Transport = tape
	first := newMember(t, "a", Config{}).run(t)
	old.join = []hostPort{first.hostPort()}
	old.run(t)
	first.awaitIDs(t, "a", "b")
	old.awaitIDs(t, "a", "b")
	for range 2 { // so that memberlist takes it for newer than all of the next life
		if err := old.list.UpdateNode(patience); err != nil {
			t.Fatal(err)
		}
	}
	tape.mu.Lock()
	packets := slices.Clone(tape.packets)
	tape.mu.Unlock()
	old.end(t)
	first.end(t)

	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Listen: addr, Join: []string{a.Addr()},
		Self: proto.Member{ID: idOf("b"), Name: "later-life", Addr: "127.0.0.1:2"}}).run(t)
	a.awaitIDs(t, "a", "b")
	c, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, p := range packets {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	a.log.await(t, errStale.Error(), 1)
	if log := a.log.String(); strings.Contains(log, "earlier-life") {
		t.Error("the earlier life was in the view")
	}
	if got, _ := find(a.Members(), "b"); got != b.self {
		t.Errorf("a sees %v, want %v", got, b.self)
	}
}

// newAddr returns an address that is free for TCP and UDP, and used by nobody
// else.
func newAddr(t *testing.T) string {
	t.Helper()
	probe := newMember(t, "probe", Config{Listen: ownIP() + ":0"})
	defer probe.Close()
	return probe.Addr()
}

// A node whose clock was ahead in its last life comes back all the same.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}})
	b.epoch += 1e12
	if err := b.sealCard(); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	a.awaitIDs(t, "a", "b")
	b.end(t)
	a.awaitIDs(t, "a")
	again := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b")
	again.log.await(t, "is the clock right?", 1)
}

// The secret of a fleet is changed one member at a time. After each of the
// steps every member can still talk to every other, newcomers included, and
// nobody has ever met a message that it could not read.
func TestRotation(t *testing.T) {
	t.Parallel()
	old, fresh := secret, []byte("the next cluster secret of the tests")
	names := []string{"a", "b", "c"}
	var ms []*member
	for i, name := range names {
		cfg := Config{}
		if i > 0 {
			cfg.Join = []string{ms[0].Addr()}
		}
		ms = append(ms, newMember(t, name, cfg).run(t))
	}
	for _, m := range ms {
		m.awaitIDs(t, names...)
	}
	for i, secrets := range [][][]byte{{old, fresh}, {fresh, old}, {fresh}} {
		for j, m := range ms {
			if err := m.SetSecrets(secrets); err != nil {
				t.Fatal(err)
			}
			for _, one := range ms {
				for _, other := range ms {
					if one == other {
						continue
					}
					_, err := one.list.Join([]string{other.Addr()})
					for deadline := time.Now().Add(patience); err != nil && !refusesSecret(err) && time.Now().Before(deadline); {
						_, err = one.list.Join([]string{other.Addr()}) // a busy machine
					}
					if err != nil {
						t.Fatalf("step %d at member %d: %v", i, j, err)
					}
				}
			}
		}
	}
	for _, m := range ms {
		if log := m.log.String(); strings.Contains(log, refusedKey) || strings.Contains(log, "A member has gone") {
			t.Errorf("there was a split:\n%s", log)
		}
		if keys := m.config.Keyring.GetKeys(); len(keys) != 1 {
			t.Errorf("%d keys are left", len(keys))
		}
	}
	late := newMember(t, "late", Config{Secrets: [][]byte{old}, Join: []string{ms[0].Addr()}}).run(t)
	<-late.done
	if !errors.Is(late.err, ErrSecret) {
		t.Errorf("with the old secret Run = %v", late.err)
	}
}

func TestSetSecrets(t *testing.T) {
	t.Parallel()
	s := func(names ...string) (out [][]byte) {
		for _, name := range names {
			out = append(out, []byte("a secret named "+name))
		}
		return out
	}
	g := newMember(t, "a", Config{Secrets: s("1")})
	defer g.Close()
	for _, next := range [][]string{{"1", "2"}, {"2", "1"}, {"2"}, {"3", "2"}, {"4", "3", "5"}, {"5", "4"}, {"5", "5"}, {"6"}} {
		if err := g.SetSecrets(s(next...)); err != nil {
			t.Fatal(err)
		}
		want, err := deriveKeys(s(next...), "", g.listen)
		if err != nil {
			t.Fatal(err)
		}
		got := g.config.Keyring.GetKeys()
		if len(got) != len(want) || !bytes.Equal(got[0], want[0]) || slices.ContainsFunc(want, func(k []byte) bool { return !contains(got, k) }) {
			t.Errorf("after %v: %d keys, or others", next, len(got))
		}
	}
	if g.SetSecrets(nil) == nil {
		t.Error("the secret can be taken away")
	}
	open := newMember(t, "a", Config{Secrets: [][]byte{}})
	defer open.Close()
	if open.SetSecrets(nil) != nil || open.SetSecrets(s("1")) == nil {
		t.Error("a secret can be brought in while it runs")
	}
}

// Notes reach every member once, and who joins later learns the state.
func TestNotes(t *testing.T) {
	t.Parallel()
	type heard struct{ who, note string }
	notes, states := make(chan heard, 100), make(chan heard, 100)
	config := func(name string, join ...string) Config {
		return Config{
			Join: join,
			Note: func(b []byte) { notes <- heard{name, string(b)} },
			State: func() []byte {
				if name == "a" {
					return []byte("all that a knows")
				}
				return nil
			},
			Merge: func(b []byte) { states <- heard{name, string(b)} },
		}
	}
	a := newMember(t, "a", config("a")).run(t)
	b := newMember(t, "b", config("b", a.Addr())).run(t)
	c := newMember(t, "c", config("c", a.Addr())).run(t)
	for _, m := range []*member{a, b, c} {
		m.awaitIDs(t, "a", "b", "c")
	}
	got := map[heard]int{}
	for len(got) < 2 {
		got[<-states]++
	}
	if got[heard{"b", "all that a knows"}] == 0 || got[heard{"c", "all that a knows"}] == 0 {
		t.Errorf("states %v", got)
	}
	long := strings.Repeat("n", MaxNote)
	a.Tell([]byte(long))
	b.Tell([]byte("by b"))
	a.Tell([]byte(long + "x"))
	a.log.await(t, "too long", 1)
	got = map[heard]int{}
	timeout := time.After(patience)
	for len(got) < 4 {
		select {
		case h := <-notes:
			got[h]++
		case <-timeout:
			t.Fatalf("heard %v", got)
		}
	}
	for _, want := range []heard{{"b", long}, {"c", long}, {"a", "by b"}, {"c", "by b"}} {
		if got[want] != 1 {
			t.Errorf("%s heard %.10q %d times", want.who, want.note, got[want])
		}
	}
}

func TestNotesAreBounded(t *testing.T) {
	t.Parallel()
	taken := 0
	g := newMember(t, "a", Config{Note: func([]byte) { taken++ }})
	defer g.Close()
	b := newMember(t, "b", Config{})
	defer b.Close()
	letters := make([][]byte, maxSeen+10)
	for i := range letters {
		var err error
		if letters[i], err = b.writeLetter(noteLabel, fmt.Append(nil, "note ", i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for _, l := range letters[:maxNotes+50] {
			delegate{g.Gossip}.NotifyMsg(l)
			g.Tell([]byte("x"))
		}
	}
	if n := g.notes.NumQueued(); n > maxNotes {
		t.Errorf("%d notes wait to be passed on", n)
	}
	if n := len(g.taken); n != maxNotes {
		t.Errorf("%d notes wait to be taken in", n)
	}
	for _, l := range letters {
		g.firstSeen(l)
	}
	if len(g.seen) != maxSeen || len(g.seenRing) != maxSeen {
		t.Errorf("%d, %d notes are remembered", len(g.seen), len(g.seenRing))
	}
	if g.firstSeen(letters[len(letters)-1]) || !g.firstSeen(letters[0]) {
		t.Error("the latest is forgotten, or the oldest is not")
	}
}

// What is not the word of a member, or not of this kind, is not taken in.
func TestForgedLetters(t *testing.T) {
	t.Parallel()
	g := newMember(t, "a", Config{Allowed: only("a", "b"), Merge: func(b []byte) { t.Errorf("merged %q", b) }})
	b, x := newMember(t, "b", Config{}), newMember(t, "x", Config{})
	for _, m := range []*member{g, b, x} {
		defer m.Close()
	}
	write := func(m *member, label string) []byte {
		l, err := m.writeLetter(label, []byte("content"))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	bent := write(b, noteLabel)
	bent[len(bent)-signatureSize-1] ^= 1
	for name, l := range map[string][]byte{
		"a stranger's": write(x, noteLabel), "a state": write(b, stateLabel), "bent": bent,
		"empty": nil, "short": {1, 2, 3}, "long": make([]byte, 1<<16),
	} {
		delegate{g.Gossip}.NotifyMsg(l)
		if len(g.taken) > 0 || g.notes.NumQueued() > 0 {
			t.Errorf("%s: taken in", name)
		}
	}
	for _, l := range [][]byte{write(x, stateLabel), write(b, noteLabel), bent, nil, {1}} {
		delegate{g.Gossip}.MergeRemoteState(l, true)
	}
	delegate{g.Gossip}.NotifyMsg(write(b, noteLabel))
	if len(g.taken) != 1 {
		t.Error("a member's note is not taken in")
	}
}

// A large state is told to who joins, and else now and then.
func TestLargeState(t *testing.T) {
	t.Parallel()
	state := make([]byte, smallState+1)
	g := newMember(t, "a", Config{State: func() []byte { return state }})
	defer g.Close()
	d := delegate{g.Gossip}
	told := 0
	for range 10 * largeEvery {
		if d.LocalState(false) != nil {
			told++
		}
	}
	if told != 10 || d.LocalState(true) == nil {
		t.Errorf("told in %d of %d exchanges, to a newcomer: %v", told, 10*largeEvery, d.LocalState(true) != nil)
	}
	state = state[1:]
	if d.LocalState(false) == nil {
		t.Error("a small state is not always told")
	}
	if state = make([]byte, maxState+1); d.LocalState(true) != nil {
		t.Error("told more than anybody takes")
	}
}

// Bytes of no protocol on either port harm nobody.
func TestGarbage(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	noise := make([]byte, 1000)
	for i := range 40 {
		_, _ = rand.Read(noise)
		for _, network := range []string{"tcp", "udp"} {
			c, err := net.Dial(network, a.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			said := noise
			switch i % 4 {
			case 1:
				said = append([]byte(helloMagic), noise...)
			case 2:
				said = []byte(helloMagic)
			case 3:
				said = append([]byte{byte(i)}, noise...)
			}
			_, _ = c.Write(said)
		}
	}
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	b.awaitIDs(t, "a", "b")
	a.awaitIDs(t, "a", "b")
}

// Each end of a connection proves who it is for that connection, and can't be
// made to do so for another.
func TestHello(t *testing.T) {
	t.Parallel()
	all := func(string) bool { return true }
	of := func(name string) *door { return &door{id: idOf(name), sign: signerOf(name), allows: all} }
	meet := func(dialler, accepter *door, tap func([]byte) []byte) (called, answered string, errs [2]error) {
		near, far := net.Pipe()
		var end net.Conn = far
		if tap != nil {
			end = &tapped{Conn: far, tap: tap}
		}
		var both sync.WaitGroup
		both.Go(func() {
			called, errs[0] = dialler.call(near)
			if errs[0] != nil {
				_ = near.Close()
			}
		})
		both.Go(func() {
			answered, errs[1] = accepter.answer(end)
			_ = far.Close()
		})
		both.Wait()
		return called, answered, errs
	}
	called, answered, errs := meet(of("a"), of("b"), nil)
	if errs != [2]error{} || called != idOf("b") || answered != idOf("a") {
		t.Errorf("%s, %s, %v", called, answered, errs)
	}
	picky := of("b")
	picky.allows = only("c")
	if _, _, errs := meet(of("a"), picky, nil); !errors.Is(errs[1], errNotListed) {
		t.Errorf("not listed: %v", errs)
	}
	picky = of("a")
	picky.allows = only("c")
	if _, _, errs := meet(picky, of("b"), nil); !errors.Is(errs[0], errNotListed) {
		t.Errorf("not listed: %v", errs)
	}
	thief := &door{id: idOf("a"), sign: signerOf("x"), allows: all}
	if _, _, errs := meet(thief, of("b"), nil); !errors.Is(errs[1], errUnsigned) {
		t.Errorf("with another's ID: %v", errs)
	}
	var heard []byte
	if _, _, errs := meet(of("a"), of("b"), func(b []byte) []byte { heard = append(heard, b...); return b }); errs != [2]error{} {
		t.Fatal(errs)
	}
	near, far := net.Pipe() // what a said once, said again
	defer near.Close()
	go func() {
		_, _ = near.Write(heard[:len(helloMagic)+nonceSize])
		_, _ = near.Read(make([]byte, 1000))
		_, _ = near.Write(heard[len(helloMagic)+nonceSize:])
	}()
	if _, err := of("b").answer(far); !errors.Is(err, errUnsigned) {
		t.Errorf("replayed: %v", err)
	}
}

// A tapped connection passes what is read through a function.
type tapped struct {
	net.Conn
	tap func([]byte) []byte
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return copy(p, c.tap(p[:n])), err
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(helloMagic))
	f.Add(append([]byte(helloMagic), make([]byte, nonceSize+1+52+signatureSize)...))
	d := &door{id: idOf("b"), sign: signerOf("b"), allows: func(string) bool { return true }}
	f.Fuzz(func(t *testing.T, said []byte) {
		if id, err := d.answer(&script{in: bytes.NewReader(said)}); err == nil {
			t.Fatalf("%q was taken for %s", said, id)
		}
	})
}

// A script is a connection whose other end says what it says, whatever is said
// to it.
type script struct {
	net.Conn
	in *bytes.Reader
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return len(p), nil }
