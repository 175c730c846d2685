package mirror

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// isBlob reports whether r asks the registry for the content of a blob.
func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// answering returns a front that answers what is asked for with a status.
func answering(status int, what func(*http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !what(r) {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

func anything(*http.Request) bool { return true }

// Whatever the origin does wrong with a manifest, the client is told so.
func TestFailingManifests(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	wrong := func(what func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { what(w, r); return true }
	}
	raw := []byte(`{"schemaVersion":2}`)
	head := func(w http.ResponseWriter, size int64) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", proto.DigestOf(raw).String())
		w.Header().Set("Content-Length", fmt.Sprint(size))
	}
	for _, test := range []struct {
		name   string
		front  func(http.ResponseWriter, *http.Request) bool
		status int
		code   string
	}{
		{"401", answering(401, anything), 403, "DENIED"},
		{"403", answering(403, anything), 403, "DENIED"},
		{"404", answering(404, anything), 404, "MANIFEST_UNKNOWN"},
		{"408", answering(408, anything), 503, "UNAVAILABLE"},
		{"429", answering(429, anything), 503, "UNAVAILABLE"},
		{"500", answering(500, anything), 503, "UNAVAILABLE"},
		{"502", answering(502, anything), 503, "UNAVAILABLE"},
		{"503", answering(503, anything), 503, "UNAVAILABLE"},
		{"504", answering(504, anything), 503, "UNAVAILABLE"},
		{"too large", wrong(func(w http.ResponseWriter, r *http.Request) { head(w, origin.MaxManifest+1) }), 502, "SIZE_INVALID"},
		{"other content than its digest says", wrong(func(w http.ResponseWriter, r *http.Request) {
			head(w, int64(len(raw)))
			_, _ = w.Write(bytes.ToUpper(raw))
		}), 502, "DIGEST_INVALID"},
		{"other length on GET than on HEAD", wrong(func(w http.ResponseWriter, r *http.Request) {
			size := int64(len(raw))
			if r.Method == http.MethodGet {
				size++
			}
			head(w, size)
			_, _ = w.Write(append(bytes.Clone(raw), ' '))
		}), 502, "MANIFEST_INVALID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.setFront(test.front)
			for range 2 {
				b.get(t, manifestPath("team/app", "1")).want(t, test.status, test.code)
			}
		})
	}
	b.down()
	if message := b.get(t, manifestPath("team/app", "1")).want(t, 503, "UNAVAILABLE"); !strings.Contains(message, "registry.test") {
		t.Errorf("the message does not say which registry: %s", message)
	}
}

// The same for a blob that a manifest has promised. Its links are known, so
// that the failure is the pull's.
func TestFailingBlobs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		faults registry.Faults
		front  func(http.ResponseWriter, *http.Request) bool
		status int
		code   string
	}{
		{name: "401", front: answering(401, isBlob), status: 403, code: "DENIED"},
		{name: "404", faults: registry.Faults{Status: 404}, status: 404, code: "BLOB_UNKNOWN"},
		{name: "429", faults: registry.Faults{Status: 429}, status: 503, code: "UNAVAILABLE"},
		{name: "500", faults: registry.Faults{Status: 500}, status: 503, code: "UNAVAILABLE"},
		{name: "503", faults: registry.Faults{Status: 503}, status: 503, code: "UNAVAILABLE"},
		{name: "short", faults: registry.Faults{ShortBody: true}, status: 502, code: "DIGEST_INVALID"},
		{name: "long", faults: registry.Faults{LongBody: true}, status: 502, code: "DIGEST_INVALID"},
		{name: "wrong", faults: registry.Faults{WrongBytes: -1}, status: 502, code: "DIGEST_INVALID"},
	}
	b := newBed(t, options{})
	sizes := make([]int64, len(tests))
	for i := range sizes {
		sizes[i] = 1000 + int64(i)
	}
	img := b.push(t, "team/app", "1", sizes...)
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Fatalf("GET of the manifest: %d", a.status)
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := blobPath("team/app", img.Layers[i].Digest)
			b.reg.SetFaults(test.faults)
			b.setFront(test.front)
			b.get(t, path).want(t, test.status, test.code)
			b.get(t, path, "Range: bytes=10-").want(t, test.status, test.code)
			// When the origin is well again so is the mirror.
			b.reg.SetFaults(registry.Faults{})
			b.setFront(nil)
			a := b.get(t, path)
			if a.status != http.StatusOK || proto.DigestOf(a.body) != img.Layers[i].Digest {
				t.Errorf("afterwards: %d %s", a.status, a.body)
			}
		})
	}
	if log := b.log.String(); strings.Count(log, `level=WARN msg="request failed"`) < len(tests) {
		t.Errorf("failures were not logged:\n%s", log)
	}
}

// An origin that does not answer becomes a status, while clients still listen.
func TestOriginThatHangs(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{answer: 50 * time.Millisecond})
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	message := b.get(t, manifestPath("team/app", "1")).want(t, 503, "UNAVAILABLE")
	if !strings.Contains(message, "nothing came within 50ms") {
		t.Errorf("message = %s", message)
	}
	b.get(t, blobPath("team/app", proto.DigestOf(nil))).want(t, 503, "UNAVAILABLE")
	b.get(t, "/v2/team/app/tags/list?ns="+upstream).want(t, 503, "UNAVAILABLE")
}

