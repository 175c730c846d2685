package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const upstream = "registry.test"

// A bed is a Gate with a real index in front of a real registry.
type bed struct {
	gate  *Gate
	index *cache.Index
	reg   *registry.Registry
	url   string

	mu sync.Mutex // protects the fields below
	// front, if not nil, sees the registry's requests first. True: answered.
	front func(w http.ResponseWriter, r *http.Request) bool
}

func newBed(t *testing.T, rules ...Rule) *bed {
	t.Helper()
	b := &bed{reg: registry.New(registry.Options{})}
	t.Cleanup(b.reg.Close)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		front := b.front
		b.mu.Unlock()
		if front == nil || !front(w, r) {
			b.reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	b.url = server.URL
	client, err := origin.New(origin.Config{
		Upstreams: map[string]origin.Upstream{upstream: {URLs: []string{server.URL}}},
		Backoff:   time.Millisecond,
		Tries:     1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b.index = c.Index()
	b.gate = New(Config{Origin: client, Index: b.index, Allow: rules})
	return b
}

func (b *bed) setFront(front func(w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.front = front
}

func (b *bed) push(t *testing.T, repository, tag string, layers ...int64) registry.Image {
	t.Helper()
	img, err := registry.PushImage(t.Context(), b.url, repository, tag, layers, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.reg.Reset()
	return img
}

func blobRef(repository string, d proto.Digest) origin.Ref {
	return origin.Ref{Upstream: upstream, Repository: repository, Digest: d}
}

func TestAdmitRemembers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000)
	for range 3 {
		d, err := b.gate.Admit(t.Context(), blobRef("team/app", img.Layers[0].Digest), Caller{})
		if err != nil {
			t.Fatal(err)
		}
		if d.Blob != img.Layers[0] {
			t.Errorf("Admit = %v, want %v", d.Blob, img.Layers[0])
		}
	}
	if n := b.reg.Count(); n.BlobHeads != 1 || n.BlobGets != 0 {
		t.Errorf("3 times the same blob: %+v at the origin, want 1 HEAD", n)
	}
}

// Knowing a digest is not permission: what one repository has is not another's
// until the origin says so.
func TestAdmitIsPerRepository(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000)
	layer := img.Layers[0]
	if _, err := b.gate.Admit(t.Context(), blobRef("team/app", layer.Digest), Caller{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.gate.Admit(t.Context(), blobRef("team/other", layer.Digest), Caller{}); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("Admit of a blob that is in another repository = %v, want ErrNotFound", err)
	}
	elsewhere := blobRef("team/app", layer.Digest)
	elsewhere.Upstream = "other.test"
	if _, err := b.gate.Admit(t.Context(), elsewhere, Caller{}); !errors.Is(err, origin.ErrUnknownUpstream) {
		t.Errorf("Admit of a blob that is at another upstream = %v, want ErrUnknownUpstream", err)
	}
	b.push(t, "team/other", "1", 1000) // the same layer
	if _, err := b.gate.Admit(t.Context(), blobRef("team/other", layer.Digest), Caller{}); err != nil {
		t.Errorf("Admit after the other repository has it: %v", err)
	}
	if n := b.reg.Count(); n.BlobHeads != 1 {
		t.Errorf("%d HEADs at the origin, want 1", n.BlobHeads)
	}
}

func TestAdmitResolvesTagsAtTheOrigin(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ref := origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}
	for size := range int64(3) {
		img := b.push(t, "team/app", "1", 1000+size)
		d, err := b.gate.Admit(t.Context(), ref, Caller{})
		if err != nil {
			t.Fatal(err)
		}
		if d.Blob != img.Manifest || d.MediaType != img.MediaType {
			t.Errorf("Admit of a tag that moved = %v %s, want %v %s", d.Blob, d.MediaType, img.Manifest, img.MediaType)
		}
		// By its digest the manifest is known now, with its type.
		byDigest := ref
		byDigest.Tag, byDigest.Digest = "", img.Manifest.Digest
		if got, err := b.gate.Admit(t.Context(), byDigest, Caller{}); err != nil || got != d {
			t.Errorf("Admit by digest = %v, %v, want %v", got, err, d)
		}
		if n := b.reg.Count(); n.ManifestHeads != 1 || n.ManifestGets != 0 {
			t.Errorf("%+v at the origin, want 1 HEAD of a manifest", n)
		}
	}
}

func TestLearnSavesQuestions(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000, 2000)
	ds, err := b.gate.Learn(upstream, "team/app", img.Raw, img.MediaType)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range img.Blobs() {
		if ds[i].Blob != want {
			t.Errorf("Learn: descriptor %d is %v, want %v", i, ds[i].Blob, want)
		}
		d, err := b.gate.Admit(t.Context(), blobRef("team/app", want.Digest), Caller{})
		if err != nil || d.Blob != want {
			t.Errorf("Admit = %v, %v, want %v", d.Blob, err, want)
		}
	}
	if n := b.reg.Count(); n != (registry.Counts{}) {
		t.Errorf("what a manifest had said was asked again: %+v", n)
	}
	// What it said counts for its repository alone.
	if _, err := b.gate.Admit(t.Context(), blobRef("team/other", img.Layers[0].Digest), Caller{}); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("Admit for another repository = %v, want ErrNotFound", err)
	}
}

