//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

const (
	// user and password are those of whoever may pull the private images, which
	// are all below team/private.
	user, password = "ann", "s3cret of ann"
	// other and otherPassword are those of somebody with a login who may not.
	other, otherPassword = "bob", "s3cret of bob"
)

// A private is a distribution registry with a token server of its own, which
// lets nobody but its user pull the private repositories.
type private struct {
	*registry.Registry
	url string
}

// startPrivate starts a private origin.
func startPrivate(t *testing.T) *private {
	t.Helper()
	r := registry.New(registry.Options{
		Login:   registry.AuthToken,
		Users:   map[string]string{user: password, other: otherPassword},
		Access:  map[string][]string{other: {"team/other"}},
		Private: []string{"team/private", "team/private/second"},
	})
	t.Cleanup(r.Close)
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	// By name: crane takes no token server with a private address from a mirror.
	return &private{r, strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)}
}

// push is origin.push, by the user.
func (p *private) push(t *testing.T, repository string, docker bool, sizes ...int64) image {
	t.Helper()
	o := &origin{
		registry: strings.TrimPrefix(p.url, "http://"),
		login:    authn.FromConfig(authn.AuthConfig{Username: user, Password: password}),
	}
	return o.push(t, repository, docker, sizes...)
}

// bytes returns how many bytes of content have left.
func (p *private) bytes() int64 {
	c := p.Count()
	return c.BlobBytes + c.ManifestBytes
}

// checkOnce checks that what left since the last Reset is the image once, within
// 2 %.
func (p *private) checkOnce(t *testing.T, img image) {
	t.Helper()
	if got := p.bytes(); got > img.size*102/100 || got < img.size*98/100 {
		t.Errorf("%d bytes left the registry, and the image has %d", got, img.size)
	}
}

// checkNothing checks that nothing left since the last Reset.
func (p *private) checkNothing(t *testing.T, when string) {
	t.Helper()
	if got := p.bytes(); got != 0 {
		t.Errorf("%s: %d bytes left the registry", when, got)
	}
}

// startPassthrough starts a daemon that asks the origin with what its callers
// send.
func (p *private) startPassthrough(t *testing.T, dir string) *process.Node {
	t.Helper()
	config := filepath.Join(dir, "passthrough.yaml")
	write(t, config, fmt.Sprintf(`
data: %s
mirror: {default: %[2]s}
upstreams:
  %[2]s: {url: %q, auth: passthrough}
`, filepath.Join(dir, "passthrough"), upstream, p.url))
	n := startNode(t, process.NodeOptions{Name: "passthrough", Command: "daemon", Args: []string{"--config", config}})
	if err := process.Converge(startup(t), n); err != nil {
		t.Fatal(err)
	}
	return n
}

// serveTLS serves the origin over TLS at ports of a host's address. It returns
// the registry's names, one per port, and the file of the CA to trust for them.
func (p *private) serveTLS(t *testing.T, dir string, at *netns.Host, ports ...uint16) (names []string, file string) {
	t.Helper()
	ca, err := registry.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.TLS(at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "registry-ca.crt")
	write(t, file, string(ca.PEM))
	for _, port := range ports {
		name := netip.AddrPortFrom(at.Addr(), port).String()
		ln, err := at.Listen(t.Context(), "tcp", name)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: p.Registry, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)} // clients that left
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.ServeTLS(ln, "", "") // until Close
		}()
		t.Cleanup(func() {
			_ = srv.Close()
			<-done
		})
		names = append(names, name)
	}
	return names, file
}

// A door is a way to ask a node, without a client's own ideas of when to ask.
type door struct {
	client *http.Client
	url    string // in front of /v2/
	query  string
}

// get asks for something, and returns the status and the body.
func (d *door) get(t *testing.T, path, authorization, bytes string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/v2/"+path+d.query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "*/*")
	for name, value := range map[string]string{"Authorization": authorization, "Range": bytes} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := d.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// everything returns the paths of all that an image is made of, with the digest
// that the answer must have, if the path says it.
func (i image) everything() map[string]proto.Digest {
	paths := map[string]proto.Digest{i.repository + "/manifests/v1": {}}
	add := func(path, digest string) {
		paths[i.repository+path+digest], _ = proto.ParseDigest(digest) // a library has made it
	}
	add("/manifests/", i.digest)
	for _, l := range i.layers {
		add("/blobs/", l.Digest.String())
	}
	return paths
}

// checkStrangers checks that who may not have an image gets an error of the
// registry's kind for each part of it, and no more.
func (d *door) checkStrangers(t *testing.T, o *private, img image) {
	t.Helper()
	for who, authorization := range map[string]string{
		"nobody":                   "",
		"nonsense":                 "Bearer nonsense",
		"a token of another":       "Bearer " + o.Token(other, time.Minute, "team/other"),
		"a token that has expired": "Bearer " + o.Token(user, -time.Minute, img.repository),
		// The right one, but this registry takes tokens only.
		"a password": "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)),
	} {
		for path := range img.everything() {
			for _, bytes := range []string{"", "bytes=0-99", "bytes=1000-"} {
				code, body := d.get(t, path, authorization, bytes)
				var said struct {
					Errors []struct{ Code string }
				}
				if err := json.Unmarshal(body, &said); err != nil || len(said.Errors) != 1 || len(body) > 4096 || code < 401 || code > 404 {
					t.Errorf("%s asked for %s, %q, and got %d and %d bytes: %.300q", who, path, bytes, code, len(body), body)
				}
			}
		}
	}
}

// checkOwner checks that who may have an image gets each part of it, in the very
// same way.
func (d *door) checkOwner(t *testing.T, o *private, img image) {
	t.Helper()
	token := "Bearer " + o.Token(user, time.Minute, img.repository)
	for path, want := range img.everything() {
		code, body := d.get(t, path, token, "")
		if code != http.StatusOK || !want.IsZero() && proto.DigestOf(body) != want {
			t.Errorf("the owner asked for %s and got %d and %d bytes: %.300q", path, code, len(body), body)
		}
	}
}
