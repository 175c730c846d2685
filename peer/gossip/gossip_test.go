package gossip

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/proto"
)

// patience bounds every wait of these tests. It is never reached unless
// something is wrong.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	// More tests run at once than there are CPUs: they mostly wait.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

var secret = []byte("the cluster secret of the tests")

// logs is a log that tests can wait on.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newLogs() *logs { return &logs{more: make(chan struct{})} }

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until the log has said words, n times.
func (l *logs) await(t *testing.T, words string, n int) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		found, more := strings.Count(l.text.String(), words) >= n, l.more
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the log never said %q:\n%s", words, l)
		}
	}
}

// member is a Gossip that runs.
type member struct {
	*Gossip
	log  *logs
	stop context.CancelFunc
	done chan struct{}
	err  error // of Run, once done
}

// newMember makes a Gossip for a test. Only Join, Secret and Listen of cfg
// need to be set.
func newMember(t *testing.T, id string, cfg Config) *member {
	t.Helper()
	m := &member{log: newLogs(), done: make(chan struct{})}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Secrets == nil {
		cfg.Secrets = [][]byte{secret}
	}
	if cfg.Self.ID == "" {
		cfg.Self = self(id)
	}
	cfg.Sign = signerOf(id)
	cfg.Log = slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if m.Gossip, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return m
}

// quick gives m the timers for a network, with which a death is noticed
// sooner than with those for one machine.
func (m *member) quick() *member {
	c := tuned(false)
	m.config.ProbeInterval, m.config.ProbeTimeout, m.config.SuspicionMult = c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult
	return m
}

// keyOf returns the identity key of the member that the tests call by a name.
func keyOf(name string) crypto.PrivKey {
	seed := sha256.Sum256([]byte(name))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed[:]))
	if err != nil {
		panic(err)
	}
	return key
}

// idOf returns the peer ID of the member that the tests call by a name.
func idOf(name string) string {
	id, err := libp2ppeer.IDFromPrivateKey(keyOf(name))
	if err != nil {
		panic(err)
	}
	return id.String()
}

func signerOf(name string) func([]byte) ([]byte, error) { return keyOf(name).Sign }

func self(id string) proto.Member {
	return proto.Member{ID: idOf(id), Name: "name-of-" + id, Zone: "eu/berlin", Roles: proto.RoleDaemon, Addr: "127.0.0.1:7051"}
}

// run runs m until the test ends or m.stop is called.
func (m *member) run(t *testing.T) *member {
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() {
		defer close(m.done)
		m.err = m.Run(ctx)
	}()
	t.Cleanup(func() { m.end(t) })
	return m
}

// end stops m and waits.
func (m *member) end(t *testing.T) {
	m.stop()
	select {
	case <-m.done:
	case <-time.After(patience):
		t.Error("Run did not end")
	}
}

// awaitIDs waits until m sees the members with the given IDs and no other.
func (m *member) awaitIDs(t *testing.T, ids ...string) []proto.Member {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case view := <-m.Watch():
			if sameIDs(view, ids) {
				return view
			}
		case <-timeout:
			t.Fatalf("%s sees %v, want %v\n%s", m.self.ID, m.Members(), ids, m.log)
		}
	}
}

func sameIDs(view []proto.Member, ids []string) bool {
	if len(view) != len(ids) {
		return false
	}
	for _, name := range ids {
		if _, ok := find(view, name); !ok {
			return false
		}
	}
	return true
}

// find returns the member of a view that the tests call by a name.
func find(view []proto.Member, name string) (proto.Member, bool) {
	i := slices.IndexFunc(view, func(m proto.Member) bool { return m.ID == idOf(name) })
	if i < 0 {
		return proto.Member{}, false
	}
	return view[i], true
}

// ownIP returns an address of this machine that no other test uses, so that a
// port which is closed there can be opened again.
func ownIP() string {
	return fmt.Sprintf("127.%d.%d.%d", 64+rand.N(128), rand.N(256), 1+rand.N(254))
}

const childEnv = "SHOAL_TEST_GOSSIP_CHILD"

