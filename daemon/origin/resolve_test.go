package origin_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	other := proto.DigestOf([]byte("something else"))
	for _, tc := range []struct {
		name   string
		faults registry.Faults
		ref    func(img registry.Image) origin.Ref
		err    error
		heads  int
		gets   int
	}{
		{"tag", registry.Faults{}, byTag, nil, 1, 0},
		{"digest", registry.Faults{}, byDigest, nil, 1, 0},
		{"tag, poor HEAD", registry.Faults{NoLength: true}, byTag, nil, 1, 1},
		{"digest, poor HEAD", registry.Faults{NoLength: true}, byDigest, nil, 1, 1},
		{"digest, wrong digest header", registry.Faults{WrongDigest: true}, byDigest, origin.ErrProtocol, 1, 0},
		{"tag, poor HEAD and wrong digest in GET", registry.Faults{NoLength: true, WrongDigest: true}, byTag, origin.ErrProtocol, 1, 1},
		{"unavailable", registry.Faults{ManifestStatus: 503}, byTag, origin.ErrUnavailable, 4, 0},
		{"denied", registry.Faults{ManifestStatus: 403}, byTag, origin.ErrDenied, 1, 0},
		{"no HEAD, and GET neither", registry.Faults{ManifestStatus: 405}, byTag, origin.ErrProtocol, 1, 1},
		{"another tag", registry.Faults{}, func(img registry.Image) origin.Ref {
			return origin.Ref{Upstream: upstream, Repository: repository, Tag: "2", Manifest: true}
		}, origin.ErrNotFound, 1, 0},
		{"another digest", registry.Faults{}, func(img registry.Image) origin.Ref {
			return origin.Ref{Upstream: upstream, Repository: repository, Digest: other, Manifest: true}
		}, origin.ErrNotFound, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, base := startRegistry(t, registry.Options{})
			img, err := registry.PushImage(t.Context(), base, repository, "1", []int64{1000}, 1)
			if err != nil {
				t.Fatal(err)
			}
			r.SetFaults(tc.faults)
			r.Reset()
			d, err := newClient(t, at(base)).Resolve(t.Context(), tc.ref(img))
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			want := origin.Descriptor{Blob: img.Manifest, MediaType: img.MediaType}
			if tc.err != nil {
				want = origin.Descriptor{}
			}
			if d != want {
				t.Errorf("%v, want %v", d, want)
			}
			if c := r.Count(); c.ManifestHeads != tc.heads || c.ManifestGets != tc.gets {
				t.Errorf("%d HEADs and %d GETs, want %d and %d", c.ManifestHeads, c.ManifestGets, tc.heads, tc.gets)
			}
		})
	}
}

func byTag(registry.Image) origin.Ref {
	return origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}
}

func byDigest(img registry.Image) origin.Ref {
	return origin.Ref{Upstream: upstream, Repository: repository, Digest: img.Manifest.Digest, Manifest: true}
}

func TestResolveBlob(t *testing.T) {
	t.Parallel()
	_, base := startRegistry(t, registry.Options{})
	_, b := push(t, base, 2, 1000)
	c := newClient(t, at(base))
	ref := origin.Ref{Upstream: upstream, Repository: repository, Digest: b.Digest}
	if d, err := c.Resolve(t.Context(), ref); err != nil || d.Blob != b {
		t.Errorf("%v, %v; want %v", d, err, b)
	}
	ref.Digest = proto.DigestOf([]byte("something else"))
	if d, err := c.Resolve(t.Context(), ref); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("a blob that is not there: %v, %v", d, err)
	}
}

func TestResolveRefusesWhatIsNotValid(t *testing.T) {
	t.Parallel()
	c := newClient(t, at("http://127.0.0.1:1"))
	d := proto.DigestOf(nil)
	for _, ref := range []origin.Ref{
		{Upstream: upstream, Repository: "UPPER", Digest: d},
		{Upstream: upstream, Repository: "a/../b", Digest: d},
		{Upstream: upstream, Repository: "a", Tag: "../b", Manifest: true},
		{Upstream: upstream, Repository: "a", Manifest: true},
		{Upstream: upstream, Repository: "a", Tag: "1"},
	} {
		if _, err := c.Resolve(t.Context(), ref); err == nil || errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("Resolve(%v): %v, want a refusal before anybody is asked", ref, err)
		}
	}
	if _, err := c.Resolve(t.Context(), origin.Ref{Upstream: "elsewhere.test", Repository: "a", Digest: d}); !errors.Is(err, origin.ErrUnknownUpstream) {
		t.Errorf("%v, want ErrUnknownUpstream", err)
	}
}

