package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// echo answers what it reads with the other end's ID before it, until the
// other end closes.
func echo(_ context.Context, from string, s io.ReadWriteCloser) {
	buf := make([]byte, 1024)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(s, "%s:%s", from, buf[:n]); err != nil {
			return
		}
	}
}

// say writes text and checks that echo answers it.
func say(t *testing.T, n *node, s io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Error(err)
		return
	}
	want := n.ID() + ":" + text
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
		t.Errorf("answered %q, %v, want %q", got, err, want)
	}
}

// control makes a node that handles control streams with f.
func controlNode(t *testing.T, f func(context.Context, string, io.ReadWriteCloser), change ...func(*Config)) *node {
	n := newNode(t, change...)
	if f != nil {
		n.HandleControl(f)
	}
	return n.run(t)
}

// open opens a control stream from n to m.
func (n *node) open(t *testing.T, m proto.Member) io.ReadWriteCloser {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := n.OpenControl(ctx, m)
	if err != nil {
		t.Fatalf("OpenControl = %v\n%s", err, n.log)
	}
	return s
}

func TestControl(t *testing.T) {
	t.Parallel()
	for name, change := range securities {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := controlNode(t, echo, change...), controlNode(t, echo, change...)
			fleet(a, b)
			var streams sync.WaitGroup
			for i := range 8 {
				streams.Go(func() {
					from, to := a, b
					if i%2 == 1 {
						from, to = b, a
					}
					s := from.open(t, to.member())
					defer s.Close()
					say(t, from, s, "hello")
					say(t, from, s, strings.Repeat("x", 500))
				})
			}
			streams.Wait()
		})
	}
}

// Streams of jobs go to the handler of jobs, over the same connection.
func TestJobs(t *testing.T) {
	t.Parallel()
	job := func(_ context.Context, from string, s io.ReadWriteCloser) {
		_, _ = io.WriteString(s, "job of "+from)
	}
	a, b := newNode(t), controlNode(t, echo)
	a.HandleControl(echo)
	a.HandleJobs(job)
	a.run(t)
	fleet(a, b)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := b.OpenJob(ctx, a.member())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if said, err := io.ReadAll(s); err != nil || string(said) != "job of "+b.ID() {
		t.Errorf("the job stream says %q, %v", said, err)
	}
	control := b.open(t, a.member())
	defer control.Close()
	say(t, b, control, "hello")
	if _, err := a.OpenJob(ctx, b.member()); err == nil || !strings.Contains(err.Error(), "job stream to "+b.ID()) || !strings.Contains(err.Error(), JobProtocol) {
		t.Errorf("a job for a node that has no handler: %v", err)
	}
}

func TestControlByName(t *testing.T) {
	t.Parallel()
	a, b := controlNode(t, echo), controlNode(t, echo)
	fleet(a, b)
	_, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	s := a.open(t, proto.Member{ID: b.ID(), Addr: net.JoinHostPort("localhost", port)})
	defer s.Close()
	say(t, a, s, "hello")
}

func TestControlStranger(t *testing.T) {
	t.Parallel()
	server := controlNode(t, func(_ context.Context, from string, _ io.ReadWriteCloser) {
		t.Errorf("the handler got a stream of the stranger %s", from)
	})
	stranger := controlNode(t, echo)
	stranger.SetMembers([]proto.Member{server.member()})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := stranger.OpenControl(ctx, server.member())
	if err == nil {
		_ = s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "perhaps it has not heard of this node") {
		t.Errorf("OpenControl of a stranger = %v", err)
	}
	server.log.await(t, "a stranger asked for a control connection")
}

func TestControlMemberLearnedLate(t *testing.T) {
	t.Parallel()
	server, late := controlNode(t, echo), controlNode(t, echo)
	meet := whenAwaited(t, server, late)
	s := late.open(t, server.member())
	meet()
	defer s.Close()
	say(t, late, s, "hello")
}