// child is a member in a process of its own: its arguments are in the
// environment, its output is its address, and it lives until it is killed.
func child() {
	args := strings.Fields(os.Getenv(childEnv)) // ID, listen, join…
	g, err := New(Config{Listen: args[1], Join: args[2:], Secrets: [][]byte{secret}, Self: self(args[0]), Sign: signerOf(args[0])})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(g.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the test has ended
		cancel()
	}()
	if err := g.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startChild starts a member in a process of its own. It returns its address
// and what kills it.
func startChild(t *testing.T, id, listen string, join ...string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(append([]string{id, listen}, join...), " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = in.Close()
			_ = cmd.Wait()
		})
	}
	t.Cleanup(kill)
	if _, err := fmt.Fscanln(out, &addr); err != nil {
		t.Fatal(err)
	}
	return addr, kill
}

func TestMembersSeeEachOther(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	c := newMember(t, "c", Config{Join: []string{a.Addr()}, Self: proto.Member{
		ID: idOf("c"), Name: "sched", Roles: proto.RoleScheduler | proto.RoleDaemon, Addr: "[2001:db8::1]:7051"}}).run(t)
	for _, m := range []*member{a, b, c} {
		view := m.awaitIDs(t, "a", "b", "c")
		for name, want := range map[string]proto.Member{"a": self("a"), "b": self("b"), "c": c.self} {
			if got, _ := find(view, name); got != want {
				t.Errorf("%s sees %v as %v", m.self.ID, want, got)
			}
		}
	}
}

func TestLeaveIsNoticedAtOnce(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	c := newMember(t, "c", Config{Join: []string{a.Addr()}}).run(t)
	for _, m := range []*member{a, b, c} {
		m.awaitIDs(t, "a", "b", "c")
	}
	c.end(t)
	if c.err != nil {
		t.Errorf("Run = %v", c.err)
	}
	a.awaitIDs(t, "a", "b")
	b.awaitIDs(t, "a", "b")
	for _, m := range []*member{a, b} {
		// A busy machine is suspected now and then, and says that it is alive.
		if strings.Contains(m.log.String(), "Marking "+idOf("c")) {
			t.Errorf("%s found out by probing:\n%s", m.self.ID, m.log)
		}
	}
}

func TestLeaveBeforeTheEnd(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b")
	b.awaitIDs(t, "a", "b")
	for range 2 {
		if err := b.Leave(t.Context()); err != nil {
			t.Error(err)
		}
	}
	a.awaitIDs(t, "a")
	b.end(t)
	if b.err != nil {
		t.Errorf("Run = %v", b.err)
	}
}

func TestDeathIsNoticed(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).quick().run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).quick().run(t)
	_, kill := startChild(t, "c", "127.0.0.1:0", a.Addr())
	a.awaitIDs(t, "a", "b", "c")
	b.awaitIDs(t, "a", "b", "c")
	killed := time.Now()
	kill()
	a.awaitIDs(t, "a", "b")
	b.awaitIDs(t, "a", "b")
	t.Logf("noticed by both after %v", time.Since(killed))
}

func TestRestartWithTheSameIdentity(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, listen, again string }{
		{"same address", ownIP() + ":0", ""},
		{"another address", "127.0.0.1:0", "127.0.0.1:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := newMember(t, "a", Config{}).quick().run(t)
			addr, kill := startChild(t, "b", tc.listen, a.Addr())
			a.awaitIDs(t, "a", "b")
			kill()
			if tc.again != "" {
				addr = tc.again
			}
			b := newMember(t, "b", Config{Listen: addr, Join: []string{a.Addr()},
				Self: proto.Member{ID: idOf("b"), Name: "reborn", Addr: "127.0.0.1:1"}}).run(t)
			timeout := time.After(patience)
			for {
				select {
				case view := <-a.Watch():
					if got, _ := find(view, "b"); len(view) == 2 && got == b.self {
						if tc.again != "" && !strings.Contains(a.log.String(), "Updating address for left or failed node "+idOf("b")) {
							t.Error("the identity was not taken over at its new address, but forgotten first")
						}
						return
					}
				case <-timeout:
					t.Fatalf("a sees %v\n%s\nb:\n%s", a.Members(), a.log, b.log)
				}
			}
		})
	}
}

