package scheduler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is some servers that clients reach over pipes, by ID.
type town struct {
	t       *testing.T
	mu      sync.Mutex
	servers map[string]*Server
	hung    map[string]bool // accept streams and say nothing more
	pipes   map[string][]net.Conn
	wg      sync.WaitGroup
}

func newTown(t *testing.T, ids ...string) *town {
	tn := &town{t: t, servers: make(map[string]*Server), hung: make(map[string]bool), pipes: make(map[string][]net.Conn)}
	ctx, cancel := context.WithCancel(context.Background())
	for _, id := range ids {
		s := NewServer(ServerConfig{})
		tn.servers[id] = s
		tn.wg.Go(func() { _ = s.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); tn.wg.Wait() })
	return tn
}

func (tn *town) dial(self string) func(context.Context, proto.Member) (io.ReadWriteCloser, error) {
	return func(_ context.Context, m proto.Member) (io.ReadWriteCloser, error) {
		tn.mu.Lock()
		defer tn.mu.Unlock()
		s := tn.servers[m.ID]
		if s == nil {
			return nil, fmt.Errorf("no route to %s", m.ID)
		}
		near, far := net.Pipe()
		tn.pipes[m.ID] = append(tn.pipes[m.ID], far)
		tn.wg.Go(func() { _ = s.Serve(context.Background(), self, &hangable{Conn: far, town: tn, id: m.ID}) })
		return near, nil
	}
}

// hangable is a stream whose far end can stop to answer.
type hangable struct {
	net.Conn
	town *town
	id   string
}

func (h *hangable) Write(p []byte) (int, error) {
	h.town.mu.Lock()
	hung := h.town.hung[h.id]
	h.town.mu.Unlock()
	if hung {
		return len(p), nil // into the void
	}
	return h.Conn.Write(p)
}

// kill makes a server unreachable, as the death of its process does.
func (tn *town) kill(id string) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	delete(tn.servers, id)
	for _, p := range tn.pipes[id] {
		p.Close()
	}
}

func members(ids ...string) []proto.Member {
	var ms []proto.Member
	for _, id := range ids {
		ms = append(ms, proto.Member{ID: id, Roles: proto.RoleScheduler})
	}
	return ms
}

func (tn *town) client(id string, holds ...proto.Blob) *Client {
	return tn.clientBy(id, tn.dial(id), holds...)
}

func (tn *town) clientBy(id string, dial func(context.Context, proto.Member) (io.ReadWriteCloser, error), holds ...proto.Blob) *Client {
	c := NewClient(ClientConfig{
		Self: proto.Member{ID: id, Name: id, Roles: proto.RoleDaemon},
		Dial: dial, Holds: func() []proto.Blob { return holds },
		Sums: func(proto.Digest) []proto.Sum { return nil },
		Call: func(proto.Blob, proto.Origin) error { return errors.New("no seed") },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	tn.t.Cleanup(func() { cancel(); <-done })
	return c
}

var small = proto.Blob{Digest: proto.DigestOf([]byte("small")), Size: 5}

func joinOf(b proto.Blob) func() *proto.Join {
	return func() *proto.Join { return &proto.Join{Blob: b, Origin: proto.Origin{Upstream: "o"}, Await: -1} }
}

// await returns the next event of type T of a session, passing over others.
func await[T proto.Message](t *testing.T, s *Session) T {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case m := <-s.Events():
			if v, ok := m.(T); ok {
				return v
			}
		case <-timeout:
			t.Fatalf("no %T came", *new(T))
		}
	}
}

func TestLeaseOverTheWire(t *testing.T) {
	tn := newTown(t, "s")
	a, b := tn.client("a"), tn.client("b")
	a.SetMembers(members("s"))
	b.SetMembers(members("s"))
	sa := a.Join(small.Digest, joinOf(small))
	first := await[*proto.Lease](t, sa)
	if !first.FromOrigin() {
		t.Errorf("the first lease is on %q, want the origin", first.Source)
	}
	sb := b.Join(small.Digest, joinOf(small))
	sa.Report(&proto.Done{Digest: small.Digest, Lease: first.ID, Took: time.Millisecond})
	second := await[*proto.Lease](t, sb)
	if second.Source != "a" {
		t.Errorf("the second lease is on %q, want the node that has it", second.Source)
	}
	sa.Close(small, true)
	sb.Close(small, false)
}