func TestControlWrongIdentity(t *testing.T) {
	t.Parallel()
	a, b, expected := controlNode(t, echo), controlNode(t, echo), newNode(t)
	defer expected.Close()
	fleet(a, b)
	_, err := a.OpenControl(t.Context(), proto.Member{ID: expected.ID(), Addr: b.Addr()})
	if err == nil || !strings.Contains(err.Error(), "wrong identity: "+expected.ID()) || !strings.Contains(err.Error(), b.ID()) ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("OpenControl = %v, want an error that names both, on one line", err)
	}
}

func TestControlErrors(t *testing.T) {
	t.Parallel()
	a, silent, gone := controlNode(t, echo), controlNode(t, nil), newNode(t)
	fleet(a, silent)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]proto.Member{
		"no handler":     silent.member(),
		"nobody there":   gone.member(),
		"itself":         a.member(),
		"no peer ID":     {ID: "nonsense", Addr: silent.Addr()},
		"no port":        {ID: silent.ID(), Addr: "127.0.0.1"},
		"bad port":       {ID: silent.ID(), Addr: "127.0.0.1:x"},
		"no such name":   {ID: gone.ID(), Addr: "nobody.invalid:7051"},
		"not a listener": rogue(t, false, func(c net.Conn) { _, _ = io.WriteString(c, "hello") }),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		s, err := a.OpenControl(ctx, m)
		cancel()
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), m.ID) || !strings.Contains(err.Error(), m.Addr) {
			t.Errorf("%s: OpenControl = %v", name, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.OpenControl(cancelled, rogue(t, false, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })); err == nil {
		t.Error("OpenControl works with a context that has ended")
	}
}

// A member that is taken out loses its streams.
func TestControlFormerMember(t *testing.T) {
	t.Parallel()
	a, b := controlNode(t, echo), controlNode(t, echo)
	fleet(a, b)
	s := a.open(t, b.member())
	defer s.Close()
	say(t, a, s, "hello")
	b.SetMembers([]proto.Member{b.member()})
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the stream goes on")
	}
}

// Close ends a Read that waits here, is an end of file there after all that
// was written, and takes the connection down with the last stream.
func TestControlClose(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	server := controlNode(t, func(_ context.Context, _ string, s io.ReadWriteCloser) {
		text, err := io.ReadAll(s)
		got <- fmt.Sprint(string(text), err)
	})
	a := controlNode(t, echo)
	fleet(a, server)
	s := a.open(t, server.member())
	read := make(chan error)
	go func() {
		_, err := s.Read(make([]byte, 1))
		read <- err
	}()
	if _, err := io.WriteString(s, "the last word"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %v, want net.ErrClosed", err)
	}
	if text := <-got; text != "the last word<nil>" {
		t.Errorf("the other end got %q", text)
	}
	for deadline := time.Now().Add(patience); len(a.control.swarm.Conns())+len(server.control.swarm.Conns()) > 0 ||
		server.front.open(kindControl) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection stays open without a stream")
		}
	}
}

// When Run ends, the handler's context ends, its reads fail, and what it
// writes then still arrives.
func TestControlEnd(t *testing.T) {
	t.Parallel()
	for range 20 {
		begun := make(chan struct{})
		server := controlNode(t, func(ctx context.Context, _ string, s io.ReadWriteCloser) {
			close(begun)
			if _, err := s.Read(make([]byte, 1)); err == nil || ctx.Err() == nil {
				t.Errorf("Read = %v, context %v", err, ctx.Err())
			}
			_, _ = io.WriteString(s, "bye")
		})
		a := controlNode(t, echo)
		fleet(a, server)
		s := a.open(t, server.member())
		<-begun
		server.stop()
		text, err := io.ReadAll(s)
		if err != nil || string(text) != "bye" {
			t.Errorf("got %q, %v", text, err)
		}
		_ = s.Close()
		server.end(t)
	}
}

// A side whose own Run ends can say its last word too.
func TestControlEndOfTheOpener(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	server := controlNode(t, func(_ context.Context, _ string, s io.ReadWriteCloser) {
		text, err := io.ReadAll(s)
		got <- fmt.Sprint(string(text), err)
	})
	a := controlNode(t, echo)
	fleet(a, server)
	s := a.open(t, server.member())
	a.stop()
	_, _ = io.WriteString(s, "bye")
	_ = s.Close()
	a.end(t)
	if text := <-got; text != "bye<nil>" {
		t.Errorf("the other end got %q", text)
	}
}