func TestOneIdentityAtTwoAddresses(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	first := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b")
	copied := newMember(t, "b", Config{Join: []string{a.Addr()},
		Self: proto.Member{ID: idOf("b"), Name: "copy", Addr: "127.0.0.1:1"}}).run(t)
	a.log.await(t, "one identity is at two addresses", 1)
	copied.log.await(t, "one identity is at two addresses", 1)
	if got, _ := find(a.Members(), "b"); len(a.Members()) != 2 || got != first.self {
		t.Errorf("a sees %v, want the first b", a.Members())
	}
}

func TestTwoNodesOfOneName(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	same := func(id string) Config {
		return Config{Join: []string{a.Addr()}, Self: proto.Member{ID: idOf(id), Name: "node", Addr: "127.0.0.1:1"}}
	}
	b := newMember(t, "b", same("b")).run(t)
	c := newMember(t, "c", same("c")).run(t)
	for _, m := range []*member{a, b, c} {
		m.awaitIDs(t, "a", "b", "c")
	}
}

func TestWrongSecret(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name          string
		theirs, ours  [][]byte
		tellsTheFleet bool
	}{
		{"another", [][]byte{secret}, [][]byte{[]byte("not the cluster secret at all")}, true},
		{"none here", [][]byte{secret}, [][]byte{}, false},
		{"none there", [][]byte{}, [][]byte{secret}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := newMember(t, "a", Config{Secrets: tc.theirs}).run(t)
			c := newMember(t, "c", Config{Secrets: tc.theirs, Join: []string{a.Addr()}}).run(t)
			a.awaitIDs(t, "a", "c")
			b := newMember(t, "b", Config{Secrets: tc.ours, Join: []string{a.Addr(), c.Addr()}}).run(t)
			select {
			case <-b.done:
			case <-time.After(patience):
				t.Fatalf("Run goes on:\n%s", b.log)
			}
			if !errors.Is(b.err, ErrSecret) || !strings.Contains(b.err.Error(), "gossip.secretFile") ||
				!strings.Contains(b.err.Error(), a.Addr()) || !strings.Contains(b.err.Error(), c.Addr()) {
				t.Errorf("Run = %v, want ErrSecret that says what to compare and who refused", b.err)
			}
			if tc.tellsTheFleet {
				a.log.await(t, "somebody with another cluster secret knocks", 1)
			}
			if !sameIDs(a.Members(), []string{"a", "c"}) {
				t.Errorf("a sees %v", a.Members())
			}
		})
	}
}

func TestWrongSecretAtOneOfTwo(t *testing.T) {
	t.Parallel()
	other := newMember(t, "x", Config{Secrets: [][]byte{[]byte("another fleet, another secret")}}).run(t)
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Join: []string{other.Addr(), a.Addr()}}).run(t)
	b.awaitIDs(t, "a", "b")

	ip := ownIP()
	c := newMember(t, "c", Config{Join: []string{other.Addr(), ip + ":7052"}}).run(t)
	c.log.await(t, "working alone", 1)
	select {
	case <-c.done:
		t.Errorf("Run = %v, though one address has not answered", c.err)
	default:
	}
}

func TestJoinTargetStartsLate(t *testing.T) {
	t.Parallel()
	probe := newMember(t, "b", Config{Listen: ownIP() + ":0"})
	addr := probe.Addr()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	a := newMember(t, "a", Config{Join: []string{addr}}).run(t)
	a.log.await(t, "memberlist: failed to join", 3)
	b := newMember(t, "b", Config{Listen: addr}).run(t)
	a.awaitIDs(t, "a", "b")
	b.awaitIDs(t, "a", "b")
	if n := strings.Count(a.log.String(), "working alone"); n != 1 {
		t.Errorf("said %d times that it works alone, want once", n)
	}
}

