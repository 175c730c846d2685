package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// manifestTypes are the manifests that the mirror can serve, the newer first,
// in one header line: some registries read the first line only. The last one
// lets a registry that knows none of them answer all the same.
const manifestTypes = "application/vnd.oci.image.index.v1+json, " +
	"application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.oci.artifact.manifest.v1+json, " +
	"*/*"

// A Ref names a manifest by Tag or by Digest, or a blob by Digest.
type Ref struct {
	Upstream   string // a name in Config.Upstreams, or a host under "*"
	Repository string
	Tag        string // of a manifest; not looked at if Digest is set
	Digest     proto.Digest
	Manifest   bool
}

// String returns the reference as a person would write it.
func (r Ref) String() string {
	s := r.Upstream + "/" + r.Repository
	if !r.Digest.IsZero() {
		return s + "@" + r.Digest.String()
	}
	return s + ":" + r.Tag
}

// A Descriptor says what content is (image-spec, descriptor.md).
type Descriptor struct {
	Blob      proto.Blob
	MediaType string // empty if the registry did not say
}

// Both kinds of content refuse compression on the way: digest and length are of
// the bytes as stored.

func manifestQuery(method, repository, reference string) query {
	return query{
		kind:       kindManifest,
		method:     method,
		path:       repository + "/manifests/" + reference,
		repository: repository,
		header:     http.Header{"Accept": {manifestTypes}, "Accept-Encoding": {"identity"}},
	}
}

func blobQuery(method, repository, digest string) query {
	return query{
		kind:       kindBlob,
		method:     method,
		path:       repository + "/blobs/" + digest,
		repository: repository,
		header:     http.Header{"Accept-Encoding": {"identity"}},
	}
}

// Resolve asks the upstream what ref is: its digest, its size in bytes and its
// media type. It sends a HEAD, and a GET where the answer to that lacks
// something. It blocks until the upstream has answered or the tries are used
// up; while the upstream wants to be left alone for more than a second, it fails
// at once with ErrUnavailable and says until when. A manifest of more than MaxManifest bytes is ErrTooLarge.
func (c *Client) Resolve(ctx context.Context, ref Ref) (Descriptor, error) {
	if _, err := ParseRepository(ref.Repository); err != nil {
		return Descriptor{}, err
	}
	if ref.Digest.IsZero() {
		if !ref.Manifest {
			return Descriptor{}, errors.New("blob reference without a digest")
		}
		if _, err := ParseTag(ref.Tag); err != nil {
			return Descriptor{}, err
		}
	}
	up, err := c.upstream(ref.Upstream)
	if err != nil {
		return Descriptor{}, err
	}
	kind, resolve := kindBlob, resolveBlob
	if ref.Manifest {
		kind, resolve = kindManifest, resolveManifest
	}
	var d Descriptor
	err = up.try(ctx, kind+" "+ref.String(), c.cfg.shortWait(), func(ctx context.Context, e *endpoint) (bool, error) {
		var err error
		d, err = resolve(ctx, e, ref)
		return false, err
	})
	if err != nil {
		return Descriptor{}, err
	}
	return d, nil
}

func resolveManifest(ctx context.Context, e *endpoint, ref Ref) (Descriptor, error) {
	reference := ref.Tag
	if !ref.Digest.IsZero() {
		reference = ref.Digest.String()
	}
	resp, err := e.do(ctx, manifestQuery(http.MethodHead, ref.Repository, reference))
	if err != nil {
		return Descriptor{}, err
	}
	discard(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		d, err := describe(resp, ref.Digest)
		complete := err == nil && !d.Blob.Digest.IsZero() && d.Blob.Size > 0 && d.MediaType != ""
		if err != nil || complete {
			return d, err
		}
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
	default:
		return Descriptor{}, statusError(resp, time.Now())
	}
	return getManifest(ctx, e, ref, reference)
}

