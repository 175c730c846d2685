package blocklist

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// digest returns the i-th digest of a test.
func digest(i int) proto.Digest { return proto.DigestOf(fmt.Append(nil, i)) }

// open returns a List with what change makes of its Config.
func open(t testing.TB, dir string, change ...func(*Config)) *List {
	t.Helper()
	cfg := Config{Dir: dir, Self: "node-a"}
	for _, f := range change {
		f(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// must fails the test if a change of a List did.
func must(t testing.TB) func([]Entry, error) []Entry {
	return func(e []Entry, err error) []Entry {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

func blocked(l *List, d proto.Digest) bool {
	_, is := l.Blocked(d)
	return is
}

func TestBlockUnblockAndRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	if blocked(l, digest(1)) {
		t.Error("blocked at the start")
	}
	must(t)(l.Block(digest(1), "CVE-2026-1\nbad\x00thing"))
	must(t)(l.Block(digest(2), ""))
	must(t)(l.Unblock(digest(2)))
	today := time.Now().UTC().Format(time.DateOnly)
	for _, l := range []*List{l, open(t, dir)} {
		reason, is := l.Blocked(digest(1))
		if want := "it was blocked at node-a on " + today + ": CVE-2026-1 bad thing"; !is || reason != want {
			t.Errorf("%t %q, want %q", is, reason, want)
		}
		if blocked(l, digest(2)) {
			t.Error("what was unblocked is blocked")
		}
		if got := l.List(); len(got) != 1 || got[0].Digest != digest(1) {
			t.Errorf("the list is %v", got)
		}
	}
	if _, err := l.Unblock(digest(2)); !errors.Is(err, ErrNotBlocked) {
		t.Errorf("unblocked twice: %v", err)
	}
	fi, err := os.Stat(filepath.Join(dir, "blocklist.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	// Older news does not block again what is no longer blocked, also after a
	// restart.
	old := Entry{Digest: digest(2), Blocked: true, At: time.Now().Add(-time.Hour)}
	again := open(t, dir)
	if err := again.note(encode(old)); err != nil || blocked(again, digest(2)) {
		t.Errorf("blocked by old news: %v", err)
	}
}

func TestFileThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "gone")
	var notes [][]byte
	l := open(t, dir, func(c *Config) { c.Tell = func(n []byte) { notes = append(notes, n) } })
	_, err := l.Block(digest(1), "bad")
	if err == nil || !strings.Contains(err.Error(), "will not be when this node is started again") {
		t.Errorf("error %v", err)
	}
	if !blocked(l, digest(1)) || len(notes) != 1 {
		t.Errorf("a recall waits for a disk: blocked %t, told %d", blocked(l, digest(1)), len(notes))
	}
}

func TestDamagedFile(t *testing.T) {
	t.Parallel()
	for _, content := range []string{
		"", "{}", "[", "null", "[]x", `[{"digest":"sha256:aa"}]`, `[{"digest":""}]`, `[1]`, "\x00\x00\x00",
		`[{"digest":"` + digest(1).String() + `","blocked":true,"at":"2026-01-0`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(path(dir), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// TestIndex: with an index its images are blocked, on the node where that was
// said and on one that knows the index better.
func TestIndex(t *testing.T) {
	t.Parallel()
	knows := func(parts map[int][]int) func(*Config) {
		return func(c *Config) {
			c.Parts = func(d proto.Digest) (all []proto.Digest) {
				for index, images := range parts {
					for _, i := range images {
						if digest(index) == d {
							all = append(all, digest(i))
						}
					}
				}
				return all
			}
		}
	}
	var notes [][]byte
	l := open(t, t.TempDir(), knows(map[int][]int{1: {10, 11}, 2: {11, 12}}), func(c *Config) {
		c.Tell = func(n []byte) { notes = append(notes, n) }
	})
	check := func(l *List, want string) {
		t.Helper()
		got := ""
		for _, i := range []int{1, 2, 10, 11, 12, 13} {
			if blocked(l, digest(i)) {
				got += fmt.Sprint(i, " ")
			}
		}
		if strings.TrimSpace(got) != want {
			t.Errorf("blocked: %s, want %s", got, want)
		}
	}
	if got := must(t)(l.Block(digest(1), "bad")); len(got) != 3 || got[0].Digest != digest(1) {
		t.Errorf("%v", got)
	}
	check(l, "1 10 11")
	if len(notes) != 3 {
		t.Errorf("told %d times", len(notes))
	}
	// A node may know another image of the index.
	other := open(t, t.TempDir(), knows(map[int][]int{1: {10, 13}}))
	if err := other.note(notes[0]); err != nil {
		t.Fatal(err)
	}
	check(other, "1 10 13")
	for _, n := range notes {
		if err := other.note(n); err != nil {
			t.Fatal(err)
		}
	}
	check(other, "1 10 11 13")
	if err := l.merge(other.State()); err != nil {
		t.Fatal(err)
	}
	check(l, "1 10 11 13")
	// An image that is in two stays blocked until both are free.
	must(t)(l.Block(digest(2), "bad too"))
	check(l, "1 2 10 11 12 13")
	must(t)(l.Unblock(digest(2)))
	check(l, "1 10 11 13")
	must(t)(l.Block(digest(2), "bad too"))
	must(t)(l.Unblock(digest(1)))
	check(l, "2 11 12")
	must(t)(l.Unblock(digest(2)))
	check(l, "")
	// One that was blocked in its own right stays so.
	must(t)(l.Block(digest(10), "itself"))
	must(t)(l.Block(digest(1), "bad"))
	must(t)(l.Unblock(digest(1)))
	check(l, "10")
	// One of them can be taken back alone.
	must(t)(l.Block(digest(2), "bad"))
	must(t)(l.Unblock(digest(12)))
	check(l, "2 10 11")
}

// TestClocks: whoever saw an entry can take it back, whatever the clock of the
// one that made it says.
func TestClocks(t *testing.T) {
	t.Parallel()
	ahead := time.Now().Add(300 * 24 * time.Hour).UTC().Truncate(time.Millisecond)
	a, b := open(t, t.TempDir()), open(t, t.TempDir())
	far := Entry{Digest: digest(1), Blocked: true, By: "ahead", At: ahead}
	for _, l := range []*List{a, b} {
		if err := l.note(encode(far)); err != nil || !blocked(l, digest(1)) {
			t.Fatalf("not blocked: %v", err)
		}
	}
	must(t)(a.Unblock(digest(1)))
	for range 2 { // that it is said again makes no difference
		if err := errors.Join(a.note(encode(far)), b.merge(a.State()), a.merge(b.State())); err != nil {
			t.Fatal(err)
		}
		if blocked(a, digest(1)) || blocked(b, digest(1)) {
			t.Error("blocked again")
		}
	}
	// What claims a time that nothing could be later than is the oldest.
	for i, at := range []time.Time{latest(), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), {}, time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)} {
		d := digest(100 + i)
		impossible := Entry{Digest: d, Blocked: true, At: at}
		if err := a.note(encode(impossible)); err != nil || !blocked(a, d) {
			t.Fatalf("%s: %v", at, err)
		}
		must(t)(a.Unblock(d))
		if err := a.note(encode(impossible)); err != nil || blocked(a, d) {
			t.Errorf("%s: blocked again: %v", at, err)
		}
	}
	// The last moment that is accepted cannot be taken back, and it is said.
	last := Entry{Digest: digest(9), Blocked: true, At: latest().Add(-time.Millisecond)}
	if err := a.note(encode(last)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Unblock(digest(9)); err == nil || !strings.Contains(err.Error(), "blocklist.json") {
		t.Errorf("%v", err)
	}
	if _, err := a.Block(digest(9), "x"); err == nil {
		t.Error("no error")
	}
}

func TestTellingOn(t *testing.T) {
	t.Parallel()
	notes := 0
	l := open(t, t.TempDir(), func(c *Config) {
		c.Tell = func(n []byte) {
			notes++
			if len(n) > MaxNote {
				t.Errorf("a note of %d bytes", len(n))
			}
		}
	})
	e := Entry{
		Digest: digest(1), Blocked: true, Reason: strings.Repeat("\u2028\"<", 300), By: strings.Repeat("\\\"", 300), At: time.Now(),
	}
	e.Digest, _ = proto.ParseDigest("sha512:" + strings.Repeat("a", 128))
	e.Of, _ = proto.ParseDigest("sha512:" + strings.Repeat("b", 128))
	if err := l.note(encode(e)); err == nil {
		t.Error("a note that is too long is taken")
	}
	if err := l.note(encode(e.normal())); err != nil || !blocked(l, e.Digest) || notes != 0 {
		t.Errorf("a note was told on: %v, told %d times", err, notes)
	}
	must(t)(l.Block(digest(2), strings.Repeat(`"\`, 300)))
	if notes != 1 {
		t.Errorf("told %d times", notes)
	}
	few, many := open(t, t.TempDir()), open(t, t.TempDir())
	for i := range told {
		must(t)(few.Block(digest(100+i), ""))
	}
	for i := range told + 1 {
		must(t)(many.Block(digest(200+i), ""))
	}
	notes = 0
	if err := l.merge(few.State()); err != nil || notes != told {
		t.Errorf("%v, told %d times", err, notes)
	}
	if err := l.merge(many.State()); err != nil || notes != told || !blocked(l, digest(200)) {
		t.Errorf("%v, told %d times", err, notes)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	const most = 100
	all := make([]Entry, most)
	for i := range all {
		all[i] = Entry{Digest: digest(i), Blocked: i != 7 && i != 8, At: time.Now().Add(time.Duration(i) * time.Millisecond)}
	}
	l := open(t, t.TempDir())
	l.most = most
	if err := l.merge(encode(all)); err != nil {
		t.Fatal(err)
	}
	must(t)(l.Block(digest(-1), "")) // takes the place of 7
	must(t)(l.Block(digest(-2), "")) // and of 8
	if _, err := l.Block(digest(-3), ""); !errors.Is(err, ErrFull) || blocked(l, digest(-3)) {
		t.Errorf("%v", err)
	}
	must(t)(l.Block(digest(1), "again"))
	if err := l.note(encode(Entry{Digest: digest(-4), Blocked: true, At: time.Now()})); err != nil || blocked(l, digest(-4)) {
		t.Errorf("%v", err)
	}
	if n := len(l.List()); n != most || !blocked(l, digest(0)) {
		t.Errorf("%d entries", n)
	}
	must(t)(l.Unblock(digest(1)))
	must(t)(l.Block(digest(-3), ""))
	if n := len(l.entries); n != most {
		t.Errorf("%d entries", n)
	}
}

// TestLongState: what does not fit a full exchange is the oldest.
func TestLongState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, other := open(t, dir), open(t, t.TempDir())
	const n, room = 200, 60_000
	l.room = room
	for i := range n {
		e := Entry{Digest: digest(i), Blocked: true, Reason: strings.Repeat(`"`, maxReason), By: strings.Repeat("b", maxBy), At: time.UnixMilli(int64(i))}
		l.set(e.normal())
	}
	if size := len(l.State()); size > room || size < room-MaxNote {
		t.Errorf("a state of %d bytes", size)
	}
	if err := other.merge(l.State()); err != nil || !blocked(other, digest(n-1)) || blocked(other, digest(0)) {
		t.Errorf("%d of them are there: %v", len(other.List()), err)
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if got := len(open(t, dir).List()); got != n {
		t.Errorf("%d entries are in the file", got)
	}
}

func TestImages(t *testing.T) {
	t.Parallel()
	down := errors.New("registry down")
	l := open(t, t.TempDir(), func(c *Config) {
		c.Resolve = func(_ context.Context, image string) (proto.Digest, error) {
			if image == "ghcr.io/team/app:v1" {
				return digest(5), nil
			}
			return proto.Digest{}, down
		}
	})
	for what, want := range map[string]proto.Digest{
		digest(1).String():                       digest(1),
		"ghcr.io/team/app@" + digest(2).String(): digest(2),
		"ghcr.io/team/app:v1":                    digest(5),
	} {
		if got := must(t)(l.BlockImage(t.Context(), what, "")); len(got) != 1 || got[0].Digest != want {
			t.Errorf("%s: %v", what, got)
		}
		must(t)(l.UnblockImage(t.Context(), what))
	}
	for _, what := range []string{"sha256:aa", "a@sha256:bb", "@" + digest(1).String(), "sha999:" + digest(1).Hex() + "@x"} {
		if _, err := l.BlockImage(t.Context(), what, ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := l.BlockImage(t.Context(), "ghcr.io/team/app:v2", ""); !errors.Is(err, down) {
		t.Errorf("%v", err)
	}
	if _, err := open(t, t.TempDir()).BlockImage(t.Context(), "ghcr.io/team/app:v2", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := l.Block(proto.Digest{}, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// TestRun: what was heard is in the file soon, and at the end.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "late")
		l := open(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		hear := func(i int) {
			t.Helper()
			if err := l.note(encode(Entry{Digest: digest(i), Blocked: true, At: time.Now()})); err != nil {
				t.Fatal(err)
			}
		}
		hear(1)
		synctest.Wait() // it failed, since there is no such directory
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retry)
		synctest.Wait()
		if !blocked(open(t, dir), digest(1)) {
			t.Error("not written when it could be")
		}
		hear(2)
		synctest.Wait()
		if !blocked(open(t, dir), digest(2)) {
			t.Error("not written")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		hear(3)
		<-l.dirty // so that there is nothing but the end
		if err := l.Run(ctx); err != nil || !blocked(open(t, dir), digest(3)) {
			t.Errorf("not written at the end: %v", err)
		}
	})
}

func TestConcurrency(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20 {
				l.Block(digest(i), fmt.Sprint(g))
				l.note(encode(Entry{Digest: digest(i), At: time.Now()}))
				l.Blocked(digest(i))
				l.List()
				l.merge(l.State())
				l.Unblock(digest(i))
			}
		})
	}
	wg.Wait()
	must(t)(l.Block(digest(99), "")) // writes what was heard too
	again := open(t, l.cfg.Dir)
	if got, want := fmt.Sprint(again.List()), fmt.Sprint(l.List()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
