package door

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestHTTP2(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	d := open(t, Config{TLS: ca.files(t, t.TempDir(), "a")}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})
	if _, proto := get(t, browser(t, trusting(ca.pool)), "https://"+d.Addr()); proto != "HTTP/2.0" {
		t.Errorf("a client that can do both got %s", proto)
	}
	old := browser(t, trusting(ca.pool), func(tr *http.Transport) {
		tr.ForceAttemptHTTP2 = false
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	})
	if _, proto := get(t, old, "https://"+d.Addr()); proto != "HTTP/1.1" {
		t.Errorf("an old client got %s", proto)
	}
	// net/http tells clients of plain HTTP that this is another door.
	if status, _ := get(t, browser(t), "http://"+d.Addr()); status != 400 {
		t.Errorf("status %d over plain HTTP", status)
	}
}

// An idle connection of HTTP/2 gives way too, and its client does not notice;
// one that has a stream stays.
func TestHTTP2GivesWay(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var in sync.WaitGroup
	in.Add(1)
	finish := make(chan struct{})
	d := open(t, Config{MaxConns: 2, TLS: ca.files(t, t.TempDir(), "a")}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			in.Done()
			<-finish
		}
		ok(w, r)
	})
	url := "https://" + d.Addr()
	busy := make(chan string, 1)
	go func() {
		_, body := get(t, browser(t, trusting(ca.pool)), url+"/wait")
		busy <- body
	}()
	in.Wait()
	first := browser(t, trusting(ca.pool))
	get(t, first, url)
	for range 5 {
		get(t, browser(t, trusting(ca.pool)), url)
	}
	get(t, first, url)
	if all, _ := d.crowd.count(); all > 2 {
		t.Errorf("%d connections", all)
	}
	close(finish)
	if body := <-busy; body != "ok" {
		t.Errorf("the stream that was going on: %q", body)
	}
}

// What a handler leaves in buffers for a client of HTTP/2 that has closed its
// window is not kept for ever.
func TestHTTP2ClosedWindow(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	d := openPatient(t, Config{TLS: ca.files(t, t.TempDir(), "a")}, 300*time.Millisecond, ok)
	c, err := tls.Dial("tcp", d.Addr(), &tls.Config{RootCAs: ca.pool, NextProtos: []string{"h2"}})
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(within)))
	_, err = io.WriteString(c, http2.ClientPreface)
	must(t, err)
	frames := http2.NewFramer(c, c)
	must(t, frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	var fields bytes.Buffer
	enc := hpack.NewEncoder(&fields)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a"}, {":path", "/"}} {
		must(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	must(t, frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndStream: true, EndHeaders: true}))
	for {
		f, err := frames.ReadFrame()
		must(t, err)
		if _, reset := f.(*http2.RSTStreamFrame); reset {
			return
		}
	}
}

// A response that is shorter than it said is an error to the client, over all
// of the protocols, and to Go's the one that containerd resumes after.
func TestCutIsSeen(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	files := ca.files(t, t.TempDir(), "a")
	cut := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "3000000")
		_, _ = w.Write(make([]byte, 1_000_000))
	}
	plain, secure := open(t, Config{}, cut), open(t, Config{TLS: files}, cut)
	one := func(tr *http.Transport) {
		tr.ForceAttemptHTTP2 = false
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	for _, tt := range []struct {
		url, proto string
		client     *http.Client
	}{
		{"http://" + plain.Addr(), "HTTP/1.1", browser(t)},
		{"https://" + secure.Addr(), "HTTP/1.1", browser(t, trusting(ca.pool), one)},
		{"https://" + secure.Addr(), "HTTP/2.0", browser(t, trusting(ca.pool))},
	} {
		resp, err := tt.client.Get(tt.url)
		must(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != 1_000_000 || !errors.Is(err, io.ErrUnexpectedEOF) || resp.Proto != tt.proto {
			t.Errorf("%s: %d bytes over %s, and %v", tt.url, n, resp.Proto, err)
		}
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl here")
	}
	for _, v := range []string{"--http1.1", "--http2"} {
		out, err := exec.CommandContext(t.Context(), curl, "-sS", "-k", v, "-o", "/dev/null", "https://"+secure.Addr()).CombinedOutput()
		if err == nil {
			t.Errorf("curl %s took a cut response for a whole one", v)
		}
		t.Logf("curl %s: %s", v, out)
	}
}

// served returns the name in the certificate that a new connection is shown.
func served(t *testing.T, d *Door, ca *authority) string {
	t.Helper()
	c, err := tls.Dial("tcp", d.Addr(), &tls.Config{RootCAs: ca.pool})
	must(t, err)
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// eventually waits for a name, as long as a change takes to be seen.
func eventually(t *testing.T, d *Door, ca *authority, want string) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		got := served(t, d, ca)
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still %s, want %s", got, want)
		}
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	dir := t.TempDir()
	files := ca.files(t, dir, "one")
	d := open(t, Config{TLS: files}, ok)
	kept := browser(t, trusting(ca.pool))
	get(t, kept, "https://"+d.Addr())
	if name := served(t, d, ca); name != "one" {
		t.Fatal(name)
	}
	ca.files(t, dir, "two") // in place, one after the other
	eventually(t, d, ca, "two")
	get(t, kept, "https://"+d.Addr()) // a connection from before goes on

	must(t, os.WriteFile(files.Cert, []byte("garbage"), 0o600))
	time.Sleep(600 * time.Millisecond) // longer than a change takes to be seen
	if name := served(t, d, ca); name != "two" {
		t.Errorf("%s after a file that is no good", name)
	}
	ca.files(t, dir, "three")
	eventually(t, d, ca, "three")
}