// Registries that exist in the field but that distribution is not like.
func TestResolveAtOddRegistries(t *testing.T) {
	t.Parallel()
	const mediaType = "application/vnd.oci.image.index.v1+json"
	manifest := []byte(`{"schemaVersion": 2, "mediaType": "` + mediaType + `", "manifests": []}`)
	sum := sha512.Sum512(manifest)
	long, err := proto.ParseDigest("sha512:" + hex.EncodeToString(sum[:]))
	if err != nil {
		t.Fatal(err)
	}
	tag := origin.Ref{Upstream: upstream, Repository: repository, Tag: "1", Manifest: true}
	at512 := origin.Ref{Upstream: upstream, Repository: repository, Digest: long, Manifest: true}
	blob := origin.Ref{Upstream: upstream, Repository: repository, Digest: proto.DigestOf(manifest)}
	described := origin.Descriptor{Blob: proto.Blob{Digest: proto.DigestOf(manifest), Size: int64(len(manifest))}, MediaType: mediaType}
	described512 := described
	described512.Blob.Digest = long
	justBlob := origin.Descriptor{Blob: described.Blob}
	huge := func(w http.ResponseWriter, n int) { _, _ = w.Write(bytes.Repeat([]byte(" "), n)) }
	for _, tc := range []struct {
		name  string
		ref   origin.Ref
		serve func(w http.ResponseWriter, req *http.Request)
		want  origin.Descriptor
		err   error
	}{
		{"no HEAD", tag, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			w.Header().Set("Content-Type", mediaType+"; charset=utf-8")
			_, _ = w.Write(manifest)
		}, described, nil},
		{"no media type", tag, func(w http.ResponseWriter, req *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = w.Write(manifest)
		}, described, nil},
		{"sha512", at512, func(w http.ResponseWriter, req *http.Request) {
			if !strings.HasSuffix(req.URL.Path, long.String()) {
				w.WriteHeader(http.StatusNotFound)
			}
			w.Header()["Content-Type"] = nil // so that it is read
			w.Header().Set("Docker-Content-Digest", proto.DigestOf(manifest).String())
			_, _ = w.Write(manifest)
		}, described512, nil},
		{"GET with other bytes", at512, func(w http.ResponseWriter, req *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = w.Write([]byte("{}"))
		}, origin.Descriptor{}, origin.ErrProtocol},
		{"HEAD of too much", tag, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(origin.MaxManifest+1))
		}, origin.Descriptor{}, origin.ErrTooLarge},
		{"GET of too much", tag, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				huge(w, origin.MaxManifest+1)
			}
		}, origin.Descriptor{}, origin.ErrTooLarge},
		{"endless GET", tag, func(w http.ResponseWriter, req *http.Request) {
			for req.Method == http.MethodGet {
				if _, err := w.Write(manifest); err != nil {
					return
				}
			}
		}, origin.Descriptor{}, origin.ErrTooLarge},
		{"blob without HEAD", blob, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(manifest))
		}, justBlob, nil},
		{"blob without HEAD and Range", blob, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.WriteHeader(http.StatusNotImplemented)
				return
			}
			_, _ = w.Write(manifest)
		}, justBlob, nil},
		{"blob without any length", blob, func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		}, origin.Descriptor{}, origin.ErrProtocol},
		{"blob of a petabyte", blob, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<50))
		}, origin.Descriptor{}, origin.ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(tc.serve))
			t.Cleanup(s.Close)
			d, err := newClient(t, at(s.URL)).Resolve(t.Context(), tc.ref)
			if !errors.Is(err, tc.err) || d != tc.want {
				t.Errorf("%v, %v; want %v, %v", d, err, tc.want, tc.err)
			}
		})
	}
}
