package origin_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/daemon/pull/pulltest"
	"github.com/shoal-project/shoal/proto"
)

const (
	upstream   = "registry.test"
	repository = "library/app"
)

// startRegistry starts a real registry.
func startRegistry(t *testing.T, o registry.Options) (*registry.Registry, string) {
	t.Helper()
	r := registry.New(o)
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	t.Cleanup(r.Close)
	return r, s.URL
}

// push pushes size bytes as a blob and returns them.
func push(t *testing.T, url string, seed uint64, size int) ([]byte, proto.Blob) {
	t.Helper()
	content, b := pulltest.Content(seed, size)
	if err := registry.PushBlob(t.Context(), url, repository, content); err != nil {
		t.Fatal(err)
	}
	return content, b
}

// newClient returns a client of one upstream, quick to retry.
func newClient(t *testing.T, u origin.Upstream, change ...func(*origin.Config)) *origin.Client {
	t.Helper()
	cfg := origin.Config{
		Upstreams: map[string]origin.Upstream{upstream: u},
		Backoff:   time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := origin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func at(urls ...string) origin.Upstream { return origin.Upstream{URLs: urls} }

var blobOrigin = proto.Origin{Upstream: upstream, Repository: repository}

// fetch fetches r and returns what was written.
func fetch(t *testing.T, c *origin.Client, r proto.Run) ([]byte, error) {
	t.Helper()
	var got bytes.Buffer
	err := c.Source(blobOrigin).Fetch(t.Context(), r, &got)
	return got.Bytes(), err
}

func TestSource(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults registry.Faults
	}{
		{"plain", registry.Faults{}},
		{"redirected", registry.Faults{Redirect: true}},
		{"token", registry.Faults{Auth: registry.AuthToken}},
		{"chunked", registry.Faults{Chunked: true}},
		{"range ignored", registry.Faults{NoRange: true}},
		{"cut", registry.Faults{CutAfter: 100_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, url := startRegistry(t, registry.Options{})
			pulltest.Suite(t, func(t *testing.T, b proto.Blob, content []byte) pull.Source {
				r.SetFaults(registry.Faults{})
				if err := registry.PushBlob(t.Context(), url, repository, content); err != nil {
					t.Fatal(err)
				}
				r.SetFaults(tc.faults)
				return newClient(t, at(url)).Source(blobOrigin)
			})
		})
	}
}

// Each connection is cut after 1 MiB, and yet each byte leaves the origin once.
func TestFetchResumesAfterEachCut(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, tc := range []struct {
		name string
		run  func(b proto.Blob) proto.Run
		gets int
		f    registry.Faults
	}{
		{"whole", proto.Blob.Run, 6, registry.Faults{CutAfter: mib}},
		{"range", func(b proto.Blob) proto.Run { return proto.Run{Blob: b, First: 3, Count: 9} }, 3, registry.Faults{CutAfter: mib}},
		{"without length", proto.Blob.Run, 6, registry.Faults{CutAfter: mib, Chunked: true}},
		{"redirected", proto.Blob.Run, 1, registry.Faults{CutAfter: mib, Redirect: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, url := startRegistry(t, registry.Options{})
			content, b := push(t, url, 1, 5*mib+12345)
			run := tc.run(b)
			r.Reset()
			r.SetFaults(tc.f)
			got, err := fetch(t, newClient(t, at(url)), run)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content[run.Offset():run.Offset()+run.Size()]) {
				t.Error("wrong bytes")
			}
			c := r.Count()
			if _, most := r.Copies(b.Digest); most != 1 || c.BlobBytes != run.Size() {
				t.Errorf("%d bytes left the origin, some of them %d times; want %d once", c.BlobBytes, most, run.Size())
			}
			if c.BlobGets != tc.gets {
				t.Errorf("%d requests at the registry, want %d", c.BlobGets, tc.gets)
			}
		})
	}
}