func TestHoldsAreAnnounced(t *testing.T) {
	tn := newTown(t, "s")
	a := tn.client("a", small)
	a.SetMembers(members("s"))
	b := tn.client("b")
	b.SetMembers(members("s"))
	sb := b.Join(small.Digest, joinOf(small))
	if l := await[*proto.Lease](t, sb); l.Source != "a" {
		t.Errorf("lease on %q, want the node that holds the blob", l.Source)
	}
	sb.Close(small, false)
}

func TestGoneIsTakenBack(t *testing.T) {
	tn := newTown(t, "s")
	a, b := tn.client("a", small), tn.client("b")
	a.SetMembers(members("s"))
	b.SetMembers(members("s"))
	sync := func(what string) { // what a has said before this has been heard after it
		other := proto.Blob{Digest: proto.DigestOf([]byte(what)), Size: 5}
		s := a.Join(other.Digest, joinOf(other))
		await[*proto.Lease](t, s)
		s.Close(other, false)
	}
	sync("link is up")
	a.Gone(small.Digest)
	a.Gone(proto.DigestOf([]byte("never here")))
	sync("gone is said")
	sb := b.Join(small.Digest, joinOf(small))
	if l := await[*proto.Lease](t, sb); !l.FromOrigin() {
		t.Errorf("lease on %q, which has said that the blob is gone", l.Source)
	}
	sb.Close(small, false)
}

func TestSessionsMoveWhenTheOwnerDies(t *testing.T) {
	tn := newTown(t, "s1", "s2")
	c := tn.client("c")
	c.SetMembers(members("s1", "s2"))
	s := c.Join(small.Digest, joinOf(small))
	await[*proto.Lease](t, s)
	owner := c.Owner(small.Digest)
	tn.kill(owner)
	await[*proto.Bye](t, s)
	await[*proto.Lease](t, s)
	if now := c.Owner(small.Digest); now == owner || now == "" {
		t.Errorf("the owner is %q after the death of %q", now, owner)
	}
	s.Close(small, false)
}

// TestCouncilTakesOver: the only scheduler dies. The gossip still believes in
// it, but the daemons schedule at once.
func TestCouncilTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := newTown(t, "s", "d1", "d2")
		fleet := append(members("s"), proto.Member{ID: "d1", Roles: proto.RoleDaemon}, proto.Member{ID: "d2", Roles: proto.RoleDaemon})
		c1, c2 := tn.client("d1"), tn.client("d2")
		c1.SetMembers(fleet)
		c2.SetMembers(fleet)
		s := c1.Join(small.Digest, joinOf(small))
		await[*proto.Lease](t, s)
		if owner := c1.Owner(small.Digest); owner != "s" {
			t.Errorf("the owner is %q beside a scheduler", owner)
		}
		start := time.Now()
		tn.kill("s")
		await[*proto.Lease](t, s)
		synctest.Wait()
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("the council took %s to take over", took)
		}
		one, two := c1.Owner(small.Digest), c2.Owner(small.Digest)
		if one != two || one != "d1" && one != "d2" {
			t.Errorf("the owners are %q and %q, want one of the daemons for both", one, two)
		}
		s.Close(small, false)
	})
}

// TestStarvedSchedulerIsWaitedFor: the scheduler takes seconds to answer a node
// that starts. The council knows nothing of who has what: a pull that it took
// over would go to the origin.
func TestStarvedSchedulerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := newTown(t, "s", "d1")
		dial := tn.dial("d1")
		c := tn.clientBy("d1", func(ctx context.Context, m proto.Member) (io.ReadWriteCloser, error) {
			if m.ID == "s" {
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				case <-time.After(3 * time.Second):
				}
			}
			return dial(ctx, m)
		})
		c.SetMembers(append(members("s"), proto.Member{ID: "d1", Roles: proto.RoleDaemon}))
		s := c.Join(small.Digest, joinOf(small))
		await[*proto.Lease](t, s)
		if owner := c.Owner(small.Digest); owner != "s" {
			t.Errorf("the lease came from %q", owner)
		}
		s.Close(small, false)
	})
}

// TestHungSchedulerIsLeft: the owner's process hangs, its connections stand.
func TestHungSchedulerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := newTown(t, "s1", "s2")
		c := tn.client("c")
		c.SetMembers(members("s1", "s2"))
		s := c.Join(small.Digest, joinOf(small))
		await[*proto.Lease](t, s)
		owner := c.Owner(small.Digest)
		tn.mu.Lock()
		tn.hung[owner] = true
		tn.mu.Unlock()
		start := time.Now()
		await[*proto.Bye](t, s)
		await[*proto.Lease](t, s)
		if took := time.Since(start); took > silentFor+3*pingEvery {
			t.Errorf("a hung scheduler was left after %s", took)
		}
		s.Close(small, false)
	})
}

func TestVersionsAreNegotiated(t *testing.T) {
	for _, tc := range []struct {
		min, max, want int
		bye            string
	}{
		{proto.MinVersion, proto.Version, proto.Version, ""},
		{1, 99, proto.Version, ""},
		{98, 99, 0, "speaks versions 98 to 99"},
		{0, 0, 0, "speaks versions 0 to 0"},
	} {
		tn := newTown(t, "s")
		stream, err := tn.dial("n")(t.Context(), proto.Member{ID: "s"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = stream.Write(proto.AppendMessage(nil, &proto.Hello{Min: tc.min, Max: tc.max}))
		}()
		m, _, err := proto.ReadMessage(bufio.NewReader(stream), nil)
		switch m := m.(type) {
		case *proto.Welcome:
			if m.Version != tc.want {
				t.Errorf("%d to %d: welcome to %d, want %d", tc.min, tc.max, m.Version, tc.want)
			}
		case *proto.Bye:
			if tc.bye == "" || !strings.Contains(m.Reason, tc.bye) {
				t.Errorf("%d to %d: bye %q", tc.min, tc.max, m.Reason)
			}
		default:
			t.Errorf("%d to %d: %T, %v", tc.min, tc.max, m, err)
		}
		stream.Close()
	}
}

func TestGarbageEndsTheStreamOnly(t *testing.T) {
	tn := newTown(t, "s")
	stream, err := tn.dial("n")(t.Context(), proto.Member{ID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(stream)
	go func() {
		_, _ = stream.Write(proto.AppendMessage(nil, &proto.Hello{Min: 1, Max: 1}))
		_, _ = stream.Write([]byte{0, 0, 0, 3, 250, 1, 2})
	}()
	for {
		m, _, err := proto.ReadMessage(r, nil)
		if err != nil {
			t.Fatalf("the stream ended without goodbye: %v", err)
		}
		if bye, ok := m.(*proto.Bye); ok {
			if !strings.Contains(bye.Reason, "kind 250") {
				t.Errorf("goodbye says %q", bye.Reason)
			}
			break
		}
	}
	stream.Close()
	c := tn.client("c")
	c.SetMembers(members("s"))
	s := c.Join(small.Digest, joinOf(small))
	await[*proto.Lease](t, s) // others are served as before
	s.Close(small, false)
}

func TestMailboxOfSomebodyWhoDoesNotRead(t *testing.T) {
	m := newMailbox()
	for range mailboxLimit + 1 {
		m.put(&proto.Ping{})
	}
	if err := m.run(io.Discard); !errors.Is(err, errSlowReader) {
		t.Errorf("run = %v, want errSlowReader", err)
	}
}

func TestOwner(t *testing.T) {
	daemons := func(n int) (ms []proto.Member) {
		for i := range n {
			ms = append(ms, proto.Member{ID: fmt.Sprintf("d%d", i), Roles: proto.RoleDaemon})
		}
		return ms
	}
	if c := Candidates(append(daemons(5), members("s")...)); len(c) != 1 || c[0].ID != "s" {
		t.Errorf("candidates beside a scheduler: %v", c)
	}
	if c := Candidates(daemons(100)); len(c) != councilSize {
		t.Errorf("%d candidates of 100 daemons, want %d", len(c), councilSize)
	}
	// Shares are even, and a member that goes moves its own digests only.
	ms := members("a", "b", "c", "d", "e")
	count := make(map[string]int)
	moved := 0
	for i := range 5000 {
		d := proto.DigestOf(fmt.Append(nil, i))
		o, _ := Owner(d, ms, nil)
		count[o.ID]++
		without, _ := Owner(d, ms, func(id string) bool { return id == "c" })
		if o.ID != "c" && without.ID != o.ID {
			moved++
		}
	}
	for id, n := range count {
		if n < 850 || n > 1150 {
			t.Errorf("%s owns %d of 5000 digests, want about 1000", id, n)
		}
	}
	if moved != 0 {
		t.Errorf("%d digests moved that the dead member did not own", moved)
	}
	if _, ok := Owner(small.Digest, ms, func(string) bool { return true }); ok {
		t.Error("an owner among the dead")
	}
}

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"eu", "eu", 0}, {"eu/berlin/r1", "eu/berlin/r2", 1}, {"eu/berlin", "eu/paris", 1}, {"eu/berlin/r1", "us", 3}, {"eu", "eu/berlin", 1}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}