// As a secret that Kubernetes mounts.
func TestMountedCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	dir := t.TempDir()
	mount := func(version, name string) {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o755))
		ca.files(t, filepath.Join(dir, version), name)
		must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	mount("..1", "one")
	files := &TLS{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	must(t, os.Symlink("..data/tls.crt", files.Cert))
	must(t, os.Symlink("..data/tls.key", files.Key))
	d := open(t, Config{TLS: files}, ok)
	mount("..2", "two")
	eventually(t, d, ca, "two")
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	files := ca.files(t, dir, "a")
	cert := ca.pem()
	files.ClientCA = filepath.Join(dir, "clients.pem")
	must(t, os.WriteFile(files.ClientCA, cert, 0o600))
	required := *files
	required.RequireClient = true
	var seen atomic.Value
	h := func(w http.ResponseWriter, r *http.Request) {
		name := ""
		if len(r.TLS.VerifiedChains) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		seen.Store(name)
	}
	asked, must2 := open(t, Config{TLS: files}, h), open(t, Config{TLS: &required}, h)
	pair := func(a *authority) tls.Certificate {
		p, err := tls.X509KeyPair(a.issue(t, "operator"))
		must(t, err)
		return p
	}
	for _, tt := range []struct {
		d     *Door
		certs []tls.Certificate
		name  string
		ok    bool
	}{
		{asked, nil, "", true},
		{asked, []tls.Certificate{pair(ca)}, "operator", true},
		{must2, []tls.Certificate{pair(ca)}, "operator", true},
		{must2, nil, "", false},
	} {
		resp, err := browser(t, trusting(ca.pool, tt.certs...)).Get("https://" + tt.d.Addr())
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != tt.ok || tt.ok && seen.Load() != tt.name {
			t.Errorf("%v, seen as %q, want %q: %v", tt.certs != nil, seen.Load(), tt.name, err)
		}
	}
	// One that is shown although its CA was not asked for.
	liar := pair(other)
	c, err := tls.Dial("tcp", asked.Addr(), &tls.Config{RootCAs: ca.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &liar, nil }})
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil {
		t.Error("a certificate of another CA was let in")
	}
}

func TestTLSMistakes(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	dir := t.TempDir()
	files := ca.files(t, dir, "a")
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	_, foreign := ca.issue(t, "b")
	wrong := filepath.Join(dir, "wrong.key")
	must(t, os.WriteFile(wrong, foreign, 0o600))
	for _, tt := range []struct {
		tls  TLS
		want string
	}{
		{TLS{Cert: filepath.Join(dir, "no.crt"), Key: files.Key}, "no such file"},
		{TLS{Cert: files.Cert, Key: wrong}, "private key does not match"},
		{TLS{Cert: files.Cert, Key: files.Key, ClientCA: empty}, "has no certificate in PEM"},
		{TLS{Cert: files.Cert, Key: files.Key, RequireClient: true}, "set clientCA"},
	} {
		_, err := Listen(Config{Name: "mirror", Addr: "127.0.0.1:0", TLS: &tt.tls, Server: &http.Server{}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "mirror.tls: ") {
			t.Errorf("%v, want it to say %q", err, tt.want)
		}
	}
}

// Handshakes that do not go on are connections without a request.
func TestSilentHandshakes(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	d := open(t, Config{MaxConns: 10, TLS: ca.files(t, t.TempDir(), "a")}, ok)
	for range 50 {
		c, err := net.Dial("tcp", d.Addr())
		must(t, err)
		defer c.Close()
		fmt.Fprint(c, "\x16\x03\x01")
	}
	if status, _ := get(t, browser(t, trusting(ca.pool)), "https://"+d.Addr()); status != 200 {
		t.Errorf("status %d", status)
	}
}
