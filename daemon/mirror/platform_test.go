package mirror

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// here is this node's platform.
const here = runtime.GOOS + "/" + runtime.GOARCH

// entry returns the entry of an index for a platform.
func entry(platform string, b proto.Blob) string {
	os, arch, _ := strings.Cut(platform, "/")
	return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"platform":{"os":%q,"architecture":%q}}`, b.Digest, b.Size, os, arch)
}

// indexOf returns an index of entries.
func indexOf(list ...string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}`, strings.Join(list, ","))
}

func TestForeign(t *testing.T) {
	t.Parallel()
	a, b := proto.Blob{Digest: proto.DigestOf([]byte("a")), Size: 1}, proto.Blob{Digest: proto.DigestOf([]byte("b")), Size: 1}
	for _, tc := range []struct {
		name  string
		index []byte
		want  bool // b is foreign
	}{
		{"another platform", indexOf(entry(here, a), entry("linux/riscv64", b)), true},
		{"an attestation", indexOf(entry(here, a), entry("unknown/unknown", b)), true},
		{"two of this platform", indexOf(entry(here, a), entry(here, b)), false},
		{"nothing for this platform", indexOf(entry("plan9/mips", a), entry("linux/riscv64", b)), false},
		{"no platform", indexOf(entry(here, a), fmt.Sprintf(`{"digest":%q}`, b.Digest)), false},
		{"no index", []byte("nothing"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var f foreign
			f.learn(tc.index)
			if f.has(a.Digest) || f.has(b.Digest) != tc.want {
				t.Errorf("foreign are a: %t, b: %t; want false, %t", f.has(a.Digest), f.has(b.Digest), tc.want)
			}
		})
	}
}

func TestForeignIsBounded(t *testing.T) {
	t.Parallel()
	var f foreign
	name := func(i int) proto.Digest { return proto.DigestOf([]byte{byte(i), byte(i >> 8)}) }
	for i := range maxForeign + 10 {
		f.add(name(i))
	}
	if len(f.is) != maxForeign || len(f.last) != maxForeign || f.has(name(9)) || !f.has(name(10)) || !f.has(name(maxForeign+9)) {
		t.Errorf("%d are remembered, want the last %d", len(f.is), maxForeign)
	}
}

// TestOtherPlatformsAreNotStarted: a client that fetches the manifests of all
// platforms, as containerd 2 does, has the layers of its own one started only;
// those of another one come when they are asked for.
func TestOtherPlatformsAreNotStarted(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var joined []proto.Digest
	started := func(img registry.Image) int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, l := range img.Layers {
			if slices.Contains(joined, l.Digest) {
				n++
			}
		}
		return n
	}
	b := newBed(t, options{prefetch: true, join: func(d proto.Digest) {
		mu.Lock()
		defer mu.Unlock()
		joined = append(joined, d)
	}})
	ours, other := b.push(t, "team/app", "ours", 1000, 2000), b.push(t, "team/app", "other", 3000, 4000)
	index := indexOf(entry(here, ours.Manifest), entry("linux/riscv64", other.Manifest))
	if err := registry.PushManifest(t.Context(), b.regURL, "team/app", "1", "application/vnd.oci.image.index.v1+json", index); err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{"1", other.Manifest.Digest.String(), ours.Manifest.Digest.String()} {
		if a := b.get(t, manifestPath("team/app", reference)); a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", reference, a.status, a.body)
		}
	}
	if got, want := started(ours), len(ours.Layers); got != want {
		t.Errorf("%d layers of this platform were started, want %d", got, want)
	}
	if got := started(other); got != 0 {
		t.Errorf("%d layers of another platform were started", got)
	}
	want := other.Layers[0]
	if a := b.get(t, blobPath("team/app", want.Digest)); a.status != http.StatusOK || proto.DigestOf(a.body) != want.Digest {
		t.Errorf("a layer of another platform that is asked for: %d, %d bytes", a.status, len(a.body))
	}
}
