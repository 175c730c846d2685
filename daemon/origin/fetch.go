package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// copyBuffer is the size in bytes of the buffer between a body and the writer.
const copyBuffer = 128 << 10

// minProgress is how many bytes an attempt must have brought for the next one
// to follow at once: a registry that cuts sooner than that is left alone for a
// moment first.
const minProgress = 64 << 10

// A Source fetches content of one repository of one upstream. It is a
// pull.Source: what it writes is not verified.
type Source struct {
	client *Client
	origin proto.Origin
}

// Source returns the Source of what o names. Nothing is checked or asked until
// Fetch.
func (c *Client) Source(o proto.Origin) *Source { return &Source{client: c, origin: o} }

// Fetch writes the bytes of r to w, in order and each once, and returns nil
// after the last one. After a cut, a stall or a short body it goes on at the
// first byte that is missing, at the same URL or the next. It blocks until
// then; when ctx ends it returns promptly with an error that wraps ctx's, and
// when w fails with one that wraps w's. Other errors wrap the package's.
func (s *Source) Fetch(ctx context.Context, r proto.Run, w io.Writer) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if _, err := ParseRepository(s.origin.Repository); err != nil {
		return err
	}
	up, err := s.client.upstream(s.origin.Upstream)
	if err != nil {
		return err
	}
	kind := kindBlob
	if s.origin.Manifest {
		kind = kindManifest
	}
	what := fmt.Sprintf("%s %s of %s", kind, r.Blob.Digest, s.origin)
	if s.origin.Manifest && r.Blob.Size > MaxManifest {
		return fmt.Errorf("%s has %d bytes, more than %d: %w", what, r.Blob.Size, MaxManifest, ErrTooLarge)
	}
	t := &transfer{origin: s.origin, run: r, w: w, off: r.Offset(), end: r.Offset() + r.Size()}
	// A pull is for whoever comes along, so it does not hang on one caller's token.
	return up.try(withoutAuthorization(ctx), what, s.client.cfg.MaxRetryAfter, t.attempt)
}

// A transfer is one Fetch.
type transfer struct {
	origin proto.Origin
	run    proto.Run
	w      io.Writer
	// off is the next byte to write, end the one after the last.
	off, end int64
	buf      []byte
}

// ranged reports whether to ask for a range. Registries do not serve ranges of
// manifests, and a plain GET is the cheapest way to a whole blob.
func (t *transfer) ranged() bool {
	return !t.origin.Manifest && (t.off > 0 || t.end < t.run.Blob.Size)
}

func (t *transfer) query() query {
	d := t.run.Blob.Digest.String()
	if t.origin.Manifest {
		return manifestQuery(http.MethodGet, t.origin.Repository, d)
	}
	q := blobQuery(http.MethodGet, t.origin.Repository, d)
	q.remember = true
	if t.ranged() {
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", t.off, t.end-1))
	}
	return q
}

// attempt asks e for what is missing and reports whether it got a good deal of
// it.
func (t *transfer) attempt(ctx context.Context, e *endpoint) (progress bool, err error) {
	resp, err := e.do(ctx, t.query())
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	p, err := t.placed(resp)
	if err != nil {
		if resp.StatusCode >= 300 {
			discard(resp)
		}
		return false, err
	}
	start := t.off
	err = t.copy(resp.Body, p)
	return t.off-start >= minProgress, err
}

// A place says where a body's bytes belong.
type place struct {
	first int64 // offset in the blob of the body's first byte
	last  int64 // of its last byte
}

// placed checks the head of resp, before any byte of its body counts.
func (t *transfer) placed(resp *http.Response) (place, error) {
	size := t.run.Blob.Size
	p := place{0, size - 1}
	switch {
	case resp.StatusCode == http.StatusOK:
		// All of it, asked for or not.
	case resp.StatusCode == http.StatusPartialContent && t.ranged():
		first, last, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return p, protocolError("%v", err)
		}
		if total >= 0 && total != size {
			return p, protocolError("it has %d bytes there, not %d", total, size)
		}
		// A server may send less than was asked for; more would be out of place.
		if first != t.off || last >= t.end {
			return p, protocolError("bytes %d to %d for a request of %d to %d", first, last, t.off, t.end-1)
		}
		p = place{first, last}
	case resp.StatusCode == http.StatusPartialContent:
		return p, protocolError("206 Partial Content without a range asked for")
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return p, protocolError("416 Requested Range Not Satisfiable: it has fewer than %d bytes there", size)
	default:
		return p, statusError(resp, time.Now())
	}
	n := p.last - p.first + 1
	if resp.ContentLength > n || resp.ContentLength >= 0 && resp.ContentLength != n && resp.StatusCode == http.StatusOK {
		return p, protocolError("a body of %d bytes instead of %d", resp.ContentLength, n)
	}
	return p, checkDigest(resp, t.run.Blob.Digest)
}

// checkDigest compares the Docker-Content-Digest header, if there is one of the
// same algorithm, with what was asked for.
func checkDigest(resp *http.Response, want proto.Digest) error {
	got, err := proto.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err == nil && got.Algorithm() == want.Algorithm() && got != want {
		return protocolError("its Docker-Content-Digest is %s", got)
	}
	return nil
}

// copy writes what t misses from body, whose bytes belong at p.
func (t *transfer) copy(body io.Reader, p place) error {
	if t.buf == nil {
		t.buf = make([]byte, min(copyBuffer, t.end-t.off))
	}
	if skip := t.off - p.first; skip > 0 { // Range was ignored
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			return cut(err)
		}
	}
	end := min(t.end, p.last+1)
	for t.off < end {
		n, err := body.Read(t.buf[:min(int64(len(t.buf)), end-t.off)])
		if werr := t.write(t.buf[:n]); werr != nil {
			return &abortError{werr}
		}
		if err != nil && t.off < end {
			return cut(err)
		}
	}
	if t.off < t.end {
		return interrupted("fewer bytes than asked for")
	}
	if p.last >= t.end {
		return nil // Range was ignored: the rest is not ours
	}
	// The read to EOF makes the connection free again, and shows a body that
	// is longer than it should be.
	if n, _ := body.Read(t.buf[:1]); n > 0 {
		return &abortError{fmt.Errorf("more than %d bytes: %w", t.run.Blob.Size, ErrProtocol)}
	}
	return nil
}

func (t *transfer) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := t.w.Write(p)
	t.off += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// cut says what the error of a body that ended too soon means.
func cut(err error) *attemptError {
	switch {
	case err == io.EOF:
		return &attemptError{class: ErrProtocol, text: "body too short"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return interrupted("connection cut")
	}
	return interrupted(networkText(err))
}

// contentRange is the header of a 206 with one part (RFC 9110, section 14.4).
var contentRange = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$`)

// parseContentRange returns the offsets of the first and the last byte, and
// the size of the whole or -1 if the header does not say.
func parseContentRange(s string) (first, last, total int64, err error) {
	m := contentRange.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, 0, errors.New("206 Partial Content without a valid Content-Range")
	}
	num := func(s string) int64 {
		n, _ := strconv.ParseInt(s, 10, 64) // 18 digits always fit
		return n
	}
	first, last, total = num(m[1]), num(m[2]), -1
	if m[3] != "*" {
		total = num(m[3])
	}
	if first > last || total >= 0 && last >= total {
		return 0, 0, 0, errors.New("206 Partial Content with a Content-Range that contradicts itself")
	}
	return first, last, total, nil
}
