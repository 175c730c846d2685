package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
)

// Error codes of the distribution specification ("Error Codes"), and of the
// distribution project where the specification has none: TAG_INVALID,
// RANGE_INVALID, UNAVAILABLE and UNKNOWN.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeDenied          = "DENIED"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestInvalid = "MANIFEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameInvalid     = "NAME_INVALID"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeRangeInvalid    = "RANGE_INVALID"
	codeSizeInvalid     = "SIZE_INVALID"
	codeTagInvalid      = "TAG_INVALID"
	codeUnauthorized    = "UNAUTHORIZED"
	codeUnavailable     = "UNAVAILABLE"
	codeUnknown         = "UNKNOWN"
	codeUnsupported     = "UNSUPPORTED"
)

// A failure is an error that knows how a client is told about it.
type failure struct {
	status  int    // of HTTP
	code    string // of the distribution API
	message string
}

func (f *failure) Error() string { return f.message }

func fail(status int, code, format string, args ...any) error {
	return &failure{status, code, fmt.Sprintf(format, args...)}
}

// errDraining is what a new pull gets from a daemon that is going down.
var errDraining = errors.New("this mirror is shutting down: ask the registry itself, or again in a moment")

// status decides what a client is told about err: the status of HTTP and the
// code of the distribution API. See doc.go for the reasons.
func status(k kind, err error) (int, string) {
	if f := (*failure)(nil); errors.As(err, &f) {
		return f.status, f.code
	}
	if len(challenges(err)) > 0 {
		return http.StatusUnauthorized, codeUnauthorized
	}
	for _, row := range []struct {
		err    error
		status int
		code   string
	}{
		{policy.ErrDenied, http.StatusForbidden, codeDenied},
		{origin.ErrDenied, http.StatusForbidden, codeDenied},
		{origin.ErrUnknownUpstream, http.StatusNotFound, codeNameUnknown},
		{origin.ErrNotFound, http.StatusNotFound, unknown(k)},
		{origin.ErrOffline, http.StatusNotFound, unknown(k)},
		{origin.ErrTooLarge, http.StatusBadGateway, codeSizeInvalid},
		{cache.ErrSize, http.StatusBadGateway, codeSizeInvalid},
		{cache.ErrDigest, http.StatusBadGateway, codeDigestInvalid},
		{cache.ErrCorrupt, http.StatusBadGateway, codeDigestInvalid},
		{origin.ErrProtocol, http.StatusBadGateway, codeManifestInvalid},
		{origin.ErrUnavailable, http.StatusServiceUnavailable, codeUnavailable},
		{errDraining, http.StatusServiceUnavailable, codeUnavailable},
		{pull.ErrClosed, http.StatusServiceUnavailable, codeUnavailable},
		{cache.ErrClosed, http.StatusServiceUnavailable, codeUnavailable},
		{context.DeadlineExceeded, http.StatusServiceUnavailable, codeUnavailable},
		{context.Canceled, http.StatusServiceUnavailable, codeUnavailable},
	} {
		if errors.Is(err, row.err) {
			if row.code == codeManifestInvalid && k == kindBlob {
				return row.status, codeDigestInvalid
			}
			return row.status, row.code
		}
	}
	return http.StatusInternalServerError, codeUnknown
}

// challenges returns what an upstream wants to see of its own from who asks, as
// far as it may be passed on. Without any a 401 would be a riddle.
func challenges(err error) []string {
	if c, ok := errors.AsType[*origin.ChallengeError](err); ok && !errors.Is(err, policy.ErrDenied) {
		return c.Challenges
	}
	return nil
}

// unknown returns the code for what the origin does not have.
func unknown(k kind) string {
	switch k {
	case kindManifest:
		return codeManifestUnknown
	case kindBlob:
		return codeBlobUnknown
	}
	return codeNameUnknown
}

// maxMessage bounds the text of an error in bytes: an error lists every attempt
// at an origin, and clients print it on one line.
const maxMessage = 2048

// An errorBody is what an error looks like on the wire (distribution-spec,
// "Error Codes").
type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  detail `json:"detail,omitzero"`
}

// A detail says which request an error is about.
type detail struct {
	Upstream   string `json:"upstream,omitempty"`
	Repository string `json:"repository,omitempty"`
	Reference  string `json:"reference,omitempty"`
}

// writeError answers with err. Nothing may have been sent before.
func writeError(w http.ResponseWriter, req request, err error) {
	code, id := status(req.kind, err)
	message := err.Error()
	if len(message) > maxMessage {
		message = message[:maxMessage] + "…"
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // read by people, and never as HTML
	_ = enc.Encode(errorBody{[]errorEntry{{id, message, detail{
		Upstream:   req.ref.Upstream,
		Repository: req.ref.Repository,
		Reference:  req.reference(),
	}}}}) // strings into a buffer: can't fail
	h := w.Header()
	for _, name := range []string{"Accept-Ranges", "Age", "Docker-Content-Digest", "Etag", "Warning"} {
		h.Del(name)
	}
	if code != http.StatusRequestedRangeNotSatisfiable {
		h.Del("Content-Range")
	}
	if errors.Is(err, errDraining) {
		h.Set("Connection", "close")
	}
	if code == http.StatusUnauthorized {
		for _, value := range challenges(err) {
			h.Add("Www-Authenticate", value)
		}
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes()) // the client has gone if it fails; nothing else to tell it
}