// describe returns what the head of a manifest's response says of it; what it
// does not say is zero. A size that is unknown is -1.
func describe(resp *http.Response, asked proto.Digest) (Descriptor, error) {
	d := Descriptor{Blob: proto.Blob{Digest: asked, Size: resp.ContentLength}}
	if resp.ContentLength > MaxManifest {
		return d, &attemptError{class: ErrTooLarge, final: true,
			text: fmt.Sprintf("a manifest of %d bytes, more than %d", resp.ContentLength, MaxManifest)}
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		d.MediaType = t
	}
	if !asked.IsZero() {
		return d, checkDigest(resp, asked)
	}
	if got, err := proto.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err == nil {
		d.Blob.Digest = got
	}
	return d, nil
}

// getManifest reads the manifest itself and computes what the registry does
// not say.
func getManifest(ctx context.Context, e *endpoint, ref Ref, reference string) (Descriptor, error) {
	resp, err := e.do(ctx, manifestQuery(http.MethodGet, ref.Repository, reference))
	if err != nil {
		return Descriptor{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		discard(resp)
		return Descriptor{}, statusError(resp, time.Now())
	}
	d, err := describe(resp, ref.Digest)
	if err != nil {
		return Descriptor{}, err
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return Descriptor{}, cut(err)
	}
	if len(content) > MaxManifest {
		return Descriptor{}, &attemptError{class: ErrTooLarge, final: true,
			text: fmt.Sprintf("a manifest of more than %d bytes", MaxManifest)}
	}
	d.Blob.Size = int64(len(content))
	if d.Blob.Digest.IsZero() {
		d.Blob.Digest = proto.DigestOf(content)
	} else {
		h := d.Blob.Digest.NewHash()
		h.Write(content)
		if !d.Blob.Digest.Matches(h) {
			return Descriptor{}, protocolError("the manifest's bytes do not have the digest %s", d.Blob.Digest)
		}
	}
	var says struct{ MediaType string }
	if json.Unmarshal(content, &says) == nil && d.MediaType == "" {
		d.MediaType = says.MediaType
	}
	return d, nil
}

func resolveBlob(ctx context.Context, e *endpoint, ref Ref) (Descriptor, error) {
	d := Descriptor{Blob: proto.Blob{Digest: ref.Digest}}
	resp, err := e.do(ctx, blobQuery(http.MethodHead, ref.Repository, ref.Digest.String()))
	if err != nil {
		return d, err
	}
	discard(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		if err := checkDigest(resp, ref.Digest); err != nil {
			return d, err
		}
		if d.Blob.Size = resp.ContentLength; d.Blob.Size >= 0 {
			return d, checkSize(d.Blob)
		}
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
	default:
		return d, statusError(resp, time.Now())
	}
	return probeBlob(ctx, e, ref)
}

// probeBlob learns a blob's size from a GET of its first byte.
func probeBlob(ctx context.Context, e *endpoint, ref Ref) (Descriptor, error) {
	d := Descriptor{Blob: proto.Blob{Digest: ref.Digest, Size: -1}}
	q := blobQuery(http.MethodGet, ref.Repository, ref.Digest.String())
	q.header.Set("Range", "bytes=0-0")
	resp, err := e.do(ctx, q)
	if err != nil {
		return d, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		d.Blob.Size = resp.ContentLength
	case http.StatusPartialContent:
		discard(resp)
		if _, _, total, err := parseContentRange(resp.Header.Get("Content-Range")); err == nil {
			d.Blob.Size = total
		}
	case http.StatusRequestedRangeNotSatisfiable:
		d.Blob.Size = 0 // nothing has no first byte
	default:
		discard(resp)
		return d, statusError(resp, time.Now())
	}
	if d.Blob.Size < 0 {
		return d, protocolError("it says no length of the blob")
	}
	if err := checkSize(d.Blob); err != nil {
		return d, err
	}
	return d, checkDigest(resp, ref.Digest)
}

func checkSize(b proto.Blob) error {
	if err := b.Validate(); err != nil {
		return protocolError("%v", err)
	}
	return nil
}