func TestLinkOfOneKindDoesNotAnswerForTheOther(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000)
	if _, err := b.gate.Learn(upstream, "team/app", img.Raw, img.MediaType); err != nil {
		t.Fatal(err)
	}
	layer := blobRef("team/app", img.Layers[0].Digest)
	layer.Manifest = true
	if d, err := b.gate.Admit(t.Context(), layer, Caller{}); err == nil {
		t.Errorf("Admit of a layer as a manifest = %v", d)
	}
	if n := b.reg.Count(); n.ManifestHeads == 0 {
		t.Error("the origin was not asked whether a layer is a manifest")
	}
	manifest := origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}
	if _, err := b.gate.Admit(t.Context(), manifest, Caller{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.gate.Admit(t.Context(), blobRef("team/app", img.Manifest.Digest), Caller{}); err != nil {
		t.Fatal(err) // distribution has it under both paths, others do not
	}
	if n := b.reg.Count(); n.BlobHeads != 1 {
		t.Error("the origin was not asked whether a manifest is a blob")
	}
}

func TestAdmitRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000)
	ref := origin.Ref{Upstream: upstream, Repository: "team/app", Digest: img.Manifest.Digest, Manifest: true}
	index := fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, img.MediaType, img.Manifest.Digest, origin.MaxManifest+1)
	if _, err := b.gate.Learn(upstream, "team/app", []byte(index), typeOCIIndex); err != nil {
		t.Fatal(err)
	}
	if _, err := b.gate.Admit(t.Context(), ref, Caller{}); !errors.Is(err, origin.ErrTooLarge) {
		t.Errorf("Admit of a manifest that its index calls too large = %v, want ErrTooLarge", err)
	}
	b.gate.Forget(ref)
	if _, err := b.gate.Admit(t.Context(), ref, Caller{}); err != nil {
		t.Errorf("Admit after Forget = %v", err)
	}
	b.gate.Forget(origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1"}) // nothing to forget
}

func TestRulesComeFirst(t *testing.T) {
	t.Parallel()
	b := newBed(t, AllowRepositories(upstream, []string{"public/*"}))
	b.push(t, "public/app", "1", 1000)
	img := b.push(t, "private/app", "1", 1000)
	// Not even a remembered link helps.
	if _, err := b.gate.Learn(upstream, "private/app", img.Raw, img.MediaType); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []origin.Ref{
		blobRef("private/app", img.Layers[0].Digest),
		{Upstream: upstream, Repository: "private/app", Tag: "1", Manifest: true},
	} {
		if _, err := b.gate.Admit(t.Context(), ref, Caller{}); !errors.Is(err, ErrDenied) {
			t.Errorf("Admit(%+v) = %v, want ErrDenied", ref, err)
		}
		if err := b.gate.Check(t.Context(), ref, Caller{}); !errors.Is(err, ErrDenied) {
			t.Errorf("Check(%+v) = %v, want ErrDenied", ref, err)
		}
	}
	if n := b.reg.Count(); n != (registry.Counts{}) {
		t.Errorf("the origin was asked for what the rules refuse: %+v", n)
	}
	if _, err := b.gate.Admit(t.Context(), blobRef("public/app", img.Layers[0].Digest), Caller{}); err != nil {
		t.Errorf("Admit of an allowed repository: %v", err)
	}
}

// asked is a context that tells when somebody waits for its end, which in Admit
// is after joining the lookup of another.
type asked struct {
	context.Context
	once *sync.Once
	wait chan<- struct{}
}

