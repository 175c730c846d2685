package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// pass answers with the upstream's own list of tags or referrers, or with the
// last one that is remembered if the upstream does not answer.
func (h *Handler) pass(w *response, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.answer)
	defer cancel()
	if err := h.gate.Check(ctx, v.ref, v.who); err != nil {
		return err
	}
	passthrough := h.passthrough(v.ref.Upstream)
	if passthrough {
		ctx = origin.WithAuthorization(ctx, v.who.Authorization)
	}
	l, err := h.ask(ctx, r, v)
	v.source = sourceOrigin
	switch {
	case passthrough && err != nil:
		return err // what others have seen is theirs
	case passthrough:
	case err == nil:
		h.keep(v, l)
	default:
		if l, err = h.recall(r.Context(), w, v, err); err != nil {
			return err
		}
	}
	header := w.Header()
	if l.ContentType != "" {
		header.Set("Content-Type", l.ContentType)
	}
	if value := l.Header.Get("Oci-Filters-Applied"); value != "" {
		header.Set("Oci-Filters-Applied", value)
	}
	for _, link := range l.Header.Values("Link") {
		if own := ownLink(link, r.URL.EscapedPath(), v.ns); own != "" {
			header.Add("Link", own)
		}
	}
	header.Set("Content-Length", strconv.Itoa(len(l.Body)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		w.first = func() { h.observeFirst(w, v) }
		_, _ = w.Write(l.Body) // the client has gone if it fails
	}
	return nil
}

// ask asks the upstream for a list.
func (h *Handler) ask(ctx context.Context, r *http.Request, v *visit) (*origin.List, error) {
	if v.kind == kindReferrers {
		return h.origin.Referrers(ctx, v.ref.Upstream, v.ref.Repository, v.ref.Digest, v.query, r.Header)
	}
	return h.origin.Tags(ctx, v.ref.Upstream, v.ref.Repository, v.query, r.Header)
}

// listPath is what a list is remembered under: its path below the repository,
// with the query but for ns.
func (r request) listPath() string {
	path := "tags/list"
	if r.kind == kindReferrers {
		path = "referrers/" + r.ref.Digest.String()
	}
	if r.query != "" {
		path += "?" + r.query
	}
	return path
}

// keep remembers a list: its text as a blob, the rest in the index. A list that
// can't be kept is served all the same.
func (h *Handler) keep(v *visit, l *origin.List) {
	blob := proto.Blob{Digest: proto.DigestOf(l.Body), Size: int64(len(l.Body))}
	err := h.keepText(blob, l.Body)
	if err == nil {
		err = h.cache.Index().SetList(v.ref.Upstream, v.ref.Repository, v.listPath(), cache.List{
			Blob: blob, ContentType: l.ContentType, Header: l.Header, Seen: time.Now(),
		})
	}
	if err != nil {
		h.log.Warn("list not remembered", "kind", string(v.kind), "upstream", v.ref.Upstream,
			"repository", v.ref.Repository, "error", err)
	}
}

func (h *Handler) keepText(blob proto.Blob, text []byte) error {
	b, err := h.cache.Blob(blob)
	if err != nil {
		return err
	}
	defer b.Release()
	for i := range blob.Chunks() {
		c := blob.Chunk(i)
		if err := b.Put(i, text[c.Offset:c.Offset+c.Size]); err != nil {
			return err
		}
	}
	return nil
}

// recall returns the list that is remembered if err says that the upstream did
// not answer, and err if there is none, or only one that is too old. A refusal
// is never answered with what was seen before it.
func (h *Handler) recall(ctx context.Context, w *response, v *visit, err error) (*origin.List, error) {
	offline := errors.Is(err, origin.ErrOffline)
	if !offline && !errors.Is(err, origin.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, origin.ErrDenied) || ctx.Err() != nil {
		return nil, err
	}
	known, ok, ierr := h.cache.Index().List(v.ref.Upstream, v.ref.Repository, v.listPath())
	if ierr != nil {
		h.log.Warn("list not read", "upstream", v.ref.Upstream, "repository", v.ref.Repository, "error", ierr)
	}
	age := time.Since(known.Seen)
	if !ok || !offline && h.maxStale > 0 && age > h.maxStale {
		return nil, err
	}
	text, rerr := h.text(ctx, known.Blob)
	if rerr != nil {
		return nil, fmt.Errorf("%w (the list that was seen last is no longer here: %w)", err, rerr)
	}
	v.source = sourceHit
	h.outdated(w, v, age, err.Error())
	return &origin.List{Body: text, ContentType: known.ContentType, Header: known.Header}, nil
}

// text reads a list from the cache.
func (h *Handler) text(ctx context.Context, blob proto.Blob) ([]byte, error) {
	if _, ok := h.cache.Whole(blob.Digest); !ok {
		return nil, os.ErrNotExist
	}
	b, err := h.cache.Blob(blob)
	if err != nil {
		return nil, err
	}
	defer b.Release()
	if !b.Whole() {
		return nil, os.ErrNotExist
	}
	reader := b.NewReader(ctx)
	defer reader.Close() // nothing was written
	text := make([]byte, blob.Size)
	if _, err := io.ReadFull(reader, text); err != nil {
		h.doubt(blob.Digest)
		return nil, err
	}
	return text, nil
}

// ownLink turns a Link header of the upstream (RFC 8288; distribution-spec,
// "Listing Tags") into one to the next page of the same path on this mirror:
// path, with the target's query, and ns if the client had sent one. Of a
// header that can't be read nothing is kept.
func ownLink(link, path, ns string) string {
	target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
	target, open := strings.CutPrefix(target, "<")
	if !ok || !open {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || strings.ContainsAny(params, "<>,") {
		return ""
	}
	query.Del("ns")
	if ns != "" {
		query.Set("ns", ns)
	}
	return "<" + path + "?" + query.Encode() + ">" + params
}
