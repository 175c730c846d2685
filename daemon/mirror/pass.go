package mirror

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
)

// maxPass is the size in bytes of the longest list that is passed on. All of it
// is in memory before the answer begins, so that a list is complete or an
// error. 100,000 tags are half of it; whoever has more asks for pages.
const maxPass = 8 << 20

// pass answers with the upstream's own list of tags or referrers.
func (h *Handler) pass(w *response, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.answer)
	defer cancel()
	if err := h.gate.Check(ctx, v.ref); err != nil {
		return err
	}
	rest := "tags/list"
	if v.kind == kindReferrers {
		rest = "referrers/" + v.ref.Digest.String()
	}
	resp, err := h.origin.Pass(ctx, v.ref.Upstream, v.ref.Repository, rest, v.query, r.Header)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read to its end or of no use
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPass+1))
	if err != nil {
		return fmt.Errorf("read %s of %s/%s: %w: %w", rest, v.ref.Upstream, v.ref.Repository, origin.ErrUnavailable, err)
	}
	if len(body) > maxPass {
		return fmt.Errorf("%s of %s/%s: %w: over %d bytes, ask for pages with ?n=", rest, v.ref.Upstream, v.ref.Repository, errTooLong, maxPass)
	}
	header := w.Header()
	for _, name := range []string{"Content-Type", "Oci-Filters-Applied"} {
		if value := resp.Header.Get(name); value != "" {
			header.Set(name, value)
		}
	}
	for _, link := range resp.Header.Values("Link") {
		if own := ownLink(link, r.URL.EscapedPath(), v.ns); own != "" {
			header.Add("Link", own)
		}
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(resp.StatusCode)
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // the client has gone if it fails
	}
	return nil
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