func TestRejoinsWhenAlone(t *testing.T) {
	t.Parallel()
	addr, kill := startChild(t, "b", ownIP()+":0")
	a := newMember(t, "a", Config{Join: []string{addr}}).quick().run(t)
	a.awaitIDs(t, "a", "b")
	kill()
	a.awaitIDs(t, "a")
	a.log.await(t, "working alone", 1)
	newMember(t, "c", Config{Listen: addr}).run(t)
	a.awaitIDs(t, "a", "c")
}

// Two parts of a fleet that have forgotten each other are joined again by the
// member that has an address in the other part, though it is not alone.
func TestHealsInCompany(t *testing.T) {
	t.Parallel()
	probe := newMember(t, "x", Config{Listen: ownIP() + ":0"})
	addr := probe.Addr()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	a := newMember(t, "a", Config{})
	a.join, a.heal = []hostPort{probe.hostPort()}, 100*time.Millisecond
	a.run(t)
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	a.awaitIDs(t, "a", "b")
	a.log.await(t, "in the fleet", 1) // and not trying to join any more
	newMember(t, "c", Config{Listen: addr}).run(t)
	b.awaitIDs(t, "a", "b", "c")
}

func (m *member) hostPort() hostPort {
	hp, err := parseJoin([]string{m.Addr()})
	if err != nil {
		panic(err)
	}
	return hp[0]
}

func TestStanding(t *testing.T) {
	for _, tc := range []struct {
		out     outcome
		company bool
		want    standing
	}{
		{outcome{joined: 1}, true, standingJoined},
		{outcome{joined: 1, errs: make([]error, 2), refused: 1}, true, standingJoined},
		{outcome{}, false, standingJoined}, // only our own address
		{outcome{errs: make([]error, 2)}, false, standingAlone},
		{outcome{errs: make([]error, 2), refused: 1}, false, standingAlone},
		{outcome{errs: make([]error, 2), refused: 2}, false, standingRefused},
		{outcome{joined: 1, errs: make([]error, 2), refused: 2}, false, standingAlone},
	} {
		if got := tc.out.standing(tc.company); got != tc.want {
			t.Errorf("%+v, company %v: %d, want %d", tc.out, tc.company, got, tc.want)
		}
	}
}

// A member with the wrong secret is told so when its own address is among the
// join addresses too.
func TestWrongSecretWithOwnAddress(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	b := newMember(t, "b", Config{Secrets: [][]byte{[]byte("not the cluster secret at all")}})
	b.join = []hostPort{a.hostPort(), b.hostPort()}
	b.run(t)
	select {
	case <-b.done:
	case <-time.After(patience):
	}
	if !errors.Is(b.err, ErrSecret) {
		t.Errorf("Run = %v\n%s", b.err, b.log)
	}
}

func TestOwnAddressAmongTheJoinAddresses(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{Listen: ownIP() + ":0"})
	a.join = []hostPort{a.hostPort()}
	a.run(t)
	a.log.await(t, "in the fleet", 1)
	b := newMember(t, "b", Config{Listen: ownIP() + ":0"})
	b.join = []hostPort{a.hostPort(), b.hostPort()}
	b.run(t)
	b.awaitIDs(t, "a", "b")
}

// Nobody reads Watch while members come and go: that holds nothing up, and
// what is read in the end is the latest view.
func TestWatchHoldsTheLatestView(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &Gossip{self: self("a"), others: make(map[string]proto.Member),
			watch: make(chan []proto.Member, 1), changed: make(chan struct{}, 1), lonely: make(chan struct{}, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go g.publish(ctx)
		for i := range 50 {
			m := proto.Member{ID: fmt.Sprintf("m%02d", i)}
			g.set(m.ID, &m)
			synctest.Wait()
			if i%2 == 0 {
				g.set(m.ID, nil)
			}
		}
		synctest.Wait()
		if view := <-g.Watch(); len(view) != 26 || !slices.Equal(view, g.Members()) {
			t.Errorf("Watch gives %v, Members %v", view, g.Members())
		}
	})
}

// Connections that say nothing take no place from a member that wants to join.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			_ = c.Close()
		}
	}()
	for range 2 * maxInbound {
		c, err := net.Dial("tcp", a.Addr())
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	b := newMember(t, "b", Config{Join: []string{a.Addr()}}).run(t)
	b.awaitIDs(t, "a", "b")
	if strings.Contains(b.log.String(), "working alone") {
		t.Errorf("the first attempt failed:\n%s", b.log)
	}
}