// What a fault brings: the right bytes, or which error after how many bytes.
func TestFetchFaults(t *testing.T) {
	t.Parallel()
	const size = 2*proto.MinChunk + 1000
	whole := proto.Blob.Run
	middle := func(b proto.Blob) proto.Run { return proto.Run{Blob: b, First: 1, Count: 1} }
	for _, tc := range []struct {
		name    string
		faults  registry.Faults
		run     func(proto.Blob) proto.Run
		err     error // nil: the right bytes
		written int64 // with err
		gets    int   // requests for the blob, if not 0
	}{
		{"none", registry.Faults{}, whole, nil, 0, 1},
		{"fails twice", registry.Faults{FailFirst: 2}, whole, nil, 0, 3},
		{"fails twice with 500", registry.Faults{FailFirst: 2, Status: 500}, middle, nil, 0, 3},
		{"too many requests once", registry.Faults{FailFirst: 1, Status: 429, RetryAfter: "0"}, whole, nil, 0, 2},
		{"unavailable", registry.Faults{Status: 503}, whole, origin.ErrUnavailable, 0, 4},
		{"too many requests", registry.Faults{Status: 429}, whole, origin.ErrUnavailable, 0, 4},
		{"too many requests for long", registry.Faults{Status: 429, RetryAfter: "3600"}, whole, origin.ErrUnavailable, 0, 1},
		{"timeout status", registry.Faults{Status: 408}, whole, origin.ErrUnavailable, 0, 4},
		{"not found", registry.Faults{Status: 404}, whole, origin.ErrNotFound, 0, 1},
		{"gone", registry.Faults{Status: 410}, whole, origin.ErrNotFound, 0, 1},
		{"forbidden", registry.Faults{Status: 403}, whole, origin.ErrDenied, 0, 1},
		{"unauthorized", registry.Faults{Status: 401}, whole, origin.ErrDenied, 0, 1},
		{"legal reasons", registry.Faults{Status: 451}, whole, origin.ErrDenied, 0, 1},
		{"not satisfiable", registry.Faults{Status: 416}, middle, origin.ErrProtocol, 0, 1},
		{"teapot", registry.Faults{Status: 418}, whole, origin.ErrProtocol, 0, 1},
		{"no content", registry.Faults{Status: 204}, whole, origin.ErrProtocol, 0, 1},
		{"short", registry.Faults{ShortBody: true}, whole, origin.ErrProtocol, 0, 1},
		{"short range", registry.Faults{ShortBody: true}, middle, origin.ErrProtocol, proto.MinChunk - 1, 0},
		{"short without length", registry.Faults{ShortBody: true, Chunked: true}, whole, origin.ErrProtocol, size - 1, 0},
		{"long", registry.Faults{LongBody: true}, whole, origin.ErrProtocol, 0, 1},
		{"long range", registry.Faults{LongBody: true}, middle, origin.ErrProtocol, 0, 1},
		{"long without length", registry.Faults{LongBody: true, Chunked: true}, whole, origin.ErrProtocol, size, 1},
		{"wrong digest", registry.Faults{WrongDigest: true}, whole, origin.ErrProtocol, 0, 1},
		{"range ignored", registry.Faults{NoRange: true}, middle, nil, 0, 1},
		{"range ignored without length", registry.Faults{NoRange: true, Chunked: true}, middle, nil, 0, 1},
		{"redirected", registry.Faults{Redirect: true}, middle, nil, 0, 1},
		{"stalls", registry.Faults{StallAfter: 300_000}, whole, nil, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, url := startRegistry(t, registry.Options{})
			content, b := push(t, url, 2, size)
			r.Reset()
			r.SetFaults(tc.faults)
			c := newClient(t, at(url), func(cfg *origin.Config) {
				if tc.faults.StallAfter > 0 {
					cfg.StallTimeout = 250 * time.Millisecond // time_test.go has the real one
				}
			})
			run := tc.run(b)
			got, err := fetch(t, c, run)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			want := content[run.Offset() : run.Offset()+run.Size()]
			if tc.err != nil {
				want = want[:tc.written]
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, want %d others", len(got), len(want))
			}
			if n := r.Count().BlobGets; tc.gets != 0 && n != tc.gets {
				t.Errorf("%d requests, want %d", n, tc.gets)
			}
		})
	}
}

