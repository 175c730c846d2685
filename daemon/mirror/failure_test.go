package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/pull"
)

func TestStatus(t *testing.T) {
	for _, test := range []struct {
		err    error
		kinds  []kind // all if nil
		status int
		code   string
	}{
		{policy.ErrDenied, nil, 403, "DENIED"},
		{origin.ErrDenied, nil, 403, "DENIED"},
		{origin.ErrNotFound, []kind{kindManifest}, 404, "MANIFEST_UNKNOWN"},
		{origin.ErrNotFound, []kind{kindBlob}, 404, "BLOB_UNKNOWN"},
		{origin.ErrNotFound, []kind{kindTags, kindReferrers}, 404, "NAME_UNKNOWN"},
		{origin.ErrUnknownUpstream, nil, 404, "NAME_UNKNOWN"},
		{origin.ErrTooLarge, nil, 502, "SIZE_INVALID"},
		{origin.ErrProtocol, []kind{kindManifest, kindTags}, 502, "MANIFEST_INVALID"},
		{origin.ErrProtocol, []kind{kindBlob}, 502, "DIGEST_INVALID"},
		{cache.ErrCorrupt, nil, 502, "DIGEST_INVALID"},
		{cache.ErrDigest, nil, 502, "DIGEST_INVALID"},
		{cache.ErrSize, nil, 502, "SIZE_INVALID"},
		{origin.ErrUnavailable, nil, 503, "UNAVAILABLE"},
		{pull.ErrClosed, nil, 503, "UNAVAILABLE"},
		{cache.ErrClosed, nil, 503, "UNAVAILABLE"},
		{errDraining, nil, 503, "UNAVAILABLE"},
		{context.Canceled, nil, 503, "UNAVAILABLE"},
		{context.DeadlineExceeded, nil, 503, "UNAVAILABLE"},
		{fail(416, codeRangeInvalid, "x"), nil, 416, "RANGE_INVALID"},
		{syscall.ENOSPC, nil, 500, "UNKNOWN"},
		{io.ErrUnexpectedEOF, nil, 500, "UNKNOWN"},
		// The more definite of two reasons counts.
		{errors.Join(origin.ErrUnavailable, context.DeadlineExceeded), nil, 503, "UNAVAILABLE"},
		{errors.Join(errors.New("peer stalled"), origin.ErrNotFound), []kind{kindBlob}, 404, "BLOB_UNKNOWN"},
	} {
		if test.kinds == nil {
			test.kinds = []kind{kindManifest, kindBlob, kindTags, kindReferrers, kindOther, kindPing}
		}
		for _, k := range test.kinds {
			for _, err := range []error{test.err, fmt.Errorf("pull: %w", test.err)} {
				got, code := status(k, err)
				if got != test.status || code != test.code {
					t.Errorf("status(%s, %v) = %d %s, want %d %s", k, err, got, code, test.status, test.code)
				}
				if got == http.StatusRequestTimeout || got == http.StatusTooManyRequests || got == http.StatusUnauthorized {
					t.Errorf("status(%s, %v) = %d, which no client may get", k, err, got)
				}
			}
		}
	}
}

func TestWriteErrorBoundsItsMessage(t *testing.T) {
	rec := httptest.NewRecorder()
	writeError(rec, request{kind: kindBlob}, fmt.Errorf("%s<é>: %w", strings.Repeat("é", maxMessage), origin.ErrUnavailable))
	var body errorBody
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if n := len(body.Errors[0].Message); n > maxMessage+8 {
		t.Errorf("message of %d bytes", n)
	}
}
