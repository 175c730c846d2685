//go:build linux

package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// output runs a program on a host and returns what it prints.
func output(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

func TestProgramsSeeOnlyTheirHost(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	a, b := makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{})
	seen := map[string]string{networkOf(t, "/proc/self/ns/net"): "the harness"}
	for _, h := range []*Host{a, b} {
		is := output(t, h, "readlink", "/proc/self/ns/net")
		if other := seen[is]; other != "" {
			t.Errorf("programs of %s are in the namespace of %s", h.Name(), other)
		}
		seen[is] = h.Name()
		var links []string
		for _, line := range strings.Split(output(t, h, "cat", "/proc/net/dev"), "\n")[2:] { // after a head of two lines
			name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			links = append(links, name)
		}
		if got := strings.Join(links, " "); got != "lo eth0" && got != "eth0 lo" {
			t.Errorf("programs of %s see the links %q", h.Name(), got)
		}
		if conf := output(t, h, "cat", "/proc/net/fib_trie"); !strings.Contains(conf, h.Addr().String()) {
			t.Errorf("programs of %s do not have its address:\n%s", h.Name(), conf)
		}
	}
}

// networkOf returns which network namespace a file is.
func networkOf(t *testing.T, file string) string {
	t.Helper()
	s, err := os.Readlink(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoopbackIsEachHostsOwn(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	a, b := makeHost(t, l, "a", 0, Link{}), makeHost(t, l, "b", 0, Link{})
	const port = "127.0.0.1:5000"
	for _, h := range []*Host{a, b} { // the same port twice
		ln, err := h.Listen(t.Context(), "tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		out, in := connectTo(t, h, ln)
		if err := say(out, in, h.Name()); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := net.Dial("tcp", port); err == nil {
		c.Close()
		t.Error("a host's loopback is the harness's")
	}
}

// say sends a text from one end to the other.
func say(from io.Writer, to io.Reader, text string) error {
	if _, err := io.WriteString(from, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("another text came: " + string(got))
	}
	return nil
}

func TestStartOfNothing(t *testing.T) {
	t.Parallel()
	h := makeHost(t, makeLab(t, Options{}), "a", 0, Link{})
	if err := h.Start(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start of a program that there is not: %v", err)
	}
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err == nil {
		t.Error("a program was started twice")
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("a program did not survive that it was to be started again: %v", err)
	}
}

func TestNamesAreNotLookedUp(t *testing.T) {
	t.Parallel()
	h := makeHost(t, makeLab(t, Options{}), "a", 0, Link{})
	for _, addr := range []string{"localhost:80", ":80", "example.com:80", "127.0.0.1"} {
		if c, err := h.Dial(t.Context(), "tcp", addr); err == nil {
			c.Close()
			t.Errorf("dialled %s", addr)
		}
		if ln, err := h.Listen(t.Context(), "tcp", addr); err == nil {
			ln.Close()
			t.Errorf("listened on %s", addr)
		}
	}
}

// moment is how long nothing must come through a link that is cut.
const moment = 100 * time.Millisecond

func TestCutAndHeal(t *testing.T) {
	t.Parallel()
	l := makeLab(t, Options{})
	a, b, c := makeHost(t, l, "a", 0, Link{fast, fast}), makeHost(t, l, "b", 0, Link{fast, fast}), makeHost(t, l, "c", 0, Link{})
	out, in := connect(t, a, b)
	if err := say(out, in, "before"); err != nil {
		t.Fatal(err)
	}
	ln, err := b.Listen(t.Context(), "tcp", at(b))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, cut := range []*Host{a, b} { // the one that dials, the one that listens
		if err := cut.Cut(); err != nil {
			t.Fatal(err)
		}
		silent(t, a, ln, out, in)
		if cut == a {
			connect(t, c, b) // the others' links are up
		}
		if err := cut.Heal(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1)
		if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(in, got); err != nil {
			t.Fatalf("what was sent over a link that was cut did not come after it was healed: %v", err)
		}
		if err := say(in, out, "after"); err != nil {
			t.Fatal(err)
		}
		connectTo(t, a, ln)
	}
	// The shapers are still there.
	const n = 2 << 20
	if took, least := transfer(t, n, route{a, b}), least(n, fast); took < least {
		t.Errorf("after it was healed, a transfer took %s, and the rate allows %s", took, least)
	}
}

// silent checks that nothing comes from one host to the other, and nobody is
// told. It leaves a byte under way.
func silent(t *testing.T, from *Host, ln net.Listener, out, in net.Conn) {
	t.Helper()
	if _, err := out.Write([]byte{1}); err != nil {
		t.Fatalf("write over a link that is cut: %v", err)
	}
	if err := in.SetReadDeadline(time.Now().Add(moment)); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read over a link that is cut: %d, %v", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), moment)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", ln.Addr().String())
	if err == nil {
		c.Close()
	}
	var e net.Error
	if !errors.As(err, &e) || !e.Timeout() {
		t.Errorf("dial over a link that is cut: %v, and it should be in vain", err)
	}
}