// Short ranges are made up for once the registry behaves.
func TestFetchResumesAfterShortBody(t *testing.T) {
	t.Parallel()
	r, url := startRegistry(t, registry.Options{})
	content, b := push(t, url, 3, 3*proto.MinChunk)
	run := proto.Run{Blob: b, First: 1, Count: 2}
	r.SetFaults(registry.Faults{ShortBody: true})
	r.Reset()
	var got bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) {
		r.SetFaults(registry.Faults{})
		return got.Write(p)
	})
	if err := newClient(t, at(url)).Source(blobOrigin).Fetch(t.Context(), run, w); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), content[run.Offset():]) {
		t.Error("wrong bytes")
	}
	if _, most := r.Copies(b.Digest); most != 1 {
		t.Errorf("some bytes left %d times, want once", most)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestMirrorsInOrder(t *testing.T) {
	t.Parallel()
	empty, emptyURL := startRegistry(t, registry.Options{})
	failing, failingURL := startRegistry(t, registry.Options{})
	good, goodURL := startRegistry(t, registry.Options{})
	content, b := push(t, goodURL, 4, 1000)
	failing.SetFaults(registry.Faults{Status: 500})
	for _, r := range []*registry.Registry{empty, failing, good} {
		r.Reset()
	}
	const nobody = "http://127.0.0.1:1" // nothing listens there
	c := newClient(t, at(nobody, emptyURL, failingURL, goodURL))
	for range 2 {
		got, err := fetch(t, c, b.Run())
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	for i, r := range []*registry.Registry{empty, failing, good} {
		if n := r.Count().BlobGets; n != 2 {
			t.Errorf("mirror %d was asked %d times, want 2", i, n)
		}
	}

	// A cut in the middle is made up for by the next in line.
	cutting, cuttingURL := startRegistry(t, registry.Options{})
	content, b = push(t, goodURL, 5, 4*proto.MinChunk)
	push(t, cuttingURL, 5, 4*proto.MinChunk)
	good.Reset()
	cutting.SetFaults(registry.Faults{CutAfter: 1000})
	got, err := fetch(t, newClient(t, at(cuttingURL, goodURL)), b.Run())
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("after a cut at the first mirror: %d bytes, %v", len(got), err)
	}
	if n := good.Count().BlobBytes; n != b.Size-1000 {
		t.Errorf("the second mirror sent %d bytes, want the %d that were missing", n, b.Size-1000)
	}
}

func TestTotalFailureListsEveryAttempt(t *testing.T) {
	t.Parallel()
	_, emptyURL := startRegistry(t, registry.Options{})
	failing, failingURL := startRegistry(t, registry.Options{})
	failing.SetFaults(registry.Faults{Status: 502})
	_, b := pulltest.Content(6, 1000)
	c := newClient(t, at("http://127.0.0.1:1", emptyURL, failingURL), func(cfg *origin.Config) { cfg.Tries = 2 })
	got, err := fetch(t, c, b.Run())
	if !errors.Is(err, origin.ErrUnavailable) || len(got) != 0 {
		t.Fatalf("%d bytes, %v; want ErrUnavailable: one mirror's 404 proves nothing", len(got), err)
	}
	if errors.Is(err, origin.ErrNotFound) {
		t.Error("the error is of two classes")
	}
	host := func(url string) string { return strings.TrimPrefix(url, "http://") }
	want := fmt.Sprintf("blob %s of registry.test/library/app: unavailable: "+
		"127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; "+
		"%s: 404 Not Found; %[3]s: 502 Bad Gateway; "+
		"127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; %[3]s: 502 Bad Gateway",
		b.Digest, host(emptyURL), host(failingURL))
	if err.Error() != want {
		t.Errorf("error\n%s\nwant\n%s", err, want)
	}
}

// A redirect is asked for once per blob, not once per range, until its target
// refuses.
func TestRedirectIsRemembered(t *testing.T) {
	t.Parallel()
	r, url := startRegistry(t, registry.Options{Users: map[string]string{"ann": "secret"}})
	content, b := push(t, url, 7, 4*proto.MinChunk)
	r.SetFaults(registry.Faults{Redirect: true, Auth: registry.AuthBasic})
	r.Reset()
	u := at(url)
	u.Auth, u.Username, u.Password = origin.AuthNode, "ann", "secret"
	c := newClient(t, u)
	for i := range 4 {
		if i == 2 {
			r.ExpireRedirects()
		}
		got, err := fetch(t, c, proto.Run{Blob: b, First: i, Count: 1})
		if err != nil || !bytes.Equal(got, content[i*proto.MinChunk:(i+1)*proto.MinChunk]) {
			t.Fatalf("chunk %d: %d bytes, %v", i, len(got), err)
		}
	}
	n := r.Count()
	if n.Redirects != 2 || n.Storage != 5 {
		t.Errorf("%d redirects and %d requests at their target, want 2 and 5: one that had expired", n.Redirects, n.Storage)
	}
	if n.Leaks != 0 {
		t.Errorf("Authorization was sent to the object storage %d times", n.Leaks)
	}
}

func TestFetchManifest(t *testing.T) {
	t.Parallel()
	r, url := startRegistry(t, registry.Options{})
	img, err := registry.PushImage(t.Context(), url, repository, "1", []int64{1000}, 8)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, at(url))
	src := c.Source(proto.Origin{Upstream: upstream, Repository: repository, Manifest: true})
	var got bytes.Buffer
	if err := src.Fetch(t.Context(), img.Manifest.Run(), &got); err != nil || !bytes.Equal(got.Bytes(), img.Raw) {
		t.Fatalf("%d bytes, %v", got.Len(), err)
	}
	huge := proto.Blob{Digest: img.Manifest.Digest, Size: origin.MaxManifest + 1}
	if err := src.Fetch(t.Context(), huge.Run(), &got); !errors.Is(err, origin.ErrTooLarge) {
		t.Errorf("a manifest of 4 MiB and a byte: %v, want ErrTooLarge", err)
	}
	r.SetFaults(registry.Faults{WrongDigest: true})
	got.Reset()
	if err := src.Fetch(t.Context(), img.Manifest.Run(), &got); !errors.Is(err, origin.ErrProtocol) || got.Len() != 0 {
		t.Errorf("with a wrong digest header: %d bytes, %v; want ErrProtocol", got.Len(), err)
	}
}

func TestFetchRefusesWhatIsNotValid(t *testing.T) {
	t.Parallel()
	c := newClient(t, at("http://127.0.0.1:1"))
	_, b := pulltest.Content(9, 1000)
	for _, tc := range []struct {
		o   proto.Origin
		r   proto.Run
		err string
	}{
		{proto.Origin{Upstream: "elsewhere.test", Repository: "a"}, b.Run(), "not configured"},
		{proto.Origin{Upstream: upstream, Repository: "../../etc"}, b.Run(), "repository name"},
		{proto.Origin{Upstream: upstream, Repository: "a/../b"}, b.Run(), "repository name"},
		{blobOrigin, proto.Run{Blob: b, First: 1, Count: 1}, "outside blob"},
		{blobOrigin, proto.Run{}, "without a digest"},
	} {
		err := c.Source(tc.o).Fetch(t.Context(), tc.r, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("Fetch of %v at %v: %v, want %q", tc.r, tc.o, err, tc.err)
		}
	}
}