func TestBytesOfStrangersAreBounded(t *testing.T) {
	t.Parallel()
	a := newMember(t, "a", Config{}).run(t)
	c, err := net.Dial("tcp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stranger := door{id: idOf("x"), sign: signerOf("x"), allows: func(string) bool { return true }}
	if _, err := stranger.call(c); err != nil {
		t.Fatal(err)
	}
	a.transport.unread.Add(maxUnread + 1)
	_, _ = c.Write([]byte{10, 0, 255, 255, 255, 1, 2, 3}) // encrypted, 16 MiB to come
	a.log.await(t, errTooMuch.Error(), 1)
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	taken := newMember(t, "t", Config{})
	defer taken.Close()
	ok := Config{Listen: "127.0.0.1:0", Secrets: [][]byte{secret}, Self: self("a"), Sign: signerOf("a")}
	for _, tc := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"no secret", func(c *Config) { c.Secrets = nil; c.Listen = ":0" }, "set gossip.secretFile, or listen on 127.0.0.1"},
		{"no port", func(c *Config) { c.Join = []string{"10.0.0.2"} }, `gossip.join: "10.0.0.2" is not host:port`},
		{"port 0", func(c *Config) { c.Join = []string{"10.0.0.2:0"} }, "gossip.join"},
		{"no host", func(c *Config) { c.Join = []string{":7052"} }, "gossip.join"},
		{"listen", func(c *Config) { c.Listen = "127.0.0.1" }, "gossip.listen"},
		{"not ours", func(c *Config) { c.Listen = "192.0.2.1:0" }, "gossip.listen"},
		{"port in use", func(c *Config) { c.Listen = taken.Addr() }, "is in use"},
		{"long name", func(c *Config) { c.Self.Name = strings.Repeat("x", 256) }, "the member's name"},
		{"long in all", func(c *Config) {
			c.Self.Name, c.Self.Zone, c.Self.Addr = strings.Repeat("x", 255), strings.Repeat("x", 240), "10.0.0.1:7051"
		}, "435 at most"},
		{"nothing to sign with", func(c *Config) { c.Sign = nil }, "nothing to sign with"},
		{"another's ID", func(c *Config) { c.Self.ID = idOf("b") }, "not signed by the owner"},
		{"an ID of no key", func(c *Config) { c.Self.ID = "a" }, "no peer ID"},
		{"an empty secret", func(c *Config) { c.Secrets = append(c.Secrets, nil) }, "an empty cluster secret"},
		{"no ID", func(c *Config) { c.Self.ID = "" }, "no ID"},
		{"no address", func(c *Config) { c.Self.Addr = "" }, "no address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := ok
			tc.spoil(&cfg)
			g, err := New(cfg)
			if err == nil {
				_ = g.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("New = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestAddr(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ listen, advertise, want string }{
		{"127.0.0.1:0", "", "127.0.0.1"},
		{"127.0.0.1:0", "127.1.2.3", "127.1.2.3"},
		{":0", "", "127.0.0.1"},
		{":0", "10.1.2.3", "10.1.2.3"},
		{"0.0.0.0:0", "localhost", "127.0.0.1"},
		{"[::1]:0", "", "::1"},
	} {
		m := newMember(t, "a", Config{Listen: tc.listen, Advertise: tc.advertise})
		host, port, err := net.SplitHostPort(m.Addr())
		if err != nil || host != tc.want && host != "::1" || port == "0" {
			t.Errorf("listening on %s, advertising %q: address %s", tc.listen, tc.advertise, m.Addr())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What came before Close is not in its way.
func TestCloseWithoutRun(t *testing.T) {
	t.Parallel()
	m := newMember(t, "a", Config{})
	for range 10 {
		for _, network := range []string{"tcp", "udp"} {
			c, err := net.Dial(network, m.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "hello")
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Run(t.Context()); err == nil {
		t.Error("Run after Close is no error")
	}
}
