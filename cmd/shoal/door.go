package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// manifestTypes are what a manifest is asked for as.
const manifestTypes = ocispec.MediaTypeImageIndex + ", " + ocispec.MediaTypeImageManifest +
	", application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json" +
	", application/vnd.oci.artifact.manifest.v1+json"

// A door is a node's mirror, which is read as containerd reads it: the registry
// that an image is from is named in the query.
type door struct {
	addr string // as it was given, for a person
	base string // of URLs
	http *http.Client
}

// newDoor returns the door at addr: host:port, https://host:port, or unix:/path.
func newDoor(addr string) *door {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: blobsAtOnce,
		DisableCompression:  true, // a blob is its bytes
		TLSHandshakeTimeout: 10 * time.Second,
	}
	d := &door{addr: addr, base: "http://" + strings.TrimPrefix(addr, "http://"), http: &http.Client{Transport: transport}}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		d.base = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	if strings.HasPrefix(addr, "https://") {
		d.base = addr
	}
	return d
}

// trust adds the certificates of a PEM file to those that the system trusts. No
// name is no file.
func (d *door) trust(file string) error {
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("CA of the mirror: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // there are none
	}
	if !pool.AppendCertsFromPEM(data) {
		return fmt.Errorf("CA of the mirror: %s has no certificate in PEM", file)
	}
	d.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return nil
}

// close ends idle connections.
func (d *door) close() { d.http.CloseIdleConnections() }

// A refusal is an answer of the mirror that asking again would not change.
type refusal struct {
	status int // of HTTP
	text   string
}

func (r refusal) Error() string { return r.text }

// manifest returns what ref names, by its digest if it has one, and the bytes,
// which have been compared with the digest. stale is the mirror's word that the
// tag may have moved on; empty if it is up to date.
func (d *door) manifest(ctx context.Context, ref origin.Ref) (m part, raw []byte, stale string, err error) {
	name := ref.Tag
	if !ref.Digest.IsZero() {
		name = ref.Digest.String()
	}
	resp, err := d.get(ctx, ref, "manifests/"+name, 0)
	if err != nil {
		return part{}, nil, "", err
	}
	defer resp.Body.Close() // read to its end, or of no use
	raw, err = io.ReadAll(io.LimitReader(resp.Body, origin.MaxManifest+1))
	if err != nil {
		return part{}, nil, "", err
	}
	digest := ref.Digest
	if digest.IsZero() {
		digest, err = proto.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
		if err != nil {
			return part{}, nil, "", fmt.Errorf("the mirror at %s does not say which digest the manifest has: %w", d.addr, err)
		}
	}
	h := digest.NewHash()
	h.Write(raw)
	if !digest.Matches(h) {
		return part{}, nil, "", fmt.Errorf("the manifest that the mirror at %s sent is not what its digest %s says", d.addr, digest)
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	m = part{Blob: proto.Blob{Digest: digest, Size: int64(len(raw))}, desc: descriptor(digest, int64(len(raw)), strings.TrimSpace(mediaType))}
	return m, raw, resp.Header.Get("Warning"), nil
}

// blob returns the bytes of a blob from an offset on. The caller closes it.
func (d *door) blob(ctx context.Context, ref origin.Ref, digest proto.Digest, from int64) (io.ReadCloser, error) {
	resp, err := d.get(ctx, ref, "blobs/"+digest.String(), from)
	if err != nil {
		return nil, err
	}
	if from > 0 && resp.StatusCode != http.StatusPartialContent {
		if _, err := io.CopyN(io.Discard, resp.Body, from); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
	}
	return resp.Body, nil
}

// get asks for something of ref's repository, and returns an answer that is a
// success.
func (d *door) get(ctx context.Context, ref origin.Ref, what string, from int64) (*http.Response, error) {
	at := d.base + "/v2/" + ref.Repository + "/" + what + "?ns=" + url.QueryEscape(ref.Upstream)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, fmt.Errorf("mirror address %q: %w; write host:port, https://host:port or unix:/path", d.addr, err)
	}
	if strings.HasPrefix(what, "manifests/") {
		req.Header.Set("Accept", manifestTypes)
	}
	if from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
	}
	resp, err := d.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("no mirror answers at %s: start one with `shoal daemon`, or say with --mirror where its mirror.listen is", d.addr)
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
		return resp, nil
	}
	defer resp.Body.Close() // of no more use
	text := saidBy(resp)
	if resp.StatusCode >= 500 {
		return nil, errors.New(text)
	}
	return nil, refusal{resp.StatusCode, text}
}

// saidBy returns the message of a registry's error (distribution-spec, "Error
// Codes").
func saidBy(resp *http.Response) string {
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what there is of it
	if json.Unmarshal(data, &body) != nil || len(body.Errors) == 0 || body.Errors[0].Message == "" {
		return "the mirror answered " + resp.Status
	}
	return body.Errors[0].Message
}

// mirrorAddr returns the address of the mirror of a node that was asked at
// admin and says that it is at mirror. A mirror at all addresses of its machine
// is where the admin door is.
func mirrorAddr(admin, mirror string) string {
	addr, secure := strings.CutPrefix(mirror, "https://")
	host, port, err := net.SplitHostPort(addr)
	if err != nil || strings.HasPrefix(mirror, "unix:") {
		return mirror
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return mirror
	}
	_, at, scheme := strings.Cut(admin, "://")
	if !scheme {
		at = admin
	}
	host, _, err = net.SplitHostPort(at)
	if err != nil || host == "" || strings.HasPrefix(admin, "unix:") {
		host = "127.0.0.1"
	}
	addr = net.JoinHostPort(host, port)
	if secure {
		return "https://" + addr
	}
	return addr
}
