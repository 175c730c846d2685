package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// octets is the media type of a blob (distribution-spec, "Pulling blobs").
const octets = "application/octet-stream"

// admit asks the gate, and says in the headers if its answer is stale.
func (h *Handler) admit(ctx context.Context, w *response, v *visit) (origin.Descriptor, error) {
	a, err := h.gate.Admit(ctx, v.ref, v.who)
	v.ruling, v.digest = a.Ruling, a.Blob.Digest
	if err == nil && a.Stale != "" {
		h.outdated(w, v, a.Age, a.Stale)
	}
	return a.Descriptor, err
}

// outdated says in the headers, in the log and in the metrics that the answer is
// one that was remembered age ago, and why (RFC 9111, section 5.1; the Warning
// is of RFC 7234, section 5.5.1, and what is there today for this).
func (h *Handler) outdated(w *response, v *visit, age time.Duration, why string) {
	v.stale = true
	w.Header().Set("Warning", `110 - "Response is Stale"`)
	w.Header().Set("Age", strconv.FormatInt(int64(max(age, 0)/time.Second), 10))
	h.log.Warn("stale answer", "kind", string(v.kind), "upstream", v.ref.Upstream, "repository", v.ref.Repository,
		"reference", v.reference(), "age", age.Round(time.Second), "error", why)
}

// manifest serves a manifest by tag or by digest. All of it is here and
// verified before the answer begins, so that its status is always the truth.
func (h *Handler) manifest(w *response, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.answer)
	defer cancel()
	d, err := h.admit(ctx, w, v)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead && !h.gate.NeedsContent(v.ref) {
		return h.headManifest(w, r, v, d)
	}
	data, d, err := h.all(ctx, v, d)
	if err != nil {
		h.reconsider(v.ref, d, err)
		return err
	}
	ruling, err := h.gate.Judge(ctx, v.ref, v.who, d, data)
	if err != nil {
		return err
	}
	v.ruling = v.ruling.And(ruling)
	if r.Method == http.MethodHead {
		return h.headManifest(w, r, v, d)
	}
	h.learn(v.ref, d, data)
	describe(w, d.Blob, d.MediaType)
	return h.send(w, r, v, bytes.NewReader(data))
}

// headManifest answers a HEAD of a manifest, of which nothing need be here.
func (h *Handler) headManifest(w *response, r *http.Request, v *visit, d origin.Descriptor) error {
	v.source, v.arriving = h.described(d.Blob.Digest), proto.Digest{}
	describe(w, d.Blob, d.MediaType)
	return head(w, r, d.Blob)
}

// all returns the whole of a manifest, verified, and what it turned out to be.
func (h *Handler) all(ctx context.Context, v *visit, d origin.Descriptor) ([]byte, origin.Descriptor, error) {
	reader, d, err := h.open(ctx, v, d)
	data := make([]byte, d.Blob.Size)
	if err == nil {
		content := reader.Content()
		h.comesFrom(v, d, content)
		_, err = io.ReadFull(content, data)
		_ = reader.Close() // nothing was written
		if err == nil {
			return data, d, nil
		}
	}
	if v.source == sourceHit {
		h.unreadable(d, err)
	} else if !noRoom(err) {
		return nil, d, fmt.Errorf("read manifest: %w", err)
	}
	v.source, v.arriving = sourceThrough, proto.Digest{}
	t := h.passOn(ctx, v.ref, d.Blob)
	defer t.close()
	if _, err = io.ReadFull(t, data); err == nil {
		err = t.verify()
	}
	return data, d, err
}

// comesFrom notes whether content is whole here or arriving.
func (h *Handler) comesFrom(v *visit, d origin.Descriptor, content io.Reader) {
	if _, ok := content.(*os.File); ok {
		v.source = sourceHit
	} else {
		v.arriving = d.Blob.Digest
	}
}

// unreadable doubts a blob that is whole here and can't be read.
func (h *Handler) unreadable(d origin.Descriptor, err error) {
	h.log.Warn("blob on disk can't be read, going on with the origin's", "digest", d.Blob.Digest, "error", err)
	h.doubt(d.Blob.Digest)
}

// passOn returns the content of a blob for one client. The caller closes it.
func (h *Handler) passOn(ctx context.Context, ref origin.Ref, b proto.Blob) *through {
	kept, err := h.cache.Blob(b)
	if err != nil {
		kept = nil // it is all from the origin then
	}
	return newThrough(ctx, b, kept, h.through(source(ref)))
}