func (a asked) Done() <-chan struct{} {
	a.once.Do(func() { a.wait <- struct{}{} })
	return a.Context.Done()
}

// crowd starts a leader that asks for ref, and n others once the leader's
// question is at the origin, which keeps it until release is called. It returns
// when all wait.
func crowd(t *testing.T, b *bed, leader context.Context, ref origin.Ref, n int) (results <-chan error, first <-chan error, release func()) {
	t.Helper()
	arrived, held := make(chan struct{}, n+1), make(chan struct{})
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		arrived <- struct{}{}
		select {
		case <-held:
		case <-r.Context().Done():
		}
		return false
	})
	one, others := make(chan error, 1), make(chan error, n)
	go func() {
		_, err := b.gate.Admit(leader, ref, Caller{})
		one <- err
	}()
	<-arrived
	waiting := make(chan struct{}, n)
	for range n {
		go func() {
			_, err := b.gate.Admit(asked{t.Context(), new(sync.Once), waiting}, ref, Caller{})
			others <- err
		}()
	}
	for range n {
		<-waiting
	}
	return others, one, sync.OnceFunc(func() { close(held) })
}

func TestAdmitAsksOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.push(t, "team/app", "1", 1000)
	others, first, release := crowd(t, b, t.Context(), origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}, 8)
	release()
	if err := <-first; err != nil {
		t.Error(err)
	}
	for range cap(others) {
		if err := <-others; err != nil {
			t.Error(err)
		}
	}
	if n := b.reg.Count(); n.ManifestHeads != 1 {
		t.Errorf("9 callers at once: %d HEADs at the origin, want 1", n.ManifestHeads)
	}
}

func TestAdmitOutlivesTheFirstCaller(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.push(t, "team/app", "1", 1000)
	leader, leave := context.WithCancel(t.Context())
	others, first, release := crowd(t, b, leader, origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}, 8)
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller who left got %v, want context.Canceled", err)
	}
	release()
	for range cap(others) {
		if err := <-others; err != nil {
			t.Errorf("a caller who stayed got %v", err)
		}
	}
}

func TestAdmitLetsAWaitingCallerGo(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.push(t, "team/app", "1", 1000)
	ref := origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}
	others, first, release := crowd(t, b, t.Context(), ref, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.gate.Admit(ctx, ref, Caller{}) // while the leader's question is held
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "registry.test/team/app:1") {
		t.Errorf("Admit with a context that has ended = %v, want context.Canceled and the name", err)
	}
	release()
	if err := errors.Join(<-first, <-others); err != nil {
		t.Error(err)
	}
}

func TestAdmitFailsAsTheOriginDoes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ref := origin.Ref{Upstream: upstream, Repository: "team/app", Tag: "1", Manifest: true}
	for status, want := range map[int]error{
		401: origin.ErrDenied, 403: origin.ErrDenied, 404: origin.ErrNotFound,
		429: origin.ErrUnavailable, 500: origin.ErrUnavailable, 503: origin.ErrUnavailable,
	} {
		b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(status)
			return true
		})
		if _, err := b.gate.Admit(t.Context(), ref, Caller{}); !errors.Is(err, want) {
			t.Errorf("the origin answers %d: Admit = %v, want %v", status, err, want)
		}
	}
	// Nothing of it is remembered.
	b.setFront(nil)
	b.push(t, "team/app", "1", 1000)
	if _, err := b.gate.Admit(t.Context(), ref, Caller{}); err != nil {
		t.Errorf("Admit after the origin's recovery = %v", err)
	}
}

func TestAdmitAsksWhenTheIndexFails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	img := b.push(t, "team/app", "1", 1000)
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	b.gate.index = c.Index() // closed: every call of it fails
	d, err := b.gate.Admit(t.Context(), blobRef("team/app", img.Layers[0].Digest), Caller{})
	if err != nil || d.Blob != img.Layers[0] {
		t.Errorf("Admit with a broken index = %v, %v", d.Blob, err)
	}
	if ds, err := b.gate.Learn(upstream, "team/app", img.Raw, img.MediaType); err != nil || len(ds) != 2 {
		t.Errorf("Learn with a broken index = %v, %v", ds, err)
	}
	b.gate.Forget(blobRef("team/app", img.Layers[0].Digest))
}