// rawGet sends a request over a connection of its own and returns the response,
// with the connection to see how it ends.
func rawGet(t *testing.T, b *bed, path string) (*http.Response, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	// Only so that a connection that should have been closed is no hang.
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: mirror\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp, r
}

// A blob that can't be completed ends with a clean cut after the bytes that are
// right: no reset, no error body, and never as many bytes as were promised.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// fail makes the registry fail in the middle of a blob.
		fail func(b *bed)
	}{
		{"the origin loses it", func(b *bed) {
			b.reg.SetFaults(registry.Faults{CutAfter: mib})
			var gets atomic.Int32
			b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) || gets.Add(1) == 1 {
					return false
				}
				w.WriteHeader(http.StatusNotFound)
				return true
			})
		}},
		{"the origin sends other content", func(b *bed) {
			// Slow enough for the first bytes to be out when the last are found
			// to be wrong.
			b.reg.SetFaults(registry.Faults{WrongBytes: -1, Rate: 8 * mib})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, options{})
			layer := b.push(t, "team/app", "1", 4*mib).Layers[0]
			content := b.content(t, "team/app", layer.Digest)
			test.fail(b)
			resp, conn := rawGet(t, b, blobPath("team/app", layer.Digest))
			if resp.StatusCode != http.StatusOK || resp.ContentLength != layer.Size {
				t.Fatalf("%d, length %d", resp.StatusCode, resp.ContentLength)
			}
			body, err := io.ReadAll(resp.Body)
			if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the body ended with %v, want an unexpected EOF", err)
			}
			if _, err := conn.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection ended with %v, want EOF", err)
			}
			if len(body) == 0 || int64(len(body)) >= layer.Size {
				t.Errorf("%d of %d bytes", len(body), layer.Size)
			}
			if bytes.Contains(body, []byte(`"errors"`)) {
				t.Error("an error was written into the body")
			}
			// A wrong byte shows only when all are here. The last chunk is
			// kept back until then, so nobody gets all of a wrong blob.
			if strings.HasPrefix(test.name, "the origin loses") && !bytes.Equal(body, content[:len(body)]) {
				t.Error("wrong bytes")
			}
			b.close()
			if log := b.log.String(); !strings.Contains(log, `level=WARN msg="response cut short"`) {
				t.Errorf("the cut was not logged:\n%s", log)
			}
		})
	}
}

// Where the first bytes are slow to come, the headers do not wait for them.
func TestHeadersComeBeforeALateByte(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{firstByte: 10 * time.Millisecond})
	layer := b.push(t, "team/app", "1", 2*mib).Layers[0]
	b.reg.SetFaults(registry.Faults{StallAfter: 1})
	resp, _ := rawGet(t, b, blobPath("team/app", layer.Digest)) // returns with the headers
	if resp.StatusCode != http.StatusOK || resp.ContentLength != layer.Size {
		t.Errorf("%d, length %d", resp.StatusCode, resp.ContentLength)
	}
	b.reg.SetFaults(registry.Faults{}) // the origin goes on
	body, err := io.ReadAll(resp.Body)
	if err != nil || proto.DigestOf(body) != layer.Digest {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

// A client that leaves before the first byte leaves nothing behind: goleak looks
// for its read ahead.
func TestClientLeavesBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{})
	layer := b.push(t, "team/app", "1", 2*mib).Layers[0]
	asked := make(chan struct{}, 10)
	b.setFront(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			asked <- struct{}{}
			<-r.Context().Done()
		}
		return false
	})
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: mirror\r\n\r\n", blobPath("team/app", layer.Digest)); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.close() // waits for the handler
	if log := b.log.String(); strings.Contains(log, "level=WARN") {
		t.Errorf("a client that left is no failure of this node:\n%s", log)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{firstByte: time.Millisecond})
	img := b.push(t, "team/app", "1", 2*mib, 1000)
	if a := b.get(t, manifestPath("team/app", "1")); a.status != http.StatusOK {
		t.Fatalf("GET of the manifest: %d", a.status)
	}
	b.reg.SetFaults(registry.Faults{StallAfter: mib})
	running, _ := rawGet(t, b, blobPath("team/app", img.Layers[0].Digest))
	b.handler.Drain()
	for _, path := range []string{
		"/v2/", manifestPath("team/app", "1"), manifestPath("team/app", img.Manifest.Digest.String()), "/v2/team/app/tags/list?ns=" + upstream,
	} {
		resp, conn := rawGet(t, b, path)
		body, err := io.ReadAll(resp.Body)
		answer{resp.StatusCode, resp.Header, body, err}.want(t, http.StatusServiceUnavailable, "UNAVAILABLE")
		if _, err := conn.ReadByte(); !resp.Close || !errors.Is(err, io.EOF) {
			t.Errorf("%s: the connection stays open", path)
		}
	}
	b.reg.SetFaults(registry.Faults{}) // the running one goes on
	body, err := io.ReadAll(running.Body)
	if err != nil || proto.DigestOf(body) != img.Layers[0].Digest {
		t.Errorf("the running blob: %d bytes, %v", len(body), err)
	}
	// The next blob of the same image, too.
	resp, conn := rawGet(t, b, blobPath("team/app", img.Layers[1].Digest))
	body, err = io.ReadAll(resp.Body)
	if err != nil || proto.DigestOf(body) != img.Layers[1].Digest {
		t.Errorf("another blob: %d bytes, %v", len(body), err)
	}
	if _, err := conn.ReadByte(); !resp.Close || !errors.Is(err, io.EOF) {
		t.Error("the connection of a blob stays open")
	}
}
