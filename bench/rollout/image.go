package rollout

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/shoal-project/shoal/proto"
)

const (
	repository = "bench/image"
	tag        = "latest"

	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// config is the image's; nobody runs it.
var config = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)

// An image has layers of random bytes, which are made when they are read.
type image struct {
	seed     uint64
	layers   []proto.Blob
	manifest []byte
	dir      string // where write has put the blobs, each under its digest
	// pushed has the bytes of the blobs from write to close. Those of the layers
	// are the files, mapped.
	pushed map[proto.Digest][]byte
}

// descriptor is the OCI image specification's.
type descriptor struct {
	MediaType string       `json:"mediaType"`
	Digest    proto.Digest `json:"digest"`
	Size      int64        `json:"size"`
}

// newImage returns the image of a seed, with layers of size bytes together, all
// about as long. It reads all of them once, for their digests.
func newImage(size int64, layers int, seed uint64) (*image, error) {
	img := &image{seed: seed}
	var manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	manifest.SchemaVersion, manifest.MediaType = 2, manifestType
	manifest.Config = descriptor{configType, proto.DigestOf(config), int64(len(config))}
	for i := range layers {
		n := size*int64(i+1)/int64(layers) - size*int64(i)/int64(layers)
		h := sha256.New()
		_, _ = io.Copy(h, img.content(i, n)) // a generator and a hash do not fail
		d, err := proto.ParseDigest(fmt.Sprintf("sha256:%x", h.Sum(nil)))
		if err != nil {
			return nil, err
		}
		img.layers = append(img.layers, proto.Blob{Digest: d, Size: n})
		manifest.Layers = append(manifest.Layers, descriptor{layerType, d, n})
	}
	var err error
	img.manifest, err = json.Marshal(manifest)
	return img, err
}

// content returns the n bytes of a layer.
func (img *image) content(layer int, n int64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], img.seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(layer))
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// push uploads the image to the registry at base, by the distribution
// specification's own words: a POST, and a PUT where it says.
func (img *image) push(ctx context.Context, c *http.Client, base string) error {
	for i, l := range img.layers {
		if err := pushBlob(ctx, c, base, l, img.content(i, l.Size)); err != nil {
			return fmt.Errorf("push layer %d: %w", i+1, err)
		}
	}
	blob := proto.Blob{Digest: proto.DigestOf(config), Size: int64(len(config))}
	if err := pushBlob(ctx, c, base, blob, bytes.NewReader(config)); err != nil {
		return fmt.Errorf("push the config: %w", err)
	}
	_, err := send(ctx, c, http.MethodPut, base+"/v2/"+repository+"/manifests/"+tag, manifestType,
		int64(len(img.manifest)), bytes.NewReader(img.manifest), http.StatusCreated)
	if err != nil {
		return fmt.Errorf("push the manifest: %w", err)
	}
	return nil
}

func pushBlob(ctx context.Context, c *http.Client, base string, b proto.Blob, content io.Reader) error {
	post := base + "/v2/" + repository + "/blobs/uploads/"
	location, err := send(ctx, c, http.MethodPost, post, "", 0, nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	from, err := url.Parse(post)
	if err != nil {
		return err
	}
	to, err := from.Parse(location)
	if err != nil {
		return fmt.Errorf("the registry says to upload to %q: %w", location, err)
	}
	q := to.Query()
	q.Set("digest", b.Digest.String())
	to.RawQuery = q.Encode()
	_, err = send(ctx, c, http.MethodPut, to.String(), "application/octet-stream", b.Size, content, http.StatusCreated)
	return err
}

// send returns where the answer says to go on.
func send(ctx context.Context, c *http.Client, method, where, mediaType string, n int64, body io.Reader, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, where, body)
	if err != nil {
		return "", err
	}
	req.ContentLength = n
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it
		return "", fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, resp.Status, bytes.TrimSpace(said))
	}
	return resp.Header.Get("Location"), nil
}

// write writes the config and the layers into dir, which it makes. Whatever it
// returns, close is to be called.
func (img *image) write(dir string) error {
	img.dir = dir
	img.pushed = map[proto.Digest][]byte{proto.DigestOf(config): config}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, proto.DigestOf(config).String()), config, 0o644); err != nil {
		return err
	}
	for i, l := range img.layers {
		if img.pushed[l.Digest] != nil {
			continue // layers of a byte or two may be the same
		}
		if err := img.writeLayer(i, l); err != nil {
			return fmt.Errorf("write layer %d: %w", i+1, err)
		}
	}
	return nil
}

// writeLayer writes a layer and maps it. Clients compare with it all at once, and
// to read it again for each of them was a copy of every byte that they get.
func (img *image) writeLayer(i int, l proto.Blob) (err error) {
	f, err := os.Create(filepath.Join(img.dir, l.Digest.String()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, img.content(i, l.Size)); err != nil {
		return err
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, int(l.Size), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	img.pushed[l.Digest] = mapped
	return nil
}

// close unmaps what write has mapped. Nobody may compare with it any more.
func (img *image) close() error {
	var errs []error
	for _, l := range img.layers {
		if mapped := img.pushed[l.Digest]; mapped != nil {
			errs = append(errs, os.NewSyscallError("munmap", syscall.Munmap(mapped)))
		}
		delete(img.pushed, l.Digest)
	}
	return errors.Join(errs...)
}
