package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// octets is the media type of a blob (distribution-spec, "Pulling blobs").
const octets = "application/octet-stream"

// manifest serves a manifest by tag or by digest. All of it is here and
// verified before the answer begins, so that its status is always the truth.
func (h *Handler) manifest(w *response, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.answer)
	defer cancel()
	d, err := h.gate.Admit(ctx, v.ref)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		describe(w, d.Blob, d.MediaType)
		return head(w, r, d.Blob)
	}
	reader, d, err := h.open(ctx, v.ref, d)
	if err != nil {
		return err
	}
	data, err := read(reader, v)
	if err != nil {
		h.reconsider(v.ref, d, err)
		return err
	}
	h.learn(v.ref, d, data)
	describe(w, d.Blob, d.MediaType)
	return h.send(w, r, v, bytes.NewReader(data))
}

// read returns all of a manifest and closes its reader.
func read(reader *cache.Reader, v *visit) ([]byte, error) {
	defer reader.Close() // nothing was written
	content := reader.Content()
	v.from = from(content)
	data := make([]byte, reader.Size())
	if _, err := io.ReadFull(content, data); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return data, nil
}

// learn remembers what the manifest names, before the client can ask for it,
// and starts its blobs.
func (h *Handler) learn(ref origin.Ref, d origin.Descriptor, data []byte) {
	parts, err := h.gate.Learn(ref.Upstream, ref.Repository, data, d.MediaType)
	if err != nil {
		h.log.Warn("manifest not understood", "upstream", ref.Upstream, "repository", ref.Repository,
			"digest", d.Blob.Digest, "error", err)
	}
	if !h.prefetch {
		return
	}
	from := proto.Origin{Upstream: ref.Upstream, Repository: ref.Repository}
	for _, part := range parts {
		if policy.IsManifest(part.MediaType) {
			continue // of an index: nobody has said yet which one is wanted
		}
		if err := h.puller.Start(part.Blob, from); err != nil {
			h.log.Warn("blob not started", "upstream", ref.Upstream, "repository", ref.Repository,
				"digest", part.Blob.Digest, "error", err)
		}
	}
}

// blob serves a blob, from its file if it is whole and else while it arrives.
func (h *Handler) blob(w *response, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.answer)
	defer cancel()
	d, err := h.gate.Admit(ctx, v.ref)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		describe(w, d.Blob, octets)
		return head(w, r, d.Blob)
	}
	reader, d, err := h.open(r.Context(), v.ref, d)
	if err != nil {
		return err
	}
	defer reader.Close() // nothing was written
	describe(w, d.Blob, octets)
	content := reader.Content()
	if v.from = from(content); v.from == fromDisk {
		return h.send(w, r, v, content)
	}
	s := &stream{content: reader}
	w.ready = func() (bool, error) {
		if w.Header().Get("Content-Length") == "0" || several(w) {
			return false, nil
		}
		return s.await(min(h.firstByte, h.answer-time.Since(v.start)))
	}
	err = h.send(w, r, v, s)
	if cause := s.finish(); err != nil && cause != nil {
		h.reconsider(v.ref, d, cause)
		return cause
	}
	return err
}

// several reports whether w is about to send several ranges. Those are read by
// a goroutine of ServeContent's own, from wherever it is at.
func several(w *response) bool {
	return w.Header().Get("Content-Range") == "" && w.Header().Get("Content-Type") != octets
}

// open opens what was admitted as d, with a context for its reader. If this
// node knows the blob with another size then what its repository said, which
// may have been a manifest, is doubted, and the origin is asked once more.
func (h *Handler) open(ctx context.Context, ref origin.Ref, d origin.Descriptor) (*cache.Reader, origin.Descriptor, error) {
	reader, err := h.puller.Open(ctx, d.Blob, source(ref))
	if !errors.Is(err, cache.ErrSize) {
		return reader, d, err
	}
	ref.Tag, ref.Digest = "", d.Blob.Digest
	h.gate.Forget(ref)
	if d, err = h.gate.Admit(ctx, ref); err != nil {
		return nil, d, err
	}
	reader, err = h.puller.Open(ctx, d.Blob, source(ref))
	return reader, d, err
}

// reconsider forgets that the repository has d if the pull of it failed in a
// way that makes that doubtful.
func (h *Handler) reconsider(ref origin.Ref, d origin.Descriptor, err error) {
	for _, doubt := range []error{origin.ErrNotFound, origin.ErrDenied, origin.ErrProtocol, cache.ErrDigest, cache.ErrCorrupt} {
		if errors.Is(err, doubt) {
			ref.Tag, ref.Digest = "", d.Blob.Digest
			h.gate.Forget(ref)
			return
		}
	}
}

func source(ref origin.Ref) proto.Origin {
	return proto.Origin{Upstream: ref.Upstream, Repository: ref.Repository, Manifest: ref.Manifest}
}

func from(content io.Reader) string {
	if _, ok := content.(*os.File); ok {
		return fromDisk
	}
	return fromPull
}

// describe sets the headers that say what follows. A blob is never encoded,
// whatever the client accepts: its digest is over the bytes as they are.
func describe(w http.ResponseWriter, b proto.Blob, mediaType string) {
	if mediaType == "" {
		mediaType = octets
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Docker-Content-Digest", b.Digest.String())
	h.Set("Etag", `"`+b.Digest.String()+`"`)
}

// head answers a HEAD of b, of which nothing need be here. Range has no
// meaning for HEAD (RFC 9110, section 14.2), but ServeContent gives it one.
func head(w *response, r *http.Request, b proto.Blob) error {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return w.serve(r, io.NewSectionReader(nil, 0, b.Size))
}

// send serves content with whatever ranges and conditions the request has. It
// returns why nothing was sent, or that less was sent than was said. The caller
// knows why.
func (h *Handler) send(w *response, r *http.Request, v *visit, content io.ReadSeeker) error {
	observe := func() { h.metrics.firstByte.Observe(time.Since(v.start).Seconds()) }
	if s, ok := content.(*stream); ok {
		s.first = observe
	} else {
		w.first = observe
	}
	if err := w.serve(r, content); err != nil {
		return err
	}
	if w.status != http.StatusOK && w.status != http.StatusPartialContent {
		return nil
	}
	if want := w.Header().Get("Content-Length"); want != fmt.Sprint(w.bytes) {
		v.cut = true
		return fmt.Errorf("%d of %s bytes sent", w.bytes, want)
	}
	return nil
}
