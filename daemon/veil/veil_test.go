package veil

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

var (
	secretA = []byte("the first secret of this fleet")
	secretB = []byte("the second secret of this fleet")
	public  = blob("public")
	hidden  = blob("private")
	github  = proto.Origin{Upstream: "ghcr.io", Repository: "team/app"}
)

func blob(content string) proto.Blob {
	return proto.Blob{Digest: proto.DigestOf([]byte(content)), Size: int64(len(content))}
}

// of returns a Veil to which all but the blob public is private.
func of(self string, secrets ...[]byte) *Veil {
	return New(Config{Self: self, Secrets: func() [][]byte { return secrets },
		Private: func(d proto.Digest) bool { return d != public.Digest }})
}

func TestName(t *testing.T) {
	t.Parallel()
	a, b, stranger := of("a", secretA), of("b", secretA), of("c", secretB)
	if a.Name(public.Digest) != public.Digest {
		t.Error("what is public has another name")
	}
	name := a.Name(hidden.Digest)
	if name == hidden.Digest || strings.Contains(name.String(), hidden.Digest.Hex()[:8]) {
		t.Error("the private digest can be seen")
	}
	if _, err := proto.ParseDigest(name.String()); err != nil {
		t.Error(err)
	}
	if b.Name(hidden.Digest) != name || a.Name(hidden.Digest) != name {
		t.Error("members call one blob differently")
	}
	if stranger.Name(hidden.Digest) == name {
		t.Error("a name can be found without the secret")
	}
	if New(Config{Secrets: func() [][]byte { return [][]byte{secretA} }}).Name(hidden.Digest) != hidden.Digest {
		t.Error("a veil without Private hides something")
	}
}

func TestReal(t *testing.T) {
	t.Parallel()
	v := of("a", secretA)
	if d, ok := v.Real(public.Digest); !ok || d != public.Digest {
		t.Error("what is public is not found")
	}
	name := of("b", secretA).Name(hidden.Digest)
	if _, ok := v.Real(name); ok {
		t.Error("an alias of what is not here is found")
	}
	if v.Name(hidden.Digest) != name {
		t.Fatal("another name")
	}
	if d, ok := v.Real(name); !ok || d != hidden.Digest {
		t.Error("an alias of what is here is not found")
	}
	if _, ok := v.Real(hidden.Digest); ok {
		t.Error("a private digest in the clear is found")
	}
	v.Forget(hidden.Digest)
	if _, ok := v.Real(name); ok {
		t.Error("an alias is found after Forget")
	}
}

func TestGive(t *testing.T) {
	t.Parallel()
	holder, asker := of("holder", secretA), of("asker", secretA)
	name, capability := asker.Ask(hidden.Digest)
	if capability == "" || name == hidden.Digest {
		t.Fatalf("asked for %s with %q", name, capability)
	}
	if _, ok := holder.Give(name, "asker", capability); ok {
		t.Error("given before it is here")
	}
	holder.Name(hidden.Digest)
	if d, ok := holder.Give(name, "asker", capability); !ok || d != hidden.Digest {
		t.Error("not given to a member")
	}
	for what, ok := range map[string]bool{
		"without a capability":    second(holder.Give(name, "asker", "")),
		"with another's":          second(holder.Give(name, "thief", capability)),
		"in the clear":            second(holder.Give(hidden.Digest, "asker", capability)),
		"with one of another's":   second(holder.Give(name, "asker", asker.Capability(blob("other").Digest))),
		"of another fleet's name": second(holder.Give(of("asker", secretB).Name(hidden.Digest), "asker", capability)),
	} {
		if ok {
			t.Error("given " + what)
		}
	}
	if name, capability := asker.Ask(public.Digest); name != public.Digest || capability != "" {
		t.Errorf("what is public is asked for as %s with %q", name, capability)
	}
	if d, ok := holder.Give(public.Digest, "anybody", ""); !ok || d != public.Digest {
		t.Error("what is public is not given")
	}
}

func second(_ proto.Digest, ok bool) bool { return ok }

func TestAdmit(t *testing.T) {
	t.Parallel()
	holder, asker := of("holder", secretA), of("asker", secretA)
	good := asker.Capability(hidden.Digest)
	parts := strings.Split(good, ".")
	with := func(i int, s string) string {
		p := slices.Clone(parts)
		p[i] = s
		return strings.Join(p, ".")
	}
	for _, tc := range []struct {
		name, asker, capability string
		later                   time.Duration // the holder's clock
		want                    error
	}{
		{"good", "asker", good, 0, nil},
		{"asker not proven", "", good, 0, nil},
		{"at its end", "asker", good, validFor + skew - 2*time.Second, nil},
		{"clocks apart", "asker", good, -skew + 2*time.Second, nil},
		{"expired", "asker", good, validFor + skew + 2*time.Second, ErrClock},
		{"from the future", "asker", good, -skew - 2*time.Second, ErrClock},
		{"another's", "thief", good, 0, ErrCapability},
		{"renamed", "thief", with(1, "thief"), 0, ErrCapability},
		{"renamed, not proven", "", with(1, "thief"), 0, ErrCapability},
		{"prolonged", "asker", with(2, fmt.Sprint(time.Now().Add(time.Hour).Unix())), time.Hour, ErrCapability},
		{"of another blob", "asker", asker.Capability(blob("other").Digest), 0, ErrCapability},
		{"by a stranger", "asker", of("asker", secretB).Capability(hidden.Digest), 0, ErrCapability},
		{"by nobody's secret", "asker", of("asker").Capability(hidden.Digest), 0, ErrCapability},
		{"none", "asker", "", 0, ErrCapability},
		{"no proof", "asker", with(3, ""), 0, ErrCapability},
		{"half a proof", "asker", with(3, parts[3][:20]), 0, ErrCapability},
		{"version", "asker", with(0, "2"), 0, ErrCapability},
		{"time", "asker", with(2, "soon"), 0, ErrCapability},
		{"time of another form", "asker", with(2, "0"+parts[2]), 0, ErrCapability},
		{"not base64", "asker", with(3, "!"), 0, ErrCapability},
		{"long", "asker", good + strings.Repeat("A", maxCapability), 0, ErrCapability},
	} {
		holder.now = func() time.Time { return time.Now().Add(tc.later) }
		if err := holder.Admit(hidden.Digest, tc.asker, tc.capability); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// While the secret changes, members of two neighbouring steps understand each
// other at every moment.
func TestRotation(t *testing.T) {
	t.Parallel()
	steps := [][][]byte{{secretA}, {secretA, secretB}, {secretB, secretA}, {secretB}}
	step := map[string]int{}
	member := func(self string) *Veil {
		return New(Config{Self: self, Private: func(proto.Digest) bool { return true },
			Secrets: func() [][]byte { return steps[step[self]] }})
	}
	holder, asker := member("holder"), member("asker")
	before := holder.Name(hidden.Digest) // once, before the change
	for _, at := range [][2]int{{0, 0}, {0, 1}, {1, 1}, {1, 2}, {2, 2}, {2, 3}, {3, 3}, {3, 2}, {2, 1}, {1, 0}} {
		step["holder"], step["asker"] = at[0], at[1]
		name, capability := asker.Ask(hidden.Digest)
		if d, ok := holder.Give(name, "asker", capability); !ok || d != hidden.Digest {
			t.Errorf("at the steps %v nothing is given", at)
		}
		if !slices.Contains(holder.Held(hidden), proto.Blob{Digest: name, Size: hidden.Size}) && at[0] != 0 && at[0] != 3 {
			t.Errorf("at the steps %v it is not held out as what it is asked for", at)
		}
		o := asker.Origin(hidden, github, true)
		if b, real, err := holder.Open(proto.Blob{Digest: name, Size: hidden.Size}, o); err != nil || b != hidden || real != github {
			t.Errorf("at the steps %v a note says %v %v, %v", at, b, real, err)
		}
	}
	step["holder"] = 3
	if d, ok := holder.Real(before); !ok || d != hidden.Digest {
		t.Error("an alias that was told has been forgotten")
	}
	if err := holder.Admit(hidden.Digest, "x", of("x", secretA).Capability(hidden.Digest)); err == nil {
		t.Error("the old secret still admits")
	}
}

// Without a secret nobody else can make sense of what is private here.
func TestNoSecret(t *testing.T) {
	t.Parallel()
	a, b := of("a"), of("b")
	a.Name(hidden.Digest)
	name, capability := b.Ask(hidden.Digest)
	if name == hidden.Digest || a.Name(hidden.Digest) == name {
		t.Error("two processes without a secret have one name for it")
	}
	if _, ok := a.Give(name, "b", capability); ok {
		t.Error("given to another process")
	}
	if a.Admit(hidden.Digest, "b", capability) == nil {
		t.Error("another process is admitted")
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	a, seed, stranger := of("a", secretA), of("seed", secretA), of("s", secretB)
	if o := a.Origin(public, github, false); o != github {
		t.Errorf("of a public blob: %v", o)
	}
	if o := a.Origin(hidden, github, false); o != (proto.Origin{Upstream: Hidden}) {
		t.Errorf("not sealed: %v", o)
	}
	manifest := github
	manifest.Manifest = true
	name := proto.Blob{Digest: a.Name(hidden.Digest), Size: hidden.Size}
	for _, o := range []proto.Origin{github, manifest} {
		said := a.Origin(hidden, o, true)
		for _, secret := range []string{github.Upstream, github.Repository, hidden.Digest.Hex()} {
			if strings.Contains(said.String(), secret) {
				t.Errorf("%q can be read in %v", secret, said)
			}
		}
		if b, real, err := seed.Open(name, said); err != nil || b != hidden || real != o {
			t.Errorf("opened as %v %v, %v", b, real, err)
		}
		if _, _, err := stranger.Open(name, said); !errors.Is(err, ErrNote) {
			t.Errorf("a stranger opens it: %v", err)
		}
		if _, _, err := seed.Open(proto.Blob{Digest: a.Name(blob("other").Digest), Size: 5}, said); !errors.Is(err, ErrNote) {
			t.Errorf("opened for another blob: %v", err)
		}
		for i := range said.Repository {
			bent := []byte(said.Repository)
			bent[i] = bent[i]%2 + 'A' + bent[i]%16
			if string(bent) == said.Repository {
				continue
			}
			if _, real, err := seed.Open(name, proto.Origin{Upstream: Hidden, Repository: string(bent)}); err == nil && real != o {
				t.Fatalf("byte %d changed: %v", i, real)
			}
		}
	}
	long := proto.Origin{Upstream: "ghcr.io", Repository: strings.Repeat("r", 1000)}
	if o := a.Origin(hidden, long, true); o.Repository != "" {
		t.Errorf("a note of %d bytes", len(o.Repository))
	}
}

// A seed that is called for a private blob treats it as private, though it has
// no link of it itself, and though it knows no private upstream.
func TestOpenedIsPrivate(t *testing.T) {
	t.Parallel()
	a := of("a", secretA)
	seed := New(Config{Self: "seed", Secrets: func() [][]byte { return [][]byte{secretA} }})
	name := proto.Blob{Digest: a.Name(hidden.Digest), Size: hidden.Size}
	if _, _, err := seed.Open(name, a.Origin(hidden, github, true)); err != nil {
		t.Fatal(err)
	}
	if seed.Name(hidden.Digest) != name.Digest {
		t.Error("the seed calls it by its digest")
	}
	if _, ok := seed.Real(hidden.Digest); ok {
		t.Error("the seed gives it in the clear")
	}
	seed.Published(hidden.Digest)
	if d, ok := seed.Real(hidden.Digest); !ok || d != hidden.Digest {
		t.Error("it stays hidden after it was published")
	}
	if _, ok := seed.Real(name.Digest); !ok {
		t.Error("its alias is not known any more")
	}
}

// A seed that is called in the clear brings it in the clear, though it has no
// link of it that says it is public; unless it has it as a private one, or the
// pull fails.
func TestOpenInTheClear(t *testing.T) {
	t.Parallel()
	seed := of("seed", secretA)
	b, o, err := seed.Open(hidden, github)
	if err != nil || b != hidden || o != github {
		t.Fatalf("opened as %v %v, %v", b, o, err)
	}
	if _, ok := seed.Real(hidden.Digest); ok {
		t.Error("it counts as public because somebody said so")
	}
	seed.Clear(hidden.Digest)()
	if _, ok := seed.Real(hidden.Digest); ok {
		t.Error("it counts as public after all")
	}
	seed.Clear(hidden.Digest)
	if d, ok := seed.Real(hidden.Digest); !ok || d != hidden.Digest || seed.Name(hidden.Digest) != hidden.Digest {
		t.Error("it does not count as public")
	}
	s := seed.Join(hidden.Digest, nil, nil, func(proto.Digest, func() *proto.Join) Swarm { return &recorder{} })
	s.Close(hidden, false)
	if _, ok := seed.Real(hidden.Digest); ok || seed.Name(hidden.Digest) == hidden.Digest {
		t.Error("it counts as public though the pull has failed")
	}
	if _, _, err := seed.Open(hidden, github); !errors.Is(err, ErrNote) {
		t.Errorf("what is private here is brought in the clear: %v", err)
	}
	if _, _, err := seed.Open(proto.Blob{Digest: seed.Name(hidden.Digest)}, github); !errors.Is(err, ErrNote) {
		t.Errorf("an alias is brought from an origin: %v", err)
	}
}

// recorder is a Swarm that keeps what it is told.
type recorder struct {
	said   []proto.Message
	closed []proto.Blob
}

func (r *recorder) Events() <-chan proto.Message { return nil }
func (r *recorder) Report(m proto.Message)       { r.said = append(r.said, m) }
func (r *recorder) Close(b proto.Blob, _ bool)   { r.closed = append(r.closed, b) }
func ofNode(d proto.Digest) []proto.Message {
	return []proto.Message{
		&proto.Done{Digest: d, Lease: 1, Index: 2, Took: 3}, &proto.Fail{Digest: d, Lease: 1, Cause: 2}, &proto.Near{Digest: d, Lease: 1},
		&proto.Await{Digest: d, Index: 2}, &proto.Part{Digest: d}, &proto.Decline{Digest: d, Reason: "no"},
		&proto.Sums{Digest: d, First: 1}, &proto.Join{Blob: proto.Blob{Digest: d, Size: 7}, Origin: github, Await: -1},
	}
}

// Of what a node says of a blob only the name is another one, and nothing is
// changed in place.
func TestRename(t *testing.T) {
	t.Parallel()
	name := of("a", secretA).Name(hidden.Digest)
	for i, m := range ofNode(hidden.Digest) {
		got := rename(m, name)
		if want := ofNode(name)[i]; !reflect.DeepEqual(got, want) {
			t.Errorf("%T became %+v, want %+v", m, got, want)
		}
		if d, ok := subject(got); !ok || d != name {
			t.Errorf("%T is about %s, want %s", got, d, name)
		}
		if !reflect.DeepEqual(m, ofNode(hidden.Digest)[i]) {
			t.Errorf("%T was changed", m)
		}
	}
	if ping := (&proto.Ping{Seq: 1}); rename(ping, name) != proto.Message(ping) {
		t.Error("a Ping was copied")
	}
}

// subject returns the blob that a message of a node is about.
func subject(m proto.Message) (proto.Digest, bool) {
	switch m := m.(type) {
	case *proto.Join:
		return m.Blob.Digest, true
	case *proto.Done:
		return m.Digest, true
	case *proto.Fail:
		return m.Digest, true
	case *proto.Near:
		return m.Digest, true
	case *proto.Await:
		return m.Digest, true
	case *proto.Part:
		return m.Digest, true
	case *proto.Decline:
		return m.Digest, true
	case *proto.Sums:
		return m.Digest, true
	}
	return proto.Digest{}, false
}

// A session speaks of its blob by one name from its beginning to its end, though
// the secret changes and the blob becomes public.
func TestSession(t *testing.T) {
	t.Parallel()
	secrets, private := [][]byte{secretA}, true
	v := New(Config{Self: "a", Secrets: func() [][]byte { return secrets }, Private: func(proto.Digest) bool { return private }})
	name := v.Name(hidden.Digest)
	r := &recorder{}
	var joins func() *proto.Join
	state := func() *proto.Join { return &proto.Join{Blob: hidden, Origin: github} }
	sealed := func(o proto.Origin) bool { return o == github }
	s := v.Join(hidden.Digest, state, sealed, func(d proto.Digest, state func() *proto.Join) Swarm {
		if d != name {
			t.Errorf("joined as %s", d)
		}
		joins = state
		return r
	})
	check := func(d proto.Digest) {
		t.Helper()
		if d != name {
			t.Errorf("speaks of %s, has joined as %s", d, name)
		}
	}
	for range 3 {
		j := joins()
		check(j.Blob.Digest)
		if j.Origin.Upstream != Hidden {
			t.Errorf("tells of the origin %v", j.Origin)
		}
		r.said = nil
		for _, m := range ofNode(hidden.Digest) {
			s.Report(m)
		}
		for _, m := range r.said {
			d, _ := subject(m)
			check(d)
		}
		if secrets[0] = secretB; !private {
			break
		}
		private = len(secrets[0]) == 0
	}
	s.Close(hidden, true)
	check(r.closed[0].Digest)

	private = false
	if s := v.Join(public.Digest, state, sealed, func(proto.Digest, func() *proto.Join) Swarm { return r }); s != Swarm(r) {
		t.Error("the session of a public blob is wrapped")
	}
}

func TestHeldAndAliases(t *testing.T) {
	t.Parallel()
	v := of("a", secretA, secretB)
	held := v.Held(public, hidden)
	want := []proto.Blob{public, {Digest: of("", secretA).Name(hidden.Digest), Size: hidden.Size}, {Digest: of("", secretB).Name(hidden.Digest), Size: hidden.Size}}
	if !slices.Equal(held, want) {
		t.Errorf("holds %v, want %v", held, want)
	}
	if got := v.Aliases(hidden.Digest); !slices.Equal(got, []proto.Digest{want[1].Digest, want[2].Digest}) {
		t.Errorf("aliases %v", got)
	}
	if got := v.Aliases(public.Digest); !slices.Equal(got, []proto.Digest{public.Digest}) {
		t.Errorf("aliases of a public one %v", got)
	}
}

// What is remembered is bounded, by forgetting.
func TestBounded(t *testing.T) {
	t.Parallel()
	v := of("a", secretA, secretB)
	v.most = 10
	var last proto.Digest
	for i := range 100 {
		last = proto.DigestOf([]byte(fmt.Sprint(i)))
		v.Name(last)
	}
	if len(v.names) != 10 || len(v.reals) != 20 {
		t.Errorf("%d digests and %d aliases are remembered", len(v.names), len(v.reals))
	}
	if d, ok := v.Real(v.Name(last)); !ok || d != last {
		t.Error("the last is not among them")
	}
	for d := range v.names {
		v.Forget(d)
	}
	if len(v.reals) != 0 {
		t.Errorf("%d aliases are left", len(v.reals))
	}
}

// Everything at the same time, for the race detector.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	secrets := [][]byte{secretA}
	v := New(Config{Self: "a", Private: func(proto.Digest) bool { return true }, Secrets: func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return secrets
	}})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 200 {
				if i == 0 {
					mu.Lock()
					secrets = [][][]byte{{secretA}, {secretA, secretB}, {secretB, secretA}}[j%3]
					mu.Unlock()
				}
				name, capability := v.Ask(hidden.Digest)
				if _, ok := v.Give(name, "a", capability); !ok && i < 0 {
					t.Error("not given")
				}
				v.Held(hidden)
				v.Published(hidden.Digest)
			}
		})
	}
	all.Wait()
}

