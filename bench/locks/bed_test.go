package locks_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine),
		goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode")) // ends by itself
}

const (
	secretRepo = "team/secret" // ann's
	otherRepo  = "team/other"  // bob's and ann's
	publicRepo = "team/public" // anybody's
)

// passwords of the registry's users. root pushes.
var passwords = map[string]string{"ann": "the pass word of ann", "bob": "the pass word of bob", "gone": "the pass word of gone", "root": "the-pass-word-of-root"}

// A bed is a registry with a login and a fleet in front of it.
type bed struct {
	*registry.Registry
	t      *testing.T
	login  registry.Auth
	url    string
	fleet  *fleet.Fleet
	client *http.Client
	seed   *atomic.Uint64
}

// start starts a registry with the login, and nodes whose upstream has the given
// settings beside its URL.
func start(t *testing.T, login registry.Auth, nodes int, up daemon.Upstream, change func(i int, c *daemon.Config)) *bed {
	t.Helper()
	return startWith(t, login, up, nil, fleet.Options{Nodes: nodes, Configure: change})
}

// startWith is start with more options of the fleet, and with a writer that gets
// all that its members log; nil is nowhere.
func startWith(t *testing.T, login registry.Auth, up daemon.Upstream, log io.Writer, o fleet.Options) *bed {
	t.Helper()
	r := registry.New(registry.Options{
		Login: login, Users: passwords, Private: []string{secretRepo, otherRepo},
		Access: map[string][]string{"ann": {secretRepo, otherRepo, publicRepo}, "bob": {otherRepo, publicRepo}, "gone": {secretRepo}},
	})
	server := httptest.NewServer(r)
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	b := &bed{Registry: r, t: t, login: login, url: server.URL, client: &http.Client{Transport: tr}, seed: new(atomic.Uint64)}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		server.Close()
		r.Close()
	})
	up.URL = b.url
	change := o.Configure
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Origin = b.url
	o.Configure = func(i int, c *daemon.Config) {
		c.Admin.Listen = "127.0.0.1:0"
		if err := c.Cache.Reserve.UnmarshalText([]byte("1MiB")); err != nil {
			t.Error(err)
		}
		c.Mirror.Prefetch = false // what is where is what the tests say
		c.Upstreams = map[string]daemon.Upstream{fleet.Upstream: up}
		if change != nil {
			change(i, c)
		}
	}
	if os.Getenv("SHOAL_TEST_LOG") != "" {
		if log == nil {
			log = io.Discard
		}
		log = io.MultiWriter(log, os.Stderr)
	}
	if log != nil {
		o.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	f, err := fleet.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(); err != nil {
			t.Errorf("stopping the fleet: %v", err)
		}
	})
	b.fleet = f
	return b
}

// push pushes an image that nobody has seen: a layer of several chunks and a
// small one.
func (b *bed) push(repository string) registry.Image {
	b.t.Helper()
	seed := b.seed.Add(1)
	as := strings.Replace(b.url, "http://", "http://root:"+passwords["root"]+"@", 1)
	img, err := registry.PushImage(b.t.Context(), as, repository, fmt.Sprintf("v%d", seed), []int64{300_000, 1000}, seed)
	if err != nil {
		b.t.Fatal(err)
	}
	return img
}

// as returns the Authorization of a user of secretRepo or another repository.
func (b *bed) as(user string, repositories ...string) string {
	if b.login == registry.AuthBasic {
		return basic(user, passwords[user])
	}
	return "Bearer " + b.Token(user, 5*time.Minute, repositories...)
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// An answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request to node i's mirror. path follows /v2/.
func (b *bed) ask(i int, method, path, authorization string, header ...string) answer {
	b.t.Helper()
	return b.askAt(b.fleet.Nodes[i].MirrorURL(), method, path, authorization, header...)
}

func (b *bed) askAt(mirror, method, path, authorization string, header ...string) answer {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, mirror+"/v2/"+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	q := req.URL.Query()
	if !q.Has("ns") {
		q.Set("ns", fleet.Upstream)
	}
	req.URL.RawQuery = q.Encode()
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatalf("%s %s after %d bytes: %v", method, path, len(body), err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// pull pulls all of an image through node i.
func (b *bed) pull(i int, img registry.Image, authorization string) {
	b.t.Helper()
	a := b.ask(i, "GET", img.Repository+"/manifests/"+img.Tag, authorization)
	if a.status != http.StatusOK || !bytes.Equal(a.body, img.Raw) {
		b.t.Fatalf("manifest: status %d: %.300s", a.status, a.body)
	}
	for _, blob := range img.Blobs() {
		a := b.ask(i, "GET", img.Repository+"/blobs/"+blob.Digest.String(), authorization)
		if a.status != http.StatusOK || proto.DigestOf(a.body) != blob.Digest {
			b.t.Fatalf("blob %s: status %d, %d bytes: %.300s", blob.Digest, a.status, len(a.body), a.body)
		}
	}
}

// A secret is a private image with what must not be seen of it.
type secret struct {
	registry.Image
	layer   []byte // the first one
	windows map[[window]byte]bool
}

// window is how many bytes in a row count as content.
const window = 16

// pushSecret pushes a private image.
func (b *bed) pushSecret() secret {
	b.t.Helper()
	s := secret{Image: b.push(secretRepo), windows: make(map[[window]byte]bool)}
	s.layer = b.content(s.Image, s.Layers[0])
	for i := 0; i+window <= len(s.layer); i++ {
		s.windows[[window]byte(s.layer[i:])] = true
	}
	return s
}

// leaked returns what of the image's is in a: its digests, but the one that was
// asked for, or sixteen bytes in a row of its first layer.
func (s secret) leaked(a answer, asked string) string {
	var text bytes.Buffer
	_ = a.header.Write(&text)
	text.Write(a.body)
	for _, d := range append(s.Blobs(), s.Manifest) {
		if hex := d.Digest.Hex(); !strings.Contains(asked, hex) && bytes.Contains(text.Bytes(), []byte(hex)) {
			return fmt.Sprintf("the digest %s: %.300s", hex, text.Bytes())
		}
	}
	for i := 0; i+window <= text.Len(); i++ {
		if s.windows[[window]byte(text.Bytes()[i:])] {
			return "bytes of " + s.Layers[0].Digest.String()
		}
	}
	return ""
}

// content fetches a blob from the registry itself.
func (b *bed) content(img registry.Image, blob proto.Blob) []byte {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", b.url+"/v2/"+img.Repository+"/blobs/"+blob.Digest.String(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Authorization", b.as("root", img.Repository))
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("registry: %s, %v", resp.Status, err)
	}
	return data
}

// write writes a file that is a secret or a configuration.
func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