// learn remembers what the manifest names, before the client can ask for it,
// and starts its blobs.
func (h *Handler) learn(ref origin.Ref, d origin.Descriptor, data []byte) {
	parts, err := h.gate.Learn(ref.Upstream, ref.Repository, data, d.MediaType)
	if err != nil {
		h.log.Warn("manifest not understood", "upstream", ref.Upstream, "repository", ref.Repository,
			"digest", d.Blob.Digest, "error", err)
	}
	if slices.ContainsFunc(parts, func(p origin.Descriptor) bool { return policy.IsManifest(p.MediaType) }) {
		h.foreign.learn(data)
	}
	if !h.prefetch || h.foreign.has(d.Blob.Digest) {
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
	d, err := h.admit(ctx, w, v)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		v.source = h.described(d.Blob.Digest)
		describe(w, d.Blob, octets)
		return head(w, r, d.Blob)
	}
	reader, d, err := h.open(r.Context(), v, d)
	if err != nil && !noRoom(err) {
		return err
	}
	describe(w, d.Blob, octets)
	if err != nil {
		return h.arriving(w, r, v, d, nil)
	}
	defer reader.Close() // nothing was written
	content := reader.Content()
	h.comesFrom(v, d, content)
	if f, ok := content.(*os.File); ok {
		return h.whole(w, r, v, d, file{f, d.Blob.Size})
	}
	return h.arriving(w, r, v, d, reader)
}

// A file is one of a blob of known size: if it has become shorter than that, the
// answer must not be what is left of it. To the kernel it is the file itself.
type file struct {
	*os.File
	size int64
}

// Seek is part of io.Seeker.
func (f file) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		offset, whence = offset+f.size, io.SeekStart
	}
	return f.File.Seek(offset, whence)
}

// arriving serves a blob while it comes. Without a reader none of it is kept
// here.
func (h *Handler) arriving(w *response, r *http.Request, v *visit, d origin.Descriptor, reader *cache.Reader) error {
	ctx, cancel := context.WithCancel(r.Context())
	s := &stream{size: d.Blob.Size, content: reader, cancel: cancel}
	s.instead = func() *through {
		h.log.Warn("no room for a blob, passing it on", "upstream", v.ref.Upstream, "repository", v.ref.Repository,
			"digest", d.Blob.Digest, "size", d.Blob.Size)
		t := h.passOn(ctx, v.ref, d.Blob)
		w.held.Store(t)
		return t
	}
	w.live = true
	w.ready = func() (bool, error) {
		if w.Header().Get("Content-Length") == "0" || several(w) {
			return false, nil
		}
		return s.await(min(h.firstByte, h.answer-time.Since(v.start)))
	}
	err := h.send(w, r, v, s)
	cause := s.finish()
	if cause == nil && w.held.Load() != nil {
		cause = w.copying
	}
	if err != nil && cause != nil {
		h.reconsider(v.ref, d, cause)
		return cause
	}
	return err
}

// whole serves a blob from its file. If the disk does not give all of it, the
// rest comes from the origin, and the client notices nothing.
func (h *Handler) whole(w *response, r *http.Request, v *visit, d origin.Descriptor, content file) error {
	err := h.send(w, r, v, content)
	if err == nil || !v.cut || !w.short() {
		return err
	}
	h.unreadable(d, errors.Join(err, w.copying))
	if several(w) {
		return err // which of them it is in, only ServeContent knows
	}
	var start, length int64
	_, _ = fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-", &start) // none: from the start
	length, _ = strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	t := h.passOn(r.Context(), v.ref, d.Blob)
	defer t.close()
	w.held.Store(t)
	w.live = true
	if err := t.seek(start + w.bytes); err != nil {
		return err
	}
	_, err = w.ReadFrom(io.LimitReader(t, length-w.bytes))
	v.cut = w.bytes < length
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
func (h *Handler) open(ctx context.Context, v *visit, d origin.Descriptor) (*cache.Reader, origin.Descriptor, error) {
	ref := v.ref
	reader, err := h.puller.Open(ctx, d.Blob, source(ref))
	if !errors.Is(err, cache.ErrSize) {
		return reader, d, err
	}
	ref.Tag, ref.Digest = "", d.Blob.Digest
	h.gate.Forget(ref)
	a, err := h.gate.Admit(ctx, ref, v.who)
	if err != nil {
		return nil, d, err
	}
	reader, err = h.puller.Open(ctx, a.Blob, source(ref))
	return reader, a.Descriptor, err
}

// reconsider forgets that the repository has d if the pull of it failed in a
// way that makes that doubtful.
func (h *Handler) reconsider(ref origin.Ref, d origin.Descriptor, err error) {
	if errors.Is(err, origin.ErrDenied) && h.passthrough(ref.Upstream) {
		return // to somebody's token, which says nothing about the repository
	}
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
	observe := func() { h.observeFirst(w, v) }
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