func FuzzAdmit(f *testing.F) {
	v := of("a", secretA)
	v.now = func() time.Time { return time.Unix(1763754000, 0) } // the same in all processes of a run
	good := v.Capability(hidden.Digest)
	for _, s := range []string{good, good[:40], "1.a.99999999999999.AAAA", "1...", strings.Repeat(".", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := v.Admit(hidden.Digest, "a", s); err == nil && s != good {
			t.Fatalf("a forged capability %q was accepted", s)
		}
	})
}

func FuzzOpen(f *testing.F) {
	a, seed := of("a", secretA), of("seed", secretA)
	name := proto.Blob{Digest: a.Name(hidden.Digest), Size: hidden.Size}
	good := a.Origin(hidden, github, true).Repository
	for _, s := range []string{good, good[:30], "", "AAAA", strings.Repeat("A", 1100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, o, err := seed.Open(name, proto.Origin{Upstream: Hidden, Repository: s})
		if err == nil && (b != hidden || o != github) {
			t.Fatalf("the forged note %q was opened as %v %v", s, b, o)
		}
	})
}

// BenchmarkAsk is what a private blob costs its asker for each request, beside
// what a public one does.
func BenchmarkAsk(b *testing.B) {
	for name, d := range map[string]proto.Digest{"private": hidden.Digest, "public": public.Digest} {
		b.Run(name, func(b *testing.B) {
			v := of("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", secretA)
			b.ReportAllocs()
			for b.Loop() {
				v.Ask(d)
			}
		})
	}
}

// BenchmarkGive is what a private blob costs its holder for each request.
func BenchmarkGive(b *testing.B) {
	v := of("a", secretA)
	for what, d := range map[string]proto.Digest{"private": hidden.Digest, "public": public.Digest} {
		b.Run(what, func(b *testing.B) {
			name, capability := v.Ask(d)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := v.Give(name, "a", capability); !ok {
					b.Fatal("not given")
				}
			}
		})
	}
}
