package registry

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-project/shoal/proto"
)

// An Image is one that PushImage has pushed.
type Image struct {
	Repository string
	Tag        string
	Manifest   proto.Blob
	MediaType  string // of the manifest
	Raw        []byte // the manifest itself
	Config     proto.Blob
	Layers     []proto.Blob
}

// Blobs returns the config and the layers, in manifest order.
func (i Image) Blobs() []proto.Blob { return append([]proto.Blob{i.Config}, i.Layers...) }

// Size returns how many bytes a pull of the image takes.
func (i Image) Size() int64 {
	n := i.Manifest.Size
	for _, b := range i.Blobs() {
		n += b.Size
	}
	return n
}

// PushImage pushes an image whose layers are random bytes, of the given sizes,
// to the registry at baseURL through its push API. The same seed makes the
// same layers. A user and password in baseURL are used to log in. Layers are
// made as they are sent, so their size is no matter.
func PushImage(ctx context.Context, baseURL, repo, tag string, layers []int64, seed uint64) (Image, error) {
	to, opts, err := target(ctx, baseURL, repo)
	if err != nil {
		return Image{}, fmt.Errorf("push %s:%s: %w", repo, tag, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, size := range layers {
		img, err = mutate.AppendLayers(img, newRandomLayer(seed, i, size))
		if err != nil {
			return Image{}, fmt.Errorf("make image %s:%s: %w", repo, tag, err)
		}
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	opts = append(opts, remote.WithTransport(transport))
	if err := remote.Write(to.Tag(tag), img, opts...); err != nil {
		return Image{}, fmt.Errorf("push %s:%s: %w", repo, tag, err)
	}
	return describe(repo, tag, img)
}

// PushBlob pushes content as a blob that no manifest names. A user and
// password in baseURL are used to log in.
func PushBlob(ctx context.Context, baseURL, repo string, content []byte) error {
	to, opts, err := target(ctx, baseURL, repo)
	if err != nil {
		return fmt.Errorf("push a blob to %s: %w", repo, err)
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	opts = append(opts, remote.WithTransport(transport))
	if err := remote.WriteLayer(to, static.NewLayer(content, types.OCIUncompressedLayer), opts...); err != nil {
		return fmt.Errorf("push a blob to %s: %w", repo, err)
	}
	return nil
}

// target returns the repository to push to, and how.
func target(ctx context.Context, baseURL, repo string) (name.Repository, []remote.Option, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return name.Repository{}, nil, err
	}
	var how []name.Option
	if u.Scheme == "http" {
		how = append(how, name.Insecure)
	}
	to, err := name.NewRepository(u.Host+"/"+repo, how...)
	auth := authn.Anonymous
	if password, ok := u.User.Password(); ok {
		auth = &authn.Basic{Username: u.User.Username(), Password: password}
	}
	return to, []remote.Option{remote.WithContext(ctx), remote.WithAuth(auth)}, err
}

// describe says what img is.
func describe(repo, tag string, img v1.Image) (Image, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return Image{}, err
	}
	m, err := img.Manifest()
	if err != nil {
		return Image{}, err
	}
	out := Image{Repository: repo, Tag: tag, MediaType: string(m.MediaType), Raw: raw}
	out.Manifest = proto.Blob{Digest: proto.DigestOf(raw), Size: int64(len(raw))}
	blob := func(d v1.Descriptor) proto.Blob {
		parsed, perr := proto.ParseDigest(d.Digest.String())
		if perr != nil {
			err = perr
		}
		return proto.Blob{Digest: parsed, Size: d.Size}
	}
	out.Config = blob(m.Config)
	for _, l := range m.Layers {
		out.Layers = append(out.Layers, blob(l))
	}
	return out, err
}

// A randomLayer is a v1.Layer of random bytes that are made when they are
// read.
type randomLayer struct {
	key  [32]byte
	size int64
	hash v1.Hash
}

func newRandomLayer(seed uint64, index int, size int64) *randomLayer {
	l := &randomLayer{size: size}
	binary.LittleEndian.PutUint64(l.key[:], seed)
	binary.LittleEndian.PutUint64(l.key[8:], uint64(index))
	binary.LittleEndian.PutUint64(l.key[16:], uint64(size))
	h := sha256.New()
	_, _ = io.Copy(h, l.content()) // a generator and a hash do not fail
	l.hash = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	return l
}

func (l *randomLayer) content() io.Reader { return io.LimitReader(rand.NewChaCha8(l.key), l.size) }

func (l *randomLayer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *randomLayer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *randomLayer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.content()), nil }
func (l *randomLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l *randomLayer) Size() (int64, error)                 { return l.size, nil }
func (l *randomLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// PushManifest pushes raw as a manifest, by a tag or by its digest. A user and
// password in baseURL are used to log in.
func PushManifest(ctx context.Context, baseURL, repo, reference, mediaType string, raw []byte) error {
	to, opts, err := target(ctx, baseURL, repo)
	if err != nil {
		return fmt.Errorf("push a manifest to %s: %w", repo, err)
	}
	var ref name.Reference = to.Tag(reference)
	if _, err := proto.ParseDigest(reference); err == nil {
		ref = to.Digest(reference)
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	opts = append(opts, remote.WithTransport(transport))
	if err := remote.Put(ref, rawManifest{raw, types.MediaType(mediaType)}, opts...); err != nil {
		return fmt.Errorf("push a manifest to %s: %w", repo, err)
	}
	return nil
}

// A rawManifest is a remote.Taggable with a media type.
type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }
