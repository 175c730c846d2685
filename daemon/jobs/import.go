package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// Image is an image that is brought in from outside, after its blobs.
type Image struct {
	// Upstream and Repository are where it counts as being from:
	// "docker.io", "library/alpine".
	Upstream   string `json:"upstream"`
	Repository string `json:"repository"`
	// Tag names it from now on; empty for one that has a digest only.
	Tag string `json:"tag,omitempty"`
	// Digest and Size are those of its manifest or index, MediaType what it is
	// served as.
	Digest    proto.Digest `json:"digest"`
	Size      int64        `json:"size"`
	MediaType string       `json:"mediaType"`
}

// PutBlob reads a blob from r into the cache and checks it. It blocks until r
// has ended, or reads nothing if the blob is here. The error wraps cache.ErrDigest or cache.ErrCorrupt if r is
// another content, ErrIncomplete if it is shorter, cache.ErrSize if it is
// longer, or is r's, ctx's or the cache's. Nothing of a wrong one stays.
func (j *Jobs) PutBlob(ctx context.Context, b proto.Blob, r io.Reader) error {
	held, err := j.cfg.Cache.Blob(b)
	if err != nil {
		return err
	}
	if held.Whole() {
		held.Release()
		return nil // r need not be read
	}
	ours := held.Have().Count() == 0
	err = fill(ctx, held, r)
	held.Release()
	if err != nil && ours {
		if derr := j.cfg.Cache.Delete(b.Digest); derr != nil {
			j.log.Debug("part of a blob stays", "digest", b.Digest, "error", derr) // a pull has it too
		}
	}
	if err != nil {
		return fmt.Errorf("take in %s: %w", b.Digest, err)
	}
	return nil
}

// fill puts what r has into a blob, of which some may be here.
func fill(ctx context.Context, held *cache.Blob, r io.Reader) error {
	b := held.Blob()
	wait := held.NewReader(ctx) // before the first Put: it fails if the whole is wrong
	defer wait.Close()          // nothing was written
	buf := make([]byte, min(b.ChunkSize(), b.Size))
	for i := range b.Chunks() {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := b.Chunk(i)
		n, err := io.ReadFull(r, buf[:c.Size])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: it ends after %d of %d bytes", ErrIncomplete, c.Offset+int64(n), b.Size)
		}
		if err != nil {
			return err
		}
		if err := held.Put(i, buf[:c.Size]); err != nil {
			return err
		}
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 {
		return fmt.Errorf("%w: there is more after its %d bytes", cache.ErrSize, b.Size)
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return await(wait)
}

// PutImage makes what PutBlob has taken in an image of a repository. All of the
// image must be here; of an index, one image at least, and all of each that is
// here. The error wraps ErrInvalid, ErrIncomplete or policy.ErrDenied.
func (j *Jobs) PutImage(ctx context.Context, i Image) error {
	ref := origin.Ref{Upstream: i.Upstream, Repository: i.Repository, Tag: i.Tag, Digest: i.Digest, Manifest: true}
	if err := j.acceptable(ctx, i, ref); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	d := origin.Descriptor{Blob: proto.Blob{Digest: i.Digest, Size: i.Size}, MediaType: i.MediaType}
	if err := j.complete(ref, d, 0); err != nil {
		return fmt.Errorf("%s/%s@%s: %w", i.Upstream, i.Repository, i.Digest, err)
	}
	err := j.cfg.Gate.Link(i.Upstream, i.Repository, d)
	if err == nil && i.Tag != "" && j.cfg.SetTag != nil {
		err = j.cfg.SetTag(i.Upstream, i.Repository, i.Tag, d)
	}
	if err != nil {
		return fmt.Errorf("%s/%s@%s: %w", i.Upstream, i.Repository, i.Digest, err)
	}
	j.log.Info("image taken in", "upstream", i.Upstream, "repository", i.Repository, "tag", i.Tag, "digest", i.Digest)
	return nil
}

// acceptable returns why an image of that name cannot be taken in.
func (j *Jobs) acceptable(ctx context.Context, i Image, ref origin.Ref) error {
	if _, err := origin.ParseRepository(i.Repository); err != nil {
		return err
	}
	if i.Tag != "" {
		if _, err := origin.ParseTag(i.Tag); err != nil {
			return err
		}
	}
	if !hostGrammar.MatchString(i.Upstream) || !j.cfg.Origin.Knows(i.Upstream) {
		return fmt.Errorf("registry %.300q is not configured: add it to upstreams", i.Upstream)
	}
	if !policy.IsManifest(i.MediaType) {
		return fmt.Errorf("%.300q is not the media type of an image or an index", i.MediaType)
	}
	if i.Digest.IsZero() || i.Size < 1 || i.Size > origin.MaxManifest {
		return fmt.Errorf("a manifest of %d bytes, with the digest %q", i.Size, i.Digest)
	}
	return j.cfg.Gate.Check(ctx, ref, caller)
}

// complete learns from a manifest that is here, and returns what of its image
// is not.
func (j *Jobs) complete(ref origin.Ref, d origin.Descriptor, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: indexes %d deep", ErrInvalid, depth)
	}
	data, err := j.content(d.Blob)
	if err != nil {
		return err
	}
	parts, err := j.cfg.Gate.Import(ref.Upstream, ref.Repository, data, d.MediaType)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	index, some := isIndex(data), false
	var missing []string
	for _, p := range parts {
		if b, here := j.cfg.Cache.Whole(p.Blob.Digest); !here || b.Size != p.Blob.Size {
			missing = append(missing, p.Blob.Digest.String())
			continue
		}
		some = true
		if !index {
			continue
		}
		if err := j.complete(ref, p, depth+1); err != nil {
			return err
		}
	}
	if index && !some || !index && len(missing) > 0 {
		return fmt.Errorf("%w: of %s these are not here: %s", ErrIncomplete, d.Blob.Digest, list(missing))
	}
	return nil
}

// content returns a manifest that is here.
func (j *Jobs) content(b proto.Blob) ([]byte, error) {
	if here, ok := j.cfg.Cache.Whole(b.Digest); !ok || here.Size != b.Size {
		return nil, fmt.Errorf("%w: the manifest %s of %d bytes is not here", ErrIncomplete, b.Digest, b.Size)
	}
	if b.Size > origin.MaxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrInvalid, b.Size)
	}
	held, err := j.cfg.Cache.Blob(b)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	r := held.NewReader(j.ctx)
	defer r.Close() // nothing was written
	return io.ReadAll(io.LimitReader(r, b.Size))
}