// Run ends though streams are held open by both ends.
func TestControlEndIsBounded(t *testing.T) {
	t.Parallel()
	server := controlNode(t, func(ctx context.Context, _ string, s io.ReadWriteCloser) {
		<-ctx.Done()
	})
	a := controlNode(t, echo)
	fleet(a, server)
	s := a.open(t, server.member())
	a.end(t) // before s is closed
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the stream goes on")
	}
	_ = s.Close()
	server.end(t)
}

// A peer that was away is dialled again as soon as it is back, at its address
// or at another.
func TestControlComesBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"same address", "another address"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dir string
			a, b := controlNode(t, echo), controlNode(t, echo, func(c *Config) {
				dir = c.Dir
				c.Listen = ownIP() + ":0"
			})
			fleet(a, b)
			s := a.open(t, b.member())
			say(t, a, s, "hello")
			_ = s.Close()
			b.end(t)
			for range 3 {
				if s, err := a.OpenControl(t.Context(), b.member()); err == nil {
					_ = s.Close()
					t.Fatal("a node that is gone answers")
				}
			}
			again := controlNode(t, echo, func(c *Config) {
				c.Dir = dir
				if name == "same address" {
					c.Listen = b.Addr()
				}
			})
			fleet(a, again)
			if again.ID() != b.ID() {
				t.Fatal("not the same identity")
			}
			s = a.open(t, again.member())
			defer s.Close()
			say(t, a, s, "hello again")
		})
	}
}

// ownIP returns an address of this machine that no other test uses, so that a
// port which is closed there can be opened again.
func ownIP() string {
	return fmt.Sprintf("127.%d.%d.%d", 64+rand.N(128), rand.N(256), 1+rand.N(254))
}

// A connection that has died without a word is found out and replaced.
func TestControlStaleConnection(t *testing.T) {
	t.Parallel()
	a, b := newNode(t), controlNode(t, echo)
	a.control.within = 100 * time.Millisecond
	a.run(t)
	hole := newHole(t, b.Addr())
	fleet(a, b)
	// On a busy machine a connection may be too slow for this test's short
	// limit, but not again and again.
	open := func(addr string) io.ReadWriteCloser {
		for deadline := time.Now().Add(patience); ; {
			s, err := a.OpenControl(t.Context(), proto.Member{ID: b.ID(), Addr: addr})
			if err == nil {
				return s
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	s := open(hole.addr)
	defer s.Close()
	say(t, a, s, "hello")
	hole.swallow()
	again := open(b.Addr())
	defer again.Close()
	say(t, a, again, "hello again")
}

// A hole is a TCP proxy that can begin to swallow all that passes.
type hole struct {
	addr      string
	swallowed chan struct{}
}

func (h *hole) swallow() { close(h.swallowed) }

func newHole(t *testing.T, to string) *hole {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{addr: ln.Addr().String(), swallowed: make(chan struct{})}
	var pipes sync.WaitGroup
	pass := func(from, to net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				break
			}
			select {
			case <-h.swallowed:
			default:
				_, _ = to.Write(buf[:n])
			}
		}
		_ = from.Close()
		select {
		case <-h.swallowed:
		default:
			_ = to.Close()
		}
	}
	var mu sync.Mutex
	var conns []net.Conn
	pipes.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			pipes.Go(func() { pass(in, out) })
			pipes.Go(func() { pass(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		pipes.Wait()
	})
	return h
}

// One member can't open streams without end.
func TestControlStreamsAreBounded(t *testing.T) {
	t.Parallel()
	server := controlNode(t, func(ctx context.Context, _ string, s io.ReadWriteCloser) {
		_, _ = io.Copy(io.Discard, s)
	})
	a := controlNode(t, echo)
	fleet(a, server)
	opened := 0
	for range 2 * maxStreams {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		s, err := a.OpenControl(ctx, server.member())
		cancel()
		if err != nil {
			break
		}
		defer s.Close()
		opened++
	}
	if opened != maxStreams {
		t.Errorf("%d streams were opened, want %d and no more", opened, maxStreams)
	}
}
